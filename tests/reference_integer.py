"""Slow twins of fake quantization and integer inference: scalar loops, rational numbers."""

from __future__ import annotations

from fractions import Fraction


def lsq_twin(
    x: list[float], scale: float, zero_point: int, bits: int
) -> tuple[list[float], list[float], list[float]]:
    """Return values, d/dx and d/dscale of each number, by LSQ's Eq. 1 to 5.

    (arXiv:1902.08153v3.) The edge counts as inside.
    """
    low, high = -zero_point, 2**bits - 1 - zero_point
    values, to_x, to_scale = [], [], []
    for number in x:
        v = number / scale
        if v < low:
            level, inside, slope = low, 0.0, float(low)
        elif v > high:
            level, inside, slope = high, 0.0, float(high)
        else:
            level, inside, slope = round(v), 1.0, round(v) - v
        values.append(level * scale)
        to_x.append(inside)
        to_scale.append(slope)
    return values, to_x, to_scale


def convolution_twin(
    image: list[list[list[Fraction]]],
    weight: list[list[list[list[Fraction]]]],
    bias: list[Fraction],
    *,
    stride: int,
    padding: int,
    groups: int,
) -> list[list[list[Fraction]]]:
    """Return a convolution (out, height, width) of an image (in, height, width), exactly."""
    inputs, outputs = len(image), len(weight)
    height, width, kernel = len(image[0]), len(image[0][0]), len(weight[0][0])
    result = []
    for o in range(outputs):
        first = o // (outputs // groups) * (inputs // groups)
        plane = []
        for top in range(-padding, height + padding - kernel + 1, stride):
            row = []
            for left in range(-padding, width + padding - kernel + 1, stride):
                total = bias[o]
                for i in range(inputs // groups):
                    for a in range(kernel):
                        for b in range(kernel):
                            y, x = top + a, left + b
                            if 0 <= y < height and 0 <= x < width:
                                total += image[first + i][y][x] * weight[o][i][a][b]
                row.append(total)
            plane.append(row)
        result.append(plane)
    return result


def code_twin(value: Fraction, scale: Fraction, zero_point: int, bits: int) -> int:
    """Return the code of an exact value: round half to even, then clip."""
    return min(max(round(value / scale) + zero_point, 0), 2**bits - 1)
