"""The four searches for a scale, one block at a time and one weight after the other, in float32.

Slow twins of ``quantlab.gguf.search``: x are weights, w importances, both lists of float32.
"""

import numpy as np

F = np.float32
TINY = F(1e-15)


def total(terms):
    """Add float32 numbers from left to right."""
    result = F(0)
    for term in terms:
        result = F(result + term)
    return result


def rounded(v, low, high):
    """Round half to even, then clip."""
    return int(min(max(np.rint(v), low), high))


def first_extreme(x):
    """Return the first number of largest size."""
    found = F(0)
    for v in x:
        if abs(v) > abs(found):
            found = v
    return found


def sums(x, w, codes):
    """Return sum (w x) l and sum (w l) l."""
    a = total(wi * xi * F(li) for xi, wi, li in zip(x, w, codes, strict=True))
    return a, total(wi * F(li) * F(li) for wi, li in zip(w, codes, strict=True))


def symmetric(x, w, half):
    """SYM: return scale and codes (stored: l + half)."""
    extreme = first_extreme(x)
    if abs(extreme) < TINY:
        return F(0), [0] * len(x)
    for s in [0, *range(-9, 0), *range(1, 10)]:
        inverse = -(F(half) + F(0.1) * F(s)) / extreme
        codes = [rounded(inverse * v, -half, half - 1) for v in x]
        a, b = sums(x, w, codes)
        if s == 0:
            scale = a / b if b else F(0)
            best, kept = scale * a, codes
        elif b > 0 and a * a > best * b:
            scale = a / b
            best, kept = scale * a, codes
    return scale, [code + half for code in kept]


def coordinate(x):
    """COORD: return scale and codes (stored: l + 4)."""
    extreme = first_extreme(x)
    if abs(extreme) < TINY:
        return F(0), [0] * len(x)
    w = [v * v for v in x]
    codes = [rounded(F(-4) / extreme * v, -4, 3) for v in x]
    a, b = improved(x, w, codes, *sums(x, w, codes), clip=(-4, 3))
    return (a / b if b > 0 else F(0)), [code + 4 for code in codes]


def improved(x, w, codes, a, b, clip):
    """Move codes one by one while that helps, at most five rounds; return the new sums."""
    for _ in range(5):
        changed = False
        for i, (v, importance) in enumerate(zip(x, w, strict=True)):
            s = a - importance * v * F(codes[i])
            t = b - importance * F(codes[i]) * F(codes[i])
            if s <= 0 or (clip[0] == 0 and t <= 0):
                continue
            new = rounded(v * t / s, *clip)
            s += importance * v * F(new)
            t += importance * F(new) * F(new)
            if new != codes[i] and t > 0 and s * s * b > a * a * t:
                codes[i], a, b, changed = new, s, t, True
        if not changed:
            break
    return a, b


def affine(x, w, top, first, step, last, absolute):
    """AFF: return scale, minimum and codes."""
    low, high = min(*x, F(0)), max(x)
    if high <= low:
        return F(0), -low, [0] * len(x)
    sw, sx = total(w), total(wi * xi for wi, xi in zip(w, x, strict=True))
    inverse = F(top) / (high - low)
    kept = [rounded(inverse * (v - low), 0, top) for v in x]
    scale = F(1) / inverse
    best = error(x, w, kept, scale, low, absolute)
    for k in range(last + 1):
        inverse = (F(first) + F(step) * F(k) + F(top)) / (high - low)
        codes = [rounded(inverse * (v - low), 0, top) for v in x]
        wl = [wi * F(li) for wi, li in zip(w, codes, strict=True)]
        sl, sll = total(wl), total(p * F(li) for p, li in zip(wl, codes, strict=True))
        slx = total(p * v for p, v in zip(wl, x, strict=True))
        determinant = sw * sll - sl * sl
        if determinant <= 0:
            continue
        new_scale = (sw * slx - sx * sl) / determinant
        new_low = (sll * sx - sl * slx) / determinant
        if new_low > 0:
            new_scale, new_low = slx / sll, F(0)
        new_error = error(x, w, codes, new_scale, new_low, absolute)
        if new_error < best:
            scale, low, best, kept = new_scale, new_low, new_error, codes
    return scale, -low, kept


def error(x, w, codes, scale, low, absolute):
    """Return the weighted sum of the errors' squares or sizes."""
    e = [scale * F(li) + low - v for v, li in zip(x, codes, strict=True)]
    return total(wi * (abs(d) if absolute else d * d) for wi, d in zip(w, e, strict=True))


def positive(x, w, top):
    """POS: return scale and codes of numbers >= 0."""
    largest = max(x)
    if largest < TINY:
        return F(0), [0] * len(x)
    best, kept = F(np.inf), []
    for s in [0, *range(-4, 0), *range(1, 5)]:
        inverse = (F(0.1) * F(s) + F(top)) / largest
        codes = [min(int(np.rint(inverse * v)), top) for v in x]
        d = [v - F(1) / inverse * F(li) for v, li in zip(x, codes, strict=True)]
        new_error = total(wi * e * e for wi, e in zip(w, d, strict=True))
        if s == 0 or new_error < best:
            best, kept = new_error, codes
    a, b = improved(x, w, kept, *sums(x, w, kept), clip=(0, top))
    return (a / b if b > 0 else F(0)), kept
