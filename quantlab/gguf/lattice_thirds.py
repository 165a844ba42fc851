"""Which points and scales for IQ1: every weight is -1, 0 or 1 plus a shift of an eighth.

With three levels the best codes need no ladder of scales: in order of size, the weights below
some place are -1, those above another are 1, and the rest 0. All pairs of places are tried, with
the shift up and down (for each eight weights in IQ1_M); running sums make each trial a few
operations. Then combinations off the list become the best of their neighbors.

References: ``quantize_row_iq1_s_impl`` and ``quantize_row_iq1_m_impl`` in ggml-org/ggml,
``src/ggml-quants.c``. Equal weights keep their order, as glibc's ``qsort`` keeps it.
"""

from __future__ import annotations

import numpy as np

from quantlab.gguf.block_type import Floats
from quantlab.gguf.lattice_points import neighbors
from quantlab.gguf.lattice_search import Found, weights
from quantlab.native import compiled

SIZES = {"IQ1_S": 32, "IQ1_M": 16}  # weights that share a small scale
STRETCH = {"IQ1_S": np.float32(1.125), "IQ1_M": np.float32(1.1125)}  # of the stored scale


def search_thirds(name: str, rows: Floats, imatrix: Floats | None) -> Found:
    """Search 256 weights at a time; ``signs`` of the result are 1 where 1/8 is taken away.

    Parameters
    ----------
    name : "IQ1_S" or "IQ1_M"
    rows : (rows, columns) float32 array
    imatrix : (columns,) float32 array, or None
    """
    size = SIZES[name]
    w = weights(rows, imatrix, name, spread=2).reshape(-1, size)
    x = rows.reshape(-1, size)
    table = neighbors("IQ1_S", 3)
    scales = np.zeros(len(x), np.float32)
    index = np.zeros((len(x), size // 8), np.int32)
    down = np.zeros((len(x), size // 8), np.bool_)
    split_all(x, w, table, np.float32(1e-12 if name == "IQ1_S" else 1e-7), (scales, index, down))
    blocks = rows.size // 256
    scales = scales.reshape(blocks, -1)
    points, signs = index.reshape(blocks, -1), down.reshape(blocks, -1)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        d: Floats = (scales.max(1, keepdims=True) / np.float32(15)).astype(np.float32)
        s = np.rint(np.float32(0.5) * (np.float32(1) / d * scales - np.float32(1)))
    filled = scales.max(1, keepdims=True) > 0
    s = np.where(filled, np.nan_to_num(s).clip(0, 7), 0).astype(np.int64)
    if name == "IQ1_M":
        refit(rows.reshape(-1, 256), w.reshape(-1, 256), table.points, (points, signs, s), d)
    d = (d * STRETCH[name])[:, 0]
    return Found(d, s, points.astype(np.int64), (signs & filled).astype(np.int64))


@compiled
def split_all(x, w, table, tiny, found):
    """Fill scales (n,), index (n, eights) and down (n, eights) of sub-blocks ``x`` (n, size)."""
    scales, index, down = found
    size = x.shape[1]
    order = np.empty(size, np.int64)
    codes = np.empty(size, np.int64)
    for b in range(len(x)):
        sort(x[b], order)
        if max(abs(x[b, order[0]]), abs(x[b, order[-1]])) < tiny:
            continue
        if size == 32:
            scale, low, high, shift = split_whole(x[b], w[b], order)
        else:
            scale, low, high, shift = split_halves(x[b], w[b], order)
        if low < 0:
            continue
        for j in range(size):
            codes[order[j]] = (j >= low) + (j >= high)
        if scale < 0:
            scale, shift = -scale, 3 - shift
            for j in range(size):
                codes[j] = 2 - codes[j]
        for k in range(down.shape[1]):
            down[b, k] = shift >= 2 if k == 0 else shift % 2 == 1
        scales[b] = snap(x[b], w[b], codes, scale, table, (index[b], down[b]))


@compiled
def sort(x, order):
    """Fill ``order`` with the places of ``x`` from least to largest, equals as they stand."""
    for j in range(len(x)):
        k = j
        while k > 0 and x[order[k - 1]] > x[j]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = j


@compiled
def split_whole(x, w, order):
    """Return scale, the two places, and shift 0 (up) or 3 (down): one shift for 32 weights."""
    n = len(x)
    sx, sw = np.zeros(n + 1, np.float32), np.zeros(n + 1, np.float32)
    for j in range(n):
        sx[j + 1] = sx[j] + w[order[j]] * x[order[j]]
        sw[j + 1] = sw[j] + w[order[j]]
    best, scale = np.float32(-np.finfo(np.float32).max), np.float32(0)
    low, high, shift = -1, -1, 0
    for i in range(n + 1):
        for k in range(i, n + 1):
            for down in range(2):
                v = np.float32(-0.125) if down else np.float32(0.125)
                a, c = v - np.float32(1), v + np.float32(1)
                A = (sx[i] - sx[0]) * a + (sx[k] - sx[i]) * v + (sx[n] - sx[k]) * c
                B = (sw[i] - sw[0]) * a * a + (sw[k] - sw[i]) * v * v + (sw[n] - sw[k]) * c * c
                if B > 0 and best * B < A * A:
                    scale = A / B
                    best = scale * A
                    low, high, shift = i, k, 3 * down
    return scale, low, high, shift


@compiled
def split_halves(x, w, order):
    """Return scale, the two places, and shift 2 a + b: a, b = 1 where an eight is moved down."""
    n = len(x)
    sx, sw = np.zeros((2, n + 1), np.float32), np.zeros((2, n + 1), np.float32)
    for j in range(n):
        i = order[j]
        for h in range(2):
            own = (i >= n // 2) == (h == 1)
            sx[h, j + 1] = sx[h, j] + (w[i] * x[i] if own else np.float32(0))
            sw[h, j + 1] = sw[h, j] + (w[i] if own else np.float32(0))
    best, scale = np.float32(-np.finfo(np.float32).max), np.float32(0)
    low, high, shift = -1, -1, 0
    A, B = np.empty((2, 2), np.float32), np.empty((2, 2), np.float32)
    for i in range(n + 1):
        for k in range(i, n + 1):
            for h in range(2):
                for down in range(2):
                    v = np.float32(-0.125) if down else np.float32(0.125)
                    c = v + np.float32(1)
                    A[h, down] = sx[h, n] * c - (sx[h, i] + sx[h, k])
                    up, far = np.float32(1) - v - v, v + v + np.float32(1)  # a a - v v, c c - v v
                    B[h, down] = sw[h, n] * c * c + sw[h, i] * up + sw[h, k] * -far
            for m in range(4):
                a, b = A[0, m // 2] + A[1, m % 2], B[0, m // 2] + B[1, m % 2]
                if b > 0 and a * a > best * b:
                    scale = a / b
                    best = scale * a
                    low, high, shift = i, k, m
    return scale, low, high, shift


@compiled
def snap(x, w, codes, scale, table, found):
    """Fill the points of one sub-block; return the scale, fitted anew if one was off the list."""
    index, down = found
    moved = False
    for k in range(len(index)):
        code, place = 0, 1
        for j in range(8):
            code += place * codes[8 * k + j]
            place *= 3
        index[k] = table.at[code]
        if index[k] >= 0:
            continue
        moved = True
        shift = np.float32(-0.125) if down[k] else np.float32(0.125)
        best = np.float32(np.inf)
        for n in range(table.starts[code], table.starts[code + 1]):
            error = np.float32(0)
            for j in range(8):
                q = (table.points[table.near[n], j] - np.float32(3)) * np.float32(0.5) + shift
                gap = scale * q - x[8 * k + j]
                error += w[8 * k + j] * gap * gap
            if error < best or index[k] < 0:
                best, index[k] = error, table.near[n]
    if not moved:
        return scale
    A, B = np.float32(0), np.float32(0)
    for j in range(len(x)):
        q = third(table.points, index, down, j)
        A += w[j] * q * x[j]
        B += w[j] * q * q
    return A / B if A > 0 and B > 0 else scale


@compiled
def third(points, index, down, j):
    """Return the number that weight ``j`` of a row of points stands for, without its scale."""
    shift = np.float32(-0.125) if down[j // 8] else np.float32(0.125)
    return (points[index[j // 8], j % 8] - np.float32(3)) * np.float32(0.5) + shift


@compiled
def refit(x, w, points, found, d):
    """Fill ``d`` (n, 1) with the least-squares scale of whole blocks (IQ1_M), where not 0."""
    index, down, s = found
    for b in range(len(x)):
        A, B = np.float32(0), np.float32(0)
        for j in range(256):
            q = third(points, index[b], down[b], j) * np.float32(2 * s[b, j // 16] + 1)
            A += w[b, j] * q * x[b, j]
            B += w[b, j] * q * q
        if d[b, 0] > 0 and B > 0:
            d[b, 0] = A / B
