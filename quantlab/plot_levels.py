"""One picture: several lists of levels under each other, on one axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.plot_style import CYCLE, PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["level_lines"]


@styled
def level_lines(
    levels: Mapping[str, Any], *, title: str = "Where the levels lie", unit: str = "value"
) -> Picture:
    """Draw each list of levels as a row of ticks, so that their spacing can be compared.

    Parameters
    ----------
    levels : name -> the values it can represent; infinities and NaN are left out
    title : the finding
    unit : label of the axis

    Raises
    ------
    ValueError
        If there is no list, or one without a finite value.

    Examples
    --------
    >>> level_lines({"thirds": [-1, 0, 1], "halves": [0.0, 0.5, 1.0]})
    Levels: thirds 3 from -1 to 1, gaps 1 to 1; halves 3 from 0 to 1, gaps 0.5 to 0.5.
    """
    if not levels:
        raise ValueError("there are no levels to draw; pass at least one name with its values")
    figure, (axes,) = canvas(height=1.1 + 0.42 * len(levels))
    sentences = []
    for row, (name, values) in enumerate(levels.items()):
        finite = numbers(values).ravel()
        finite = np.unique(finite[np.isfinite(finite)])
        if finite.size == 0:
            raise ValueError(f"{name} holds no finite value; pass the levels as numbers")
        color = PALETTE[CYCLE[row % len(CYCLE)]]
        axes.vlines(finite, row - 0.3, row + 0.3, color=color, lw=1.4 if finite.size < 64 else 0.8)
        gaps = np.diff(finite) if finite.size > 1 else np.zeros(1)
        sentences.append(
            f"{name} {finite.size} from {short(finite[0])} to {short(finite[-1])}, "
            f"gaps {short(gaps.min())} to {short(gaps.max())}"
        )
    axes.set_yticks(range(len(levels)), list(levels))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel(unit)
    axes.set_title(title)
    return Picture(figure, f"Levels: {'; '.join(sentences)}.")
