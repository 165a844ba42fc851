"""Numbers inside compiled loops: float16 by its bits, and the roundings that ggml uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.native import compiled

HALF_OVERFLOW = 65520.0  # the least size that float16 rounds to infinity


def below(bound: float) -> float:
    """Return the largest float32 below ``bound``.

    Examples
    --------
    >>> below(1.0)
    0.9999999403953552
    """
    return float(np.nextafter(np.float32(bound), np.float32(0)))


def bits(field: NDArray[Any]) -> NDArray[np.uint16]:
    """View a float16 field as the integers that compiled loops can write: Numba has no float16."""
    return field.view(np.uint16)


@compiled
def half_bits(x):
    """Round float32 to float16, ties to even, and return its 16 bits."""
    word = np.float32(x).view(np.uint32)
    size = word & np.uint32(0x7FFFFFFF)
    if size < np.uint32(0x38800000):  # below 2^-14: a multiple of 2^-24
        code = np.uint32(np.rint(abs(x) * np.float32(2**24)))
    else:  # move the exponent's bias from 127 to 15; a carry out of the mantissa is right
        even = (size >> np.uint32(13)) & np.uint32(1)
        code = (size + np.uint32(0xFFF) + even) >> np.uint32(13)
        code = min(np.uint32(code - np.uint32(112 << 10)), np.uint32(0x7C00))
    return np.uint16(code | ((word >> np.uint32(16)) & np.uint32(0x8000)))


@compiled
def half_float(code):
    """Return float16 bits as a float32."""
    word = (np.uint32(code) & np.uint32(0x7FFF)) << np.uint32(13)
    if word >= np.uint32(0x7C00 << 13):  # infinity and NaN
        size = np.uint32(word | np.uint32(0x7F800000)).view(np.float32)
    else:  # exact, subnormals too
        size = np.uint32(word).view(np.float32) * np.float32(2.0**112)
    return -size if code & np.uint32(0x8000) else size


@compiled
def away(x):
    """Round float32 to an int32, half away from zero. ``int(x + 0.5)`` is wrong just below 0.5."""
    whole = np.int32(x)
    rest = x - np.float32(whole)  # exact
    one = np.int32(rest >= np.float32(0.5)) - np.int32(rest <= np.float32(-0.5))
    return np.int32(whole + one)  # Numba adds in 64 bits


@compiled
def reciprocal(d):
    """Return 1 / d, and 0 for a zero or a d so small that 1 / d overflows: its weights are 0."""
    inverse = np.float32(1) / d if d != np.float32(0) else np.float32(0)
    return inverse if abs(inverse) <= np.float32(3.4028235e38) else np.float32(0)
