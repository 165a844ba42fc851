"""Module 06's right answers, each followed by the errors that learners typically make."""

from __future__ import annotations

import struct

import numpy as np

from quantlab.gguf.codec import dequantize, quantize
from quantlab.gguf.cursor import FormatError

Row = np.ndarray


def header(data: bytes) -> tuple[int, int, int, str, str]:
    """Return version, tensors, pairs, and the first pair, whose value is a string."""
    version, tensors, pairs, length = struct.unpack_from("<IQQQ", data, 4)
    key = data[32 : 32 + length].decode()
    at = 32 + length + 4  # the value's type, a u32, is skipped: it is 8
    (length,) = struct.unpack_from("<Q", data, at)
    return version, tensors, pairs, key, data[at + 8 : at + 8 + length].decode()


def big_endian(data: bytes) -> tuple[int, int, int, str, str]:
    """Typical error: the most significant byte first."""
    version, tensors, pairs = struct.unpack_from(">IQQ", data, 4)
    return (version, tensors, pairs, *header(data)[3:])


def in_words(data: bytes) -> tuple[int, int, int, str, str]:
    """Typical error: counts of 32 bits."""
    version, tensors, pairs = struct.unpack_from("<III", data, 4)
    return (version, tensors, pairs, *header(data)[3:])


def fixed_places(data: bytes) -> tuple[int, int, int, str, str]:
    """Typical error: take the lengths of one file for those of all."""
    return (*header(data)[:3], data[32:52].decode(), data[64:69].decode("utf-8", "replace"))


def in_letters(data: bytes) -> tuple[int, int, int, str, str]:
    """Typical error: count letters where the format counts bytes."""
    text = data.decode("utf-8", "replace")
    (length,) = struct.unpack_from("<Q", data, 24)
    return (*header(data)[:4], text[32 + length + 12 :][: len(header(data)[4].encode())])


