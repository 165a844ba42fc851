"""Codes of four bits, two a byte, and the fifth bits beside them, in ggml's order."""

from __future__ import annotations

import numpy as np

from quantlab.gguf.rounding import half_float
from quantlab.native import compiled


@compiled
def pack_halves(codes, qs):
    """Pack the low four bits of codes: the first half of each row low, the second half high."""
    half = qs.shape[1]
    for b in range(len(codes)):
        for j in range(half):
            qs[b, j] = (codes[b, j] & 15) | (codes[b, j + half] << 4)


@compiled
def pack_fifth(codes, qh):
    """Pack the fifth bits of 32 codes a block, bit j of the four bytes for code j."""
    for b in range(len(codes)):
        for k in range(4):
            byte = 0
            for j in range(8):
                byte |= (codes[b, 8 * k + j] >> 4) << j
            qh[b, k] = byte


@compiled
def unpack_halves(qs, qh, d, m, offset, x):
    """Fill x with (q - offset) d + m; ``qh`` and ``m`` may be empty."""
    for b in range(d.size):
        scale = half_float(d[b])
        # Adding -0.0 changes no float, not even a zero's sign.
        minimum = half_float(m[b]) if m.size else np.float32(-0.0)
        fifth = np.uint32(0)
        for k in range(qh.shape[1]):
            fifth |= np.uint32(qh[b, k]) << np.uint32(8 * k)
        for j in range(16):
            low = np.int32(qs[b, j] & 15) | np.int32((fifth >> j) & 1) << 4
            high = np.int32(qs[b, j] >> 4) | np.int32((fifth >> (j + 16)) & 1) << 4
            x[b, j] = np.float32(low - np.int32(offset)) * scale + minimum
            x[b, j + 16] = np.float32(high - np.int32(offset)) * scale + minimum
