"""Which point, which signs, which scale: quantizing to a lattice, as ggml searches.

Sizes and signs part first. Then a sub-block of 16 or 32 weights tries a ladder of scales around
the one that puts its largest weight on the highest level. For each, every eight (or four) sizes
are rounded to levels; a combination off the list becomes the best of its neighbors on the list.
Least squares gives the scale of those points, and the candidate that lowers the weighted error
most is kept.

References: ``quantize_row_iq2_xs_impl`` and its siblings in ggml-org/ggml, ``src/ggml-quants.c``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Floats
from quantlab.gguf.lattice_points import neighbors
from quantlab.native import compiled

LARGEST = 1e24  # importance; times 1e8, the largest weight, and 7,200 it stays in float32


class Ladder(NamedTuple):
    """What Numba's loop has to know of a type's search."""

    tries: int  # scales tried on each side of the plain one
    step: np.float32  # between them, in halves of a level
    even: bool  # whether each eight weights have an even number of minus signs
    tiny: np.float32  # below it a sub-block is zero
    again: bool  # whether points on the list are rounded once more with the others
    first: bool  # whether the ladder stands around a least-squares scale (IQ2_XXS)


class Search(NamedTuple):
    """How a type searches: its list, its ladder, and three constants."""

    lattice: str
    distances: int  # a combination off the list tries the points at that many least distances
    size: int  # weights of a sub-block
    ladder: Ladder
    spread: float  # times the mean square, beside x^2 under an imatrix
    floor: float  # times the mean square, added to x^2 without one
    stretch: float  # what the stored scale is multiplied by


def rule(tries: int, step: float, **other: Any) -> Ladder:
    """Return a ladder; the rest is the common case unless named."""
    known = {"even": False, "tiny": 1e-8, "again": False, "first": False} | other
    tiny = np.float32(known["tiny"])
    return Ladder(tries, np.float32(step), known["even"], tiny, known["again"], known["first"])


SEARCHES = {
    "IQ2_XXS": Search(
        "IQ2_XXS", 2, 32, rule(6, 0.1, even=True, tiny=1e-15, again=True, first=True), 1, 0, 1
    ),
    "IQ2_XS": Search("IQ2_XS", 2, 16, rule(9, 0.1, even=True, tiny=1e-15), 1, 0, 1),
    "IQ2_S": Search("IQ2_S", 1, 16, rule(9, 0.1), 2, 0.5, 0.9875),
    "IQ3_XXS": Search("IQ3_XXS", 2, 32, rule(15, 0.2, even=True), 2, 0, 1.0125),
    "IQ3_S": Search("IQ3_S", 3, 32, rule(9, 0.2, tiny=1e-45, again=True), 2, 0, 1.033),
}


class Found(NamedTuple):
    """What the search says of n blocks."""

    d: Floats  # (n,)
    s: NDArray[np.int64]  # (n, 8 or 16): small scales 0..15
    points: NDArray[np.int64]  # (n, 32 or 64)
    signs: NDArray[np.int64]  # (n, 32): eight bits each


def search_blocks(name: str, rows: Floats, imatrix: Floats | None) -> Found:
    """Search 256 weights at a time.

    Parameters
    ----------
    name : str
        A key of ``SEARCHES``.
    rows : (rows, columns) float32 array
    imatrix : (columns,) float32 array, or None

    Returns
    -------
    Found
        For rows * columns / 256 blocks. A block of zeros has zeros everywhere.
    """
    search = SEARCHES[name]
    table = neighbors(search.lattice, search.distances)
    w = weights(rows, imatrix, name, spread=search.spread, floor=search.floor)
    x = rows.reshape(-1, search.size)
    scales = np.zeros(len(x), np.float32)
    index = np.zeros((len(x), search.size // table.points.shape[1]), np.int32)
    signs = np.zeros((len(x), search.size // 8), np.uint8)
    climb(x, w.reshape(x.shape), table, search.ladder, (scales, index, signs))
    blocks = rows.size // 256
    scales = scales.reshape(blocks, -1)
    top = scales.max(1, keepdims=True)
    filled = top > 0
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        d = top / np.float32(31)
        s = np.rint(np.float32(0.5) * (np.float32(1) / d * scales - np.float32(1)))
        d = (d * np.float32(search.stretch))[:, 0]
    s = np.where(filled, np.nan_to_num(s).clip(0, 15), 0).astype(np.int64)
    kept = filled | (not search.ladder.even)  # those types leave points beside a scale of 0
    points, bits = (array.reshape(blocks, -1).astype(np.int64) * kept for array in (index, signs))
    return Found(d, s, points, bits)


def weights(
    rows: Floats, imatrix: Floats | None, name: str, *, spread: float, floor: float = 0
) -> Floats:
    """Return what each squared error counts, (blocks, 256) float32."""
    x = rows.reshape(-1, 256)
    total = np.empty((len(x), 1), np.float32)
    sum_squares(x, total)
    if imatrix is None:
        return (total * np.float32(floor / 256) + x * x).astype(np.float32)
    if imatrix.max() > LARGEST:
        raise ValueError(
            f"imatrix reaches {imatrix.max():.6g}, and sums of {name} would overflow; "
            "divide it by its mean, only ratios count"
        )
    size: Floats = np.sqrt(total * np.float32(spread / 256) + x * x)
    return (imatrix * size.reshape(rows.shape)).reshape(x.shape)


@compiled
def sum_squares(x, total):
    """Fill ``total`` (n, 1) with the sum of squares of each row, in order."""
    for b in range(len(x)):
        s = np.float32(0)
        for j in range(x.shape[1]):
            s += x[b, j] * x[b, j]
        total[b, 0] = s


@compiled
def climb(x, w, table, ladder, found):
    """Fill scales (n,), index (n, points) and signs (n, eights) of sub-blocks ``x`` (n, size)."""
    scales, index, signs = found
    sizes = np.empty(x.shape[1], np.float32)
    roots = np.empty(x.shape[1], np.float32)
    trial = np.empty(index.shape[1], np.int32)
    for b in range(len(x)):
        start = part(x[b], w[b], ladder.even, sizes, signs[b])
        if start < ladder.tiny:
            start = np.float32(0)
        elif ladder.first:
            start = positive_scale(sizes, w[b], start)
        if start <= 0:
            for k in range(signs.shape[1]):
                signs[b, k] = 0
            continue
        for j in range(len(sizes)):
            roots[j] = np.sqrt(w[b, j])
        data = sizes, w[b], roots
        scale = best_rung(data, table, ladder, start, index[b], trial)
        scale = repair(data, table, ladder, scale, index[b])
        scales[b] = abs(scale)
        for k in range(signs.shape[1]):
            signs[b, k] ^= 255 * (scale < 0)


@compiled
def part(x, w, even, sizes, signs):
    """Fill ``sizes`` and the bits of ``signs``; return the largest size.

    If ``even``, the sign that costs least is wrong where it must be: its size turns negative.
    """
    largest = np.float32(-np.inf)
    for k in range(len(signs)):
        bits, count, cheapest = 0, 0, 8 * k
        for j in range(8 * k, 8 * k + 8):
            minus = not x[j] >= 0
            sizes[j] = -x[j] if minus else x[j]
            bits |= minus << (j - 8 * k)
            count += minus
            if w[j] * x[j] * x[j] < w[cheapest] * x[cheapest] * x[cheapest]:
                cheapest = j
        if even and count % 2:
            sizes[cheapest] = -sizes[cheapest]
            bits ^= 1 << (cheapest - 8 * k)
        signs[k] = bits
        for j in range(8 * k, 8 * k + 8):
            largest = max(largest, sizes[j])
    return largest


@compiled
def best_rung(data, table, ladder, start, index, trial):
    """Fill ``index`` with the best points (~point where rounding left the list); return scale."""
    top = np.float32(2 * table.base - 1)
    if ladder.first:  # IQ2_XXS: the start is a scale of codes 0..4, and 3 times it the top
        largest, scale = start * np.float32(3), start
    else:
        largest, scale = start, start / top
    for k in range(len(index)):
        index[k] = -1 if ladder.again else 0  # ~0: point 0, to be rounded again
    best = np.float32(0)
    for t in range(-ladder.tries, ladder.tries + 1):
        inverse = (top + np.float32(t) * ladder.step) / largest
        for k in range(len(trial)):
            trial[k] = nearest(data, table, inverse, np.float32(1) / inverse, k)
        A, B = fit(data, trial, table.points)
        if B > 0 and best * B < A * A:
            scale = A / B
            best = scale * A
            for k in range(len(index)):
                index[k] = trial[k]
    return scale


@compiled
def repair(data, table, ladder, scale, index):
    """Round points off the list anew with the scale found; return the scale that fits them."""
    some = ladder.first
    for k in range(len(index)):
        some |= index[k] < 0
    if some and scale > 0:
        inverse = np.float32(1) / scale
        for k in range(len(index)):
            if ladder.again or index[k] < 0:
                index[k] = nearest(data, table, inverse, scale, k)
        A, B = fit(data, index, table.points)
        scale = A / B if B > 0 else scale
    for k in range(len(index)):
        index[k] = max(index[k], ~index[k])
    return scale


@compiled
def nearest(data, table, inverse, scale, k):
    """Return the point for vector ``k``; ~point if rounding left the list."""
    sizes, _, roots = data
    width = table.points.shape[1]
    code, place = 0, 1
    for j in range(width):
        v = np.rint(np.float32(0.5) * (inverse * sizes[width * k + j] - np.float32(1)))
        code += place * int(min(max(v, np.float32(0)), np.float32(table.base - 1)))
        place *= table.base
    if table.at[code] >= 0:
        return table.at[code]
    best, winner = np.float32(np.inf), table.near[table.starts[code]]
    for n in range(table.starts[code], table.starts[code + 1]):
        error = np.float32(0)
        for j in range(width):
            gap = scale * table.points[table.near[n], j] - sizes[width * k + j]
            error += roots[width * k + j] * gap * gap
        if error < best:
            best, winner = error, table.near[n]
    return ~winner


@compiled
def fit(data, index, points):
    """Return A = sum w x q and B = sum w q q of the points' odd numbers q."""
    sizes, w, _ = data
    A, B = np.float32(0), np.float32(0)
    width = points.shape[1]
    for k in range(len(index)):
        point = max(index[k], ~index[k])
        for j in range(width):
            q, i = points[point, j], width * k + j
            A += w[i] * sizes[i] * q
            B += w[i] * q * q
    return A, B


