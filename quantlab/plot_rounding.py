"""One picture: which weights are rounded away from their nearest level, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantlab.plot_style import PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["rounding_panels"]


@styled
def rounding_panels(
    distance: Any, turned: Sequence[Sequence[int]], errors: Sequence[float], step: int
) -> Picture:
    """Draw the map of turned weights beside the output error: the rounding map's still picture.

    Parameters
    ----------
    distance : (rows, columns)
        How far each weight lies from its nearest level, in steps, 0 to 0.5.
    turned : (row, column, direction) of each weight rounded the other way
        Direction +1 is up, -1 down.
    errors : output error after 0, 1, 2 .. turned weights
    step : how many are turned
    """
    figure, (left, right) = canvas(2, height=3.2, widths=(1.5, 1))
    cells = numbers(distance)
    image = left.imshow(cells, cmap="Greys", vmin=0, vmax=0.8, aspect="auto")
    bar = figure.colorbar(image, ax=left, shrink=0.85, boundaries=np.linspace(0, 0.5, 51))
    bar.set_ticks([0, 0.25, 0.5])
    bar.set_label("steps to the nearest level")
    for sign, marker, name, label in ((1, "^", "vermillion", "up"), (-1, "v", "blue", "down")):
        at = [(column, row) for row, column, direction in turned if direction * sign > 0]
        if at:
            x, y = zip(*at, strict=True)
            left.scatter(x, y, marker=marker, s=26, color=PALETTE[name], label=f"turned {label}")
    if len(turned):
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    left.set_title("Rounded the other way")
    left.set_xlabel("column")
    left.set_ylabel("row")
    right.plot(errors, color=PALETTE["blue"], lw=1.8)
    right.plot([step], [errors[step]], "o", ms=8, color=PALETTE["vermillion"])
    right.set_ylim(0, 1.08 * max(errors))
    right.set_xlabel("weights turned")
    right.set_ylabel("output error")
    right.set_title("What it saves")
    return Picture(
        figure,
        f"{step} of {cells.size} weights turned: output error from {short(errors[0])} to "
        f"{short(errors[step])}.",
    )
