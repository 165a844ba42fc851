"""Slow twins of the block types: one weight at a time, from the bytes of one block.

A reader takes the bytes of a block and returns its weights. Bytes are found by their offsets, bits
by shifts: nothing is shared with the library.
"""

import struct
from fractions import Fraction


def half(data: bytes, at: int) -> float:
    """Return the float16 at an offset."""
    return struct.unpack_from("<e", data, at)[0]


def nibbles(data: bytes) -> list[int]:
    """Return all low nibbles, then all high ones."""
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def fifth_bits(data: bytes) -> list[int]:
    """Return 16 times each bit, the lowest of the first byte first."""
    return [byte >> k & 1 and 16 for byte in data for k in range(8)]


def read_q4_0(data: bytes) -> list[float]:
    return [half(data, 0) * (q - 8) for q in nibbles(data[2:])]


def read_q4_1(data: bytes) -> list[float]:
    return [half(data, 0) * q + half(data, 2) for q in nibbles(data[4:])]


def read_q5_0(data: bytes) -> list[float]:
    codes = [h + q for h, q in zip(fifth_bits(data[2:6]), nibbles(data[6:]), strict=True)]
    return [half(data, 0) * (q - 16) for q in codes]


def read_q5_1(data: bytes) -> list[float]:
    codes = [h + q for h, q in zip(fifth_bits(data[4:8]), nibbles(data[8:]), strict=True)]
    return [half(data, 0) * q + half(data, 2) for q in codes]


def read_q8_0(data: bytes) -> list[float]:
    return [half(data, 0) * q for q in struct.unpack("<32b", data[2:])]


def read_tq1_0(data: bytes) -> list[float]:
    weights = [0.0] * 256
    for j, byte in enumerate(data[:52]):
        # the numbers that five trits q can be: byte = ceil(256 q / 243); four trits: q = 3 q'
        [q] = [q for q in range(243) if -(-256 * q // 243) == byte]
        trits = [q // 3 ** (4 - t) % 3 for t in range(5)]
        if j < 32:
            places = [j + 32 * t for t in range(5)]
        elif j < 48:
            places = [160 + j - 32 + 16 * t for t in range(5)]
        else:
            places = [240 + j - 48 + 4 * t for t in range(4)]
        for place, trit in zip(places, trits, strict=False):
            weights[place] = half(data, 52) * (trit - 1)
    return weights


def read_tq2_0(data: bytes) -> list[float]:
    def code(i: int) -> int:
        return data[i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3

    return [half(data, 64) * (code(i) - 1) for i in range(256)]


def read_q2_0(data: bytes) -> list[float]:
    return [half(data, 0) * ((data[2 + i // 4] >> (2 * (i % 4)) & 3) - 1) for i in range(64)]


def read_q1_0(data: bytes) -> list[float]:
    return [half(data, 0) * (1 if data[2 + i // 8] >> (i % 8) & 1 else -1) for i in range(128)]


def fp4(code: int) -> Fraction:
    """Return FP4 E2M1: a sign, two bits of exponent (bias 1), one of mantissa."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = (
        Fraction(2**exponent, 2) * (1 + Fraction(mantissa, 2))
        if exponent
        else Fraction(mantissa, 2)
    )
    return -size if sign else size


def e4m3(code: int) -> Fraction:
    """Return FP8 E4M3 without a sign: four bits of exponent (bias 7), three of mantissa."""
    exponent, mantissa = code >> 3 & 15, code & 7
    return Fraction(2**exponent * (8 + mantissa) if exponent else 2 * mantissa, 2**10)


def read_mxfp4(data: bytes) -> list[float]:
    scale = Fraction(2) ** (data[0] - 127)
    return [float(scale * fp4(q)) for q in nibbles(data[1:])]


def read_nvfp4(data: bytes) -> list[float]:
    groups = [nibbles(data[4 + 8 * g : 12 + 8 * g]) for g in range(4)]
    return [float(e4m3(data[g]) * fp4(q)) for g, codes in enumerate(groups) for q in codes]


READERS = {
    "Q4_0": read_q4_0,
    "Q4_1": read_q4_1,
    "Q5_0": read_q5_0,
    "Q5_1": read_q5_1,
    "Q8_0": read_q8_0,
    "TQ1_0": read_tq1_0,
    "TQ2_0": read_tq2_0,
    "Q2_0": read_q2_0,
    "Q1_0": read_q1_0,
    "MXFP4": read_mxfp4,
    "NVFP4": read_nvfp4,
}