@compiled
def positive_scale(x, w, largest):
    """Return a least-squares scale of codes up to 4, as ggml finds it for scales that are >= 0.

    A size turned negative (``part``) wraps to a code near 255 on ggml's way through bytes; the
    search survives that, and so the wrap is part of the answer.
    """
    N = np.float32(4)
    inverse = N / largest
    best = np.float32(np.inf)
    for t in (0, -4, -3, -2, -1, 1, 2, 3, 4):  # the plain scale first
        candidate = (np.float32(0.1) * np.float32(t) + N) / largest
        error = np.float32(0)
        for i in range(len(x)):
            code = np.rint(candidate * x[i])
            code = np.float32(int(code) & 255) if t == 0 else min(N, code)
            gap = x[i] - np.float32(1) / candidate * code
            error += w[i] * gap * gap
        if t == 0 or error < best:
            best, inverse = error, candidate
    return settle(x, w, inverse)


@compiled
def settle(x, w, inverse):
    """Return A / B after at most five passes that move one code at a time."""
    N = np.float32(4)
    A, B = np.float32(0), np.float32(0)
    codes = np.empty(len(x), np.float32)
    for i in range(len(x)):
        code = min(N, np.rint(inverse * x[i]))
        codes[i] = np.float32(int(code) & 255)
        A += w[i] * x[i] * code
        B += w[i] * code * code
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            a = A - w[i] * x[i] * codes[i]
            b = B - w[i] * codes[i] * codes[i]
            if a > 0 and b > 0:
                code = min(N, np.rint(x[i] * b / a))
                if code != codes[i]:
                    a += w[i] * x[i] * code
                    b += w[i] * code * code
                    if a * a * B > A * A * b:
                        codes[i] = np.float32(int(code) & 255)
                        A, B, changed = a, b, True
        if not changed:
            break
    return A / B if B > 0 else np.float32(0)
