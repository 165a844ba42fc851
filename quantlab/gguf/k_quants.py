"""Super-blocks of 256 weights whose sub-blocks have small integer scales: Q2_K to Q6_K, Q8_K.

The codes and scales: ``k_scales.py``, with the searches of ``search.py``. Their bits:
``k_packing.py``. Here stands what each type is.

References
----------
ggml-org/llama.cpp, ``ggml/src/ggml-common.h`` (layouts) and ``ggml/src/ggml-quants.c``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from quantlab.gguf import k_packing as bits
from quantlab.gguf.block_type import Blocks, BlockType, Bytes, Floats
from quantlab.gguf.k_scales import (
    AffineGrid,
    quantize_affine,
    quantize_q3,
    quantize_q6,
    quantize_q8,
    spread,
    spread_pairs,
)

LIMIT = 1e12  # of all K types but Q8_K: beyond, sums of cubes overflow float32, unseen


class Q2_K(BlockType):
    """16 sub-blocks of 16 weights in 84 bytes: w = d s q - dmin m, q = 0..3, s and m = 0..15.

    ::

        byte  0        16                 80   82   84
              m s x16  codes, 2 bits      d    dmin
              byte 16 + 32 h + l (l < 32): elements l, l+32, l+64, l+96 of half h, low bits first

    Each sub-block is searched for a scale and a minimum; d and dmin are the largest of them / 15;
    then q = round((x + dmin m) / (d s)).
    """

    id, size = 10, 256
    layout = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
    limit = LIMIT
    imatrix = "used"
    grid: ClassVar = AffineGrid(16, 3, 15, (-0.5, 0.1, 15), True, 1)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search the sub-blocks, then share d and dmin."""
        found, flat = quantize_affine(rows, imatrix, cls.grid), blocks.reshape(-1)
        flat["d"], flat["dmin"], flat["scales"] = found.d, found.dmin, found.scales
        flat["qs"] = bits.pack_quarters(found.codes, 0)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply out d s and dmin m, then unpack."""
        flat = blocks.reshape(-1)
        steps, shifts = spread_pairs(flat["d"], flat["dmin"], flat["scales"])
        bits.read_q2(as_bytes(flat), 16, steps, shifts, rows.reshape(-1, 256))


class Q3_K(BlockType):
    """16 sub-blocks of 16 weights in 110 bytes: w = d (s - 32) (q - 4), q = 0..7, s = 0..63.

    ::

        byte  0               32                96            108  110
              third bits of q  low two bits     s, 6 bits x16  d
              byte j, bit g: element 32 g + j   as in Q2_K

    The scale of largest size becomes s = 0, so that d may be negative.
    """

    id, size = 11, 256
    layout = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
    limit = LIMIT
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search the sub-blocks, code by code, then share d."""
        d, scales, codes = quantize_q3(rows, imatrix)
        flat = blocks.reshape(-1)
        flat["d"], flat["scales"] = d, scales
        flat["qs"], flat["hmask"] = bits.pack_quarters(codes, 0), bits.pack_bits(codes, 2)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply out d (s - 32), then unpack."""
        flat = blocks.reshape(-1)
        steps = spread(flat["d"], bits.unpack_six(np.ascontiguousarray(flat["scales"])))
        bits.read_q3(as_bytes(flat), 0, 32, steps, rows.reshape(-1, 256))


class Q4_K(BlockType):
    """8 sub-blocks of 32 weights in 144 bytes: w = d s q - dmin m, q = 0..15, s and m = 0..63.

    ::

        byte  0  2     4                       16                 144
              d  dmin  s and m, 6 bits x8 x2   codes, 4 bits
              byte 4 + j: s_j, above it 2 bits of s_(j+4)    byte 16 + 32 g + l (l < 32):
              byte 8 + j: m_j, above it 2 bits of m_(j+4)    elements l and l + 32 of quarter g,
              byte 12 + j: low 4 bits of s_(j+4), m_(j+4)    low bits first

    Each sub-block is searched for a scale and a minimum; d and dmin are the largest of them / 63;
    then q = round((x + dmin m) / (d s)).
    """

    id, size = 12, 256
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
    limit = LIMIT
    imatrix = "used"
    grid: ClassVar = AffineGrid(32, 15, 63, (-1.0, 0.1, 20), False, 2)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search the sub-blocks, then share d and dmin."""
        found, flat = quantize_affine(rows, imatrix, cls.grid), blocks.reshape(-1)
        flat["d"], flat["dmin"], flat["scales"] = found.d, found.dmin, found.scales
        flat["qs"] = bits.pack_nibbles(found.codes, 32)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply out d s and dmin m, then unpack."""
        flat = blocks.reshape(-1)
        steps, shifts = spread_pairs(flat["d"], flat["dmin"], flat["scales"])
        bits.read_q4(as_bytes(flat), 16, steps, shifts, rows.reshape(-1, 256))


class Q5_K(BlockType):
    """8 sub-blocks of 32 weights in 176 bytes: w = d s q - dmin m, q = 0..31, s and m = 0..63.

    ::

        byte  0  2     4                       16                 48                 176
              d  dmin  s and m, as in Q4_K     fifth bits of q    low four bits, as in Q4_K
                                               byte 16 + j, bit g: element 32 g + j
    """

    id, size = 13, 256
    layout = np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    )
    limit = LIMIT
    imatrix = "used"
    grid: ClassVar = AffineGrid(32, 31, 63, (-0.5, 0.1, 15), False, 2)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search the sub-blocks, then share d and dmin."""
        found, flat = quantize_affine(rows, imatrix, cls.grid), blocks.reshape(-1)
        flat["d"], flat["dmin"], flat["scales"] = found.d, found.dmin, found.scales
        flat["qs"] = bits.pack_nibbles(found.codes, 32)
        flat["qh"] = bits.pack_bits(found.codes, 4)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply out d s and dmin m, then unpack."""
        flat = blocks.reshape(-1)
        steps, shifts = spread_pairs(flat["d"], flat["dmin"], flat["scales"])
        bits.read_q5(as_bytes(flat), 16, 48, steps, shifts, rows.reshape(-1, 256))


class Q6_K(BlockType):
    """16 sub-blocks of 16 weights in 210 bytes: w = d s (q - 32), q = 0..63, s an int8.

    ::

        byte  0                   128                192       208  210
              low four bits       upper two bits     s x16     d
              byte 64 h + l (l < 64): elements       as in Q2_K
              l and l + 64 of half h, low bits first

    The scale of largest size becomes s = -128, so that d may be negative.
    """

    id, size = 14, 256
    layout = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
    limit = LIMIT
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search the sub-blocks, then share d."""
        d, scales, codes = quantize_q6(rows, imatrix)
        flat = blocks.reshape(-1)
        flat["d"], flat["scales"] = d, scales
        flat["ql"], flat["qh"] = bits.pack_nibbles(codes, 64), bits.pack_quarters(codes, 4)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply out d s, then unpack."""
        flat = blocks.reshape(-1)
        steps = spread(flat["d"], np.ascontiguousarray(flat["scales"]))
        bits.read_q6(as_bytes(flat), 128, steps, rows.reshape(-1, 256))


class Q8_K(BlockType):
    """256 weights in 292 bytes: w = d q, q = -127..127. For activations only, never in a file.

    ::

        byte  0            4           260                     292
              d, float32   q x256      sums of 16 q, int16 x16

    d = -M / 127, M the first weight of the largest size: q = -127 for it.
    """

    id, size = 15, 256
    layout = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Find the signed extreme, then codes and their sums."""
        flat = blocks.reshape(-1)
        flat["d"], flat["qs"], flat["bsums"] = quantize_q8(rows.reshape(-1, 256))

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Multiply by d."""
        flat = blocks.reshape(-1)
        bits.read_q8(flat["d"], flat["qs"], rows.reshape(-1, 256))


def as_bytes(flat: Blocks) -> Bytes:
    """Return (blocks,) records as (blocks, bytes), the same memory."""
    return flat.view(np.uint8).reshape(len(flat), -1)
