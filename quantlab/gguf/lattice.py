"""Below four bits: eight or four weights at once are one point of a lattice (IQ1, IQ2, IQ3).

A code of its own for each weight wastes bits when most combinations never occur. These types keep
a list of a few hundred good combinations of sizes, write an index into it, and the signs beside
it. Two bits a weight then cost much less quality than a plain two-bit grid would.

Reading takes three arrays for a block: which point, which signs, which step. ``unpack`` of each
type finds them in the bytes, and one loop does the rest:

    weight[j] = step * points[index][j] * (-1 if bit j of signs is set, else 1)

The lists are facts of the format. ``lattices.npz`` holds them packed, as
``labs/experiments/gguf_lattices.py`` read them out of ggml. References: ``block_iq*`` in
ggml-org/ggml, ``src/ggml-common.h``; the idea is from Tseng et al., QuIP#, arXiv:2402.04396v2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Blocks, BlockType, Floats
from quantlab.gguf.lattice_points import EVEN_SIGNS, lattice, place, shifted_lattice
from quantlab.gguf.lattice_search import SEARCHES, Found, search_blocks
from quantlab.gguf.lattice_thirds import search_thirds

AT_ONCE = 128  # blocks unpacked together: their arrays stay in the cache
Unpacked = tuple[NDArray[Any], NDArray[Any], Floats]


class Lattice:
    """What the seven types share: reading is a loop over ``unpack``, writing a search."""

    layout: ClassVar[np.dtype]
    limit: ClassVar[float] = 1e8  # the largest d is passed at 3e7; sums of x^3 are safe

    @classmethod
    def points(cls) -> Floats:
        """Return the lattice of the type."""
        return lattice(cls.__name__)

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index (n, 32 or 64), signs (n, 32) and steps (n, 8 or 16) of ``blocks`` (n,)."""
        raise ValueError(f"{cls.__name__} does not say how its blocks are laid out")

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search a point, signs and step for each group."""
        search = search_blocks if cls.__name__ in SEARCHES else search_thirds
        found = search(cls.__name__, rows, imatrix)
        packed: Blocks = np.zeros(len(found.d), cls.layout)
        cls.pack(found, packed)
        blocks[...] = packed.reshape(blocks.shape)

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        raise ValueError(f"{cls.__name__} does not say how its blocks are written")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Place the point, signs and step of each group, a few blocks at a time."""
        flat, y = blocks.reshape(-1), rows.reshape(blocks.size, 256)
        for start in range(0, len(flat), AT_ONCE):
            with np.errstate(invalid="ignore", over="ignore"):  # a damaged d stays what it is
                index, signs, steps = cls.unpack(flat[start : start + AT_ONCE])
            place(cls.points(), index, signs, steps, y[start : start + AT_ONCE])


def floats(blocks: Blocks, field: str = "d") -> Floats:
    """Return the scale of each block as a column of float32."""
    return blocks[field].astype(np.float32)[:, None]


def half(d: Floats) -> NDArray[np.float16]:
    """Return float16 numbers; the caller refuses those that became infinite."""
    with np.errstate(over="ignore"):
        return d.astype(np.float16)


def fields(array: NDArray[Any], bits: int, count: int) -> NDArray[Any]:
    """Split each integer into ``count`` fields of ``bits`` from its lowest bit: (n, many)."""
    split = array[..., None] >> (bits * np.arange(count)).astype(array.dtype)
    return (split & array.dtype.type(2**bits - 1)).reshape(len(array), -1)


def joined(values: NDArray[Any], bits: int, count: int) -> NDArray[Any]:
    """Join each ``count`` neighbors of ``bits`` into one integer: the inverse of ``fields``."""
    groups = values.reshape(len(values), -1, count) & 2**bits - 1
    return (groups << bits * np.arange(count)).sum(-1)


def step(d: Floats, *factors: float | Floats) -> Floats:
    """Return d times the factors, one after the other in float32, as ggml rounds it."""
    for factor in factors:
        d = d * np.asarray(factor, np.float32)
    return d


