"""The lattice search the slow way: one sub-block, every point of the list looked at."""

import numpy as np

F = np.float32


def rounded(v, base):
    """Return the level number nearest to a size in units of half a level."""
    return int(min(max(np.rint(F(0.5) * (v - F(1))), 0), base - 1))


def choose(x, root, inverse, scale, levels, distances):
    """Return the point for a few sizes, and whether rounding alone had found it."""
    base = int(levels.max()) + 1
    wanted = [rounded(inverse * xi, base) for xi in x]
    squares = ((levels - np.array(wanted)) ** 2).sum(1)
    if squares.min() == 0:
        return int(squares.argmin()), True
    allowed = sorted(set(squares.tolist()))[:distances]
    order = sorted((d, i) for i, d in enumerate(squares.tolist()) if d in allowed)
    errors = []
    for _, i in order:
        error = F(0)
        for xi, ri, level in zip(x, root, levels[i], strict=True):
            gap = scale * F(2 * level + 1) - xi
            error += ri * gap * gap
        errors.append((error, i))
    return min(errors, key=lambda pair: pair[0])[1], False  # the first of equals


def least_squares(x, w, points, levels):
    """Return A and B."""
    a, b = F(0), F(0)
    for xi, wi, level in zip(x, w, levels[points].ravel(), strict=True):
        q = F(2 * level + 1)
        a += wi * xi * q
        b += wi * q * q
    return a, b


def split(x, w, even):
    """Return sizes and sign bits, the cheapest sign of eight wrong where their number is odd."""
    sizes, signs = np.abs(x), []
    for k in range(0, len(x), 8):
        minus = x[k : k + 8] < 0
        if even and minus.sum() % 2:
            j = int(np.argmin(w[k : k + 8] * x[k : k + 8] * x[k : k + 8]))
            sizes[k + j] *= -1
            minus[j] ^= True
        signs.append(sum(int(bit) << j for j, bit in enumerate(minus)))
    return sizes, signs


def search(x, w, levels, how):
    """Return scale, points and signs of a sub-block; ``how``: the entry of ``SEARCHES``."""
    ladder, width = how.ladder, levels.shape[1]
    top = F(2 * levels.max() + 1)
    sizes, signs = split(x, w, ladder.even)
    count = len(x) // width
    if sizes.max() < ladder.tiny:
        return F(0), [0] * count, [0] * len(signs)
    parts = [slice(k, k + width) for k in range(0, len(x), width)]
    root = np.sqrt(w)
    scale, best, points, on = sizes.max() / top, F(0), [0] * count, [not ladder.again] * count
    for t in range(-ladder.tries, ladder.tries + 1):
        inverse = (top + F(t) * ladder.step) / sizes.max()
        found = [
            choose(sizes[p], root[p], inverse, F(1) / inverse, levels, how.distances) for p in parts
        ]
        a, b = least_squares(sizes, w, [i for i, _ in found], levels)
        if b > 0 and a * a > best * b:
            scale = a / b
            best = scale * a
            points, on = map(list, zip(*found, strict=True))
    if not all(on) and scale > 0:
        for k, p in enumerate(parts):
            if ladder.again or not on[k]:
                inverse = F(1) / scale
                points[k] = choose(sizes[p], root[p], inverse, scale, levels, how.distances)[0]
        a, b = least_squares(sizes, w, points, levels)
        scale = a / b if b > 0 else scale
    if scale < 0:
        scale, signs = -scale, [255 - s for s in signs]
    return scale, points, signs
