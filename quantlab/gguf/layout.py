"""What a GGUF file may hold: value types and limits, one definition for reader and writer.

A rule is a function that returns its complaint, or an empty string: the reader adds the byte where
it found the fault, the writer the argument.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod

import numpy as np

from quantlab.gguf.block_type import BlockType

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
LONGEST_KEY = 65_535  # bytes
LONGEST_NAME = 63  # bytes: 64 with the closing zero in C
LONGEST_TEXT = 2**30  # bytes of a string
LONGEST_ARRAY = 2**30  # elements
MOST_DIMENSIONS = 4
MOST_WEIGHTS = 2**60  # of a tensor: eight bytes each stay below 2^63, where C's sizes end
SMALLEST_PAIR = 8 + 1 + 4 + 1  # bytes: length, key, type, value
SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: length of the name, dimensions, type, offset

# In the order of their numbers in a file; the letters are struct's.
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64")
LETTERS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
SCALARS = {
    kind: struct.Struct(f"<{letter}") for kind, letter in zip(KINDS, LETTERS, strict=True) if letter
}
DTYPES = {kind: np.dtype(scalar.format) for kind, scalar in SCALARS.items()}
ValueType = str  # one of KINDS, or "[u32]" for an array of u32


def pad(size: int, alignment: int) -> int:
    """Return the zero bytes that follow ``size`` bytes.

    Examples
    --------
    >>> pad(100, 32), pad(128, 32)
    (28, 0)
    """
    return -size % alignment


def key_fault(key: bytes) -> str:
    """Return what is wrong with the bytes of a metadata key."""
    if not key:
        return "a metadata key is empty; every value needs a name"
    if len(key) > LONGEST_KEY:
        return f"a metadata key has {len(key)} bytes; at most {LONGEST_KEY} are allowed"
    return ""


def name_fault(name: bytes) -> str:
    """Return what is wrong with the bytes of a tensor's name."""
    if len(name) > LONGEST_NAME:
        return f"a tensor name has {len(name)} bytes; at most {LONGEST_NAME} are allowed"
    return ""


def alignment_fault(alignment: object, kind: str) -> str:
    """Return what is wrong with the alignment that a file asks for."""
    if kind != "u32" or not isinstance(alignment, int):
        return f"{ALIGNMENT_KEY} is stored as {kind}; it must be u32"
    if alignment < 1 or alignment & (alignment - 1) or alignment >= 2**32:
        return f"{ALIGNMENT_KEY} is {alignment}; it must be a power of two, usually 32"
    return ""


def shape_fault(shape: Sequence[int], cls: type[BlockType]) -> str:
    """Return what is wrong with a shape in NumPy's order: the row length comes last."""
    if len(shape) > MOST_DIMENSIONS:
        return f"has {len(shape)} dimensions; at most {MOST_DIMENSIONS} are allowed"
    for size in shape:
        if not 0 <= size < 2**63:
            return f"has a dimension of {size}; it must lie in 0 .. 2^63 - 1"
    # A zero counts as one here: NumPy cannot hold the shape (0, 2^62, 2^62) either.
    if prod(max(size, 1) for size in shape) >= MOST_WEIGHTS:
        return f"has shape {tuple(shape)}, more weights than any computer can address"
    columns = shape[-1] if shape else 1
    if columns % cls.size:
        return (
            f"has rows of {columns} weights; {cls.__name__} packs rows in whole blocks of "
            f"{cls.size}"
        )
    return ""


def tensor_bytes(shape: Sequence[int], cls: type[BlockType]) -> int:
    """Return the bytes of a tensor's blocks, in Python integers, which never wrap."""
    return prod(shape) // cls.size * cls.layout.itemsize
