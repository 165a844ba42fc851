"""Figures of rotations: one vector as it is turned, and how loud each channel of a model is.

Numbers in, a Picture out: nothing here rotates or rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.plot_style import PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["channel_sizes", "rotator_panels"]
MARKS = ("o", "^", "s", "D")
COLORS = ("vermillion", "orange", "blue", "ink")


@styled
def rotator_panels(vector: Any, errors: Mapping[float, float], angle: float) -> Picture:
    """Draw a turned vector beside the rounding error at each angle: the vector rotator, still.

    Parameters
    ----------
    vector : (n,) numbers after the turn
    errors : angle in degrees -> rounding error, percent of the vector's energy
    angle : the one in force
    """
    values = numbers(vector)
    rms = float(np.sqrt(np.square(values).mean()))
    figure, (left, right) = canvas(2)
    left.vlines(np.arange(values.size), 0, values, color=PALETTE["blue"], lw=0.8)
    for side in (-rms, rms):
        left.axhline(side, color=PALETTE["quiet"], lw=1, ls=":")
    most = float(np.abs(values).max())
    left.set_ylim(-1.1 * most, 1.1 * most)
    left.set_xlabel("coordinate")
    left.set_ylabel("value (dotted: root mean square)")
    left.set_title(f"Turned by {angle:g}°")
    tried, shares = numbers(list(errors)), numbers(list(errors.values()))
    at, best = int(np.abs(tried - angle).argmin()), int(shares.argmin())
    right.plot(tried, shares, "-", color=PALETTE["ink"])
    right.plot(tried[at], shares[at], "o", ms=9, color=PALETTE["vermillion"], label="here")
    right.axvline(45, color=PALETTE["quiet"], lw=1, ls="--")
    right.set_yscale("log")
    right.set_xlabel("angle, degrees (dashed: Hadamard)")
    right.set_ylabel("rounding error, % of energy")
    right.set_title("What it costs")
    right.legend(loc="upper center")
    return Picture(
        figure,
        f"At {angle:g} degrees the largest of {values.size} numbers is {short(most / rms)} times "
        f"their root mean square, and rounding costs {short(shares[at])} % of the energy; least "
        f"{short(shares[best])} % at {tried[best]:g} degrees.",
    )


@styled
def channel_sizes(sizes: Mapping[str, Any]) -> Picture:
    """Draw how loud each channel gets, loudest first, one line a case, on a log scale.

    Parameters
    ----------
    sizes : case -> (channels,) largest |x_j|, in any order
    """
    figure, (axes,) = canvas()
    told = []
    for index, (name, values) in enumerate(sizes.items()):
        ordered = np.sort(numbers(values))[::-1]
        axes.plot(np.arange(1, ordered.size + 1), ordered, marker=MARKS[index % 4], ms=3.5,
                  markevery=max(1, ordered.size // 16), lw=1.6,
                  color=PALETTE[COLORS[index % 4]], label=name)  # fmt: skip
        told.append(f"{name}: {short(ordered[0])} to {short(float(np.median(ordered)))}")
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xlabel("channel, loudest first")
    axes.set_ylabel("largest |x|")
    axes.set_title("How loud each channel gets")
    axes.legend(loc="upper right")
    return Picture(
        figure, f"Largest size of the loudest and of the median channel. {'; '.join(told)}."
    )
