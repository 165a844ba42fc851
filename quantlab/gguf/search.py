"""The four searches for a scale that ggml's quantizers share (GGUF calls none of them by name).

x are the n weights of a block, w their importances, l their codes. Every function takes whole
arrays, ``x`` and ``w`` as (blocks, n) float32 with n <= 32, and returns arrays over blocks:

- ``symmetric(x, w, half)`` -> scale, inverse: n = 16 or 32, x ~ scale l, l in -half..half-1 (SYM).
- ``coordinate(x)`` -> scale, codes: the same for l in -4..3, improved code by code (COORD).
- ``affine(x, w, top, tries, absolute)`` -> scale, minimum, inverse, base:
  x ~ scale l - minimum with l in 0..top (AFF); it stands in ``affine.py``.
- ``positive(x, w, top)`` -> scale, codes: n <= 16, x ~ scale l for x >= 0, l in 0..top (POS).

The codes that a search ended with are not kept where two numbers give them back:
``symmetric_codes(x, inverse, half)`` and ``affine_codes(x, inverse, base, top)``, both uint8.

References
----------
ggml-org/llama.cpp, ``ggml/src/ggml-quants.c``: make_qx_quants, make_q3_quants, make_qkx2_quants,
make_qkx3_quants, make_qp_quants.
"""

import numpy as np

from quantlab.gguf.affine import affine, affine_codes
from quantlab.gguf.lanes import (
    BEST,
    HIGH,
    INFINITE,
    INVERSE,
    LANES,
    MAGIC,
    MIDDLE,
    ONE,
    SCALE,
    SIXTEEN,
    SLL,
    SLX,
    TENTH,
    TILE,
    TINY,
    TRY,
    TRY_ERROR,
    TRY_SCALE,
    ZERO,
    L,
    W,
    X,
    clipped,
    find_extremes,
    improve,
    load,
    product_sums,
    store,
    store_codes,
)
from quantlab.native import compiled

__all__ = ["affine", "affine_codes", "coordinate", "positive", "symmetric", "symmetric_codes"]


WX = L  # the rows of codes hold w x in this search, which keeps no codes


@compiled
def symmetric(x, w, half):
    """Search the scale of (blocks, n) weights on the grid -half..half-1: scale and inverse.

    n is 16 or 32.

    A candidate is an inverse: l = round(inverse x); its best scale is A/B, A = sum (w x) l and
    B = sum (w l) l, which leaves the error sum w x x - A A/B. The inverse is 0 if all codes are.
    """
    blocks, n = np.uintp(x.shape[0]), np.uintp(x.shape[1])
    scale, inverse = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    t = np.zeros(TILE, np.float32)
    for start in range(np.uintp(0), blocks, LANES):
        lanes = min(LANES, blocks - start)
        load(x, start, t, X)
        load(w, start, t, W)
        find_extremes(t, n, lanes)
        for k in range(n * LANES):
            t[WX + k] = t[W + k] * t[X + k]
        for j in range(lanes):
            t[SCALE + j] = ZERO
            t[BEST + j] = -ONE
            t[INVERSE + j] = np.float32(-half) / t[HIGH + j]
        for k in range(19):
            symmetric_candidate(t, n, half, k, lanes)
        for j in range(lanes):
            alive = abs(t[HIGH + j]) >= TINY
            scale[start + j] = t[SCALE + j] if alive else ZERO
            inverse[start + j] = t[INVERSE + j] if alive else ZERO
    return scale, inverse


@compiled
def symmetric_candidate(t, n, half, k, lanes):
    """Try inverse 0 of 19, -half / extreme, or one of nine a little smaller or larger."""
    stretch = TENTH * np.float32(k - 10 + (k > 9)) if k else ZERO
    for j in range(lanes):
        t[TRY + j] = -(np.float32(half) + stretch) / t[HIGH + j]
    for j in range(LANES):
        t[SLX + j] = ZERO
        t[SLL + j] = ZERO
    for first in range(np.uintp(0), n, SIXTEEN):
        symmetric_sums(t, first * LANES, np.float32(-half), np.float32(half - 1))
    for j in range(lanes):
        a, b, best = t[SLX + j], t[SLL + j], t[BEST + j]
        scale, inverse, ratio = t[SCALE + j], t[INVERSE + j], a / b
        better = (b > ZERO) & (a * a > best * b)
        t[SCALE + j] = ratio if better else scale
        t[BEST + j] = ratio * a if better else max(best, ZERO)  # below 0 only before the first
        t[INVERSE + j] = t[TRY + j] if better else inverse


@compiled
def symmetric_sums(t, start, low, high):
    """Round 16 weights times TRY to codes l; add (w x) l to SLX and (w l) l to SLL.

    Sixteen at a time, because a constant number of rows is far faster. TRY puts no weight far
    beyond the grid, so ``MAGIC`` rounds, and codes need not be integers.
    """
    for i in range(SIXTEEN):
        at = start + i * LANES
        for j in range(LANES):
            code = t[TRY + j] * t[X + at + j] + MAGIC - MAGIC
            code = code if code > low else low
            code = code if code < high else high
            t[SLX + j] += t[WX + at + j] * code
            t[SLL + j] += t[W + at + j] * code * code


