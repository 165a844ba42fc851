"""Slow twin of SmoothQuant: scalar loops over Python floats, nothing shared with the library."""

from __future__ import annotations

Matrix = list[list[float]]


def column_sizes(rows: Matrix) -> list[float]:
    """Return the largest size in each column."""
    return [max(abs(row[j]) for row in rows) for j in range(len(rows[0]))]


def slow_scales(tokens: Matrix, weights: list[Matrix], alpha: float) -> list[float]:
    """Return s_j for linears that read the same tokens; a zero counts as the smallest other."""
    inputs = column_sizes(tokens)
    columns = column_sizes([row for weight in weights for row in weight])
    scales = []
    for j in range(len(inputs)):
        x = inputs[j] or min([size for size in inputs if size > 0], default=1.0)
        w = columns[j] or min([size for size in columns if size > 0], default=1.0)
        scales.append(x**alpha / w ** (1 - alpha))
    return scales


def slow_w8a8(tokens: Matrix, weight: Matrix, bits: int, *, per_token: bool) -> Matrix:
    """Return outputs of rounded tokens and rounded rows, on signed grids of -2^(b-1) steps.

    One grid for each row of the weight; for the tokens one each, or one for all together.
    """
    together = [value for x in tokens for value in x]
    left = [rounded(x, x if per_token else together, bits) for x in tokens]
    right = [rounded(row, row, bits) for row in weight]
    return [[sum(a * b for a, b in zip(x, row, strict=True)) for row in right] for x in left]


def rounded(values: list[float], seen: list[float], bits: int) -> list[float]:
    """Round to the grid whose lowest level is the extreme value of ``seen``."""
    low, high = min(seen), max(seen)
    middle = 2 ** (bits - 1)
    step = (high if abs(high) > abs(low) else low) / -middle or 1.0
    return [step * min(max(round(value / step), -middle), middle - 1) for value in values]
