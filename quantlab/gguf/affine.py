"""The search for a scale and a minimum: ggml's make_qkx2_quants and make_qkx3_quants.

The interface is described in ``search.py``, the arrays called tiles in ``lanes.py``.
"""

import numpy as np

from quantlab.gguf.lanes import (
    BASE,
    BEST,
    HIGH,
    INFINITE,
    INVERSE,
    LANES,
    LOW,
    ONE,
    SCALE,
    SL,
    SLL,
    SLX,
    SW,
    SX,
    TILE,
    TRY,
    TRY_ERROR,
    TRY_LOW,
    TRY_SCALE,
    ZERO,
    L,
    W,
    X,
    clipped,
    load,
    store,
)
from quantlab.native import compiled


@compiled
def affine(x, w, top, tries, absolute):
    """Search scale and minimum of (blocks, n) weights: scale, minimum >= 0, inverse, base.

    ``tries`` is (first, step, last): candidates are inverse_k = (first + step k + top) /
    (high - base), k = 0..last, where high is the largest weight and base the best lower end so
    far; least squares then gives scale and lower end. The error compared is squared, or absolute.
    ``minimum`` is minus the lower end.
    """
    blocks, n = np.uintp(x.shape[0]), np.uintp(x.shape[1])
    scale, minimum = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    inverse, base = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    first, step, last = tries
    t = np.empty(TILE, np.float32)
    for start in range(np.uintp(0), blocks, LANES):
        load(x, start, t, X)
        load(w, start, t, W)
        affine_start(t, n, np.int32(top), absolute)
        for k in range(last + 1):
            stretch = np.float32(first) + np.float32(step) * np.float32(k) + np.float32(top)
            affine_candidate(t, n, np.int32(top), stretch, absolute)
        for j in range(LANES):
            alive = t[INVERSE + j] != ZERO
            t[SCALE + j] = t[SCALE + j] if alive else ZERO
            t[LOW + j] = -t[LOW + j]
        store(t, SCALE, start, scale)
        store(t, LOW, start, minimum)
        store(t, INVERSE, start, inverse)
        store(t, BASE, start, base)
    return scale, minimum, inverse, base


@compiled
def affine_start(t, n, top, absolute):
    """Take the range from the least weight (or 0) to the largest; a block without one is dead.

    A dead block gets inverse 0 and an error of -inf, so no candidate replaces it.
    """
    for j in range(LANES):
        t[LOW + j] = t[X + j]  # and not 0: a block of -0.0 keeps that sign
        t[HIGH + j] = t[X + j]
        t[SW + j] = ZERO
        t[SX + j] = ZERO
    for i in range(n):
        at = i * LANES
        for j in range(LANES):
            x, w = t[X + at + j], t[W + at + j]
            t[LOW + j] = x if x < t[LOW + j] else t[LOW + j]
            t[HIGH + j] = x if x > t[HIGH + j] else t[HIGH + j]
            t[SW + j] += w
            t[SX + j] += w * x
    for j in range(LANES):
        t[LOW + j] = ZERO if t[LOW + j] > ZERO else t[LOW + j]
        width = t[HIGH + j] - t[LOW + j]
        t[TRY + j] = np.float32(top) / width if width > ZERO else ZERO
        t[TRY_SCALE + j] = ONE / t[TRY + j]
        t[TRY_LOW + j] = t[LOW + j]
        t[TRY_ERROR + j] = ZERO if width > ZERO else -INFINITE
    affine_sums(t, n, top)
    affine_error(t, n, absolute)
    for j in range(LANES):
        t[SCALE + j], t[INVERSE + j] = t[TRY_SCALE + j], t[TRY + j]
        t[BASE + j], t[BEST + j] = t[LOW + j], t[TRY_ERROR + j]


@compiled
def affine_sums(t, n, top):
    """Round the weights to codes by TRY and LOW; SL = sum w l, SLL = sum (w l) l, SLX = ... x."""
    for j in range(LANES):
        t[SL + j] = ZERO
        t[SLL + j] = ZERO
        t[SLX + j] = ZERO
    for i in range(n):
        at = i * LANES
        for j in range(LANES):
            x = t[X + at + j]
            code = clipped(t[TRY + j] * (x - t[LOW + j]), np.int32(0), top)
            t[L + at + j] = code
            weighted = t[W + at + j] * code
            t[SL + j] += weighted
            t[SLL + j] += weighted * code
            t[SLX + j] += weighted * x


@compiled
def affine_error(t, n, absolute):
    """Add the weighted errors of TRY_SCALE l + TRY_LOW to TRY_ERROR."""
    for i in range(n):
        at = i * LANES
        for j in range(LANES):
            error = t[TRY_SCALE + j] * t[L + at + j] + t[TRY_LOW + j] - t[X + at + j]
            error = abs(error) if absolute else error * error
            t[TRY_ERROR + j] += t[W + at + j] * error


@compiled
def affine_candidate(t, n, top, stretch, absolute):
    """Try inverse = stretch / (high - low) with least squares for scale and low; keep the best."""
    for j in range(LANES):
        t[TRY + j] = stretch / (t[HIGH + j] - t[LOW + j])
    affine_sums(t, n, top)
    for j in range(LANES):
        sw, sx, sl, sll, slx = t[SW + j], t[SX + j], t[SL + j], t[SLL + j], t[SLX + j]
        determinant = sw * sll - sl * sl
        scale = (sw * slx - sx * sl) / determinant
        low = (sll * sx - sl * slx) / determinant
        t[TRY_SCALE + j] = slx / sll if low > ZERO else scale
        t[TRY_LOW + j] = ZERO if low > ZERO else low
        t[TRY_ERROR + j] = ZERO if determinant > ZERO else INFINITE
    affine_error(t, n, absolute)
    for j in range(LANES):
        better = t[TRY_ERROR + j] < t[BEST + j]
        t[SCALE + j] = t[TRY_SCALE + j] if better else t[SCALE + j]
        t[INVERSE + j] = t[TRY + j] if better else t[INVERSE + j]
        t[BASE + j] = t[LOW + j] if better else t[BASE + j]
        t[LOW + j] = t[TRY_LOW + j] if better else t[LOW + j]
        t[BEST + j] = t[TRY_ERROR + j] if better else t[BEST + j]


@compiled
def affine_codes(x, inverse, base, top):
    """Return the codes 0 to top that ``affine`` ended with: (blocks, n)."""
    codes = np.empty(x.shape, np.uint8)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            code = clipped(inverse[b] * (x[b, i] - base[b]), np.int32(0), np.int32(top))
            codes[b, i] = np.uint8(code)
    return codes
