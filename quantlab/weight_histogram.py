"""How the weights of a tensor spread, as text; of a large tensor an even sample is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 4096  # neighboring weights that a sample takes together: whole blocks of every type
MOST_SAMPLED = 2**22  # weights
MOST_BINS = 1000
BAR = 50  # characters of the longest bar


@dataclass(frozen=True)
class Histogram:
    """How many weights lie in each of several equal steps.

    Attributes
    ----------
    edges : list of float
        One more than ``counts``; none where no weight is finite.
    counts : list of int
    weights, sampled : int
        In the tensor, and looked at.
    not_finite : int
        Sampled weights that are NaN or infinite; they stand in no step.

    Examples
    --------
    >>> print(Histogram([-1.0, 0.0, 1.0], [1, 2], 3, 3, 0))
          -1 to            0             1 █████████████████████████
           0 to            1             2 ██████████████████████████████████████████████████
    3 weights
    """

    edges: list[float]
    counts: list[int]
    weights: int
    sampled: int
    not_finite: int

    def __str__(self) -> str:
        """Return a line with a bar for each step, and what was counted."""
        longest = max(self.counts, default=0) or 1
        lines = []
        for low, high, count in zip(self.edges, self.edges[1:], self.counts, strict=False):
            bar = "█" * math.ceil(count / longest * BAR)
            lines.append(f"{low:>12.5g} to {high:>12.5g} {count:>13,} {bar}".rstrip())
        note = f"{self.weights:,} weights"
        if self.sampled < self.weights:
            note += f", sampled: {self.sampled:,} in runs of {RUN:,} at even distances"
        if self.not_finite:
            note += f"; {self.not_finite:,} are NaN or infinite and stand in no line"
        return "\n".join([*lines, note])


def check_bins(bins: int) -> None:
    """Raise a ValueError unless ``bins`` is a sensible number of steps."""
    if not 1 <= bins <= MOST_BINS:
        raise ValueError(f"bins is {bins}; choose 1 to {MOST_BINS}")


def count_weights(values: NDArray[Any], bins: int, weights: int) -> Histogram:
    """Count sampled ``values`` of a tensor of so many ``weights`` in equal steps."""
    finite = values[np.isfinite(values)].astype(np.float64)
    missing = values.size - finite.size
    if not finite.size:
        return Histogram([], [], weights, values.size, missing)
    counts, edges = np.histogram(finite, bins)
    return Histogram(edges.tolist(), counts.tolist(), weights, values.size, missing)


def read_blocks(path: Path, begin: int, nbytes: int, block: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the blocks of a tensor, or of a large one runs at even distances.

    Reads and seeks, no map: touching a mapped page makes systems read megabytes around it.

    Parameters
    ----------
    path : path
    begin, nbytes : int
        Where the tensor begins in the file, and its size.
    block : pair of int
        Bytes and weights of a block.

    Returns
    -------
    (blocks, bytes of a block) uint8 array

    Raises
    ------
    ValueError
        If the file has become shorter since it was opened.
    """
    width, weights = block
    if nbytes // width * weights <= MOST_SAMPLED:
        starts, length = np.zeros(1, np.int64), nbytes
    else:
        length = RUN // weights * width
        last = nbytes // width - RUN // weights
        starts = np.linspace(0, last, MOST_SAMPLED // RUN).astype(np.int64) * width
    runs = []
    with path.open("rb") as file:
        for start in starts.tolist():
            file.seek(begin + start)
            runs.append(file.read(length))
            if len(runs[-1]) < length:
                raise ValueError(f"{path} has become shorter while it was read")
    return np.frombuffer(b"".join(runs), np.uint8).reshape(-1, width)
