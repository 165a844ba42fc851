"""How long a sum of products of codes may get before its accumulator overflows.

An integer sum that fits is exact. One that does not fit *wraps* (the bits above the accumulator
fall off, as an odometer does) or, in a few instructions, *saturates* (it stops at the end).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Range = tuple[int, int]  # lowest and highest code


def safe_terms(a: Range, b: Range, bits: int) -> int | None:
    """Return the most products of two codes whose sum always fits a signed accumulator.

    Parameters
    ----------
    a, b : (lowest, highest) code
    bits : width of the accumulator
        It holds -2**(bits - 1) .. 2**(bits - 1) - 1: one number more below zero than above.

    Returns
    -------
    int, or None
        None if every product is 0.

    Raises
    ------
    ValueError
        If bits is below 2, or a range ends before it begins.

    Examples
    --------
    >>> safe_terms((-127, 127), (-127, 127), 32), safe_terms((-8, 7), (-8, 7), 16)
    (133144, 511)
    """
    if bits < 2 or a[0] > a[1] or b[0] > b[1]:
        raise ValueError(
            f"ranges {a} and {b}, {bits} bits; pass (lowest, highest) codes and 2 bits or more"
        )
    products = [x * y for x in a for y in b]
    limits = [2 ** (bits - 1) // -min(products)] if min(products) < 0 else []
    if max(products) > 0:
        limits.append((2 ** (bits - 1) - 1) // max(products))
    return min(limits, default=None)


def wrapped(total: ArrayLike, bits: int) -> NDArray[np.int64]:
    """Return what a signed accumulator of so many bits holds in place of exact totals.

    Examples
    --------
    >>> wrapped([32767, 32768, 65536], 16).tolist()
    [32767, -32768, 0]
    """
    half = 2 ** (bits - 1)
    return (np.asarray(total, np.int64) + half) % (2 * half) - half


def saturated_pairs(a: ArrayLike, b: ArrayLike) -> NDArray[np.int64]:
    """Return a_0 b_0 + a_1 b_1, a_2 b_2 + a_3 b_3, ... as VPMADDUBSW leaves them: kept in int16.

    Parameters
    ----------
    a : (..., 2n) array of codes 0..255
    b : (..., 2n) array of codes -128..127

    Examples
    --------
    >>> saturated_pairs([255, 255, 15, 15], [127, 127, 127, 127]).tolist()
    [32767, 3810]
    """
    products = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    pairs = products[..., 0::2] + products[..., 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1)
