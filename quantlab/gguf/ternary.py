"""One and two bits: TQ1_0, TQ2_0, Q1_0 and Q2_0."""

from __future__ import annotations

import numpy as np

from quantlab.gguf.block_type import Blocks, BlockType, Floats
from quantlab.gguf.rounding import HALF_OVERFLOW, below, bits, half_bits, half_float, reciprocal
from quantlab.native import compiled

# TQ1_0: first byte, bytes, trits a byte. As an array, loops of these lengths are not unrolled.
PARTS = np.array([[0, 32, 5], [32, 16, 5], [48, 4, 4]])


class TQ1_0(BlockType):
    """256 weights of -1, 0, 1 in 54 bytes: w = d (trit - 1), five trits a byte.

    ::

        byte  0 .. 31          32 .. 47         48 .. 51             52 53
              trits of         trits of         trits of             d
              m + 32 t         160 + m + 16 t   240 + m + 4 t        (m: byte, t = 0 first)

    d = max |x|, trit = x/d rounded half away from zero, plus 1. Five trits are a number
    q = 0..242 to base 3, first trit first (the last four bytes hold four trits and a 0). A byte
    is the fraction q/243 in 256ths, rounded up: times 3 carries the first trit out of the byte.
    """

    id, size = 34, 256
    layout = np.dtype([("qs", "u1", 52), ("d", "<f2")])
    limit = below(HALF_OVERFLOW)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round to trits; write each byte's five as one fraction."""
        flat = blocks.reshape(-1)
        pack_base3(trits(rows.reshape(-1, cls.size), bits(flat["d"])), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Carry one trit after the other out of each byte."""
        flat = blocks.reshape(-1)
        decode_base3(bits(flat["d"]), flat["qs"], rows.reshape(-1, cls.size))


class TQ2_0(BlockType):
    """256 weights of -1, 0, 1 in 66 bytes: w = d (code - 1), two bits a code.

    ::

        byte  0 .. 31: two bits of w_l, w_l+32, w_l+64, w_l+96 (lowest first)   64 65
              32 .. 63: the same for the second 128 weights                     d

    d = max |x|, code = x/d rounded half away from zero, plus 1. Code 3, which would be 2 d, is
    never written.
    """

    id, size = 35, 256
    layout = np.dtype([("qs", "u1", 64), ("d", "<f2")])
    limit = below(HALF_OVERFLOW)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round to trits, four a byte from four quarters."""
        flat = blocks.reshape(-1)
        pack_pairs(trits(rows.reshape(-1, cls.size), bits(flat["d"])), 32, flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        decode_quarters(bits(flat["d"]), flat["qs"], rows.reshape(-1, cls.size))


class Q2_0(BlockType):
    """64 weights of -1, 0, 1 (and 2) in 18 bytes: w = d (code - 1), two bits a code.

    ::

        byte  0 1   2                               17
              d     w_3 w_2 w_1 w_0 (low bits)...   w_63 w_62 w_61 w_60

    d = max |x|, code = x/d rounded half away from zero, plus 1. Code 3, which is 2 d, is never
    written.
    """

    id, size = 42, 64
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    limit = below(HALF_OVERFLOW)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round to trits, four neighbors a byte."""
        flat = blocks.reshape(-1)
        pack_pairs(trits(rows.reshape(-1, cls.size), bits(flat["d"])), 1, flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by the scale."""
        flat = blocks.reshape(-1)
        decode_neighbors(bits(flat["d"]), flat["qs"], rows.reshape(-1, cls.size))


class Q1_0(BlockType):
    """128 signs in 18 bytes: w = d or -d.

    ::

        byte  0 1   2                             17
              d     w_7 .. w_1 w_0 (low bit)...   w_127 .. w_120

    d = mean |x|, bit = 1 if x >= 0.
    """

    id, size = 41, 128
    layout = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Keep the mean size and the signs."""
        flat = blocks.reshape(-1)
        encode_signs(rows.reshape(-1), bits(flat["d"]), flat["qs"])

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Give the scale its signs."""
        flat = blocks.reshape(-1)
        decode_signs(bits(flat["d"]), flat["qs"], rows.reshape(-1))


@compiled
def trits(x, d):
    """Fill the scales and return the codes 0, 1, 2 of (blocks, size) weights."""
    codes = np.empty(x.shape, np.uint8)
    words = x.view(np.int32)
    for b in range(d.size):
        largest = np.int32(0)  # sizes of floats have the order of their bits
        for j in range(x.shape[1]):
            largest = max(largest, np.int32(words[b, j] & np.int32(0x7FFFFFFF)))
        scale = np.int32(largest).view(np.float32)
        inverse = reciprocal(scale)
        d[b] = half_bits(scale)
        for j in range(x.shape[1]):
            ratio = x[b, j] * inverse  # from -1 to 1
            code = np.uint8(ratio > np.float32(-0.5)) + np.uint8(ratio >= np.float32(0.5))
            codes[b, j] = np.uint8(code)
    return codes


@compiled
def pack_pairs(codes, step, qs):
    """Pack four codes of two bits a byte: weights ``step`` apart, lowest first."""
    for b in range(len(qs)):
        for start in range(0, qs.shape[1], step):
            at = 4 * start
            for j in range(step):
                pair = codes[b, at + j] | (codes[b, at + j + step] << 2)
                pair |= codes[b, at + j + 2 * step] << 4
                qs[b, start + j] = pair | (codes[b, at + j + 3 * step] << 6)


@compiled
def decode_quarters(d, qs, x):
    """Fill x with d (code - 1): the codes of byte j stand 32 weights apart, as in TQ2_0."""
    step = qs.shape[1] // 2  # 32; a constant would be unrolled, and run nine times slower
    for b in range(d.size):
        scale = half_float(d[b])
        for half in range(2):
            pairs = qs[b, step * half : step * half + step]
            for k in range(4):
                at = step * (4 * half + k)
                weights = x[b, at : at + step]
                for j in range(step):
                    code = np.int32((pairs[j] >> np.uint8(2 * k)) & np.uint8(3))
                    weights[j] = np.float32(code - np.int32(1)) * scale


@compiled
def decode_neighbors(d, qs, x):
    """Fill x with d (code - 1): the four codes of a byte stand side by side, as in Q2_0."""
    for b in range(d.size):
        scale = half_float(d[b])
        for j in range(qs.shape[1]):
            byte = np.uint32(qs[b, j])
            for k in range(4):
                code = np.int32((byte >> np.uint32(2 * k)) & np.uint32(3))
                x[b, 4 * j + k] = np.float32(code - np.int32(1)) * scale


@compiled
def pack_base3(codes, qs):
    """Pack five or four trits a byte, as the fraction q / 243 in 256ths, rounded up."""
    for b in range(len(qs)):
        at = 0
        for part in range(len(PARTS)):
            start, size, count = PARTS[part]
            for j in range(size):
                q = 0
                for t in range(count):
                    q = 3 * q + codes[b, at + j + size * t]
                q *= 3 ** (5 - count)
                qs[b, start + j] = (256 * q + 242) // 243
            at += size * count


@compiled
def decode_base3(d, qs, x):
    """Fill x with d (trit - 1)."""
    for b in range(d.size):
        scale = half_float(d[b])
        at = 0
        for part in range(len(PARTS)):
            start, size, count = PARTS[part]
            power = 1
            for _ in range(count):
                carry_trits(qs[b, start : start + size], power, scale, x[b, at : at + size])
                at += size
                power *= 3


@compiled
def carry_trits(qs, power, scale, x):
    """Fill x with one trit of each byte: times a power of 3, then 3; the carry is the trit."""
    for j in range(x.size):
        rest = (np.uint32(qs[j]) * np.uint32(power)) & np.uint32(255)
        trit = np.int32((rest * np.uint32(3)) >> np.uint32(8)) - np.int32(1)
        x[j] = np.float32(trit) * scale


@compiled
def encode_signs(x, d, qs):
    """Fill mean sizes, summed in order, and a bit for each weight that is not negative."""
    for b in range(len(qs)):
        total = np.float32(0)
        for i in range(128 * b, 128 * b + 128):
            total += abs(x[i])
        d[b] = half_bits(total / np.float32(128))
        for j in range(16):
            byte = 0
            for k in range(8):
                byte |= np.int32(x[128 * b + 8 * j + k] >= 0) << k
            qs[b, j] = byte


@compiled
def decode_signs(d, qs, x):
    """Fill x with d where a bit is set, and -d elsewhere."""
    for b in range(len(qs)):
        scale = half_float(d[b])
        for j in range(128):
            bit = (qs[b, j // 8] >> (j % 8)) & 1
            x[128 * b + j] = scale if bit else -scale
