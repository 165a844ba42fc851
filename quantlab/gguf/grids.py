"""Codes that were chosen elsewhere, by RTN, GPTQ or AWQ, as ggml blocks: not one is rounded again.

A block type can hold a layer if its formula has the layer's levels among its own and the groups
consist of whole blocks. Each block then carries a copy of its group's scale, which was rounded to
float16 long before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Bytes, Floats
from quantlab.gguf.codec import TYPES

BLOCK = 32  # weights
CENTERED = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}  # type -> bits
MINIMA = {"Q4_1": 4, "Q5_1": 5}
ZERO = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 0}  # type -> code of zero; Q8_0's codes have a sign


@dataclass(frozen=True, eq=False)
class Grid:
    """A matrix of integers: ``w = scale * (code - zero_point)`` in each group of a row.

    Attributes
    ----------
    codes : (out, in) uint8 array
    scale : (out, groups) float16 array
    zero_point : (out, groups) uint8 array, or None
        None for a symmetric grid: 2**(bits - 1) everywhere.
    bits : int
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    zero_point: NDArray[np.uint8] | None
    bits: int

    @cached_property
    def minimum(self) -> NDArray[np.float64]:
        """What code 0 stands for, (out, groups), exactly."""
        zero = 2 ** (self.bits - 1) if self.zero_point is None else self.zero_point
        return -self.scale.astype(np.float64) * zero

    @cached_property
    def holders(self) -> tuple[str, ...]:
        """The types that hold every weight exactly, the smallest first; F32 always does."""
        groups = self.scale.shape[1]
        if self.codes.shape[1] % (groups * BLOCK):
            return ("F32",)
        if self.zero_point is None:
            widths = CENTERED
        else:
            with np.errstate(over="ignore"):  # beyond float16: infinite, and so not equal
                exact = (self.minimum.astype(np.float16) == self.minimum).all()
            widths = MINIMA if exact else {}
        return (*(name for name, width in widths.items() if self.bits <= width), "F32")

    def why_none(self) -> str:
        """Say why no block type holds the weights exactly."""
        size = self.codes.shape[1] // self.scale.shape[1]
        if size % BLOCK:
            return f"its groups of {size} weights are no whole blocks of {BLOCK}"
        if self.bits > max(MINIMA.values()):
            return f"no type with minima has {self.bits} bits"
        return "Q4_1 stores scale x zero_point as a float16, and some of them do not fit"

    def dequantize(self) -> Floats:
        """Return the weights, (out, in)."""
        zero = 2 ** (self.bits - 1) if self.zero_point is None else self.zero_point[..., None]
        groups = self.codes.reshape(*self.scale.shape, -1).astype(np.float32)
        weights = (groups - np.float32(zero)) * self.scale[..., None].astype(np.float32)
        return weights.reshape(self.codes.shape)

    def blocks(self, name: str) -> Bytes:
        """Return the blocks of one of the ``holders`` but F32, (out, bytes of a row)."""
        rows, columns = self.codes.shape
        records = np.zeros((rows, columns // BLOCK), TYPES[name].layout)
        spread = columns // BLOCK // self.scale.shape[1]  # blocks a group
        records["d"] = np.repeat(self.scale, spread, axis=1)
        codes = self.codes.astype(np.int16)
        if name in MINIMA:
            records["m"] = np.repeat(self.minimum.astype(np.float16), spread, axis=1)
        else:
            codes = codes + ZERO[name] - 2 ** (self.bits - 1)
        codes = codes.reshape(rows, -1, BLOCK)
        if name == "Q8_0":
            records["qs"] = codes.astype(np.int8)
            return records.view(np.uint8)
        low = (codes & 15).astype(np.uint8)
        records["qs"] = low[..., :16] | low[..., 16:] << 4  # byte j: elements j and j + 16
        if "qh" in (TYPES[name].layout.names or ()):  # fifth bits, element j at bit j
            fifth = np.packbits(codes >> 4 & 1, axis=-1, bitorder="little")
            records["qh"] = fifth
        return records.view(np.uint8)
