"""The blocks of 32 weights with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from __future__ import annotations

import numpy as np

from quantlab.gguf.block_type import Blocks, BlockType, Floats
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
        codes = signed_codes(rows.reshape(-1), 8, bits(flat["d"]))
        pack_halves(codes, flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        d = bits(flat["d"])
        unpack_halves(flat["qs"], flat["qs"][:, :0], d, d[:0], 8, rows.reshape(-1))


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
        codes = affine_codes(rows.reshape(-1), 15, bits(flat["d"]), bits(flat["m"]))
        pack_halves(codes, flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale and add the minimum."""
        flat = blocks.reshape(-1)
        qs, d, m = flat["qs"], bits(flat["d"]), bits(flat["m"])
        unpack_halves(qs, qs[:, :0], d, m, 0, rows.reshape(-1))


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
        codes = signed_codes(rows.reshape(-1), 16, bits(flat["d"]))
        pack_halves(codes, flat["qs"])
        pack_fifth(codes, flat["qh"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        d = bits(flat["d"])
        unpack_halves(flat["qs"], flat["qh"], d, d[:0], 16, rows.reshape(-1))


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
        codes = affine_codes(rows.reshape(-1), 31, bits(flat["d"]), bits(flat["m"]))
        pack_halves(codes, flat["qs"])
        pack_fifth(codes, flat["qh"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale and add the minimum."""
        flat = blocks.reshape(-1)
        d, m = bits(flat["d"]), bits(flat["m"])
        unpack_halves(flat["qs"], flat["qh"], d, m, 0, rows.reshape(-1))


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
        encode_bytes(rows.reshape(-1), bits(flat["d"]), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        decode_bytes(bits(flat["d"]), flat["qs"], rows.reshape(-1))


@compiled
def signed_codes(x, half, d):
    """Fill the scales and return codes 0..2 half - 1, one row a block."""
    codes = np.empty((d.size, 32), np.uint8)
    flat = codes.reshape(-1)
    shift, top = np.float32(half) + np.float32(0.5), np.int32(2 * half - 1)
    for b in range(d.size):
        largest, extreme = np.float32(0), np.float32(0)
        for i in range(32 * b, 32 * b + 32):
            if abs(x[i]) > largest:
                largest, extreme = abs(x[i]), x[i]
        scale = extreme / np.float32(-half)
        inverse = reciprocal(scale)
        d[b] = half_bits(scale)
        for i in range(32 * b, 32 * b + 32):
            flat[i] = np.uint8(min(top, np.int32(x[i] * inverse + shift)))
    return codes


@compiled
def affine_codes(x, top, d, m):
    """Fill scales and minima and return codes 0..top, one row a block."""
    codes = np.empty((d.size, 32), np.uint8)
    flat = codes.reshape(-1)
    for b in range(d.size):
        low, high = x[32 * b], x[32 * b]
        for i in range(32 * b, 32 * b + 32):
            low = x[i] if x[i] < low else low
            high = x[i] if x[i] > high else high
        scale = (high - low) / np.float32(top)
        inverse = reciprocal(scale)
        d[b], m[b] = half_bits(scale), half_bits(low)
        for i in range(32 * b, 32 * b + 32):
            code = np.int32((x[i] - low) * inverse + np.float32(0.5))
            flat[i] = np.uint8(min(np.int32(top), code))
    return codes


@compiled
def pack_halves(codes, qs):
    """Pack the low four bits of 32 codes a block: j in the low nibble, j + 16 in the high one."""
    for b in range(len(codes)):
        for j in range(16):
            qs[b, j] = (codes[b, j] & 15) | (codes[b, j + 16] << 4)


@compiled
def pack_fifth(codes, qh):
    """Pack the fifth bits of 32 codes a block, bit j of the four bytes for code j."""
    for b in range(len(codes)):
        for k in range(4):
            byte = 0
            for j in range(8):
                byte |= (codes[b, 8 * k + j] >> 4) << j
            qh[b, k] = byte


@compiled
def unpack_halves(qs, qh, d, m, offset, x):
    """Fill x with (q - offset) d + m; ``qh`` and ``m`` may be empty."""
    for b in range(d.size):
        scale = half_float(d[b])
        # Adding -0.0 changes no float, not even a zero's sign.
        minimum = half_float(m[b]) if m.size else np.float32(-0.0)
        fifth = np.uint32(0)
        for k in range(qh.shape[1]):
            fifth |= np.uint32(qh[b, k]) << np.uint32(8 * k)
        for j in range(16):
            low = np.int32(qs[b, j] & 15) | np.int32((fifth >> j) & 1) << 4
            high = np.int32(qs[b, j] >> 4) | np.int32((fifth >> (j + 16)) & 1) << 4
            x[32 * b + j] = np.float32(low - np.int32(offset)) * scale + minimum
            x[32 * b + j + 16] = np.float32(high - np.int32(offset)) * scale + minimum


@compiled
def encode_bytes(x, d, qs):
    """Fill the scales and the signed bytes of Q8_0."""
    for b in range(d.size):
        largest = np.float32(0)
        for i in range(32 * b, 32 * b + 32):
            largest = max(largest, abs(x[i]))
        scale = largest / np.float32(127)
        inverse = reciprocal(scale)
        d[b] = half_bits(scale)
        for j in range(32):
            qs[b, j] = away(x[32 * b + j] * inverse)


@compiled
def decode_bytes(d, qs, x):
    """Fill x with q d."""
    for b in range(d.size):
        scale = half_float(d[b])
        for j in range(32):
            x[32 * b + j] = np.float32(qs[b, j]) * scale
