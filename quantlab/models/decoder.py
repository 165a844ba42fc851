"""Generate text from a quantized Llama one token at a time, as fast as its weights can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantlab.kernels import cpu, paths
from quantlab.kernels.decode_step import decode_step
from quantlab.kernels.lanes import Plan
from quantlab.kernels.tiles import LANES, Tiles, side_by_side
from quantlab.methods.rtn import rtn
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import DecoderLayer, Llama, check_prompt, pick, rotary_table
from quantlab.nn import QuantizedLinear
from quantlab.scheme import Scheme

# The linears of a layer by product: those of one product read the same input and lie together.
PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
FLOAT_BITS = 32
HEAD_GROUP = 32
Array = NDArray[Any]


class FastDecoder:
    """A Llama's weights in one piece, and a compiled step that takes a token through them.

    Parameters
    ----------
    model : Llama
        All linears of its blocks quantized to 4 or 8 bits in one scheme, or all of them float
        (then they are copied as float32).
    activation_bits : 16 or 8
        8 rounds each group of activations to int8 before each product of a quantized matrix.
    head_bits : 8, 4 or 32
        Bits of the output head, which is the embedding: rounded to nearest in groups of 32, or kept
        as float32.

    Raises
    ------
    UnsupportedModelError
        If linears are missing, mixed, or have a bias.
    ValueError
        If bits are others than those above.

    Notes
    -----
    The layers of ``model`` afterwards share this object's memory: packed weights exist once.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> report = ql.quantize_(model, ql.RTN(), ql.Scheme(bits=4, group_size=32))
    >>> prompt = torch.tensor([tokenizer.encode("Once upon a time")])
    >>> story = ql.FastDecoder(model).generate(prompt, new_tokens=8)
    >>> tokenizer.decode(story[0].tolist())
    'Once upon a time...'
    """

    def __init__(self, model: Llama, activation_bits: int = 16, head_bits: int = 8) -> None:
        if activation_bits not in (8, 16) or head_bits not in (4, 8, FLOAT_BITS):
            raise ValueError(
                f"activation_bits is {activation_bits}, head_bits {head_bits}; choose 16 or 8, "
                f"and 8, 4 or {FLOAT_BITS}"
            )
        self.config = model.config
        groups = [group_of(block, names) for block in model.blocks() for names in PRODUCTS]
        bits = common_bits(groups)
        layers = gather(groups)
        head = gather([[head_of(model, head_bits)]])
        self.plan, step = plan_of(bits, layers.places)
        self.head_plan, head_step = plan_of(head_bits, head.places)
        integers = activation_bits == 8
        self.levels = None if integers and bits != FLOAT_BITS else cpu.EVEN_LEVELS
        self.head_levels = None if integers and head_bits != FLOAT_BITS else cpu.EVEN_LEVELS
        self.zeros = layers.zeros
        self.layout = (step, layers.weight, layers.places, head_step, head.weight, head.places[0])
        self.eps = np.float32(self.config.rms_norm_eps)
        self.gains = np.stack([as_array(gain) for gain in gains_of(model)])
        self.embedding = as_array(model.model.embed_tokens.weight)

    def start(self) -> tuple[Any, ...]:
        """Return empty caches of keys and values, and the rotary tables."""
        c = self.config
        shape = (c.num_hidden_layers, c.num_key_value_heads)
        keys = np.zeros((*shape, c.head_dim, c.max_position_embeddings), np.float32)
        values = np.zeros((*shape, c.max_position_embeddings, c.head_dim), np.float32)
        positions = torch.arange(c.max_position_embeddings)
        cos, sin = rotary_table(positions, c.head_dim, c.rope_theta)
        return keys, values, as_array(cos), as_array(sin)

    def step(self, cache: tuple[Any, ...], token: int, position: int) -> Tensor:
        """Return the logits (vocab,) after ``token`` at ``position``, adding it to the cache."""
        c = self.config
        logits = decode_step(
            self.plan,
            self.levels,
            self.zeros,
            self.head_plan,
            self.head_levels,
            self.layout,
            self.gains,
            cache,
            self.embedding[token].copy(),
            (c.num_attention_heads, self.eps, position),
        )
        return torch.from_numpy(logits[: c.vocab_size])

    def logits(self, tokens: Tensor) -> Tensor:
        """Return logits (length, vocab) for tokens (length,); row i scores what follows token i."""
        cache = self.start()
        return torch.stack([self.step(cache, t, i) for i, t in enumerate(tokens.tolist())])

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, new_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Tensor:
        """Continue ``tokens`` (1, length), as ``Llama.generate`` does."""
        check_prompt(tokens, new_tokens, self.config.max_position_embeddings)
        generator, cache = torch.Generator().manual_seed(seed), self.start()
        ids = tokens[0].tolist()
        for position in range(len(ids) - 1):
            self.step(cache, ids[position], position)
        for _ in range(new_tokens):
            logits = self.step(cache, ids[-1], len(ids) - 1)
            choice = int(pick(logits[None], temperature, generator))
            if choice == self.config.eos_token_id:
                break
            ids.append(choice)
        return torch.tensor([ids])


def group_of(block: DecoderLayer, names: tuple[str, ...]) -> list[nn.Module]:
    """Return the linears of one product; an UnsupportedModelError if they cannot be joined."""
    layers = [block.get_submodule(name) for name in names]
    for name, layer in zip(names, layers, strict=True):
        if not isinstance(layer, (nn.Linear, QuantizedLinear)) or layer.bias is not None:
            raise UnsupportedModelError(
                f"{name} is {type(layer).__name__}; FastDecoder takes linears without bias, float "
                "or quantized to 4 or 8 bits"
            )
    return layers


def common_bits(groups: list[list[nn.Module]]) -> int:
    """Return the bits of all linears: 4, 8, or 32 for floats."""
    schemes = {getattr(layer, "scheme", None) for group in groups for layer in group}
    tiled = all(getattr(layer, "tiled", True) for group in groups for layer in group)
    if len(schemes) > 1 or not tiled:
        names = ", ".join(sorted(str(scheme or "float") for scheme in schemes))
        raise UnsupportedModelError(
            f"the linears are {names}; FastDecoder takes one scheme of 4 or 8 bits"
        )
    scheme = schemes.pop()
    return FLOAT_BITS if scheme is None else scheme.bits


def tiles_of(layer: nn.Module) -> Tiles:
    """Return a linear's weight in tiles; a float one as float32, a scale of 1 a row."""
    if isinstance(layer, QuantizedLinear):
        return layer.weight_tiles
    weight = cast(Tensor, layer.weight).detach().float()
    words = side_by_side(weight, multiple=1).view(torch.int32)
    scale = torch.ones(len(words), 1, LANES, dtype=torch.float16)
    return Tiles(words, scale, None, Scheme(16), weight.shape)


