"""Slow twins of the data-free methods and the formats: plain loops over Python's floats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def half_quadratic(
    w: Sequence[float], scale: float, zero: float, levels: int, *, symmetric: bool, steps: int
) -> list[tuple[float, float, list[int], list[float]]]:
    """Return (scale, zero, codes, E) of each step for one group, p = 0.7, beta = 10, kappa 1.01."""
    trace, beta = [], 10.0
    for _ in range(steps):
        codes = [min(max(round(x / scale + zero), 0), levels - 1) for x in w]
        errors = [x - scale * (code - zero) for x, code in zip(w, codes, strict=True)]
        kept = [soft(e, beta) for e in errors]
        trace.append((scale, zero, codes, kept))
        targets = [x - e for x, e in zip(w, kept, strict=True)]
        if symmetric:
            k = [code - zero for code in codes]
            if any(k):
                scale = sum(map(float.__mul__, targets, k)) / sum(x * x for x in k)
        else:
            moved = [code - t / scale for code, t in zip(codes, targets, strict=True)]
            zero = sum(moved) / len(moved)
        beta *= 1.01
    return trace


def soft(x: float, beta: float, p: float = 0.7) -> float:
    """Shrink one number: sign(x) max(0, |x| - |x|^(p - 1) / beta)."""
    if x == 0:
        return 0.0
    return math.copysign(max(0.0, abs(x) - abs(x) ** (p - 1) / beta), x)
