"""Figures of LLM.int8() and of normal-float levels.

Numbers in, a Picture out: nothing here quantizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantlab.plot_style import MARKERS, PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["equal_areas", "sqnr_by_bits", "threshold_panels"]


@styled
def threshold_panels(
    sizes: Any, thresholds: Sequence[float], errors: Any, kept: Sequence[int], at: int
) -> Picture:
    """Draw input channels beside the error at each threshold: the threshold slider, still.

    Parameters
    ----------
    sizes : (columns,) largest |x_j|, in descending order
    thresholds : in ascending order
    errors : (thresholds,) percent of the output
    kept : columns multiplied in float at each threshold
    at : position of the threshold in force
    """
    drawn, percent = numbers(sizes), numbers(errors)
    threshold = thresholds[at]
    figure, (left, right) = canvas(2)
    columns = np.arange(drawn.size)
    loud = drawn >= threshold
    left.plot(columns[loud], drawn[loud], "^", ms=5, color=PALETTE["vermillion"], label="float")
    left.plot(columns[~loud], drawn[~loud], "o", ms=3.5, color=PALETTE["blue"], label="int8")
    left.axhline(threshold, color=PALETTE["ink"], lw=1.5, ls="--")
    left.set_yscale("log")
    left.set_xlabel(f"{drawn.size} input channels, largest first")
    left.set_ylabel("largest |x|")
    left.set_title(f"Threshold {short(threshold)}: {kept[at]} channels in float")
    left.legend(loc="upper right")
    right.plot(thresholds, percent, "o-", ms=4, color=PALETTE["ink"])
    right.plot(threshold, percent[at], "D", ms=9, color=PALETTE["vermillion"])
    right.set_xscale("log")
    right.set_ylim(0, 1.08 * percent.max())
    right.set_xlabel("threshold")
    right.set_ylabel("error, % of the output")
    right.set_title(f"What it costs: {short(percent[at])} %")
    return Picture(
        figure,
        f"Threshold {short(threshold)} keeps {kept[at]} channels in float; the output's error is "
        f"{short(percent[at])} %, {short(percent[-1])} % where none is kept.",
    )


@styled
def equal_areas(levels: Any, edges: Any) -> Picture:
    """Draw the normal density cut into parts, and the levels that stand for them.

    Parameters
    ----------
    levels : (n,) positions in standard deviations
    edges : (n + 1,) borders of the parts; the outer two may be infinite
    """
    points, borders = numbers(levels), np.clip(numbers(edges), -3.2, 3.2)
    figure, (axes,) = canvas(height=3.0)
    z = np.linspace(-3.2, 3.2, 641)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    axes.plot(z, density, color=PALETTE["ink"])
    for place, (low, high) in enumerate(itertools.pairwise(borders)):
        inside = (z >= low) & (z <= high)
        color = PALETTE["sky"] if place % 2 else PALETTE["orange"]
        axes.fill_between(z[inside], density[inside], color=color, alpha=0.5, lw=0)
    axes.plot(points, np.full_like(points, -0.02), "^", ms=7, color=PALETTE["blue"])
    axes.set_ylim(bottom=-0.05)
    axes.set_xlabel("weight, in standard deviations (triangles: levels)")
    axes.set_ylabel("density")
    gaps = np.diff(np.sort(points))
    axes.set_title("Close where weights are many, far apart where they are few")
    return Picture(
        figure,
        f"{points.size} levels from {short(points.min())} to {short(points.max())} standard "
        f"deviations; neighbors {short(gaps.min())} to {short(gaps.max())} apart.",
    )


@styled
def sqnr_by_bits(lines: Mapping[str, Mapping[float, float]]) -> Picture:
    """Draw the SQNR of several formats over their stored bits per weight.

    Parameters
    ----------
    lines : format -> {bits per weight -> dB}
    """
    figure, (axes,) = canvas(height=3.4)
    colors = [PALETTE[name] for name in ("blue", "vermillion", "orange", "ink", "quiet")]
    for place, (name, points) in enumerate(lines.items()):
        bits, decibels = numbers(list(points)), numbers(list(points.values()))
        marker, color = MARKERS[place % len(MARKERS)], colors[place % len(colors)]
        axes.plot(bits, decibels, marker=marker, ms=7, color=color, label=name)
    axes.set_xlabel("stored bits per weight, scales included")
    axes.set_ylabel("SQNR, dB")
    best = max(lines, key=lambda name: max(lines[name].values()))
    axes.set_title(f"Compare at equal bits; highest: {best}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{v:.1f} dB at {short(b)}" for b, v in points.items())
        for name, points in lines.items()
    )
    return Picture(figure, f"SQNR over stored bits. {listed}.")
