"""The blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from __future__ import annotations

import numpy as np

from quantlab.gguf import search
from quantlab.gguf.block_type import Blocks, BlockType, Bytes, Floats
from quantlab.gguf.nibbles import pack_fifth, pack_halves, unpack_halves
from quantlab.gguf.rounding import (
    HALF_OVERFLOW,
    away,
    below,
    bits,
    half_bits,
    half_float,
    reciprocal,
)
from quantlab.native import compiled


class Q4_0(BlockType):
    """32 weights in 18 bytes: w = d (q - 8), q = 0..15.

    ::

        byte  0 1   2            3                 17
              d     q16 | q0     q17 | q1    ...   q31 | q15     (high | low nibble)

    d = M / -8, M the first weight of the largest size: it lands on code 0 exactly, and d may be
    negative. q = min(15, floor(x/d + 8.5)).
    """

    id, size = 2, 32
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    limit = below(8 * HALF_OVERFLOW)
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Find the signed extreme of each block, then its codes."""
        flat = blocks.reshape(-1)
        pack_halves(signed_codes(rows, imatrix, 8, flat["d"]), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        d = bits(flat["d"])
        unpack_halves(flat["qs"], flat["qs"][:, :0], d, d[:0], 8, rows.reshape(-1, 32))


class Q4_1(BlockType):
    """32 weights in 20 bytes: w = d q + m, q = 0..15.

    ::

        byte  0 1   2 3   4            5                 19
              d     m     q16 | q0     q17 | q1    ...   q31 | q15     (high | low nibble)

    m = min x, d = (max x - m) / 15, q = floor((x - m)/d + 0.5).
    """

    id, size = 3, 32
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Spread sixteen levels from least to largest weight."""
        flat = blocks.reshape(-1)
        pack_halves(affine_codes(rows, imatrix, 15, flat["d"], flat["m"]), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale and add the minimum."""
        flat = blocks.reshape(-1)
        qs, d, m = flat["qs"], bits(flat["d"]), bits(flat["m"])
        unpack_halves(qs, qs[:, :0], d, m, 0, rows.reshape(-1, 32))


class Q5_0(BlockType):
    """32 weights in 22 bytes: w = d (q - 16), q = 0..31.

    ::

        byte  0 1   2 3 4 5            6            7                 21
              d     bit j = q_j >> 4   q16 | q0     q17 | q1    ...   q31 | q15

    d = M / -16, M the first weight of the largest size. q = min(31, floor(x/d + 16.5)).
    """

    id, size = 6, 32
    layout = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    limit = below(16 * HALF_OVERFLOW)
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """As Q4_0, with 32 levels."""
        flat = blocks.reshape(-1)
        codes = signed_codes(rows, imatrix, 16, flat["d"])
        pack_halves(codes, flat["qs"])
        pack_fifth(codes, flat["qh"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        d = bits(flat["d"])
        unpack_halves(flat["qs"], flat["qh"], d, d[:0], 16, rows.reshape(-1, 32))


class Q5_1(BlockType):
    """32 weights in 24 bytes: w = d q + m, q = 0..31.

    ::

        byte  0 1   2 3   4 5 6 7            8            9                 23
              d     m     bit j = q_j >> 4   q16 | q0     q17 | q1    ...   q31 | q15

    m = min x, d = (max x - m) / 31, q = floor((x - m)/d + 0.5).
    """

    id, size = 7, 32
    layout = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """As Q4_1, with 32 levels."""
        flat = blocks.reshape(-1)
        codes = affine_codes(rows, imatrix, 31, flat["d"], flat["m"])
        pack_halves(codes, flat["qs"])
        pack_fifth(codes, flat["qh"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale and add the minimum."""
        flat = blocks.reshape(-1)
        d, m = bits(flat["d"]), bits(flat["m"])
        unpack_halves(flat["qs"], flat["qh"], d, m, 0, rows.reshape(-1, 32))


class Q8_0(BlockType):
    """32 weights in 34 bytes: w = d q, q = -127..127.

    ::

        byte  0 1   2    3          33
              d     q0   q1   ...   q31     (int8)

    d = max |x| / 127, q = x/d rounded half away from zero.
    """

    id, size = 8, 32
    layout = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
    limit = below(127 * HALF_OVERFLOW)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Divide by the scale and round."""
        flat = blocks.reshape(-1)
        encode_bytes(rows.reshape(-1, 32), bits(flat["d"]), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        decode_bytes(bits(flat["d"]), flat["qs"], rows.reshape(-1, 32))


def signed_codes(rows: Floats, imatrix: Floats | None, half: int, d: Blocks) -> Bytes:
    """Fill the scales and return the codes 0..2 half - 1, one row a block."""
    x = rows.reshape(-1, 32)
    if imatrix is None:
        return round_signed(x, half, bits(d))
    d[:], inverse = search.symmetric(x, importances(rows, imatrix), half)
    return search.symmetric_codes(x, inverse, half)


def affine_codes(rows: Floats, imatrix: Floats | None, top: int, d: Blocks, m: Blocks) -> Bytes:
    """Fill scales and minima and return the codes 0..top, one row a block."""
    x = rows.reshape(-1, 32)
    if imatrix is None:
        return round_affine(x, top, bits(d), bits(m))
    w = importances(rows, imatrix)
    d[:], minimum, inverse, base = search.affine(x, w, top, (-0.9, 0.05, 36), False)
    m[:] = -minimum
    return search.affine_codes(x, inverse, base, top)


@compiled
def importances(rows, imatrix):
    """Return imatrix sqrt(mean x x of the whole row + x x), one row a block."""
    result = np.empty(rows.shape, np.float32)
    for r in range(len(rows)):
        total = np.float32(0)
        for j in range(imatrix.size):
            total += rows[r, j] * rows[r, j]
        mean = total / np.float32(imatrix.size)
        for j in range(imatrix.size):
            result[r, j] = imatrix[j] * np.sqrt(mean + rows[r, j] * rows[r, j])
    return result.reshape(-1, 32)


@compiled
def round_signed(x, half, d):
    """Divide by the signed extreme / -half, which lands on code 0: codes, one row a block."""
    codes = np.empty(x.shape, np.uint8)
    words = x.view(np.int32)
    shift, top = np.float32(half + 0.5), np.int32(2 * half - 1)
    for b in range(d.size):
        # As integers, the bits of positive floats have their order; flipped signs for the others.
        high, low = np.int32(0), np.int32(0)
        for j in range(x.shape[1]):
            high = max(high, words[b, j])
            low = max(low, np.int32(words[b, j] ^ np.int32(-(2**31))))
        extreme = np.int32(high).view(np.float32)
        if low > high or (low == high and first_is_negative(x, b, extreme)):
            extreme = -np.int32(low).view(np.float32)
        scale = extreme / np.float32(-half)
        inverse = reciprocal(scale)
        d[b] = half_bits(scale)
        for j in range(x.shape[1]):
            codes[b, j] = np.uint8(min(top, np.int32(x[b, j] * inverse + shift)))
    return codes


@compiled
def first_is_negative(x, b, size):
    """Tell whether the first weight of row b that is ``size`` or ``-size`` is negative."""
    for j in range(x.shape[1]):
        if abs(x[b, j]) == size:
            return x[b, j] < np.float32(0)
    return False


@compiled
def round_affine(x, top, d, m):
    """Spread the codes 0..top from the least to the largest weight: codes, one row a block."""
    codes = np.empty(x.shape, np.uint8)
    words = x.view(np.int32)
    for b in range(d.size):
        # Bits of floats, those of negative ones flipped, are integers in the floats' order.
        least, most = np.int32(2**31 - 1), np.int32(-(2**31))
        for j in range(x.shape[1]):
            flip = np.int32(np.int32(words[b, j] >> np.int32(31)) & np.int32(0x7FFFFFFF))
            key = np.int32(words[b, j] ^ flip)
            least, most = min(least, key), max(most, key)
        low, high = ordered_float(least), ordered_float(most)
        if low == np.float32(0):
            low = first_zero(x, b)
        scale = (high - low) / np.float32(top)
        inverse = reciprocal(scale)
        d[b], m[b] = half_bits(scale), half_bits(low)
        for j in range(x.shape[1]):
            code = np.int32((x[b, j] - low) * inverse + np.float32(0.5))
            codes[b, j] = np.uint8(min(np.int32(top), code))
    return codes


@compiled
def ordered_float(key):
    """Return the float of an integer key of ``round_affine``."""
    flip = np.int32(np.int32(key >> np.int32(31)) & np.int32(0x7FFFFFFF))
    return np.int32(key ^ flip).view(np.float32)


@compiled
def first_zero(x, b):
    """Return the first zero of row b, with its sign: the minimum stored is that one."""
    for j in range(x.shape[1]):
        if x[b, j] == np.float32(0):
            return x[b, j]
    return np.float32(0)


@compiled
def encode_bytes(x, d, qs):
    """Fill the scales and the signed bytes of Q8_0."""
    for b in range(d.size):
        largest = np.float32(0)
        for j in range(x.shape[1]):
            largest = max(largest, abs(x[b, j]))
        scale = largest / np.float32(127)
        inverse = reciprocal(scale)
        d[b] = half_bits(scale)
        for j in range(x.shape[1]):
            qs[b, j] = away(x[b, j] * inverse)


@compiled
def decode_bytes(d, qs, x):
    """Fill x with q d."""
    for b in range(d.size):
        scale = half_float(d[b])
        for j in range(x.shape[1]):
            x[b, j] = np.float32(qs[b, j]) * scale
