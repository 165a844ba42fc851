"""Integers with their grid, and the one division that carries them from grid to grid.

A grid's scale is a float16, so a ratio of scales is a ratio of two small integers. What other
libraries approximate by a fixed-point multiplier is here a whole-number division, rounded half to
even: the exact result, without one floating-point operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**62  # of a numerator: twice a remainder must fit int64


@dataclass(frozen=True)
class Grid:
    """Where codes lie: value = scale * (code - zero_point), codes 0 .. 2^bits - 1."""

    scale: float
    zero_point: int
    bits: int

    @property
    def top(self) -> int:
        """The greatest code."""
        return 2**self.bits - 1


@dataclass(frozen=True, eq=False)
class Codes:
    """An activation as a converted model passes it on: uint8 codes and their grid.

    Attributes
    ----------
    codes : (samples, ...) uint8 tensor
    grid : Grid
    """

    codes: Tensor
    grid: Grid

    @property
    def shape(self) -> torch.Size:
        """Shape of the codes."""
        return self.codes.shape

    def shifted(self) -> Tensor:
        """Return code - zero_point as int64: the activation in units of its scale."""
        return self.codes.long() - self.grid.zero_point

    def real(self) -> Tensor:
        """Return what the codes stand for, in float32, exactly: it takes 20 bits of 24."""
        return self.shifted().float() * self.grid.scale

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Codes:
        """Flatten the codes: what ``nn.Flatten`` asks of its input."""
        return replace(self, codes=self.codes.flatten(start_dim, end_dim))

    def __add__(self, other: Any) -> Codes:
        """Refuse: two grids do not add up."""
        raise TypeError("integer codes have no +: their grids differ; use ql.Add() in the module")

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> Any:
        """Refuse functions that expect float tensors, by name."""
        name = getattr(function, "__name__", str(function))
        raise TypeError(
            f"{name} got integer codes; a function call in forward cannot be converted: use a "
            "module (nn.ReLU, ql.Add), or put a ql.DequantStub() before it"
        )


def rounded_division(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, rounded half to even, of int64 tensors (denominator > 0).

    Examples
    --------
    >>> rounded_division(torch.tensor([5, 7, -5, -7]), torch.tensor(2)).tolist()
    [2, 4, -2, -4]
    """
    quotient = torch.div(numerator, denominator, rounding_mode="floor")
    twice = 2 * (numerator - quotient * denominator)
    up = (twice > denominator) | ((twice == denominator) & (quotient % 2 == 1))
    return quotient + up


def ratios(numbers: Sequence[Fraction]) -> tuple[Tensor, Tensor]:
    """Return fractions as int64 numerators and denominators.

    Raises
    ------
    ValueError
        If one does not fit int64.
    """
    for number in numbers:
        if max(abs(number.numerator), number.denominator) >= LARGEST:
            raise ValueError(
                f"a ratio of scales is {float(number):.3g}, too far from 1 for int64; "
                "look for a layer whose range is near zero"
            )
    tops, bottoms = [n.numerator for n in numbers], [n.denominator for n in numbers]
    return torch.tensor(tops), torch.tensor(bottoms)


def common(numbers: Sequence[Fraction]) -> tuple[list[int], int]:
    """Bring fractions to one denominator: the numerators, and it.

    Examples
    --------
    >>> common([Fraction(1, 2), Fraction(1, 3)])
    ([3, 2], 6)
    """
    denominator = lcm(*(number.denominator for number in numbers))
    return [int(number * denominator) for number in numbers], denominator


def requantize(sums: Tensor, numerator: Tensor, denominator: Tensor, grid: Grid) -> Tensor:
    """Carry integers to a grid: clip(round(sums * numerator / denominator) + zero_point).

    Parameters
    ----------
    sums : (..., channels) int64 tensor
        Multiples of the old scale.
    numerator, denominator : (channels,) int64 tensors, or ()
        Old scale / new scale.
    grid : Grid
        The new one.

    Returns
    -------
    (..., channels) uint8 tensor

    Raises
    ------
    OverflowError
        If a product would not fit int64.

    Examples
    --------
    >>> grid = Grid(scale=0.5, zero_point=10, bits=4)
    >>> requantize(torch.tensor([[3, -99]]), torch.tensor(1), torch.tensor(2), grid).tolist()
    [[12, 0]]
    """
    if sums.numel():
        bound = int(sums.abs().max()) * int(numerator.abs().max())
        if bound >= LARGEST:
            raise OverflowError(f"{bound} does not fit int64; a layer's scales are too far apart")
    rounded = rounded_division(sums * numerator, denominator)
    return (rounded + grid.zero_point).clamp(0, grid.top).to(torch.uint8)
