"""The bits of the K types: codes and scales into bytes with NumPy, bytes into floats with Numba.

Encoding spends its time in the searches, so packing may be plain; decoding is nothing but this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.native import compiled

Integers = NDArray[Any]  # uint8; operators with Python numbers lose that in the annotations


@compiled
def pack_nibbles(codes, apart):
    """Pack the low four bits of codes (blocks, 256): ``apart`` low, the next ``apart`` high."""
    packed = np.empty((codes.shape[0], 128), np.uint8)
    for b in range(codes.shape[0]):
        for first in range(0, 128, apart):
            for j in range(first, first + apart):
                low, high = codes[b, first + j], codes[b, first + apart + j]
                packed[b, j] = low & 15 | high << 4
    return packed


@compiled
def pack_quarters(codes, shift):
    """Pack bits ``shift`` and above of codes (blocks, 256): byte l of 128 holds l, l+32, ..."""
    packed = np.empty((codes.shape[0], 64), np.uint8)
    for b in range(codes.shape[0]):
        for half in range(2):
            for j in range(32):
                byte = 0
                for part in range(4):
                    code = codes[b, 128 * half + 32 * part + j]
                    byte |= (code >> shift & 3) << 2 * part
                packed[b, 32 * half + j] = byte
    return packed


@compiled
def pack_bits(codes, shift):
    """Pack bit ``shift`` of codes (blocks, 256): bit g of byte j is that of element 32 g + j."""
    packed = np.empty((codes.shape[0], 32), np.uint8)
    for b in range(codes.shape[0]):
        for j in range(32):
            byte = 0
            for g in range(8):
                byte |= (codes[b, 32 * g + j] >> shift & 1) << g
            packed[b, j] = byte
    return packed


@compiled
def pack_six_pairs(ls, lm):
    """Pack eight scales and eight minimums of six bits (blocks, 8) into 12 bytes.

    Bytes 0-3 are scales 0-3, bytes 4-7 minimums 0-3, and bytes 8-11 the low nibbles of scales
    and minimums 4-7, whose upper two bits lie above numbers 0-3.
    """
    packed = np.empty((ls.shape[0], 12), np.uint8)
    for b in range(ls.shape[0]):
        for j in range(4):
            packed[b, j] = ls[b, j] | ls[b, j + 4] >> 4 << 6
            packed[b, j + 4] = lm[b, j] | lm[b, j + 4] >> 4 << 6
            packed[b, j + 8] = ls[b, j + 4] & 15 | lm[b, j + 4] << 4
    return packed


@compiled
def unpack_six_pairs(packed):
    """Return the eight scales and eight minimums (blocks, 8) of ``pack_six_pairs``."""
    ls = np.empty((packed.shape[0], 8), np.uint8)
    lm = np.empty((packed.shape[0], 8), np.uint8)
    for b in range(packed.shape[0]):
        for j in range(4):
            ls[b, j], lm[b, j] = packed[b, j] & 63, packed[b, j + 4] & 63
            ls[b, j + 4] = packed[b, j + 8] & 15 | packed[b, j] >> 6 << 4
            lm[b, j + 4] = packed[b, j + 8] >> 4 | packed[b, j + 4] >> 6 << 4
    return ls, lm


def pack_four_pairs(ls: Integers, lm: Integers) -> Integers:
    """Pack scales and minimums of four bits: byte g holds scale g low and minimum g high."""
    return ls | lm << 4


def unpack_four_pairs(packed: Integers) -> tuple[Integers, Integers]:
    """Return the scales and minimums of ``pack_four_pairs``."""
    return packed & 15, packed >> 4


@compiled
def pack_six(ls):
    """Pack sixteen scales of six bits (blocks, 16) into 12 bytes.

    Scale g has its low nibble in byte g mod 8 (g < 8 low, else high), its upper two bits at bit
    2 (g div 4) of byte 8 + g mod 4.
    """
    packed = np.zeros((ls.shape[0], 12), np.uint8)
    for b in range(ls.shape[0]):
        for g in range(16):
            packed[b, g % 8] |= (ls[b, g] & 15) << g // 8 * 4
            packed[b, 8 + g % 4] |= ls[b, g] >> 4 << g // 4 * 2
    return packed


@compiled
def unpack_six(packed):
    """Return the sixteen scales (blocks, 16) of ``pack_six`` minus 32."""
    ls = np.empty((packed.shape[0], 16), np.int8)
    for b in range(packed.shape[0]):
        for g in range(16):
            low = packed[b, g % 8] >> g // 8 * 4 & 15
            upper = packed[b, 8 + g % 4] >> g // 4 * 2 & 3
            ls[b, g] = np.int8(low | upper << 4) - 32
    return ls


@compiled
def number(code):
    """Return a small code as a float32: a 64-bit integer, Numba's usual one, would take longer."""
    return np.float32(np.int32(code))