class IQ2_XXS(Lattice, BlockType):
    """256 weights in 66 bytes: w = d * (1/2 + s) / 4 * point * sign, an s for each 32.

    ::

        byte   0   2                                  66
               | d | 8 groups of 32 weights, 8 bytes each
        index[k] = which of 256 points: weights 8 k to 8 k + 7 of the group
        signs    = seven signs of each 8 weights at bit 7 k, s in the top four bits
    """

    id = 16
    size = 256
    layout = np.dtype([("d", "<f2"), ("groups", [("index", "u1", 4), ("signs", "<u4")], 8)])
    imatrix = "required"

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index, signs (n, 32) and steps of ``blocks`` (n,)."""
        groups = blocks["groups"]
        signs = EVEN_SIGNS[fields(groups["signs"], 7, 4)]
        steps = step(floats(blocks), (groups["signs"] >> 28) + np.float32(0.5), 0.25)
        return groups["index"].reshape(-1, 32), signs, steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["groups"]["index"] = found.points.reshape(-1, 8, 4)
        blocks["groups"]["signs"] = joined(found.signs, 7, 4) | found.s << 28


class IQ2_XS(Lattice, BlockType):
    """256 weights in 74 bytes: w = d * (1/2 + s) / 4 * point * sign, an s for each 16.

    ::

        byte   0   2                 66       74
               | d | codes           | scales |
        codes[k]  = which of 512 points (nine bits), seven signs: weights 8 k to 8 k + 7
        scales[g] = s of the first (low) and second (high) 16 weights of 32
    """

    id = 17
    size = 256
    layout = np.dtype([("d", "<f2"), ("codes", "<u2", 32), ("scales", "u1", 8)])
    imatrix = "required"

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index, signs (n, 32) and steps of ``blocks`` (n,)."""
        codes = blocks["codes"]
        s = fields(blocks["scales"], 4, 2)
        steps = step(floats(blocks), s + np.float32(0.5), 0.25)
        return codes & 511, EVEN_SIGNS[codes >> 9], steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["codes"] = found.points | (found.signs & 127) << 9
        blocks["scales"] = joined(found.s, 4, 2)


class IQ2_S(Lattice, BlockType):
    """256 weights in 82 bytes: w = d * (1/2 + s) / 4 * point * sign, an s for each 16.

    ::

        byte   0   2       34      66     74       82
               | d | low   | signs | high | scales |
        low[k], two bits of high[k // 4] at 2 (k mod 4) = which of 1,024 points
        signs[k] = all eight signs of weights 8 k to 8 k + 7
        scales   = as in IQ2_XS
    """

    id = 22
    size = 256
    layout = np.dtype(
        [
            ("d", "<f2"),
            ("low", "u1", 32),
            ("signs", "u1", 32),
            ("high", "u1", 8),
            ("scales", "u1", 8),
        ]
    )
    imatrix = "used"

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index, signs (n, 32) and steps of ``blocks`` (n,)."""
        index = blocks["low"] | fields(blocks["high"], 2, 4).astype(np.uint16) << 8
        s = fields(blocks["scales"], 4, 2)
        steps = step(floats(blocks), s + np.float32(0.5), 0.25)
        return index, blocks["signs"], steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["low"], blocks["signs"] = found.points & 255, found.signs
        blocks["high"] = joined(found.points >> 8, 2, 4)
        blocks["scales"] = joined(found.s, 4, 2)


class IQ3_XXS(Lattice, BlockType):
    """256 weights in 98 bytes: w = d * (1/2 + s) / 2 * point * sign, an s for each 32.

    ::

        byte   0   2               66       98
               | d | index         | signs  |
        index[k] = which of 256 points: weights 4 k to 4 k + 3
        signs[g] = for 32 weights as in IQ2_XXS: seven signs of each 8, s in the top four bits
    """

    id = 18
    size = 256
    layout = np.dtype([("d", "<f2"), ("index", "u1", 64), ("signs", "<u4", 8)])
    imatrix = "used"

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index (n, 64), signs (n, 32) and steps of ``blocks`` (n,)."""
        signs = EVEN_SIGNS[fields(blocks["signs"], 7, 4)]
        steps = step(floats(blocks), (blocks["signs"] >> 28) + np.float32(0.5), 0.5)
        return blocks["index"], signs, steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["index"] = found.points
        blocks["signs"] = joined(found.signs, 7, 4) | found.s << 28