@compiled
def symmetric_codes(x, inverse, half):
    """Return the codes + half, 0 to 2 half - 1, that ``symmetric`` ended with: (blocks, n)."""
    codes = np.zeros(x.shape, np.uint8)
    for b in range(x.shape[0]):
        if inverse[b] != ZERO:
            for i in range(x.shape[1]):
                code = clipped(inverse[b] * x[b, i], np.int32(-half), np.int32(half - 1))
                codes[b, i] = np.uint8(np.int32(code) + half)
    return codes


@compiled
def coordinate(x):
    """Search the scale and codes of (blocks, 16) weights on the grid -4..3: scale, codes + 4.

    The weight of an error is x x. Starting from -4 / extreme, each code in turn moves to where
    the others' scale puts it, if that helps; at most five rounds.
    """
    blocks, n = np.uintp(x.shape[0]), SIXTEEN
    scale, codes = np.empty(blocks, np.float32), np.empty(x.shape, np.uint8)
    t = np.empty(TILE, np.float32)
    for start in range(np.uintp(0), blocks, LANES):
        load(x, start, t, X)
        for k in range(n * LANES):
            t[W + k] = t[X + k] * t[X + k]
        find_extremes(t, n, min(LANES, blocks - start))
        for j in range(LANES):
            t[TRY + j] = np.float32(-4) / t[HIGH + j]
        product_sums(t, np.int32(-4), np.int32(3))
        improve(t, np.int32(-4), np.int32(3), -INFINITE, np.int32(-1))
        for j in range(LANES):
            alive = (abs(t[HIGH + j]) >= TINY) & (t[SLL + j] > ZERO)
            t[SCALE + j] = t[SLX + j] / t[SLL + j] if alive else ZERO
        for i in range(n):
            for j in range(LANES):
                code = t[L + i * LANES + j] + np.float32(4)
                t[L + i * LANES + j] = code if abs(t[HIGH + j]) >= TINY else ZERO
        store(t, SCALE, start, scale)
        store_codes(t, start, codes)
    return scale, codes


@compiled
def positive(x, w, top):
    """Search scale and codes of (blocks, n) numbers >= 0 on the grid 0..top: scale, codes.

    First the best of nine inverses by error, then code by code as in ``coordinate``.
    """
    blocks, n = np.uintp(x.shape[0]), np.uintp(x.shape[1])
    scale, codes = np.empty(blocks, np.float32), np.empty(x.shape, np.uint8)
    t = np.zeros(TILE, np.float32)
    low, high = -MIDDLE, np.int32(top)
    for start in range(np.uintp(0), blocks, LANES):
        load(x, start, t, X)
        load(w, start, t, W)
        for j in range(LANES):
            t[HIGH + j] = ZERO
            t[BEST + j] = INFINITE
        for i in range(n):
            for j in range(LANES):
                t[HIGH + j] = max(t[HIGH + j], t[X + i * LANES + j])
        for k in range(9):
            positive_candidate(t, n, high, k)
        for j in range(LANES):
            t[TRY + j] = t[INVERSE + j]
        product_sums(t, low, high)
        for k in range(L, L + n * LANES):  # a byte holds a code: -1, of a scale below 0, is 255
            t[k] = np.float32(np.int32(t[k]) & 255)
        improve(t, low, high, ZERO, np.int32(255))
        for j in range(LANES):
            alive = t[HIGH + j] >= TINY
            t[SCALE + j] = t[SLX + j] / t[SLL + j] if alive & (t[SLL + j] > ZERO) else ZERO
            for i in range(n):
                t[L + i * LANES + j] = t[L + i * LANES + j] if alive else ZERO
        store(t, SCALE, start, scale)
        store_codes(t, start, codes)
    return scale, codes


@compiled
def positive_candidate(t, n, top, k):
    """Try inverse 0 of 9, top / largest, or one of four a little smaller or larger."""
    stretch = TENTH * np.float32(k - 5 + (k > 4)) if k else ZERO
    for j in range(LANES):
        t[TRY + j] = (stretch + np.float32(top)) / t[HIGH + j]
        t[TRY_SCALE + j] = ONE / t[TRY + j]
        t[TRY_ERROR + j] = ZERO
    for i in range(n):
        at = i * LANES
        for j in range(LANES):
            x = t[X + at + j]
            error = x - t[TRY_SCALE + j] * clipped(t[TRY + j] * x, -MIDDLE, top)
            t[TRY_ERROR + j] += t[W + at + j] * error * error
    for j in range(LANES):
        better = (t[TRY_ERROR + j] < t[BEST + j]) | (k == 0)
        t[BEST + j] = t[TRY_ERROR + j] if better else t[BEST + j]
        t[INVERSE + j] = t[TRY + j] if better else t[INVERSE + j]
