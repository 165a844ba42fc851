"""Four bits through a fixed table of uneven levels: IQ4_NL and IQ4_XS.

Weights are bell-shaped: most are small. Sixteen levels that lie close together near zero and far
apart at the ends waste fewer codes than an even grid. The table is the format's; the encoder has
only the scale to choose, and tries sixteen of them per 32 weights.

The search runs on 16 sub-blocks at once, weight by weight: each keeps its own sums in ggml's
order, so the bytes are the same, and the processor does the sixteen in one vector.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from quantlab.gguf.block_type import Blocks, BlockType, Bytes, Floats
from quantlab.native import compiled

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LEVELS = np.array(_LEVELS, np.float32)  # what codes 0 to 15 mean, in units of the scale
STEPS = np.diff(LEVELS)
MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / 2  # exact in float32; a weight on one goes up

SIDE_BY_SIDE = 16  # sub-blocks searched together: one AVX-512 register, two of AVX2


class IQ4_NL(BlockType):
    """32 weights in 18 bytes: w = d * LEVELS[code].

    ::

        byte   0    2                             18
               | d  | qs                          |
        qs[j] = code of weight j (low four bits), code of weight j + 16 (high four bits)

    LEVELS = -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113. There is no zero: an
    empty block has d = 0. References: ``block_iq4_nl`` in ggml-org/ggml, ``src/ggml-common.h``.
    """

    id = 20
    size = 32
    layout: ClassVar[np.dtype] = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    limit = 1e11  # beyond, the search's sums of x^3 overflow float32
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search one scale a block; a code is the level nearest to weight / scale."""
        scales = search_scales(rows, imatrix, cls.size)
        with np.errstate(over="ignore"):  # the caller refuses a d that became infinite
            blocks["d"] = scales.reshape(blocks.shape)
        blocks["qs"] = nearest_codes(rows, scales).reshape(blocks["qs"].shape)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Look each code up and multiply by the scale."""
        steps = blocks["d"].astype(np.float32)[..., None]
        read_codes(blocks["qs"], steps, rows.reshape(*steps.shape, 32))


class IQ4_XS(BlockType):
    """256 weights in 136 bytes: w = d * (s - 32) * LEVELS[code], a six-bit s for each 32 weights.

    ::

        byte   0    2           4           8                              136
               | d  | scales_h  | scales_l  | qs                           |
        scales_l[g // 2] = low four bits of s[g], even g in the low half
        scales_h         = upper two bits of s[g] at bit 2 g
        qs[16 g + j]     = codes of weights 32 g + j (low half) and 32 g + j + 16 (high half)

    LEVELS as in IQ4_NL. References: ``block_iq4_xs`` in ggml-org/ggml, ``src/ggml-common.h``.
    """

    id = 23
    size = 256
    layout: ClassVar[np.dtype] = np.dtype(
        [("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)]
    )
    limit = 1e11  # as IQ4_NL
    imatrix = "used"

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Search a scale for each 32 weights, then write the eight as multiples of one d."""
        scales = search_scales(rows, imatrix, cls.size).reshape(*blocks.shape, 8)
        d, multiples = share_step(scales)
        with np.errstate(over="ignore"):  # the caller refuses a d that became infinite
            blocks["d"] = d
        s = multiples.astype(np.int64) + 32
        blocks["scales_l"] = s[..., 0::2] & 15 | (s[..., 1::2] & 15) << 4
        blocks["scales_h"] = ((s >> 4) << 2 * np.arange(8)).sum(-1)
        codes = nearest_codes(rows, (d[..., None] * multiples).reshape(-1))
        blocks["qs"] = codes.reshape(blocks["qs"].shape)

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Look each code up and multiply by the step of its 32 weights."""
        groups = np.arange(8)
        low = blocks["scales_l"][..., groups // 2] >> groups % 2 * 4 & 15
        high = blocks["scales_h"][..., None] >> 2 * groups & 3
        multiples = (low | high << 4).astype(np.float32) - np.float32(32)
        with np.errstate(invalid="ignore"):  # a damaged d stays what it is
            steps = blocks["d"].astype(np.float32)[..., None] * multiples
        read_codes(blocks["qs"], steps, rows.reshape(*steps.shape, 32))


def search_scales(rows: Floats, imatrix: Floats | None, size: int) -> Floats:
    """Return the best scale of each 32 weights; ``size`` weights share the imatrix's spread."""
    columns = rows.shape[1]
    x = rows.reshape(-1, 32)
    if imatrix is None:
        weights = x * x
    else:
        weights = np.empty_like(x)
        weigh(rows.reshape(-1, columns // size, size), imatrix.reshape(-1, size), weights)
    scales = np.empty(len(x), np.float32)
    search(x, weights, scales)
    return scales


def share_step(scales: Floats) -> tuple[Floats, Floats]:
    """Return d and the integers -32..31 with d * integer near the eight scales of each block.

    The scale of largest size becomes -32 exactly, so d carries the opposite sign. Sums that were
    not finite (an imatrix beyond 1e20) leave a d that is not: the caller refuses it, where ggml
    would write zeros.
    """
    size = np.abs(scales)
    first = size.argmax(-1, keepdims=True)  # NaN counts as largest
    largest = np.take_along_axis(scales, first, -1)[..., 0]
    d = (-np.where(largest == 0, 0, largest) / 32).astype(np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
        multiples = np.clip(np.rint(inverse[..., None] * scales), -32, 31)
    return d, np.where(np.isnan(multiples), np.float32(0), multiples)


@compiled
def weigh(x, importance, weights):
    """Fill ``weights`` with importance * sqrt(2 mean(x^2) + x^2), the mean over a block."""
    rows, blocks, size = x.shape
    flat = weights.reshape(rows, blocks, size)
    for row in range(rows):
        for b in range(blocks):
            total = np.float32(0)
            for j in range(size):
                total += x[row, b, j] * x[row, b, j]
            spread = total * np.float32(2 / size)
            for j in range(size):
                v = x[row, b, j]
                flat[row, b, j] = importance[b, j] * np.sqrt(spread + v * v)


@compiled
def level(v):
    """Return the level nearest to ``v``; the upper one of two equally near, and for NaN."""
    q = LEVELS[0]
    for k in range(15):
        q += np.float32(0) if v < MIDDLES[k] else STEPS[k]
    return q


@compiled
def search(x, weights, scales):
    """Fill ``scales`` (n,): for each row of ``x`` (n, 32) the best of sixteen candidates."""
    lanes = SIDE_BY_SIDE
    xt = np.zeros((32, lanes), np.float32)
    wt = np.zeros((32, lanes), np.float32)
    peak = np.empty(lanes, np.float32)
    scale = np.empty(lanes, np.float32)
    for first in range(0, len(x), lanes):
        count = min(lanes, len(x) - first)
        for k in range(count):
            for j in range(32):
                xt[j, k] = x[first + k, j]
                wt[j, k] = weights[first + k, j]
        find_peaks(xt, peak)
        try_scales(xt, wt, peak, scale)
        for k in range(count):
            scales[first + k] = scale[k] if peak[k] != 0 else np.float32(0)


@compiled
def find_peaks(xt, peak):
    """Fill ``peak`` with the first largest weight of each lane, 0 where all are below 1e-15."""
    peak[:] = 0
    size = np.zeros(SIDE_BY_SIDE, np.float32)
    for j in range(32):
        for k in range(SIDE_BY_SIDE):
            larger = abs(xt[j, k]) > size[k]
            size[k] = abs(xt[j, k]) if larger else size[k]
            peak[k] = xt[j, k] if larger else peak[k]
    for k in range(SIDE_BY_SIDE):
        peak[k] = peak[k] if size[k] >= np.float32(1e-15) else np.float32(0)


@compiled
def try_scales(xt, wt, peak, scale):
    """Fill ``scale`` with least-squares scales for the best of sixteen sets of codes.

    Codes of 1 / inverse minimize sum w (x - s q)^2 at s = A / B, A = sum w q x, B = sum w q q,
    and lower it by A A / B. The first set puts the peak on level 113, the others near -127.
    """
    gain = np.empty(SIDE_BY_SIDE, np.float32)
    inverse = np.empty(SIDE_BY_SIDE, np.float32)
    A = np.empty(SIDE_BY_SIDE, np.float32)
    B = np.empty(SIDE_BY_SIDE, np.float32)
    for t in range(-8, 8):
        for k in range(SIDE_BY_SIDE):
            M = peak[k] if peak[k] != 0 else np.float32(1)
            ahead = np.float32(1) / (-M / LEVELS[0])
            inverse[k] = ahead if t == -8 else (np.float32(t) + LEVELS[0]) / M
            A[k] = 0
            B[k] = 0
        for j in range(32):
            for k in range(SIDE_BY_SIDE):
                q = level(inverse[k] * xt[j, k])
                A[k] += (wt[j, k] * q) * xt[j, k]
                B[k] += (wt[j, k] * q) * q
        for k in range(SIDE_BY_SIDE):
            fit = A[k] / B[k] if B[k] > 0 else np.float32(0)
            wins = t == -8 or (B[k] > 0 and A[k] * A[k] > gain[k] * B[k])
            scale[k] = fit if wins else scale[k]
            gain[k] = fit * A[k] if wins else gain[k]


def nearest_codes(rows: Floats, steps: Floats) -> Bytes:
    """Return (n, 16) bytes: for 32 weights a row, the levels nearest to weight / step."""
    codes = np.empty((len(steps), 16), np.uint8)
    store_codes(rows.reshape(-1, 32), steps, codes)
    return codes


@compiled
def store_codes(x, steps, codes):
    """Fill ``codes`` (n, 16) with two codes a byte, of ``x`` (n, 32) over ``steps`` (n,)."""
    both = np.empty(32, np.uint8)
    for b in range(len(x)):
        inverse = np.float32(0) if steps[b] == 0 else np.float32(1) / steps[b]
        for j in range(32):
            v = inverse * x[b, j]
            code = np.uint8(0)
            for k in range(15):
                code += np.uint8(0) if v < MIDDLES[k] else np.uint8(1)
            both[j] = code
        for j in range(16):
            codes[b, j] = both[j] | both[j + 16] << 4


@compiled
def read_codes(codes, steps, y):
    """Fill ``y`` (rows, blocks, groups, 32) with step * level of each code."""
    rows, blocks, groups, _ = y.shape
    for r in range(rows):
        for b in range(blocks):
            for g in range(groups):
                step = steps[r, b, g]
                for j in range(16):
                    byte = codes[r, b, 16 * g + j]
                    y[r, b, g, j] = step * LEVELS[byte & 15]
                    y[r, b, g, j + 16] = step * LEVELS[byte >> 4]
