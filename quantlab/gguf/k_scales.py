"""What the K quantizers share: importances, the scales of scales, and the final rounding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Bytes, Floats
from quantlab.gguf.lanes import MAGIC, MANTISSA, MIDDLE, nearest
from quantlab.gguf.search import affine, affine_codes, positive
from quantlab.native import compiled

Halves = NDArray[np.float16]


class AffineGrid(NamedTuple):
    """How a type with scales and minimums is searched without an imatrix."""

    size: int  # weights a sub-block
    top: int  # largest code
    levels: int  # largest code of a scale or minimum
    search: tuple[float, float, int, bool]  # first, step, last, absolute
    sigma: float  # with an imatrix: sigma2 is this times the mean square of the 256


class AffineBlocks(NamedTuple):
    """Super-blocks before packing; weight = d ls l - dmin lm."""

    d: Halves  # (blocks,)
    dmin: Halves
    ls: Bytes  # (blocks, sub-blocks)
    lm: Bytes
    codes: Bytes  # (blocks, 256)


def quantize_affine(rows: Floats, imatrix: Floats | None, grid: AffineGrid) -> AffineBlocks:
    """Search scales and minimums of rows (rows, columns), then their common scales and the codes.

    With an imatrix the search is the same for all types, and the common scales are searched too.
    """
    x = rows.reshape(-1, grid.size)
    parts = 256 // grid.size
    if imatrix is None:
        found = affine(x, plain_importance(x, grid), grid.top, *grid.search)
        scale, minimum, inverse, base = found
        d, ls = divide_range(scale.reshape(-1, parts), grid.levels)
        dmin, lm = divide_range(minimum.reshape(-1, parts), grid.levels)
    else:
        w = weigh(rows, imatrix, grid.sigma).reshape(-1, grid.size)
        scale, minimum, inverse, base = affine(x, w, grid.top, -0.9, 0.05, 36, False)
        sums = ordered_sums(w).reshape(-1, parts)
        d, ls = positive(scale.reshape(-1, parts), sums, grid.levels)
        dmin, lm = positive(minimum.reshape(-1, parts), sums, grid.levels)
    codes = affine_codes(x, inverse, base, grid.top)
    d, dmin = to_half(d), to_half(dmin)
    steps, shifts = spread(d, ls), spread(dmin, lm)
    round_codes(x, steps.reshape(-1), shifts.reshape(-1), np.int32(0), np.int32(grid.top), codes)
    return AffineBlocks(d, dmin, ls, lm, codes.reshape(-1, 256))


def plain_importance(x: Floats, grid: AffineGrid) -> Floats:
    """Return |x| for the error in absolute value, else |x| + the root mean square of the block."""
    size = np.abs(x)
    if grid.search[-1]:
        return size
    mean = ordered_sums(x * x) / np.float32(grid.size)
    return np.sqrt(mean)[:, None] + size


def weigh(rows: Floats, imatrix: Floats, factor: float) -> Floats:
    """Return importance sqrt(factor mean(x x) + x x), the mean over each 256 weights of a row."""
    x = rows.reshape(len(rows), -1, 256)
    square = x * x
    mean = ordered_sums(square.reshape(-1, 256)) * np.float32(factor) / np.float32(256)
    square += mean.reshape(len(rows), -1, 1)
    return np.sqrt(square, out=square) * imatrix.reshape(-1, 256)


def divide_range(values: Floats, levels: int) -> tuple[Floats, Bytes]:
    """Divide the range up to each row's largest value (blocks, n) into levels: step and codes."""
    largest = np.maximum(values.max(axis=1), np.float32(0))
    inverse = np.divide(np.float32(levels), largest, where=largest > 0, out=np.zeros_like(largest))
    codes = nearest_integers(inverse[:, None] * values).astype(np.uint8)
    return largest / np.float32(levels), np.minimum(codes, np.uint8(levels))


def signed_extreme(values: Floats) -> Floats:
    """Return each row's first value of largest size, and 0 if none is larger (NaN is not)."""
    size = np.nan_to_num(np.abs(values), nan=0.0, posinf=np.inf)
    at = np.argmax(size, axis=1)[:, None]
    found = np.take_along_axis(values, at, 1)[:, 0]
    return np.where(np.take_along_axis(size, at, 1)[:, 0] > 0, found, np.float32(0))


def nearest_integers(v: Floats) -> NDArray[np.int32]:
    """Round half to even as ``lanes.nearest`` does."""
    return ((v + MAGIC).view(np.int32) & MANTISSA) - MIDDLE


def to_half(d: Floats) -> Halves:
    """Round to float16; what overflows becomes inf, which the driver refuses."""
    return d.astype(np.float16)


def spread(d: Halves, codes: NDArray[np.uint8] | NDArray[np.int8]) -> Floats:
    """Return d times each of its codes (blocks, n), in float32."""
    return d.astype(np.float32)[:, None] * codes.astype(np.float32)


@compiled
def ordered_sums(a):
    """Return the sums of rows (rows, n), each added from left to right; 16 rows advance at once."""
    rows, n = a.shape
    sums = np.zeros(rows, np.float32)
    for start in range(0, rows, 16):
        count = min(16, rows - start)
        for i in range(n):
            for j in range(start, start + count):
                sums[j] += a[j, i]
    return sums


@compiled
def round_codes(x, steps, shifts, low, high, codes):
    """Set codes = round((x + shift) / step) - low where the sub-block's step is not 0."""
    for b in range(x.shape[0]):
        step, shift = steps[b], shifts[b]
        if step != 0:
            for i in range(x.shape[1]):
                code = nearest((x[b, i] + shift) / step)
                code = code if code > low else low
                code = code if code < high else high
                codes[b, i] = np.uint8(code - low)