@compiled
def read_q4(raw, at, steps, shifts, out):
    """Fill out (blocks, 256) with step l - shift, nibbles l from byte ``at`` of each block."""
    for b in range(raw.shape[0]):
        for g in range(4):
            s, m = steps[b, 2 * g], shifts[b, 2 * g]
            s2, m2 = steps[b, 2 * g + 1], shifts[b, 2 * g + 1]
            for j in range(32):
                byte = raw[b, at + 32 * g + j]
                out[b, 64 * g + j] = s * number(byte & 15) - m
                out[b, 64 * g + 32 + j] = s2 * number(byte >> 4) - m2


@compiled
def read_q5(raw, high, at, steps, shifts, out):
    """Do as ``read_q4`` with fifth bits: bit g of byte ``high`` + j for element 32 g + j."""
    fifth = np.empty(256, np.uint8)  # 0 or 16; spread first, as both at once do not vectorize
    for b in range(raw.shape[0]):
        for j in range(32):
            byte = raw[b, high + j]
            for g in range(8):
                fifth[32 * g + j] = byte >> g << 4 & 16
        for g in range(4):
            s, m = steps[b, 2 * g], shifts[b, 2 * g]
            s2, m2 = steps[b, 2 * g + 1], shifts[b, 2 * g + 1]
            for j in range(32):
                byte, k = raw[b, at + 32 * g + j], 64 * g + j
                out[b, k] = s * number(byte & 15 | fifth[k]) - m
                out[b, k + 32] = s2 * number(byte >> 4 | fifth[k + 32]) - m2


@compiled
def read_q2(raw, at, steps, shifts, out):
    """Fill out (blocks, 256) with step l - shift, quarters l from byte ``at`` of each block."""
    for b in range(raw.shape[0]):
        for g in (0, 1, 8, 9):  # and g + 2, g + 4, g + 6 lie in the same bytes
            first, byte = 16 * g, at + 32 * (g // 8) + 16 * (g % 2)
            s, m, s2, m2 = steps[b, g], shifts[b, g], steps[b, g + 2], shifts[b, g + 2]
            s4, m4, s6, m6 = steps[b, g + 4], shifts[b, g + 4], steps[b, g + 6], shifts[b, g + 6]
            for j in range(16):
                quarters = raw[b, byte + j]
                out[b, first + j] = s * number(quarters & 3) - m
                out[b, first + 32 + j] = s2 * number(quarters >> 2 & 3) - m2
                out[b, first + 64 + j] = s4 * number(quarters >> 4 & 3) - m4
                out[b, first + 96 + j] = s6 * number(quarters >> 6) - m6


@compiled
def read_q3(raw, high, at, steps, out):
    """Fill out with step (l - 4): quarters from byte ``at``, third bits from byte ``high``."""
    for b in range(raw.shape[0]):
        for g in (0, 1, 8, 9):  # as in ``read_q2``
            first, byte = 16 * g, at + 32 * (g // 8) + 16 * (g % 2)
            s, s2, s4, s6 = steps[b, g], steps[b, g + 2], steps[b, g + 4], steps[b, g + 6]
            for j in range(16):
                low = raw[b, byte + j]
                top = raw[b, high + 16 * (g % 2) + j] >> g // 8 * 4
                out[b, first + j] = s * number((low & 3 | (top & 1) << 2) - 4)
                out[b, first + 32 + j] = s2 * number((low >> 2 & 3 | (top & 2) << 1) - 4)
                out[b, first + 64 + j] = s4 * number((low >> 4 & 3 | top & 4) - 4)
                out[b, first + 96 + j] = s6 * number((low >> 6 | (top & 8) >> 1) - 4)


@compiled
def read_q6(raw, at, steps, out):
    """Fill out with step (l - 32): far nibbles from byte 0, upper quarters from byte ``at``."""
    for b in range(raw.shape[0]):
        for g in (0, 1, 8, 9):  # as in ``read_q2``
            first, nibbles = 16 * g, 64 * (g // 8) + 16 * (g % 2)
            s, s2, s4, s6 = steps[b, g], steps[b, g + 2], steps[b, g + 4], steps[b, g + 6]
            for j in range(16):
                byte, far = raw[b, nibbles + j], raw[b, nibbles + 32 + j]
                top = raw[b, at + 32 * (g // 8) + 16 * (g % 2) + j]
                out[b, first + j] = s * number((byte & 15 | (top & 3) << 4) - 32)
                out[b, first + 32 + j] = s2 * number((far & 15 | (top & 12) << 2) - 32)
                out[b, first + 64 + j] = s4 * number((byte >> 4 | top & 48) - 32)
                out[b, first + 96 + j] = s6 * number((far >> 4 | (top & 192) >> 2) - 32)


@compiled
def read_q8(d, codes, out):
    """Fill out (blocks, 256) with d l."""
    for b in range(out.shape[0]):
        for i in range(256):
            out[b, i] = d[b] * np.float32(codes[b, i])
