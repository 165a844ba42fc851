"""One matrix-vector product with 4-bit weights, written eight times, each time with one more idea.

This file is for reading; ``cpu.py`` does what the last one does. Each version is the one before it
and one idea. All give the product of a symmetric 4-bit weight with one vector.

=  ===================  =======================================================================
   name                 the bottleneck that it removes
=  ===================  =======================================================================
0  unpack               (none: a float matrix is written to memory and read back, 8 x the bytes)
1  loop                 the float matrix: each code is decoded where it is used
2  hoisted_scale        the multiplication of every weight by its scale: once a group is enough
3  int8_activations     floats: products and sums of small integers are exact, in any order
4  narrow_integers      64-bit arithmetic, which Numba takes for products of any integers
5  sixteen_rows         unpacking of nibbles one by one, and sums across a register: VPDPBUSD
6  four_tiles           waiting: an addition needs four cycles, and four chains fill them
7  threads              the other cores' idleness
=  ===================  =======================================================================
"""

# Bodies are compiled by Numba.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quantlab.kernels import cpu, threads
from quantlab.kernels.integer_kernels import integer_tiles
from quantlab.kernels.reference import quantize_activations
from quantlab.kernels.tiles import Tiles
from quantlab.native import compiled
from quantlab.tensor import PackedTensor

EIGHT = np.int32(8)


def unpack(x: Tensor, weight: PackedTensor) -> Tensor:
    """Version 0: decode the whole matrix, then multiply."""
    return x @ weight.dequantize(torch.float32).T


@compiled
def loop_rows(data, scale, group_size, x, out):
    """Version 1: decode each code where it is used."""
    for r in range(out.size):
        total = np.float32(0)
        for k in range(x.size):
            byte = data[r, k >> 1]
            code = byte >> 4 if k & 1 else byte & 15
            total += np.float32(scale[r, k // group_size] * np.float32(np.int32(code) - 8)) * x[k]
        out[r] = total


@compiled
def hoisted_scale_rows(data, scale, group_size, x, out):
    """Version 2: multiply by the scale once a group."""
    for r in range(out.size):
        total = np.float32(0)
        for g in range(scale.shape[1]):
            part = np.float32(0)
            for j in range(g * group_size // 2, (g + 1) * group_size // 2):
                byte = np.int32(data[r, j])
                part += np.float32((byte & 15) - 8) * x[2 * j]
                part += np.float32((byte >> 4) - 8) * x[2 * j + 1]
            total += scale[r, g] * part
        out[r] = total


@compiled
def int8_rows(data, scale, group_size, x, x_scale, out):
    """Version 3: integers; written as one thinks it, which Numba computes with 64 bits."""
    for r in range(out.size):
        total = np.float32(0)
        for g in range(scale.shape[1]):
            part = 0
            for j in range(g * group_size // 2, (g + 1) * group_size // 2):
                part += ((data[r, j] & 15) - 8) * x[2 * j] + ((data[r, j] >> 4) - 8) * x[2 * j + 1]
            total += np.float32(part) * np.float32(scale[r, g] * x_scale[g])
        out[r] = total


@compiled
def narrow_rows(data, scale, group_size, even, odd, x_scale, out):
    """Version 4: 32-bit sums, and even activations apart from odd ones: now loops are vectors."""
    half = group_size // 2
    for r in range(out.size):
        total = np.float32(0)
        for g in range(scale.shape[1]):
            part = np.int32(0)
            for j in range(np.uintp(g * half), np.uintp((g + 1) * half)):
                byte = np.int32(data[r, j])
                low = np.int32(np.int32(byte & np.int32(15)) - EIGHT)
                high = np.int32(np.int32(byte >> np.int32(4)) - EIGHT)
                part = np.int32(part + np.int32(low * np.int32(even[j])))
                part = np.int32(part + np.int32(high * np.int32(odd[j])))
            total += np.float32(part) * np.float32(scale[r, g] * x_scale[g])
        out[r] = total


def on_floats(kernel: Callable[..., None]) -> Callable[[Tensor, PackedTensor], Tensor]:
    """Make a product of a kernel with float activations."""

    def product(x: Tensor, weight: PackedTensor) -> Tensor:
        out = np.empty(weight.shape[0], np.float32)
        scale, group_size = weight.scale.float().numpy(), weight.scheme.group_size or x.numel()
        kernel(weight.data.numpy(), scale, group_size, x.numpy(), out)
        return torch.from_numpy(out)

    return product


def on_integers(x: Tensor, weight: PackedTensor) -> Tensor:
    """Version 3 as a product: round the activations, then multiply."""
    codes, x_scale = quantize_activations(x[None], weight.scheme.group_size)
    out, group_size = np.empty(weight.shape[0], np.float32), weight.scheme.group_size or x.numel()
    scale = weight.scale.float().numpy()
    int8_rows(weight.data.numpy(), scale, group_size, codes[0].numpy(), x_scale[0].numpy(), out)
    return torch.from_numpy(out)


def on_narrow_integers(x: Tensor, weight: PackedTensor) -> Tensor:
    """Version 4 as a product: round the activations, sort even from odd, then multiply."""
    codes, x_scale = quantize_activations(x[None], weight.scheme.group_size)
    even, odd = codes[0, ::2].contiguous().numpy(), codes[0, 1::2].contiguous().numpy()
    out, group_size = np.empty(weight.shape[0], np.float32), weight.scheme.group_size or x.numel()
    scale = weight.scale.float().numpy()
    narrow_rows(weight.data.numpy(), scale, group_size, even, odd, x_scale[0].numpy(), out)
    return torch.from_numpy(out)


def on_tiles(together: int, count: int | None) -> Callable[[Tensor, Tiles], Tensor]:
    """Versions 5 to 7 as a product: so many tiles at a time, on so many threads (None: all)."""

    def product(x: Tensor, weight: Tiles) -> Tensor:
        before = threads.setting()
        threads.set_threads(before if count is None else count)
        try:
            inputs = cpu.rounded_for(x[None].numpy(), weight, 1)
            y = cpu.launch(integer_tiles, weight, inputs, 1, (together, 1), 2)
        finally:
            threads.set_threads(before)
        return torch.from_numpy(y[0, : weight.shape[0]])

    return product


# name -> (product, whether its weight is Tiles): all take x (in,) and return (out,)
VERSIONS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "unpack": (unpack, False),
    "loop": (on_floats(loop_rows), False),
    "hoisted_scale": (on_floats(hoisted_scale_rows), False),
    "int8_activations": (on_integers, False),
    "narrow_integers": (on_narrow_integers, False),
    "sixteen_rows": (on_tiles(1, 1), True),
    "four_tiles": (on_tiles(4, 1), True),
    "threads": (on_tiles(4, None), True),
}
