"""What the K quantizers share: importances, the scales of scales, and the final rounding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Bytes, Floats
from quantlab.gguf.k_packing import (
    pack_four_pairs,
    pack_six,
    pack_six_pairs,
    unpack_four_pairs,
    unpack_six,
    unpack_six_pairs,
)
from quantlab.gguf.lanes import MAGIC, MANTISSA, MIDDLE, TINY, nearest
from quantlab.gguf.rounding import bits, half_float
from quantlab.gguf.search import (
    affine,
    affine_codes,
    coordinate,
    positive,
    symmetric,
    symmetric_codes,
)
from quantlab.native import compiled

Halves = NDArray[np.float16]
SMALLEST, INFINITY = np.int32(0), np.int32(0x7F800000)  # float32's bits


class AffineGrid(NamedTuple):
    """How a type with scales and minimums is searched without an imatrix."""

    size: int  # weights a sub-block
    top: int  # largest code
    levels: int  # largest code of a scale or minimum
    tries: tuple[float, float, int]  # first, step, last
    absolute: bool
    sigma: int  # with an imatrix: sigma2 is this times the mean square of the 256


class AffineBlocks(NamedTuple):
    """Super-blocks before packing; weight = d ls l - dmin lm."""

    d: Halves  # (blocks,)
    dmin: Halves
    scales: Bytes  # (blocks, 12 or 16): ls and lm packed
    codes: Bytes  # (blocks, 256)


@np.errstate(all="ignore")  # as in C: the driver refuses what is not finite
def quantize_affine(rows: Floats, imatrix: Floats | None, grid: AffineGrid) -> AffineBlocks:
    """Search scales and minimums of rows (rows, columns), then their common scales and the codes.

    With an imatrix the search is the same for all types, and the common scales are searched too.
    """
    x = rows.reshape(-1, grid.size)
    parts = 256 // grid.size
    if imatrix is None:
        found = affine(x, plain_importance(x, grid), grid.top, grid.tries, grid.absolute)
        scale, minimum, inverse, base = found
        d, ls = divide_range(scale.reshape(-1, parts), grid.levels)
        dmin, lm = divide_range(minimum.reshape(-1, parts), grid.levels)
    else:
        w = weigh(rows, imatrix, grid.sigma).reshape(-1, grid.size)
        scale, minimum, inverse, base = affine(x, w, grid.top, (-0.9, 0.05, 36), False)
        sums = ordered_sums(w).reshape(-1, parts)
        d, ls = positive(scale.reshape(-1, parts), sums, grid.levels)
        dmin, lm = positive(minimum.reshape(-1, parts), sums, grid.levels)
    codes = affine_codes(x, inverse, base, grid.top)
    d, dmin = to_half(d), to_half(dmin)
    scales = pack_pairs(ls, lm)
    steps, shifts = spread_pairs(d, dmin, scales)  # what a reader sees, also of a code over 63
    round_codes(x, steps.reshape(-1), shifts.reshape(-1), np.int32(0), np.int32(grid.top), codes)
    return AffineBlocks(d, dmin, scales, codes.reshape(-1, 256))


def pack_pairs(ls: Bytes, lm: Bytes) -> Bytes:
    """Pack scales and minimums (blocks, 8 or 16) as the type with so many sub-blocks does."""
    return pack_six_pairs(ls, lm) if ls.shape[1] == 8 else pack_four_pairs(ls, lm)


def spread_pairs(d: Halves, dmin: Halves, scales: Bytes) -> tuple[Floats, Floats]:
    """Return d ls and dmin lm (blocks, 8 or 16) of packed scales (blocks, 12 or 16)."""
    scales = np.ascontiguousarray(scales)
    ls, lm = unpack_six_pairs(scales) if scales.shape[1] == 12 else unpack_four_pairs(scales)
    return spread(d, ls), spread(dmin, lm)


@np.errstate(all="ignore")
def quantize_q3(rows: Floats, imatrix: Floats | None) -> tuple[Halves, Bytes, Bytes]:
    """Search Q3_K: d (blocks,), packed scales (blocks, 12), codes + 4 (blocks, 256)."""
    x = rows.reshape(-1, 16)
    if imatrix is None:
        scale, codes = coordinate(x)
        values = scale.reshape(-1, 16)
        d, inverse = divide_extreme(values, 32, np.float32(0))
        ls = symmetric_codes(values, inverse, 32)
    else:
        w = weigh(rows, imatrix, 2).reshape(-1, 16)
        scale, inverse = symmetric(x, w, 4)
        codes = symmetric_codes(x, inverse, 4)
        values = scale.reshape(-1, 16)
        d, inverse = symmetric(values, ordered_sums(w).reshape(-1, 16), 32)
        ls = symmetric_codes(values, inverse, 32)
    d, scales = to_half(d), pack_six(ls)
    round_symmetric(x, spread(d, unpack_six(scales)), 4, codes)
    return d, scales, codes.reshape(-1, 256)


@np.errstate(all="ignore")
def quantize_q6(rows: Floats, imatrix: Floats | None) -> tuple[Halves, NDArray[np.int8], Bytes]:
    """Search Q6_K: d (blocks,), scales (blocks, 16), codes + 32 (blocks, 256)."""
    x = rows.reshape(-1, 16)
    w = x * x if imatrix is None else np.broadcast_to(imatrix, rows.shape).reshape(-1, 16)
    scale, inverse = symmetric(x, w, 32)
    codes = symmetric_codes(x, inverse, 32)
    values = scale.reshape(-1, 16)
    d, inverse = divide_extreme(values, 128, TINY)
    scales = np.minimum(nearest_integers(inverse[:, None] * values), 127).astype(np.int8)
    codes.reshape(-1, 256)[inverse == 0] = 0  # all scales tiny: zero bytes
    d = to_half(d)
    round_symmetric(x, spread(d, scales), 32, codes)
    return d, scales, codes.reshape(-1, 256)


@compiled
def quantize_q8(x):
    """Return Q8_K's d (blocks,), codes (blocks, 256) and sums of 16 codes of x (blocks, 256)."""
    d, inverse = divide_extreme(x, 127, np.float32(0))
    codes, sums = np.empty(x.shape, np.int8), np.empty((x.shape[0], 16), np.int16)
    for b in range(x.shape[0]):
        for i in range(256):
            codes[b, i] = min(nearest(inverse[b] * x[b, i]), np.int32(127))
        for g in range(16):
            total = np.int32(0)
            for i in range(16 * g, 16 * g + 16):
                total += codes[b, i]
            sums[b, g] = total
    return d, codes, sums


