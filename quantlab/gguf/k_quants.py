"""Super-blocks of 256 weights whose sub-blocks have small integer scales: Q2_K to Q6_K, Q8_K."""

from __future__ import annotations

import numpy as np

from quantlab.gguf.block_type import Blocks, BlockType, Bytes, Floats
from quantlab.gguf.k_scales import (
    AffineGrid,
    nearest_integers,
    quantize_affine,
    round_codes,
    signed_extreme,
    spread,
    to_half,
)
from quantlab.gguf.search import symmetric, symmetric_codes

TINY = np.float32(1e-15)


def nibbles(codes: Bytes) -> Bytes:
    """Pack codes (blocks, 256) of four bits: of each 64 the first 32 low, the next 32 high."""
    pairs = codes.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def quarters(codes: Bytes) -> Bytes:
    """Pack codes (blocks, 256) of two bits: byte l of each 128 holds l, l+32, l+64, l+96."""
    q = codes.reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64)


def bit_planes(bits: Bytes) -> Bytes:
    """Pack bits (blocks, 256): bit g of byte j is element 32 g + j."""
    return np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def pack_six(ls: Bytes, lm: Bytes) -> Bytes:
    """Pack eight scales and eight minimums of six bits (blocks, 8) into 12 bytes.

    Bytes 0-3: scales 0-3; 4-7: minimums 0-3; 8-11: low nibbles of scales and minimums 4-7. Upper
    two bits of number j + 4 lie above number j.
    """
    low = ls[:, :4] | (ls[:, 4:] >> 4) << 6
    middle = lm[:, :4] | (lm[:, 4:] >> 4) << 6
    return np.concatenate([low, middle, ls[:, 4:] & 15 | lm[:, 4:] << 4], axis=1)


class Q4_K(BlockType):
    """4 bits, sub-blocks of 32 with 6-bit scale and minimum: w = d ls l - dmin lm.

    d 2 | dmin 2 | scales 12 | nibbles 128 = 144 bytes, 4.5 bits a weight
    """

    id = 12
    size = 256
    layout = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
    imatrix = "used"
    limit = 1e12
    grid = AffineGrid(32, 15, 63, (-1.0, 0.1, 20, False), 2.0)

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search sub-blocks, then share d and dmin among eight of them."""
        with np.errstate(all="ignore"):
            found = quantize_affine(rows, imatrix, cls.grid)
        flat = blocks.reshape(-1)
        flat["d"], flat["dmin"] = found.d, found.dmin
        flat["scales"] = pack_six(found.ls, found.lm)
        flat["qs"] = nibbles(found.codes)


class Q6_K(BlockType):
    """6 bits, sub-blocks of 16 with an 8-bit scale: w = d scale (l - 32)."""

    id = 14
    size = 256
    layout = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
    imatrix = "used"
    limit = 1e12

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search sub-blocks, then share d among sixteen of them."""
        with np.errstate(all="ignore"):
            d, scales, codes = cls.search(rows, imatrix)
        flat = blocks.reshape(-1)
        flat["d"], flat["scales"] = d, scales
        parts = codes.reshape(-1, 2, 4, 32)
        flat["ql"] = (parts[:, :, :2] & 15 | parts[:, :, 2:] << 4).reshape(-1, 128)
        flat["qh"] = quarters(codes >> 4)

    @staticmethod
    def search(rows: Floats, imatrix: Floats | None) -> tuple[np.ndarray, np.ndarray, Bytes]:
        """Return d (blocks,), scales (blocks, 16) and codes (blocks, 256)."""
        x = rows.reshape(-1, 16)
        if imatrix is None:
            w = x * x
        else:
            w = np.broadcast_to(imatrix, rows.shape).reshape(-1, 16)
        scale, inverse = symmetric(x, w, 32)
        codes = symmetric_codes(x, inverse, 32)
        values = scale.reshape(-1, 16)
        extreme = signed_extreme(values)
        whole = np.abs(extreme) >= TINY
        shared = np.divide(np.float32(-128), extreme, where=whole, out=np.zeros_like(extreme))
        scales = np.minimum(nearest_integers(shared[:, None] * values), 127).astype(np.int8)
        d = to_half(np.divide(np.float32(1), shared, where=whole, out=np.zeros_like(extreme)))
        codes = codes.reshape(-1, 256)
        codes[~whole] = 0
        steps = spread(d, scales).reshape(-1)
        shifts = np.zeros_like(steps)
        round_codes(x, steps, shifts, np.int32(-32), np.int32(31), codes.reshape(-1, 16))
        return d, scales, codes
