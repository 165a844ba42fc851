"""One number a weight: floats and integers that are stored as they are."""

from __future__ import annotations

import numpy as np

from quantlab.gguf.block_type import Blocks, BlockType, Floats
from quantlab.gguf.rounding import HALF_OVERFLOW, below, bits, half_bits, half_float
from quantlab.native import compiled


class F32(BlockType):
    """One weight in 4 bytes: w itself."""

    id, size, layout = 0, 1, np.dtype("<f4")

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Copy."""
        blocks[:] = rows

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Copy."""
        rows[:] = blocks


class F16(BlockType):
    """One weight in 2 bytes: w rounded to 11 significant bits, ties to even.

    ::

        bit  15     14 .. 10     9 .. 0
             sign   exponent     mantissa     (-1)^s 2^(e - 15) (1 + m / 1024)
    """

    id, size, layout = 1, 1, np.dtype("<f2")
    limit = below(HALF_OVERFLOW)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round to float16."""
        to_half(rows.reshape(-1), bits(blocks).reshape(-1))

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Widen to float32: exact."""
        from_half(bits(blocks).reshape(-1), rows.reshape(-1))


class BF16(BlockType):
    """One weight in 2 bytes: the upper half of its float32, rounded to nearest, ties to even.

    ::

        bit  15     14 .. 7      6 .. 0
             sign   exponent     mantissa     (-1)^s 2^(e - 127) (1 + m / 128)
    """

    id, size, layout = 30, 1, np.dtype("<u2")
    limit = below(2.0**128 * (1 - 2.0**-9))  # from here on the upper half rounds to infinity

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Round to the upper half."""
        round_upper(rows.reshape(-1).view(np.uint32), blocks.reshape(-1))

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Append sixteen zero bits."""
        append_zeros(blocks.reshape(-1), rows.reshape(-1).view(np.uint32))


class F64(BlockType):
    """One weight in 8 bytes, read as float32. Not written: the codec computes in float32."""

    id, size, layout = 28, 1, np.dtype("<f8")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Round to float32; what is beyond it becomes infinity."""
        with np.errstate(over="ignore"):
            rows[:] = blocks


class I8(BlockType):
    """An integer in 1 byte. A table of a model, no weight: it is read, never quantized to."""

    id, size, layout = 24, 1, np.dtype("<i1")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Convert to float32: exact."""
        rows[:] = blocks


class I16(BlockType):
    """An integer in 2 bytes; see I8."""

    id, size, layout = 25, 1, np.dtype("<i2")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Convert to float32: exact."""
        rows[:] = blocks


class I32(BlockType):
    """An integer in 4 bytes; see I8."""

    id, size, layout = 26, 1, np.dtype("<i4")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Convert to float32: rounded above 2^24."""
        rows[:] = blocks


class I64(BlockType):
    """An integer in 8 bytes; see I8."""

    id, size, layout = 27, 1, np.dtype("<i8")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Convert to float32: rounded above 2^24."""
        rows[:] = blocks


@compiled
def round_upper(words, out):
    """Fill ``out`` with the upper halves of float32 words, rounded to nearest, ties to even."""
    for i in range(words.size):
        even = (words[i] >> np.uint32(16)) & np.uint32(1)
        out[i] = (words[i] + np.uint32(0x7FFF) + even) >> np.uint32(16)


@compiled
def append_zeros(halves, words):
    """Fill ``words`` with the 32 bits whose upper halves are given."""
    for i in range(words.size):
        words[i] = np.uint32(halves[i]) << np.uint32(16)


@compiled
def to_half(x, out):
    """Fill ``out`` with the bits of float16."""
    for i in range(x.size):
        out[i] = half_bits(x[i])


@compiled
def from_half(codes, x):
    """Fill ``x`` from the bits of float16."""
    for i in range(x.size):
        x[i] = half_float(codes[i])
