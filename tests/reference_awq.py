"""Slow twin of AWQ: scalar loops over Python floats and single tokens, nothing shared with it.

Tests compare in float64 with a relative tolerance of 1e-12.
"""

from __future__ import annotations

import math

Matrix = list[list[float]]


def sizes_of(tokens: Matrix) -> list[float]:
    """Return the mean |x_j| over tokens."""
    return [sum(abs(x[j]) for x in tokens) / len(tokens) for j in range(len(tokens[0]))]


def scale_of(sizes: list[float], ratio: float) -> list[float]:
    """Return sizes^ratio with its extremes multiplying to 1; a silent input as the quietest."""
    live = [size for size in sizes if size > 0]
    s = [max((size if size > 0 else min(live)) ** ratio, 1e-4) for size in sizes]
    return [value / math.sqrt(max(s) * min(s)) for value in s]


def grid_of(values: list[float], bits: int, symmetric: bool) -> tuple[float, float]:
    """Return scale and zero point of a group by its extremes."""
    low, high = min(values), max(values)
    if symmetric:
        return (high if abs(high) > abs(low) else low) / -(2 ** (bits - 1)), 2 ** (bits - 1)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, min(max(round(-low / scale), 0), 2**bits - 1)


def rounded_group(values: list[float], grid: tuple[float, float], bits: int) -> list[float]:
    """Return each value's nearest level."""
    scale, zero = grid
    codes = [min(max(round(value / scale) + zero, 0), 2**bits - 1) for value in values]
    return [scale * (code - zero) for code in codes]


def slow_losses(
    weight: Matrix, tokens: Matrix, bits: int, size: int, *, symmetric: bool, ratios: int
) -> list[float]:
    """Return the mean squared output error over tokens at each ratio, summed over outputs."""
    losses = []
    for step in range(ratios):
        s, total = scale_of(sizes_of(tokens), step / ratios), 0.0
        for row in weight:
            scaled, Q = [w * c for w, c in zip(row, s, strict=True)], []
            for g in range(0, len(row), size):
                group = scaled[g : g + size]
                Q += rounded_group(group, grid_of(group, bits, symmetric), bits)
            D = [q / c - w for q, c, w in zip(Q, s, row, strict=True)]
            for x in tokens:
                total += sum(d * value for d, value in zip(D, x, strict=True)) ** 2
        losses.append(total / len(tokens))
    return losses


def slow_clip(
    weight: Matrix, tokens: Matrix, bits: int, size: int, *, symmetric: bool
) -> tuple[list[list[int]], Matrix]:
    """Return the chosen step of each row and group (m = 1 - step / 20), and the rounded weight."""
    chosen, Q = [], []
    for row in weight:
        steps, rounded = [], []
        for g in range(0, len(row), size):
            group, best = row[g : g + size], math.inf
            for step in range(10):
                candidate = rounded_group(
                    group, clipped_grid_of(group, step, bits, symmetric), bits
                )
                D = [q - w for q, w in zip(candidate, group, strict=True)]
                parts = [
                    sum(d * v for d, v in zip(D, x[g : g + size], strict=True)) for x in tokens
                ]
                error = sum(part**2 for part in parts) / len(tokens)
                if error < best:
                    best, winner, values = error, step, candidate
            steps.append(winner)
            rounded += values
        chosen.append(steps)
        Q.append(rounded)
    return chosen, Q


def clipped_grid_of(
    group: list[float], step: int, bits: int, symmetric: bool
) -> tuple[float, float]:
    """Return the grid of a group clipped to 1 - step / 20 of its largest size."""
    limit = (1 - step / 20) * max(abs(w) for w in group)
    if symmetric:  # the extreme weight keeps its side, even where both sides are cut
        extreme = max(group) if abs(max(group)) > abs(min(group)) else min(group)
        return math.copysign(limit, extreme) / -(2 ** (bits - 1)), 2 ** (bits - 1)
    scale, zero = grid_of([min(max(w, -limit), limit) for w in group], bits, False)
    both = step > 0 and max(group) >= limit and min(group) <= -limit
    return scale, 2 ** (bits - 1) if both else zero
