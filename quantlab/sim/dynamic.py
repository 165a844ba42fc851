"""Simulate activations that are quantized as they arrive: a grid for each token, none stored.

``QuantSim`` fixes one range per tensor beforehand. With four bits that is hopeless, so W4A4 methods
look at each token (or group of its numbers) anew. Nothing needs calibration; the price is a pass
over each token to find its extremes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.hadamard import hadamard_transform
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import KVCache, Llama
from quantlab.scheme import Scheme


def round_tokens(x: Tensor, scheme: Scheme) -> Tensor:
    """Round each token of ``x`` (..., numbers) on a grid of its own; the gradient passes through.

    Parameters
    ----------
    x : (..., numbers) float tensor
    scheme : Scheme
        Of 2 to 8 or 16 bits; its groups are groups of a token's numbers.

    Returns
    -------
    (..., numbers) tensor of the dtype of ``x``.

    Examples
    --------
    >>> round_tokens(torch.tensor([[-8.0, 3.2], [0.8, 0.11]]), Scheme(bits=4)).tolist()
    [[-8.0, 3.0], [0.800000011920929, 0.10000000149011612]]
    """
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    scale, zero_point = scheme.grid(scheme.group(exact))
    rounded = scheme.decode(scheme.encode(exact, scale, zero_point), scale, zero_point)
    return x + (rounded.to(x.dtype) - x).detach() if x.requires_grad else rounded.to(x.dtype)


class RoundedCache(KVCache):
    """A cache whose keys and values are rounded, head by head, as they enter it.

    Parameters
    ----------
    layers : int
    scheme : Scheme
        Groups are groups of a head's numbers; None is the whole head.
    rotate_keys : bool
        Keys are Hadamard-transformed before and back after. A machine would leave the stored keys
        as they are and transform the queries instead, once: the products are the same.
    """

    def __init__(self, layers: int, scheme: Scheme, *, rotate_keys: bool = False) -> None:
        super().__init__(layers)
        self.scheme, self.rotate_keys = scheme, rotate_keys

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add rounded (batch, kv_heads, new, head_dim) tensors; return all that the layer holds."""
        if self.rotate_keys:
            stored = round_tokens(hadamard_transform(key), self.scheme)
            key = hadamard_transform(stored, inverse=True)
        else:
            key = round_tokens(key, self.scheme)
        return super().append(layer, key, round_tokens(value, self.scheme))


class DynamicSim(nn.Module):
    """A model whose blocks' linears see inputs rounded token by token, and its KV cache too.

    The model itself is used, not copied, and is as before when the call is over. Its weights may be
    float or quantized: this adds the A and the KV of W4A4KV4.

    Parameters
    ----------
    model : nn.Module
    activations : Scheme, or None
        Of the input of every linear inside a block; the head stays in float.
    cache : Scheme, or None
        Of keys (after RoPE) and values; only this library's ``Llama`` has such a cache.
    rotate_keys : bool
        As for ``RoundedCache``.

    Raises
    ------
    UnsupportedModelError
        If the model's blocks are unknown, or ``cache`` is asked of another model.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> sim = DynamicSim(model, activations=Scheme(8), cache=Scheme(8, symmetric=False))
    >>> tokens = ql.test_set(tokenizer, samples=2)
    >>> 1 < ql.evaluate(sim, tokens, reference=model).ratio < 1.01
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        activations: Scheme | None = None,
        cache: Scheme | None = None,
        rotate_keys: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.activations, self.cache = model, activations, cache
        self.rotate_keys = rotate_keys
        if not block_layers(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no linear layer inside a ModuleList of blocks"
            )
        if cache is not None and not isinstance(model, Llama):
            raise UnsupportedModelError(
                f"{type(model).__name__} keeps its cache elsewhere; cache=... takes ql's Llama"
            )

    def forward(self, tokens: Tensor) -> Any:
        """Map tokens (batch, length) to what the model returns."""
        with self.rounding():
            if self.cache is None or not isinstance(self.model, Llama):
                return self.model(tokens)
            layers = self.model.config.num_hidden_layers
            cache = RoundedCache(layers, self.cache, rotate_keys=self.rotate_keys)
            return self.model(tokens, cache)

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Round what enters the linears while this lasts."""
        scheme = self.activations

        def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            assert scheme is not None  # else no hook is set
            return (round_tokens(args[0], scheme), *args[1:])

        layers = block_layers(self.model) if scheme is not None else []
        handles = [layer.register_forward_pre_hook(enter) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def block_layers(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers, float or quantized, inside the model's lists of blocks."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(part): part for one in lists for part in one.modules()}
    return [part for part in inside.values() if hasattr(part, "in_features")]
