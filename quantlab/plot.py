"""Figures of the course: numbers in, a Picture (matplotlib figure and its sentence) out.

Nothing here computes an error or rounds a weight: the library does, and these functions draw.
Each title says the finding, each axis has its unit, and color is never the only sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlab.plot_adascale import budgets, loss_and_folded, range_factors, row_on_grid
from quantlab.plot_awq import ratio_panels, saved_bars
from quantlab.plot_blocks import bits_by_field, block_map, error_by_bits
from quantlab.plot_errors import (
    clip_curve,
    clip_sentence,
    column_errors,
    draw_clip,
    fill,
    heat_map,
    layer_errors,
    sqnr_bars,
    sweep_panels,
)
from quantlab.plot_int8 import equal_areas, sqnr_by_bits, threshold_panels
from quantlab.plot_levels import level_lines
from quantlab.plot_modules import module_tree
from quantlab.plot_rotation import channel_sizes, rotator_panels
from quantlab.plot_smooth import migration_panels
from quantlab.plot_style import (
    MARKERS,
    PALETTE,
    Picture,
    canvas,
    numbers,
    short,
    size,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Picture",
    "bits_by_field",
    "block_map",
    "budgets",
    "bytes_bar",
    "channel_sizes",
    "clip_curve",
    "clip_panels",
    "column_errors",
    "equal_areas",
    "error_by_bits",
    "heat_map",
    "layer_errors",
    "level_lines",
    "loss_and_folded",
    "migration_panels",
    "module_tree",
    "number_line",
    "quality_ladder",
    "range_factors",
    "ratio_panels",
    "rotator_panels",
    "row_on_grid",
    "saved_bars",
    "sqnr_bars",
    "sqnr_by_bits",
    "sweep_panels",
    "threshold_panels",
    "weight_histogram",
]

Row = Mapping[str, Any]


@styled
def weight_histogram(weight: Any, levels: Any = None, *, bins: int = 80) -> Picture:
    """Draw how often each weight occurs, with a line for each level of a grid.

    Parameters
    ----------
    weight : tensor or array of any shape
    levels : values the grid can represent, or None
    bins : number of bars
    """
    values = numbers(weight).ravel()
    figure, (axes,) = canvas()
    draw_histogram(axes, values, levels, bins=bins)
    text = (
        f"{values.size:,} weights from {short(values.min())} to {short(values.max())}, "
        f"standard deviation {short(values.std())}"
    )
    if levels is None:
        axes.set_title(f"{outside(values):.1f} % of the weights lie beyond 3 standard deviations")
        return Picture(figure, f"{text}.")
    grid = np.unique(numbers(levels))
    inside = ((values >= grid[0]) & (values <= grid[-1])).mean()
    axes.set_title(f"{grid.size} levels stand for {values.size:,} weights")
    return Picture(
        figure,
        f"{text}; {grid.size} levels from {short(grid[0])} to {short(grid[-1])} "
        f"span {100 * inside:.1f} % of them.",
    )


def draw_histogram(axes: Axes, values: Any, levels: Any = None, *, bins: int = 80) -> None:
    """Draw weights as bars and levels as dashed lines into ``axes``."""
    axes.hist(values, bins=bins, color=PALETTE["sky"], edgecolor="white", linewidth=0.3)
    if levels is not None:
        for index, level in enumerate(np.unique(numbers(levels))):
            label = "levels of the grid" if index == 0 else None
            axes.axvline(level, 0, 0.84, color=PALETTE["vermillion"], lw=1, ls="--", label=label)
        axes.set_ylim(top=1.18 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper right")
    axes.set_xlabel("weight")
    axes.set_ylabel("number of weights")


def outside(values: Any) -> float:
    """Return the percentage of values farther than 3 standard deviations from their mean."""
    return 100 * float((np.abs(values - values.mean()) > 3 * values.std()).mean())


@styled
def quality_ladder(
    rows: Sequence[Row], *, reference: float | None = None, highlight: str | None = None
) -> Picture:
    """Draw perplexity, with its standard error, against stored bits per weight.

    Parameters
    ----------
    rows : mappings with ``name``, ``bits_per_weight``, ``perplexity``
        Optional: ``perplexity_se``, drawn as an error bar, and ``series``; rows of one series are
        joined by a line.
    reference : perplexity of the float model, drawn as a line
    highlight : name of the row to ring
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    rows = sorted(rows, key=lambda row: row["bits_per_weight"])
    bits = numbers([row["bits_per_weight"] for row in rows])
    quality = numbers([row["perplexity"] for row in rows])
    figure, (axes,) = canvas(height=3.8)
    names = list(dict.fromkeys(row.get("series") for row in rows))
    for index, series in enumerate(names):
        draw_series(axes, index, [row for row in rows if row.get("series") == series])
    for row in rows:
        at = (row["bits_per_weight"], row["perplexity"])
        if len(names) == 1 or row["name"] == highlight:
            axes.annotate(row["name"], at, xytext=(6, 6), textcoords="offset points", fontsize=9)
        if row["name"] == highlight:
            axes.plot(*at, marker="o", ms=15, mfc="none", mec=PALETTE["vermillion"], mew=2)
    if reference is not None:
        axes.axhline(reference, color=PALETTE["quiet"], ls="--", label=f"float: {reference:.4g}")
    if reference is not None or len(names) > 1:
        axes.legend(loc="upper right")
    if quality.max() > 2 * quality.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.12)
    axes.grid(axis="y")
    axes.set_xlabel("stored bits per weight")
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(f"{short(bits[0])} bits cost {quality[0] / quality[-1]:.3g} times the "
                   f"perplexity of {short(bits[-1])}")  # fmt: skip
    listed = ", ".join(
        f"{row['name']} {row['perplexity']:.4g} at {row['bits_per_weight']:.4g}" for row in rows
    )
    floating = "" if reference is None else f" The float model has {reference:.4g}."
    return Picture(figure, f"Perplexity at bits per weight: {listed}.{floating}")


