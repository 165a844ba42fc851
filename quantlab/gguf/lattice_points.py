"""The lists of points behind IQ1, IQ2 and IQ3: what is near what, and how floats come back."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantlab.gguf.block_type import Floats
from quantlab.native import compiled

FILE = Path(__file__).with_name("lattices.npz")
LEVELS = {  # of a coordinate; a lattice's name is its type's
    "IQ2_XXS": (8, 25, 43),
    "IQ2_XS": (8, 25, 43),
    "IQ2_S": (8, 25, 43),
    "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62),
    "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
    "IQ1_S": (-1, 0, 1),
}


@cache
def lattice(name: str) -> Floats:
    """Return the points of a lattice, one a row.

    Parameters
    ----------
    name : str
        A key of ``LEVELS``.

    Returns
    -------
    (points, 8 or 4) float32 array

    Examples
    --------
    >>> lattice("IQ3_S").shape, sorted(set(lattice("IQ2_XS").ravel().tolist()))
    ((512, 4), [8.0, 25.0, 43.0])
    """
    levels = LEVELS[name]
    width, bits = 4 if len(levels) == 8 else 8, len(levels).bit_length() - len(levels) // 8
    with np.load(FILE) as file:
        flags = np.unpackbits(file[name], bitorder="little").reshape(-1, width, bits)
    return np.array(levels, np.float32)[flags @ (1 << np.arange(bits))]


@cache
def shifted_lattice() -> Floats:
    """Return the points of IQ1: 2,048 moved up by 1/8, then the same moved down."""
    points = lattice("IQ1_S")
    return np.concatenate([points + np.float32(0.125), points - np.float32(0.125)])


# Seven signs are stored; the eighth makes the number of minus signs even.
EVEN_SIGNS = np.array([s | (s.bit_count() & 1) << 7 for s in range(128)], np.uint8)


# All patterns of eight signs as factors.
SIGNS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, -1, 1).astype(np.float32)


class Neighbors(NamedTuple):
    """A list of points, and for every combination of levels the points to try instead of it."""

    points: Floats  # (n, 8 or 4): odd numbers 1, 3, 5 ... in place of the levels
    at: NDArray[np.int32]  # (combinations,): the point itself, or -1 where it is not on the list
    starts: NDArray[np.int64]  # (combinations + 1,): where its neighbors begin in ``near``
    near: NDArray[np.int32]  # nearest first, then by index
    base: int  # levels: 3 or 8


@cache
def neighbors(name: str, distances: int) -> Neighbors:
    """Return for each combination off the list the points at its ``distances`` least distances.

    Combination c has level c // base^i mod base at place i.
    """
    levels = np.searchsorted(np.array(LEVELS[name]), lattice(name))
    base, (count, width) = len(LEVELS[name]), levels.shape
    powers = base ** np.arange(width)
    grid = np.arange(base**width)[:, None] // powers % base
    at = np.full(len(grid), -1, np.int32)
    at[levels @ powers] = np.arange(count)
    squares = (grid**2).sum(1)[:, None] + (levels**2).sum(1) - 2 * grid @ levels.T
    order = (squares * count + np.arange(count)).astype(np.int32)
    order.sort(axis=1)  # by distance, then by index
    nearer = np.diff(order // count, axis=1, prepend=-1) > 0
    wanted = (np.cumsum(nearer, axis=1) <= distances) & (at < 0)[:, None]
    starts = np.concatenate([[0], np.cumsum(wanted.sum(1))])
    points = (2 * levels + 1).astype(np.float32)
    return Neighbors(points, at, starts, (order % count)[wanted].astype(np.int32), base)


@compiled
def place(points, index, signs, steps, y):
    """Fill ``y`` (n, 256) with step * point * sign, eight weights at a time."""
    per_step = 32 // steps.shape[1]
    for b in range(len(y)):
        for g in range(32):
            step, sign = steps[b, g // per_step], SIGNS[signs[b, g]]
            if points.shape[1] == 8:
                point = points[index[b, g]]
                for j in range(8):
                    y[b, 8 * g + j] = step * point[j] * sign[j]
            else:
                low, high = points[index[b, 2 * g]], points[index[b, 2 * g + 1]]
                for j in range(4):
                    y[b, 8 * g + j] = step * low[j] * sign[j]
                    y[b, 8 * g + 4 + j] = step * high[j] * sign[4 + j]
