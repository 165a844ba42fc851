"""The roofline: how fast a product can be at most, by the operations it does for each byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from quantlab.plot_style import CYCLE, MARKERS, PALETTE, Picture, canvas, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from quantlab.kernels.bench import Row
    from quantlab.kernels.machine import Limits

__all__ = ["attainable", "roofline", "roofline_points"]

Point = tuple[float, float]
STYLES = {"memory": "-", "L3": "--", "L2": ":"}
ROOFS = {"float32": ("float32 multiply-adds", "-"), "int8": ("int8 products", "--")}


def attainable(intensity: float, bandwidth: float, peak: float) -> float:
    """Return the operations a second that a machine allows: the lower of its two limits.

    Parameters
    ----------
    intensity : operations for each byte moved
    bandwidth : bytes a second
    peak : operations a second

    References
    ----------
    Williams, Waterman and Patterson, Roofline, Communications of the ACM 52(4), 2009.

    Examples
    --------
    >>> attainable(4, bandwidth=30e9, peak=230e9) / 1e9
    120.0
    """
    return min(intensity * bandwidth, peak)


def roofline_points(rows: Iterable[Row]) -> dict[str, Point]:
    """Return (operations a byte, operations a second) of rows of a benchmark, by their names."""
    return {
        f"{row.name}, batch {row.shape[2]}, {row.cache}": (
            row.speed / row.bandwidth,
            row.speed,
        )
        for row in rows
    }


@styled
def roofline(limits: Limits, points: Mapping[str, Point]) -> Picture:
    """Draw the limits of a machine as a roof, and products as points under it.

    Parameters
    ----------
    limits : Limits
        As measured, for one number of threads.
    points : name -> (operations for each byte moved, operations a second)

    Raises
    ------
    ValueError
        If a number is not positive and finite.
    """
    for name, point in points.items():
        if not all(0 < value < np.inf for value in point):
            raise ValueError(f"{name} lies at {point}; both numbers are positive and finite")
    roofs = {name: getattr(limits, name) for name in ROOFS if getattr(limits, name)}
    figure, (axes,) = canvas(height=4.4 + 0.1 * len(points))  # the legend has two columns
    intensities = [at for at, _ in points.values()]
    left = min([0.1, *intensities]) / 2
    right = max([2 * max(roofs.values()) / limits.read["memory"], *intensities]) * 2
    draw_roofs(axes, limits, roofs, left, right)
    for k, (name, (at, speed)) in enumerate(points.items()):
        color = PALETTE[CYCLE[k % len(CYCLE)]]
        marker = MARKERS[(k + k // len(CYCLE)) % len(MARKERS)]
        axes.plot(at, speed / 1e9, marker, color=color, ms=7, mec="white", label=name, ls="")
    threads = f"{limits.threads} thread{'s' * (limits.threads > 1)}"
    axes.set_title(f"What {threads} can reach, and what products reach")
    axes.set_xlabel("operations for each byte moved")
    axes.set_ylabel("billion operations a second")
    axes.grid(which="major")
    figure.legend(loc="outside lower center", ncols=2)
    return Picture(figure, sentence(limits, roofs, points))


def draw_roofs(
    axes: Axes, limits: Limits, roofs: Mapping[str, float], left: float, right: float
) -> None:
    """Draw a slope for each kind of memory and a level for each kind of operation."""
    top = max(roofs.values())
    for name, bandwidth in limits.read.items():
        at = np.array([left, top / bandwidth])
        label = f"{name} {bandwidth / 1e9:.0f} GB/s"
        axes.plot(at, at * bandwidth / 1e9, STYLES[name], color=PALETTE["quiet"], label=label)
    for name, peak in roofs.items():
        words, style = ROOFS[name]
        start = peak / max(limits.read.values())
        label = f"{words} {peak / 1e9:.0f} Gop/s"
        axes.plot([start, right], [peak / 1e9] * 2, style, color=PALETTE["ink"], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)


def sentence(limits: Limits, roofs: Mapping[str, float], points: Mapping[str, Point]) -> str:
    """Return the picture's numbers in words."""
    reads = ", ".join(f"{name} {short(v / 1e9)} GB/s" for name, v in limits.read.items())
    peaks = ", ".join(f"{ROOFS[name][0]} {short(v / 1e9)} Gop/s" for name, v in roofs.items())
    text = f"Roofline of {limits.threads} thread{'s' * (limits.threads > 1)}: {reads}; {peaks}."
    if not points:
        return text
    told = [
        f"{name}: {short(speed / 1e9)} Gop/s at {short(at)} operations a byte"
        for name, (at, speed) in points.items()
    ]
    return f"{text} {'; '.join(told)}."