@dataclass(frozen=True)
class Gathered:
    """Many matrices in one piece: (words, scales), zero points, and where each product begins."""

    weight: tuple[Array, Array]
    zeros: Array | None
    places: Array


def gather(groups: list[list[nn.Module]]) -> Gathered:
    """Lay all matrices into one array of words and one of scales, and say where each begins.

    The buffers of quantized layers become parts of these arrays, so that no weight exists twice.
    """
    tiles = [[tiles_of(layer) for layer in group] for group in groups]
    every = [t for group in tiles for t in group]
    parts = {"codes": [t.words for t in every], "scale": [t.scale for t in every]}
    if every[0].zeros is not None:
        parts["zeros"] = [cast(Tensor, t.zeros) for t in every]
    flat = {name: torch.cat([part.reshape(-1) for part in parts[name]]) for name in parts}
    layers = [layer for group in groups for layer in group]
    for name, together in flat.items():
        pieces = together.split([part.numel() for part in parts[name]])
        for layer, piece, part in zip(layers, pieces, parts[name], strict=True):
            if isinstance(layer, QuantizedLinear):
                setattr(layer, name, piece.view(part.shape))
    weight = (flat["codes"].numpy(), flat["scale"].view(torch.uint16).numpy())
    zeros = flat["zeros"].numpy() if "zeros" in flat else None
    return Gathered(weight, zeros, places_of(tiles))


def places_of(groups: list[list[Tiles]]) -> Array:
    """Return (products, 7): where each product's matrix lies, as ``decode_step`` reads it."""
    places, word, scale = [], 0, 0
    for group in groups:
        check_rows(group)
        first, count = group[0], sum(len(t.words) for t in group)
        row_words, row_groups = first.words.shape[1], first.scale.shape[1]
        columns = first.shape[1]
        places.append((count, row_words, row_groups, row_words // row_groups, columns, word, scale))
        word += count * row_words * LANES
        scale += count * row_groups * LANES
    return np.array(places, np.int64)


def check_rows(group: list[Tiles]) -> None:
    """Raise an UnsupportedModelError unless the matrices can be stacked as they are."""
    first = group[0]
    per_word = 1 if first.scheme.bits == 16 else first.codes_per_word
    if first.shape[1] % per_word:
        raise UnsupportedModelError(
            f"rows of {first.shape[1]} codes do not fill whole words of {per_word}"
        )
    odd = [t.shape[0] for t in group[:-1] if t.shape[0] % LANES]  # another follows it
    if odd:
        raise UnsupportedModelError(
            f"a linear has {odd[0]} outputs; FastDecoder takes multiples of {LANES}"
        )


def plan_of(bits: int, places: Array) -> tuple[Plan, tuple[int, int]]:
    """Return a plan for one token, and its step; small matrices take one tile at a time."""
    tiles = 4 if places[:, 0].min() >= 4 else 1
    return Plan(paths.chosen(), bits, tiles, 1), (tiles, 1)


def head_of(model: Llama, bits: int) -> nn.Module:
    """Return the layer that turns hidden states into logits: the embedding, rounded to nearest."""
    own = model.lm_head
    weight = model.model.embed_tokens.weight if own is None else own.weight
    if bits != FLOAT_BITS:
        scheme = Scheme(bits, HEAD_GROUP)
        return QuantizedLinear(rtn(weight.detach().float(), scheme).pack())
    head = nn.Linear(1, 1, bias=False)
    head.weight = weight
    return head


def gains_of(model: Llama) -> list[Tensor]:
    """Return the gains of all norms, in the order in which a token meets them."""
    norms = []
    for block in model.blocks():
        norms += [block.input_layernorm.weight, block.post_attention_layernorm.weight]
    return [*norms, model.model.norm.weight]


def as_array(tensor: Tensor) -> Array:
    """Return a float32 array of a tensor's numbers."""
    return np.ascontiguousarray(tensor.detach().float().numpy())
