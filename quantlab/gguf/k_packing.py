"""The bits of the K types: codes and scales into bytes with NumPy, bytes into floats with Numba.

Encoding spends its time in the searches, so packing may be plain; decoding is nothing but this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.native import compiled

Integers = NDArray[Any]  # uint8; operators with Python numbers lose that in the annotations


def pack_nibbles(codes: Integers) -> Integers:
    """Pack codes (blocks, 256) of four bits: of each 64 the first 32 low, the next 32 high."""
    pairs = codes.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def pack_far_nibbles(codes: Integers) -> Integers:
    """Pack codes (blocks, 256) of four bits: of each 128 the first 64 low, the next 64 high."""
    pairs = codes.reshape(-1, 2, 2, 64)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def pack_quarters(codes: Integers) -> Integers:
    """Pack codes (blocks, 256) of two bits: byte l of each 128 holds l, l+32, l+64, l+96."""
    q = codes.reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64)


def pack_bits(bits: Integers) -> Integers:
    """Pack bits (blocks, 256), 0 or 1: bit g of byte j is element 32 g + j."""
    planes = bits.reshape(-1, 8, 32)
    packed = planes[:, 0].copy()
    for g in range(1, 8):
        packed |= planes[:, g] << g
    return packed


def pack_six_pairs(ls: Integers, lm: Integers) -> Integers:
    """Pack eight scales and eight minimums of six bits (blocks, 8) into 12 bytes.

    Bytes 0-3 are scales 0-3, bytes 4-7 minimums 0-3, and bytes 8-11 the low nibbles of scales
    and minimums 4-7, whose upper two bits lie above numbers 0-3.
    """
    first = np.concatenate([ls[:, :4], lm[:, :4]], axis=1)
    upper = np.concatenate([ls[:, 4:], lm[:, 4:]], axis=1) >> 4 << 6
    return np.concatenate([first | upper, ls[:, 4:] & 15 | lm[:, 4:] << 4], axis=1)


def unpack_six_pairs(packed: Integers) -> tuple[Integers, Integers]:
    """Return the eight scales and eight minimums (blocks, 8) of ``pack_six_pairs``."""
    first, low = packed[:, :8], packed[:, 8:]
    upper = first >> 6 << 4
    ls = np.concatenate([first[:, :4] & 63, low & 15 | upper[:, :4]], axis=1)
    return ls, np.concatenate([first[:, 4:] & 63, low >> 4 | upper[:, 4:]], axis=1)


def pack_four_pairs(ls: Integers, lm: Integers) -> Integers:
    """Pack scales and minimums of four bits: byte g holds scale g low and minimum g high."""
    return ls | lm << 4


def unpack_four_pairs(packed: Integers) -> tuple[Integers, Integers]:
    """Return the scales and minimums of ``pack_four_pairs``."""
    return packed & 15, packed >> 4


def pack_six(ls: Integers) -> Integers:
    """Pack sixteen scales of six bits (blocks, 16) into 12 bytes.

    Scale g has its low nibble in byte g mod 8 (g < 8 low, else high), its upper two bits at bit
    2 (g div 4) of byte 8 + g mod 4.
    """
    low = ls[:, :8] & 15 | ls[:, 8:] << 4
    upper = ls >> 4
    pairs = upper[:, :4] | upper[:, 4:8] << 2 | upper[:, 8:12] << 4 | upper[:, 12:] << 6
    return np.concatenate([low, pairs], axis=1)


def unpack_six(packed: Integers) -> NDArray[np.int8]:
    """Return the sixteen scales (blocks, 16) of ``pack_six`` minus 32."""
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = np.concatenate([packed[:, 8:] >> 2 * k & 3 for k in range(4)], axis=1)
    return (low | upper << 4).astype(np.int8) - np.int8(32)


@compiled
def read_q4(raw, at, steps, shifts, out):
    """Fill out (blocks, 256) with step l - shift, nibbles l from byte ``at`` of each block."""
    for b in range(raw.shape[0]):
        for g in range(4):
            s, m, s2, m2 = (
                steps[b, 2 * g],
                shifts[b, 2 * g],
                steps[b, 2 * g + 1],
                shifts[b, 2 * g + 1],
            )
            for j in range(32):
                byte = raw[b, at + 32 * g + j]
                out[b, 64 * g + j] = s * np.float32(byte & 15) - m
                out[b, 64 * g + 32 + j] = s2 * np.float32(byte >> 4) - m2


@compiled
def read_q5(raw, high, at, steps, shifts, out):
    """Do as ``read_q4`` with fifth bits: bit g of byte ``high`` + j for element 32 g + j."""
    for b in range(raw.shape[0]):
        for g in range(8):
            s, m = steps[b, g], shifts[b, g]
            for j in range(32):
                nibble = raw[b, at + 32 * (g // 2) + j] >> 4 * (g % 2) & 15
                code = nibble | (raw[b, high + j] >> g & 1) << 4
                out[b, 32 * g + j] = s * np.float32(code) - m


@compiled
def read_q2(raw, at, steps, shifts, out):
    """Fill out (blocks, 256) with step l - shift, quarters l from byte ``at`` of each block."""
    for b in range(raw.shape[0]):
        for g in range(16):
            s, m = steps[b, g], shifts[b, g]
            for j in range(16):
                byte = raw[b, at + 32 * (g // 8) + 16 * (g % 2) + j]
                out[b, 16 * g + j] = s * np.float32(byte >> 2 * (g // 2 % 4) & 3) - m


@compiled
def read_q3(raw, high, at, steps, out):
    """Fill out with step (l - 4): quarters from byte ``at``, third bits from byte ``high``."""
    for b in range(raw.shape[0]):
        for g in range(16):
            s = steps[b, g]
            for j in range(16):
                quarter = raw[b, at + 32 * (g // 8) + 16 * (g % 2) + j] >> 2 * (g // 2 % 4) & 3
                bit = raw[b, high + 16 * (g % 2) + j] >> g // 2 & 1
                out[b, 16 * g + j] = s * np.float32(quarter + 4 * bit - 4)


@compiled
def read_q6(raw, at, steps, out):
    """Fill out with step (l - 32): far nibbles from byte 0, upper quarters from byte ``at``."""
    for b in range(raw.shape[0]):
        for g in range(16):
            s, half, part = steps[b, g], g // 8, g // 2 % 4
            for j in range(16):
                k = 16 * (g % 2) + j
                nibble = raw[b, 64 * half + 32 * (part % 2) + k] >> 4 * (part // 2) & 15
                upper = raw[b, at + 32 * half + k] >> 2 * part & 3
                out[b, 16 * g + j] = s * np.float32(nibble + 16 * upper - 32)