@compiled
def divide_extreme(values, levels, least):
    """Return d = 1 / inverse and inverse = -levels / M, M each row's first value of largest size.

    Both are 0 where M is, or is smaller than ``least``. NaN is never the largest.
    """
    d, inverse = np.zeros(values.shape[0], np.float32), np.zeros(values.shape[0], np.float32)
    for b in range(values.shape[0]):
        bits_of_largest = SMALLEST
        for i in range(values.shape[1]):
            bits_of_largest = max(bits_of_largest, ordered_bits(values[b, i]))
        largest, at = np.int32(bits_of_largest).view(np.float32), 0
        if largest > 0 and not largest < least:
            while abs(values[b, at]) != largest:
                at += 1
            inverse[b] = np.float32(-levels) / values[b, at]
            d[b] = np.float32(1) / inverse[b]
    return d, inverse


@compiled
def ordered_bits(v):
    """Return integers that order sizes, as loops find the largest integer with vectors; NaN: 0."""
    size = np.float32(v).view(np.int32) & np.int32(0x7FFFFFFF)
    return np.int32(size if size <= INFINITY else 0)


def round_symmetric(x: Floats, steps: Floats, half: int, codes: Bytes) -> None:
    """Round x / step to codes + half (blocks, n) where the step is not 0."""
    steps = steps.reshape(-1)
    shifts = np.zeros_like(steps)
    round_codes(x, steps, shifts, np.int32(-half), np.int32(half - 1), codes)


def plain_importance(x: Floats, grid: AffineGrid) -> Floats:
    """Return |x| for the error in absolute value, else |x| + the root mean square of the block."""
    size = np.abs(x)
    if grid.absolute:
        return size
    mean = ordered_sums(x * x) / np.float32(grid.size)
    return np.sqrt(mean)[:, None] + size


def weigh(rows: Floats, imatrix: Floats, factor: int) -> Floats:
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


def nearest_integers(v: Floats) -> NDArray[np.int32]:
    """Round half to even as ``lanes.nearest`` does."""
    return ((v + MAGIC).view(np.int32) & MANTISSA) - MIDDLE


def to_half(d: Floats) -> Halves:
    """Round to float16; what overflows becomes inf, which the driver refuses."""
    return d.astype(np.float16)


def spread(d: Halves, codes: NDArray[np.uint8] | NDArray[np.int8]) -> Floats:
    """Return d (blocks,) times each of its codes (blocks, n), in float32."""
    return multiply(np.ascontiguousarray(bits(d)), codes)


@compiled
def multiply(d, codes):
    """Do as ``spread``, with d as bits."""
    steps = np.empty(codes.shape, np.float32)
    for b in range(codes.shape[0]):
        step = half_float(d[b])
        for g in range(codes.shape[1]):
            steps[b, g] = step * np.float32(codes[b, g])
    return steps


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