def weight(type: str, block: bytes, i: int) -> float:
    """Return weight i of a Q4_0 or Q4_K block."""
    if type == "Q4_0":
        (d,) = struct.unpack_from("<e", block)
        return d * ((block[2 + i % 16] >> 4 * (i // 16) & 15) - 8)
    d, dmin = struct.unpack_from("<ee", block)
    scales, j = block[4:16], i // 32
    if j < 4:
        scale, least = scales[j] & 63, scales[j + 4] & 63
    else:
        scale = scales[j + 4] & 15 | scales[j - 4] >> 6 << 4
        least = scales[j + 4] >> 4 | scales[j] >> 6 << 4
    code = block[16 + 32 * (i // 64) + i % 32] >> 4 * (i // 32 % 2) & 15
    return d * scale * code - dmin * least


def neighbors(type: str, block: bytes, i: int) -> float:
    """Typical error: two neighbors in each byte."""
    at = (i // 2) + (16 if i % 2 else 0) if type == "Q4_0" else i
    return weight(type, block, at)


def added(type: str, block: bytes, i: int) -> float:
    """Typical error: add the minimum of Q4_K instead of subtracting it."""
    value = weight(type, block, i)
    if type == "Q4_0":
        return value
    blank = block[:2] + bytes(2) + block[4:]
    return 2 * weight(type, blank, i) - value


def low_bits_only(type: str, block: bytes, i: int) -> float:
    """Typical error: forget the upper two bits of scales and minima 4 to 7."""
    if type == "Q4_0":
        return weight(type, block, i)
    return weight(type, block[:4] + bytes(byte & 63 for byte in block[4:12]) + block[12:], i)


def uncentered(type: str, block: bytes, i: int) -> float:
    """Typical error: forget the 8 of Q4_0."""
    if type != "Q4_0":
        return weight(type, block, i)
    return weight(type, block, i) + 8 * struct.unpack_from("<e", block)[0]


def pack_scales(scales: list[int], minima: list[int]) -> list[int]:
    """Return the 12 bytes of 8 six-bit scales and 8 six-bit minima."""
    first = [scales[j] | scales[j + 4] >> 4 << 6 for j in range(4)]
    second = [minima[j] | minima[j + 4] >> 4 << 6 for j in range(4)]
    third = [scales[j] & 15 | (minima[j] & 15) << 4 for j in range(4, 8)]
    return first + second + third


def end_to_end(scales: list[int], minima: list[int]) -> list[int]:
    """Typical error: 6-bit codes one after the other, as quantlab packs its own."""
    whole = sum(code << 6 * place for place, code in enumerate([*scales, *minima]))
    return list(whole.to_bytes(12, "little"))


def swapped_halves(scales: list[int], minima: list[int]) -> list[int]:
    """Typical error: the minimum in the low half of bytes 8 to 11."""
    data = pack_scales(scales, minima)
    return data[:8] + [byte >> 4 | (byte & 15) << 4 for byte in data[8:]]


def topless(scales: list[int], minima: list[int]) -> list[int]:
    """Typical error: drop the upper two bits of numbers 4 to 7."""
    data = pack_scales(scales, minima)
    return [byte & 63 for byte in data[:8]] + data[8:]


def tensor_data(data: bytes, start: int, blocks: int, block_bytes: int) -> bytes:
    """Return a tensor's bytes, or raise a FormatError that names where it should end."""
    end = start + blocks * block_bytes
    if not 0 <= start <= end <= len(data):
        raise FormatError(f"tensor should end at byte {end}, the file has {len(data)}")
    return data[start:end]


def cut_short(data: bytes, start: int, blocks: int, block_bytes: int) -> bytes:
    """Typical error: a slice that ends where the file ends, without a word."""
    return data[start : start + blocks * block_bytes]


def another_error(data: bytes, start: int, blocks: int, block_bytes: int) -> bytes:
    """Typical error: an IndexError, which a caller cannot tell from a fault of ours."""
    if start + blocks * block_bytes > len(data):
        raise IndexError("out of range")
    return data[start : start + blocks * block_bytes]


def wrapping(data: bytes, start: int, blocks: int, block_bytes: int) -> bytes:
    """Typical error: multiply in 64 bits, as C does, where 2^62 * 18 wraps around."""
    end = (start + blocks * block_bytes) % 2**64
    if end > len(data):
        raise FormatError(f"tensor should end at byte {end}, the file has {len(data)}")
    return data[start:end]


def start_only(data: bytes, start: int, blocks: int, block_bytes: int) -> bytes:
    """Typical error: check where the tensor begins, and not where it ends."""
    if start >= len(data):
        raise FormatError(f"tensor begins at byte {start}, the file has {len(data)}")
    return data[start : start + blocks * block_bytes]


def control(W: Row, importance: Row, order: Row, type: str) -> float:
    """Quantize with a reordered imatrix and without; judge both by the true importance."""
    shuffled = dequantize(quantize(W, type, importance[order]), type)
    plain = dequantize(quantize(W, type), type)
    return float(weighted(W, shuffled, importance) / weighted(W, plain, importance))


def weighted(W: Row, Q: Row, importance: Row) -> np.floating:
    """Return the squared error, each column weighted by its importance, in float64."""
    difference = np.asarray(Q, np.float64) - W
    return (difference**2 * importance).sum()


def judged_by_itself(W: Row, importance: Row, order: Row, type: str) -> float:
    """Typical error: the shuffled imatrix is also the judge."""
    return control(W, importance[order], np.arange(len(order)), type)


def untouched(W: Row, importance: Row, order: Row, type: str) -> float:
    """Typical error: quantize with the true imatrix."""
    return control(W, importance, np.arange(len(order)), type)


def unweighted(W: Row, importance: Row, order: Row, type: str) -> float:
    """Typical error: judge by the plain squared error."""
    shuffled = dequantize(quantize(W, type, importance[order]), type)
    plain, ones = dequantize(quantize(W, type), type), np.ones(len(importance))
    return float(weighted(W, shuffled, ones) / weighted(W, plain, ones))