class IQ3_S(Lattice, BlockType):
    """256 weights in 110 bytes: w = d * (1 + 2 s) * point * sign, an s for each 32.

    ::

        byte   0   2           66     74      106      110
               | d | low       | high | signs | scales |
        low[k], bit k mod 8 of high[k // 8] = which of 512 points: weights 4 k to 4 k + 3
        signs[k]  = all eight signs of weights 8 k to 8 k + 7
        scales[g] = s of an even (low four bits) and odd (high) 32 weights

    Where a part of 32 zeros stands before others, ggml 0.26 writes the low bytes and signs of
    those others too early, and reads different weights back; here they stay in their places.
    """

    id = 21
    size = 256
    layout = np.dtype(
        [
            ("d", "<f2"),
            ("low", "u1", 64),
            ("high", "u1", 8),
            ("signs", "u1", 32),
            ("scales", "u1", 4),
        ]
    )
    imatrix = "used"

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index (n, 64), signs (n, 32) and steps of ``blocks`` (n,)."""
        index = blocks["low"] | fields(blocks["high"], 1, 8).astype(np.uint16) << 8
        steps = step(floats(blocks), 2 * fields(blocks["scales"], 4, 2) + np.float32(1))
        return index, blocks["signs"], steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and signs into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["low"], blocks["signs"] = found.points & 255, found.signs
        blocks["high"] = joined(found.points >> 8, 1, 8)
        blocks["scales"] = joined(found.s, 4, 2)


class IQ1_S(Lattice, BlockType):
    """256 weights in 50 bytes: w = d * (2 s + 1) * (point + or - 1/8), an s for each 32.

    ::

        byte   0   2           34          50
               | d | low       | high      |
        low[k], three bits of high[k // 4] at 3 (k mod 4) = which of 2,048 points of -1, 0, 1
        high[g] = also s of 32 weights at bit 12, and at bit 15 whether 1/8 is taken away
    """

    id = 19
    size = 256
    layout = np.dtype([("d", "<f2"), ("low", "u1", 32), ("high", "<u2", 8)])
    imatrix = "required"

    @classmethod
    def points(cls) -> Floats:
        """Return the lattice, shifted both ways."""
        return shifted_lattice()

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index, no signs (n, 32) and steps of ``blocks`` (n,)."""
        high = blocks["high"]
        index = blocks["low"] | fields(high, 3, 4) << 8 | np.repeat(high >> 15, 4, 1) << 11
        steps = step(floats(blocks), 2 * (high >> 12 & 7) + np.float32(1))
        return index, np.zeros_like(blocks["low"]), steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and shifts into ``blocks`` (n,)."""
        blocks["d"] = half(found.d)
        blocks["low"] = found.points & 255
        shifts = found.signs[:, ::4] << 15
        blocks["high"] = joined(found.points >> 8, 3, 4) | found.s << 12 | shifts


class IQ1_M(Lattice, BlockType):
    """256 weights in 56 bytes: w = d * (2 s + 1) * (point + or - 1/8), an s for each 16.

    ::

        byte   0           32       48       56
               | low       | high   | scales |
        low[k], three bits of nibble k of high = which of 2,048 points of -1, 0, 1
        nibble k = also, in its top bit, whether 1/8 is taken away from weights 8 k to 8 k + 7
        scales[i] = four s of 16 weights at bits 0, 3, 6, 9; the four top nibbles are d, a float16
    """

    id = 29
    size = 256
    layout = np.dtype([("low", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4)])
    imatrix = "used"

    @classmethod
    def points(cls) -> Floats:
        """Return the lattice, shifted both ways."""
        return shifted_lattice()

    @classmethod
    def unpack(cls, blocks: Blocks) -> Unpacked:
        """Return index, no signs (n, 32) and steps of ``blocks`` (n,)."""
        scales = blocks["scales"]
        index = blocks["low"] | fields(blocks["high"], 4, 2).astype(np.uint16) << 8
        bits = np.bitwise_or.reduce(scales >> 12 << np.array([0, 4, 8, 12], np.uint16), -1)
        d = bits.view(np.float16).astype(np.float32)[:, None]
        steps = step(d, 2 * fields(scales, 3, 4) + np.float32(1))
        return index, np.zeros_like(blocks["low"]), steps

    @classmethod
    def pack(cls, found: Found, blocks: Blocks) -> None:
        """Write scales, points and shifts into ``blocks`` (n,); a ValueError if d is too large."""
        d = half(found.d)
        if not np.isfinite(d).all():
            largest = np.abs(found.d).max()
            raise ValueError(
                f"an IQ1_M scale is {largest:.6g}, which does not fit float16; use F32 here"
            )
        blocks["low"] = found.points & 255
        blocks["high"] = joined(found.points >> 8 | found.signs << 3, 4, 2)
        nibbles = d.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks["scales"] = joined(found.s, 3, 4) | nibbles.astype(np.int64) << 12
