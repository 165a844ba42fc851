"""A cache that stores old keys and values in few bits and the latest ones as they are.

Made for long contexts, where a model's cache outgrows its weights:

    tokens   0 ............................ | .............. newest
             packed codes, float16 grids    | floats, at least ``residual`` tokens

Tokens move to the left as new ones come: values one by one, keys in groups of ``group``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from quantlab.methods.kv_cache import Axis, PackedStates, pack_states
from quantlab.models.llama import KVCache, Llama, LlamaConfig, rotary_table, rotate


@dataclass
class Store:
    """The keys or the values of one layer: packed ones, and behind them those still in float."""

    bits: int | None
    axis: Axis
    group: int
    residual: int
    packed: PackedStates | None = None
    recent: Tensor | None = None

    def append(self, x: Tensor) -> Tensor:
        """Take (batch, heads, new, head_dim); return all tokens, the new ones untouched."""
        self.recent = x if self.recent is None else torch.cat([self.recent, x], -2)
        everything = self.all()
        self.compress()
        return everything

    def all(self) -> Tensor:
        """Return all tokens, those that were packed with what was lost."""
        assert self.recent is not None  # for the type checker: append has been called
        if self.packed is None:
            return self.recent
        return torch.cat([self.packed.dequantize(self.recent.dtype), self.recent], -2)

    def compress(self) -> None:
        """Pack the oldest floats, in whole groups, until less than one more could go."""
        assert self.recent is not None  # for the type checker: append has been called
        step = self.group if self.axis == "channel" else 1
        count = max(0, self.recent.shape[-2] - self.residual) // step * step
        if self.bits is None or not count:
            return
        old, self.recent = self.recent[..., :count, :], self.recent[..., count:, :].clone()
        packed = pack_states(old, self.bits, axis=self.axis, group=self.group)
        self.packed = packed if self.packed is None else self.packed.joined(packed)

    @property
    def tokens(self) -> int:
        """Tokens held."""
        packed = 0 if self.packed is None else self.packed.tokens
        return packed + (0 if self.recent is None else self.recent.shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of packed and float tokens."""
        packed = 0 if self.packed is None else self.packed.nbytes
        recent = 0 if self.recent is None else self.recent.numel() * self.recent.element_size()
        return packed + recent


class QuantizedKVCache(KVCache):
    """A drop-in ``KVCache`` of the small Llama that packs old keys and values.

    Parameters
    ----------
    config : LlamaConfig
    key_bits, value_bits : 1..8, or None for floats
    key_axis, value_axis : "channel" or "token"
        What shares a scale, as in ``pack_states``. The defaults are KIVI's.
    group : int
        Numbers that share a scale.
    residual : tokens
        The latest tokens, which stay in float. Keys wait for a whole group, so up to
        ``group - 1`` more of them do.
    before_rope : bool
        Store keys as they were before their rotation, and rotate them when they are read: their
        outlier channels then stay in one place.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Notes
    -----
    A call's own tokens are met in float, as in KIVI's prefill: read a text token by token
    (``TokenByToken``) to see what the cache loses. KIVI packs all waiting keys when there are
    ``residual`` of them, so that between 0 and ``residual`` keys are floats; here it is at least
    ``residual``, as for values.

    References
    ----------
    Liu et al., KIVI, arXiv:2402.02750v2, Algorithm 1; before_rope: KVQuant, arXiv:2401.18079.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> cache = QuantizedKVCache(model.config, key_bits=4, value_bits=4, residual=16)
    >>> prompt = torch.tensor([tokenizer.encode("Once upon a time")])
    >>> story = model.generate(prompt, 60, cache=cache)
    >>> cache.length == story.shape[1] - 1, cache.nbytes < cache.length * 4096
    (True, True)
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        key_bits: int | None = 4,
        value_bits: int | None = 4,
        key_axis: Axis = "channel",
        value_axis: Axis = "token",
        group: int = 32,
        residual: int = 64,
        before_rope: bool = False,
    ) -> None:
        super().__init__(config.num_hidden_layers)
        check_arguments(config, key_bits, value_bits, group, residual)
        self.config, self.before_rope = config, before_rope
        layers = range(config.num_hidden_layers)
        self.key_stores = [Store(key_bits, key_axis, group, residual) for _ in layers]
        self.value_stores = [Store(value_bits, value_axis, group, residual) for _ in layers]

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.key_stores[0].tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all layers: codes, scales, lows and float tokens."""
        return sum(store.nbytes for store in [*self.key_stores, *self.value_stores])

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, kv_heads, new, head_dim) tensors and return all that the layer holds.

        The new tokens come back as they are; older ones with what their bits have lost.
        """
        keys, values = self.key_stores[layer], self.value_stores[layer]
        if not self.before_rope:
            return keys.append(key), values.append(value)
        start, end = keys.tokens, keys.tokens + key.shape[-2]
        cos, sin = self.rotary(start, end, key.dtype)
        stored = keys.append(rotate(key, cos, -sin))  # turned back by the same angle
        cos, sin = self.rotary(0, end, key.dtype)
        return rotate(stored, cos, sin), values.append(value)

    def rotary(self, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin for the tokens from ``start`` to ``end``."""
        positions = torch.arange(start, end)
        return rotary_table(positions, self.config.head_dim, self.config.rope_theta, dtype)


class TokenByToken(nn.Module):
    """A model that reads each text one token at a time through a cache, for ``evaluate``.

    Parameters
    ----------
    model : Llama
    make_cache : function without arguments
        Makes an empty cache for each batch of texts.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> tokens = ql.test_set(tokenizer, samples=1, length=80)
    >>> cached = TokenByToken(model, lambda: QuantizedKVCache(model.config, key_bits=2))
    >>> ql.perplexity(cached, tokens) < 1.5 * ql.perplexity(model, tokens)
    True
    """

    def __init__(self, model: Llama, make_cache: Callable[[], KVCache]) -> None:
        super().__init__()
        self.model, self.make_cache = model, make_cache
        self.nbytes = 0

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, length) to logits (batch, length, vocab_size)."""
        cache = self.make_cache()
        logits = [self.model(token, cache) for token in tokens.split(1, dim=1)]
        self.nbytes = cache_bytes(cache)
        return torch.cat(logits, 1)


def cache_bytes(cache: KVCache) -> int:
    """Return the bytes of a cache of either kind, for all the texts of its batch."""
    if isinstance(cache, QuantizedKVCache):
        return cache.nbytes
    parts = [cast(Tensor, part) for part in [*cache.keys, *cache.values] if part is not None]
    return sum(part.numel() * part.element_size() for part in parts)


def check_arguments(
    config: LlamaConfig, key_bits: int | None, value_bits: int | None, group: int, residual: int
) -> None:
    """Raise a ValueError for widths, groups and windows that no cache has."""
    for name, bits in (("key_bits", key_bits), ("value_bits", value_bits)):
        if bits is not None and (type(bits) is not int or not 1 <= bits <= 8):
            raise ValueError(f"{name} is {bits!r}; choose 1..8, or None for floats")
    if type(group) is not int or group < 1 or config.head_dim % group:
        raise ValueError(f"group is {group!r}; choose a divisor of head_dim {config.head_dim}")
    if type(residual) is not int or residual < 0:
        raise ValueError(f"residual is {residual!r}; choose a number of tokens, 0 or more")
