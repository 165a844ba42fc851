"""Figure of module 24: every call of a benchmark, in order and sorted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from quantlab.plot_style import CYCLE, MARKERS, PALETTE, Picture, canvas, short, styled

__all__ = ["timing_dots"]

LINES = ("-", "--", ":", "-.")


@styled
def timing_dots(samples: Mapping[str, ArrayLike]) -> Picture:
    """Draw the times of calls: on the left in the order taken, on the right sorted.

    Parameters
    ----------
    samples : name -> seconds, in the order in which they were taken

    Raises
    ------
    ValueError
        If there are none, or a time is not positive and finite.
    """
    if not samples:
        raise ValueError("there are no samples to draw; pass at least one list of times")
    figure, (left, right) = canvas(2, height=3.6)
    told = []
    for k, (name, times) in enumerate(samples.items()):
        taken = 1e3 * np.asarray(times, np.float64)
        if taken.size == 0 or not (np.isfinite(taken) & (taken > 0)).all():
            raise ValueError(f"{name} holds no times, or one that is not positive and finite")
        color = PALETTE[CYCLE[k % len(CYCLE)]]
        order = np.linspace(0, 100, taken.size)
        marker = MARKERS[k % len(MARKERS)]
        left.plot(order, taken, marker, ms=3, alpha=0.7, color=color, label=name, ls="")
        right.plot(order, np.sort(taken), LINES[k % len(LINES)], lw=1.8, color=color)
        middle, tail = np.quantile(taken, (0.5, 0.99))
        told.append(f"{name}: median {short(middle)} ms, one in a hundred above {short(tail)} ms")
    left.set_title("in the order taken")
    left.set_xlabel("% of the calls made")
    left.set_ylabel("ms of one call")
    right.set_title("sorted")
    right.set_xlabel("% of the calls are faster")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.grid(which="major")
    figure.legend(loc="outside lower center", ncols=2, markerscale=2)
    return Picture(figure, "; ".join(told) + ".")
