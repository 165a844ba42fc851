"""Layers that hold packed integers instead of float weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.kernels.product import matmul
from quantlab.kernels.reference import matmul as by_definition
from quantlab.kernels.tiles import LANES, Tiles, refusal
from quantlab.nn_codebook import CodebookLinear
from quantlab.scheme import Scheme
from quantlab.tensor import PackedTensor

ROWS_AT_A_TIME = 512  # of a weight that is decoded to floats: a multiple of a tile's rows


class QuantizedLinear(nn.Module):
    """A linear layer that multiplies straight from packed codes and float16 scales.

    Parameters
    ----------
    packed : PackedTensor, (out, in)
    bias : (out,) float tensor, or None
    activation_bits : 16 or 8
        16 multiplies with the activations as they are. 8 rounds each group of them to int8 first:
        faster, and an error of its own. It can be changed at any time.

    Notes
    -----
    Weights of 4 and 8 bits lie in memory as ``Tiles``, and a kernel multiplies with them: no float
    copy exists at any time. Others, and float64 activations, are decoded a few hundred rows at a
    time. ``state_dict`` holds the rows as ``PackedTensor`` does, whatever the layout here.

    Examples
    --------
    >>> import torch, quantlab as ql
    >>> q = ql.rtn(torch.eye(16, 8), ql.Scheme(bits=4))
    >>> layer = QuantizedLinear(q.pack())
    >>> layer(torch.ones(1, 8))[0, :8].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> layer.nbytes  # 16 rows of 4 bytes of codes and one scale of 2 bytes
    96
    """

    codes: Tensor
    scale: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(
        self, packed: PackedTensor, bias: Tensor | None = None, *, activation_bits: int = 16
    ) -> None:
        super().__init__()
        self.scheme: Scheme = packed.scheme
        self.out_features, self.in_features = packed.shape
        self.tiled = refusal(packed.scheme) is None
        self.activation_bits = activation_bits
        self._tiles: tuple[tuple[Tensor, Tensor, Tensor | None], Tiles] | None = None
        for name in ("codes", "scale", "zeros"):
            self.register_buffer(name, None, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.hold(packed)

    def hold(self, packed: PackedTensor) -> None:
        """Take over a weight of this layer's scheme and shape."""
        tiles = Tiles.of(packed) if self.tiled else None
        self.codes = packed.data if tiles is None else tiles.words
        self.scale = packed.scale if tiles is None else tiles.scale
        self.zeros = packed.zeros if tiles is None else tiles.zeros

    @property
    def weight_tiles(self) -> Tiles:
        """The weight as kernels read it, sharing this layer's memory; made anew if that moved."""
        parts = (self.codes, self.scale, self.zeros)
        held = self._tiles
        if held is None or any(a is not b for a, b in zip(parts, held[0], strict=True)):
            held = self._tiles = (parts, self.tile_rows(0, len(self.codes)))
        return held[1]

    @property
    def packed(self) -> PackedTensor:
        """The weight in storage form."""
        return self.rows(0, self.out_features)

    def tile_rows(self, low: int, high: int) -> Tiles:
        """Return the tiles low..high: their rows of the weight."""
        zeros = None if self.zeros is None else self.zeros[low:high]
        rows = min(LANES * high, self.out_features) - LANES * low
        scale = self.scale[low:high].half()  # model.double() widens it
        shape = torch.Size((rows, self.in_features))
        return Tiles(self.codes[low:high], scale, zeros, self.scheme, shape)

    def rows(self, low: int, high: int) -> PackedTensor:
        """Return some rows of the weight; of tiled ones, ``low`` begins a tile."""
        if self.tiled:
            return self.tile_rows(low // LANES, -(-high // LANES)).packed()
        zeros = None if self.zeros is None else self.zeros[low:high]
        shape = torch.Size((high - low, self.in_features))
        return PackedTensor(
            self.codes[low:high], self.scale[low:high].half(), zeros, self.scheme, shape
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and bias; rows are padded to whole tiles."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of ``x``."""
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; its last axis must be {self.in_features}"
            )
        y: Tensor = Product.apply(x, self)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return x @ W.T, by a kernel if one takes the weight and the dtype."""
        if self.tiled and x.dtype != torch.float64:
            bits, tiles = self.scheme.bits, self.weight_tiles
            return matmul(x, tiles, bits, activation_bits=self.activation_bits, backend=None)
        if self.activation_bits == 8:
            return by_definition(x, self.packed, 8)
        return torch.cat([F.linear(x, weight) for _, weight in self.decoded(x.dtype)], dim=-1)

    def decoded(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield the weight as floats, some rows at a time, and which rows they are."""
        for low in range(0, self.out_features, ROWS_AT_A_TIME):
            high = min(low + ROWS_AT_A_TIME, self.out_features)
            yield slice(low, high), self.rows(low, high).dequantize(dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        packed = self.packed
        parts = {"data": packed.data, "scale": packed.scale, "zeros": packed.zeros}
        destination.update({prefix + n: part for n, part in parts.items() if part is not None})

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *rest: Any
    ) -> None:
        missing_keys = rest[2]  # of local_metadata, strict, missing_keys, unexpected_keys, ...
        names = ["data", "scale"] + ([] if self.zeros is None else ["zeros"])
        absent = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(absent)
        if not absent:
            data, scale, *zeros = (state_dict[prefix + name] for name in names)
            shape = torch.Size((self.out_features, self.in_features))
            zero = zeros[0] if zeros else None
            self.hold(PackedTensor(data, scale.half(), zero, self.scheme, shape))
        own = {prefix + name for name in names}
        others = {name: part for name, part in state_dict.items() if name not in own}
        super()._load_from_state_dict(others, prefix, *rest)

    def extra_repr(self) -> str:
        """Name sizes, scheme and cost in ``print(model)``."""
        a8 = ", int8 activations" if self.activation_bits == 8 else ""
        return f"{self.in_features}, {self.out_features}, {self.scheme}{a8}, {self.nbytes} bytes"


class Product(torch.autograd.Function):
    """x @ W.T with a constant W: gradients flow to x alone, as adapters need it.

    Where activations are rounded to int8, the gradient is that of the product without rounding.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:  # type: ignore[override]
        """Multiply, and remember the layer."""
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return gradient @ W, decoding a few hundred rows of W at a time."""
        parts = ctx.layer.decoded(gradient.dtype)
        return sum_of(gradient[..., rows] @ weight for rows, weight in parts), None


def sum_of(parts: Iterator[Tensor]) -> Tensor:
    """Add tensors up in place of the first."""
    total = next(parts)
    for part in parts:
        total += part
    return total


def activation_bits_(model: nn.Module, bits: int) -> int:
    """Let all quantized linears of a model multiply with 16-bit (float) or int8 activations.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    bits : 16 or 8

    Returns
    -------
    int
        How many layers were set.

    Raises
    ------
    ValueError
        If bits is neither, or the model has no quantized linear.

    Examples
    --------
    >>> import quantlab as ql
    >>> layer = ql.QuantizedLinear(ql.rtn(torch.eye(8), ql.Scheme(bits=8)).pack())
    >>> ql.activation_bits_(layer, 8)
    1
    """
    if bits not in (8, 16):
        raise ValueError(f"bits is {bits!r}; activations have 16 (floats) or 8 (int8)")
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if not layers:
        raise ValueError("the model has no QuantizedLinear; quantize it first")
    for layer in layers:
        layer.activation_bits = bits
    return len(layers)


def is_quantized(module: nn.Module) -> bool:
    """Tell whether any linear inside ``module`` stores its weight as integers.

    Looks at storage, not at names: a float tensor with few distinct values is not quantized. Knows
    this library's layers, torch's dynamically quantized ones and bitsandbytes' int8 and 4-bit ones.

    Examples
    --------
    >>> is_quantized(nn.Linear(8, 8))
    False
    """
    return any(stores_integers(leaf) for leaf in module.modules())


def stores_integers(leaf: nn.Module) -> bool:
    """Tell whether one layer's own weight is an integer tensor."""
    if isinstance(leaf, QuantizedLinear | CodebookLinear):
        return True
    weight = getattr(leaf, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):  # torch.ao: weight() returns qint8
        weight = weight()
    if not isinstance(weight, Tensor):
        return False
    return weight.is_quantized or weight.dtype in (torch.uint8, torch.int8)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's distinct parameters and buffers."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())
