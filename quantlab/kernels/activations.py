"""Round activations to int8 and lay them out as the integer kernels read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantlab.native import compiled

SIZE_BITS = np.int32(0x7FFFFFFF)  # of a float32: all but its sign
LARGEST = np.float32(127)
ONE = np.float32(1)


@compiled
def find_scale(bits):
    """Return the largest size among float32 numbers, seen as integers, divided by 127.

    The bits of numbers are ordered as the numbers are, with NaN on top: integers can be compared
    sixteen at a time, and a NaN comes out as the scale.
    """
    largest = np.int32(0)
    for i in range(np.uintp(bits.size)):
        size = bits[i] & SIZE_BITS
        largest = size if size > largest else largest
    return np.float32(np.int32(largest).view(np.float32) / LARGEST)


@compiled
def round_group(x, scale, codes):
    """Write int8 codes of a group and return their sum."""
    divisor = scale if scale != 0 else ONE
    total = np.int32(0)
    for i in range(np.uintp(x.size)):
        code = np.int32(np.rint(np.float32(x[i] / divisor)))
        codes[i] = np.int8(code)
        total = np.int32(total + code)
    return total


@compiled
def even_then_odd(words):
    """Put the bytes 0, 2, 4, 6 of each 64-bit word before its bytes 1, 3, 5, 7, in place.

    A packed byte holds an even code low and an odd one high, so the low nibbles of a word meet the
    even activations and the high nibbles the odd ones.
    """
    two, four = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    eight, sixteen, half = np.uint64(8), np.uint64(16), np.uint64(32)
    low = np.uint64(0xFFFFFFFF)
    for i in range(np.uintp(words.size)):
        even, odd = words[i] & two, (words[i] >> eight) & two
        even, odd = (even | (even >> eight)) & four, (odd | (odd >> eight)) & four
        even, odd = (even | (even >> sixteen)) & low, (odd | (odd >> sixteen)) & low
        words[i] = even | (odd << half)


@compiled
def round_tokens(x, group_size, codes, scale, sums, nibbles):
    """Round (tokens, in) floats by groups, and reorder them for nibbles if asked to."""
    for t in range(x.shape[0]):
        for g in range(scale.shape[1]):
            part = x[t, g * group_size : (g + 1) * group_size]
            scale[t, g] = find_scale(part.view(np.int32))
            sums[t, g] = round_group(part, scale[t, g], codes[t, g * group_size :])
        if nibbles:
            even_then_odd(codes[t].view(np.uint64))


def rounded(
    x: NDArray[np.float32], *, tokens: int, words: int, groups: int, group_size: int, bits: int
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """Return activations (batch, in) as int8 in 32-bit words, their scales and their sums.

    Parameters
    ----------
    x : (batch, in) float32 array
    tokens : rows to return; those beyond the batch are zeros
    words : 32-bit words of a packed weight row
    groups : groups of a row
    group_size : activations of a group
    bits : 4 or 8
        Of the weights that they will meet: 4 puts even activations before odd ones.

    Returns
    -------
    codes : (tokens, words * 8 / bits) int32 array
    scale : (tokens, groups) float32 array
    sums : (tokens, groups) int32 array
    """
    make = np.empty if x.shape == (tokens, words * 32 // bits) else np.zeros
    codes = make((tokens, words * 32 // bits), np.int8)
    scale, sums = make((tokens, groups), np.float32), make((tokens, groups), np.int32)
    round_tokens(x, group_size, codes, scale, sums, bits == 4)
    return codes.view(np.int32), scale, sums
