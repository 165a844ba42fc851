"""Four-bit floats under a shared scale: MXFP4 and NVFP4."""

from __future__ import annotations

import numpy as np
import torch

from quantlab.floats import FP4_E2M1
from quantlab.gguf.block_type import Blocks, BlockType, Bytes, Floats
from quantlab.gguf.nibbles import pack_halves
from quantlab.native import compiled

# Twice the values of FP4 E2M1, which are integers: 0 1 2 3 4 6 8 12, then the negative ones.
LEVELS = (2 * FP4_E2M1.values()).to(torch.int8).numpy()
MIDDLES = (LEVELS[:7] + LEVELS[1:8]).astype(np.float32) / np.float32(2)


class MXFP4(BlockType):
    """32 weights in 17 bytes: w = 2^(e - 128) v(q), v = 0 1 2 3 4 6 8 12 and their negatives.

    ::

        byte  0   1            2                  16
              e   q16 | q0     q17 | q1    ...    q31 | q15     (high | low nibble)

    These are FP4 E2M1 numbers, doubled, under an E8M0 scale, halved.
    e = floor(log2 max |x|) - 2 + 127 in float32, and q is the nearest value: a tie goes to the
    smaller size. The largest weight may be clipped: it is up to 16 when v ends at 12.
    """

    id, size = 39, 32
    layout = np.dtype([("e", "u1"), ("qs", "u1", 16)])

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Take the exponent of the largest weight, then the nearest values."""
        flat, x = blocks.reshape(-1), rows.reshape(-1, 32)
        flat["e"] = e = exponents(x)
        pack_halves(nearest_levels(x, powers(e)), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Look values up and multiply by the power of two."""
        flat = blocks.reshape(-1)
        decode_levels(np.ascontiguousarray(flat["qs"]), powers(flat["e"]), rows.reshape(-1, 32))


class NVFP4(BlockType):
    """64 weights in 36 bytes: w = s/2 v(q), a scale s for every 16, v as in MXFP4.

    ::

        byte  0  1  2  3    4          5               11            12 .. 19   20 .. 27   28 .. 35
              s0 s1 s2 s3   q8 | q0    q9 | q1   ...   q15 | q7      of s1      of s2      of s3

    s is a positive FP8 E4M3 number near a = max |x| / 6, its mantissa rounded half up; below 2^-6
    a multiple of 2^-9, at most 7 of them; from a = 248 on it is 448, the largest. q is the nearest
    value, a tie goes to the smaller size. Weights above 6 * 448 would be clipped and are refused.
    """

    id, size = 40, 64
    layout = np.dtype([("scales", "u1", 4), ("qs", "u1", (4, 8))])
    limit = 2688.0

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round each sixteen's scale to E4M3, then take the nearest values."""
        flat, x = blocks.reshape(-1), rows.reshape(-1, 16)
        scales, packed = e4m3_codes(x), np.empty((len(x), 8), np.uint8)
        pack_halves(nearest_levels(x, e4m3_halves(scales)), packed)
        flat["scales"], flat["qs"] = scales.reshape(-1, 4), packed.reshape(-1, 4, 8)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Look values up and multiply by half the scale."""
        flat = blocks.reshape(-1)
        qs = np.ascontiguousarray(flat["qs"]).reshape(-1, 8)
        decode_levels(qs, e4m3_halves(flat["scales"].reshape(-1)), rows.reshape(-1, 16))


def powers(e: Bytes) -> Floats:
    """Return 2^(e - 128) as float32: subnormal for e = 0 and 1."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - np.int32(128))


@compiled
def exponents(x):
    """Return floor(log2 max |x|) + 125 of each block, at least 0, the logarithm in float32."""
    e = np.zeros(len(x), np.uint8)
    for b in range(len(x)):
        largest = np.float32(0)
        for j in range(32):
            largest = max(largest, abs(x[b, j]))
        if largest > np.float32(0):
            logarithm = np.float32(np.log2(np.float64(largest)))
            e[b] = max(np.int32(0), np.int32(np.floor(logarithm)) + np.int32(125))
    return e


@compiled
def nearest_levels(x, d):
    """Return the codes of the values nearest to x/d, one row a block; of zeros where d = 0."""
    codes = np.zeros(x.shape, np.uint8)
    for b in range(len(x)):
        if d[b] > np.float32(0):
            for k in range(7):
                bound = d[b] * MIDDLES[k]
                for j in range(x.shape[1]):
                    codes[b, j] += np.uint8(abs(x[b, j]) > bound)
            for j in range(x.shape[1]):
                negative = (x[b, j] < np.float32(0)) & (codes[b, j] > 0)
                codes[b, j] |= np.uint8(negative) << np.uint8(3)
    return codes


@compiled
def decode_levels(qs, d, x):
    """Fill x with d v(q)."""
    half = qs.shape[1]
    for b in range(len(qs)):
        for j in range(half):
            x[b, j] = np.float32(LEVELS[qs[b, j] & 15]) * d[b]
            x[b, j + half] = np.float32(LEVELS[qs[b, j] >> 4]) * d[b]


@compiled
def e4m3_codes(x):
    """Return the E4M3 codes of max |x| / 6 of each row."""
    codes = np.empty(len(x), np.uint8)
    for b in range(len(x)):
        largest = np.float32(0)
        for j in range(x.shape[1]):
            largest = max(largest, abs(x[b, j]))
        a = largest / np.float32(6)
        word = np.float32(a).view(np.uint32)
        if a >= np.float32(248):
            codes[b] = 0x7E
        elif a >= np.float32(2.0**-6):  # keep 3 bits of the mantissa; the bias goes from 127 to 7
            codes[b] = ((word + np.uint32(1 << 19)) >> np.uint32(20)) - np.uint32(120 << 3)
        else:
            codes[b] = min(np.int32(7), np.int32(a * np.float32(512) + np.float32(0.5)))
    return codes


def e4m3_halves(codes: Bytes) -> Floats:
    """Return half the values of E4M3 codes, the sign bit ignored; 0 for 127 (NaN), as in ggml."""
    e, m = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    m[codes == 127] = -8
    return np.ldexp(np.where(e > 0, 8 + m, m).astype(np.float32), np.maximum(e, 1) - 11)
