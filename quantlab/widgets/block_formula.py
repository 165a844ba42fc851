"""How a weight follows from a ggml block's fields, in symbols and in numbers.

The block explorer shows these lines. Each is computed here from the struct alone, and a test
demands that its value is the float that ``dequantize`` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quantlab.gguf.iq import LEVELS

Weight = tuple[int, str]  # its code as stored, and its value as a sum of products
Formula = Callable[[Any], tuple[str, list[Weight]]]


def q4_0(block: Any) -> tuple[str, list[Weight]]:
    """Return the 32 weights of a Q4_0 block: the low nibbles first, then the high ones."""
    d, codes = half(block["d"]), nibbles(block["qs"], 16)
    return "d × (code - 8)", [(code, f"{d} × ({code} - 8)") for code in codes]


def q8_0(block: Any) -> tuple[str, list[Weight]]:
    """Return the 32 weights of a Q8_0 block: one signed byte each."""
    d, codes = half(block["d"]), block["qs"].tolist()
    return "d × code", [(code, f"{d} × {signed(code)}") for code in codes]


def iq4_nl(block: Any) -> tuple[str, list[Weight]]:
    """Return the 32 weights of an IQ4_NL block: a code selects one of 16 uneven levels."""
    d, codes = half(block["d"]), nibbles(block["qs"], 16)
    return "d × level[code]", [(code, f"{d} × {signed(int(LEVELS[code]))}") for code in codes]


def q4_k(block: Any) -> tuple[str, list[Weight]]:
    """Return the 256 weights of a Q4_K block: a 6-bit scale and minimum for each 32."""
    d, dmin = half(block["d"]), half(block["dmin"])
    scales, minima = six_bits(block["scales"].tolist())
    codes = nibbles(block["qs"], 32)
    return "d × scale × code - dmin × min", [
        (code, f"{d} × {scales[i // 32]} × {code} - {dmin} × {minima[i // 32]}")
        for i, code in enumerate(codes)
    ]


def q6_k(block: Any) -> tuple[str, list[Weight]]:
    """Return the 256 weights of a Q6_K block: four low bits, two high bits, a scale for each 16."""
    d, scales = half(block["d"]), block["scales"].tolist()
    low = nibbles(block["ql"], 64)
    pairs = block["qh"].reshape(2, 1, 32) >> np.arange(0, 8, 2)[:, None] & 3
    codes = [a + 16 * b for a, b in zip(low, pairs.ravel().tolist(), strict=True)]
    return "d × scale × (code - 32)", [
        (code, f"{d} × {signed(scales[i // 16])} × ({code} - 32)") for i, code in enumerate(codes)
    ]


FORMULAS: dict[str, Formula] = {
    "Q4_0": q4_0,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
}


def six_bits(data: list[int]) -> tuple[list[int], list[int]]:
    """Return the 8 scales and 8 minima in the 12 bytes of Q4_K and Q5_K.

    Bytes 0-3 hold scales 0-3 in their low six bits, bytes 4-7 minima 0-3; bytes 8-11 hold the low
    four bits of scales 4-7 (low nibble) and minima 4-7 (high), whose upper two bits are on top of
    bytes 0-3 and 4-7.

    Examples
    --------
    >>> six_bits([0xC1, 2, 3, 4, 5, 6, 7, 8, 0x9F, 0, 0, 0])
    ([1, 2, 3, 4, 63, 0, 0, 0], [5, 6, 7, 8, 9, 0, 0, 0])
    """
    low, high = [byte & 63 for byte in data[:8]], [byte >> 6 << 4 for byte in data[:8]]
    scales = low[:4] + [data[8 + j] % 16 + high[j] for j in range(4)]
    minima = low[4:] + [data[8 + j] // 16 + high[4 + j] for j in range(4)]
    return scales, minima


def nibbles(data: Any, run: int) -> list[int]:
    """Return codes from bytes: of each ``run`` bytes, all low halves come first."""
    rows = data.reshape(-1, 1, run)
    return (rows >> np.array([[0], [4]], np.uint8) & 15).ravel().tolist()


def half(value: np.float16) -> str:
    """Return a float16 with as many digits as tell it from its neighbors."""
    return signed(np.format_float_positional(value, trim="-"))


def signed(value: int | str) -> str:
    """Return a number that may stand behind a product sign: negative ones in parentheses."""
    text = str(value)
    return f"({text})" if text.startswith("-") else text