def draw_series(axes: Axes, index: int, rows: Sequence[Row]) -> None:
    """Draw the rows of one series: a marker each with its error bar, and a line if it is named."""
    name = rows[0].get("series")
    axes.errorbar(
        [row["bits_per_weight"] for row in rows],
        [row["perplexity"] for row in rows],
        [row.get("perplexity_se") or 0.0 for row in rows],
        fmt=MARKERS[index % len(MARKERS)] + ("" if name is None else "-"),
        color=fill(index)["color"],
        capsize=3,
        label=name,
    )


@styled
def bytes_bar(sizes: Mapping[str, float | Mapping[str, float]]) -> Picture:
    """Draw what each thing occupies in bytes, split into its parts where they are given.

    Parameters
    ----------
    sizes : name -> bytes, or name -> {part -> bytes}
    """
    split = {
        name: dict(value) if isinstance(value, Mapping) else {"bytes": float(value)}
        for name, value in sizes.items()
    }
    parts = list(dict.fromkeys(part for value in split.values() for part in value))
    totals = {name: sum(value.values()) for name, value in split.items()}
    unit, unit_name = next(
        pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
        if max(totals.values()) >= pair[0] or pair[0] == 1
    )  # fmt: skip
    figure, (axes,) = canvas(height=1.4 + 0.45 * len(split))
    left = np.zeros(len(split))
    for index, part in enumerate(parts):
        width = numbers([value.get(part, 0) for value in split.values()]) / unit
        axes.barh(list(split), width, left=left, label=part, **fill(index))
        left += width
    for y, total in enumerate(totals.values()):
        axes.annotate(size(total), (total / unit, y), xytext=(5, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(unit_name)
    if len(parts) > 1:
        figure.legend(loc="outside lower center", ncols=len(parts))
    biggest, smallest = (pick(totals, key=lambda name: totals[name]) for pick in (max, min))
    axes.set_title(f"{smallest} is {totals[biggest] / totals[smallest]:.3g} times "
                   f"smaller than {biggest}")  # fmt: skip
    listed = ", ".join(f"{name} {size(total)}" for name, total in totals.items())
    return Picture(figure, f"Bytes: {listed}.")


@styled
def number_line(values: Any, highlight: float | None = None, *, name: str = "format") -> Picture:
    """Draw each value of a format as a tick, and the marked one among its neighbors.

    Parameters
    ----------
    values : what the codes of the format stand for; infinities and NaN are left out
    highlight : value to mark; the lower line then shows eight neighbors to each side
    name : of the format, for the title
    """
    finite = numbers(values).ravel()
    finite = np.unique(finite[np.isfinite(finite)])
    figure, (axes,) = canvas(height=1.7 if highlight is None else 2.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.vlines(finite, 0.0, 0.5, color=PALETTE["blue"], lw=1 if finite.size < 64 else 0.6)
    axes.set_ylim(-0.1, 1)
    axes.set_xlabel("value")
    gap = np.diff(finite) if finite.size > 1 else np.zeros(1)
    axes.set_title(
        f"{name}: {finite.size} values, gaps from {short(gap.min())} to {short(gap.max())}"
    )
    text = (
        f"{name} has {finite.size} distinct finite values from {short(finite[0])} to "
        f"{short(finite[-1])}, with gaps from {short(gap.min())} to {short(gap.max())}"
    )
    if highlight is None or not np.isfinite(highlight):
        return Picture(figure, f"{text}.")
    mark_neighbors(axes, finite, float(highlight))
    return Picture(figure, f"{text}; marked: {float(highlight):.10g}.")


def mark_neighbors(axes: Axes, values: Any, marked: float) -> None:
    """Mark one value, and magnify the stretch around it in an inset below the title."""
    mark = {"marker": "v", "ms": 9, "color": PALETTE["vermillion"], "ls": "none"}
    axes.plot([marked], [0.6], **mark)
    axes.set_ylim(-0.1, 2.6)
    at = int(np.searchsorted(values, marked))
    near = values[max(0, at - 8) : at + 9]
    inset = axes.inset_axes((0.03, 0.62, 0.94, 0.22))
    inset.vlines(near, 0, 0.6, color=PALETTE["blue"], lw=1.5)
    inset.plot([marked], [0.85], **mark)
    inset.set_ylim(0, 1.4)
    inset.set_yticks([])
    inset.spines["left"].set_visible(False)
    inset.tick_params(labelsize=8.5)
    inset.set_title("magnified", fontsize=8.5, fontweight="normal", pad=2, loc="right")


@styled
def clip_panels(
    weight: Any, levels: Any, curve: tuple[Any, Any, Any], *, position: float, name: str
) -> Picture:
    """Draw weights and grid beside the two errors: the still picture of the clip slider.

    Parameters
    ----------
    weight, levels : as in ``weight_histogram``
    curve : clips, clipping, rounding, as in ``clip_curve``
    position : the clip in force
    name : of the grid
    """
    figure, (left, right) = canvas(2)
    draw_histogram(left, numbers(weight).ravel(), levels)
    for side in (-1, 1):
        left.axvline(side * position, 0, 0.84, color=PALETTE["ink"], lw=1.5)
    draw_clip(right, *curve, position)
    left.set_title(f"{name}, clip {short(position)}")
    right.set_title("Clipping against rounding")
    return Picture(figure, clip_sentence(*curve, name))
