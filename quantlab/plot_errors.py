"""Figures of errors: per scheme, per column, per layer, and the matrix they are measured in.

Use them through ``quantlab.plot``, where all figures stand together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlab.plot_style import (
    CYCLE,
    HATCHES,
    MARKERS,
    PALETTE,
    Picture,
    canvas,
    numbers,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fill(index: int) -> dict[str, Any]:
    """Return the color and hatch of the index-th series of bars."""
    color = PALETTE[CYCLE[index % len(CYCLE)]]
    return {"color": color, "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "white"}


@styled
def clip_curve(
    clips: Any, clipping: Any, rounding: Any, *, position: float | None = None, name: str = "grid"
) -> Picture:
    """Draw the mean squared error of clipping and of rounding against the clip position.

    Parameters
    ----------
    clips : (n,) positions, in the weights' unit
    clipping, rounding : (n,) mean squared errors that add up to the whole
    position : clip to mark; None marks the best
    name : of the grid ("4 bits"), for the title
    """
    figure, (axes,) = canvas()
    best = draw_clip(axes, clips, clipping, rounding, position)
    axes.set_title(f"{name}: the error is least with the weights cut at {short(best)}")
    return Picture(figure, clip_sentence(clips, clipping, rounding, name))


def clip_sentence(clips: Any, clipping: Any, rounding: Any, name: str) -> str:
    """Say where the whole error is least, and what the two parts are there."""
    clips, clipping, rounding = numbers(clips), numbers(clipping), numbers(rounding)
    best = int(np.argmin(clipping + rounding))
    return (
        f"{name}: the mean squared error is least, {short(clipping[best] + rounding[best])}, "
        f"at clip {short(clips[best])}: {short(clipping[best])} from clipping and "
        f"{short(rounding[best])} from rounding."
    )


def draw_clip(
    axes: Axes, clips: Any, clipping: Any, rounding: Any, position: float | None
) -> float:
    """Stack the two errors in ``axes``, mark a position, and return the best clip."""
    clips, clipping, rounding = numbers(clips), numbers(clipping), numbers(rounding)
    total = clipping + rounding
    best = float(clips[np.argmin(total)])
    style = {"edgecolor": "white", "linewidth": 0}
    axes.fill_between(clips, 0, rounding, color=PALETTE["blue"], label="rounding", **style)
    axes.fill_between(clips, rounding, total, facecolor=PALETTE["orange"], hatch="///",
                      label="clipping", **style)  # fmt: skip
    axes.plot(clips, total, color=PALETTE["ink"], lw=1.6, label="both")
    at = best if position is None else position
    axes.axvline(at, color=PALETTE["vermillion"], lw=1.5, ls="--", label=f"clip {short(at)}")
    axes.set_xlim(clips.min(), clips.max())
    axes.set_ylim(0, 4 * total.min() + 0.1 * total.max())
    axes.set_xlabel("clip")
    axes.set_ylabel("mean squared error")
    axes.legend(loc="upper right")
    return best


@styled
def sqnr_bars(decibels: Mapping[str, float]) -> Picture:
    """Draw signal-to-quantization-noise ratios (``quantlab.sqnr``) as bars, in dB.

    Parameters
    ----------
    decibels : name -> dB
    """
    names, values = list(decibels), numbers(list(decibels.values()))
    figure, (axes,) = canvas(height=1.3 + 0.42 * len(names))
    axes.barh(names, values, **fill(0))
    for y, value in enumerate(values):
        axes.annotate(f"{value:.2f} dB", (max(value, 0), y), xytext=(5, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("SQNR in dB (higher is better; 6 dB halve the error)")
    best, worst = names[int(values.argmax())], names[int(values.argmin())]
    axes.set_title(f"{best} is {values.max() - values.min():.1f} dB better than {worst}")
    listed = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))
    return Picture(figure, f"SQNR in dB: {listed}.")


@styled
def heat_map(
    matrix: Any, *, name: str = "H", rows: str = "row", columns: str = "column"
) -> Picture:
    """Draw a matrix as colors: one hue if nothing is negative, else two around zero.

    Parameters
    ----------
    matrix : (rows, columns)
    name, rows, columns : words for the title and the axes
    """
    values = numbers(matrix)
    if values.ndim != 2:
        raise ValueError(f"matrix has shape {values.shape}; pass two dimensions")
    figure, (axes,) = canvas(height=4.2)
    draw_matrix(figure, axes, values)
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    at = np.unravel_index(np.abs(values).argmax(), values.shape)
    text = f"largest entry {short(values[at])} at {rows} {at[0]}, {columns} {at[1]}"
    axes.set_title(f"{name}: {text}")
    extra = ""
    if values.shape[0] == values.shape[1]:
        diagonal = np.abs(np.diag(values)).sum() / max(np.abs(values).sum(), 1e-300)
        extra = f"; the diagonal holds {100 * diagonal:.1f} % of the absolute sum"
    shape = " by ".join(map(str, values.shape))
    return Picture(figure, f"{name}, {shape}: {text}{extra}.")


def draw_matrix(figure: Any, axes: Axes, values: Any) -> None:
    """Draw a matrix and its color scale into ``axes``."""
    limit = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    image = axes.imshow(
        values,
        cmap="PuOr_r" if signed else "cividis",
        vmin=-limit if signed else 0.0,
        vmax=limit,
        aspect="auto" if values.shape[0] != values.shape[1] else "equal",
        interpolation="nearest",
    )
    figure.colorbar(image, ax=axes, shrink=0.85)


@styled
def column_errors(errors: Mapping[str, Any]) -> Picture:
    """Draw the error of each column of a weight, one series of bars for each method.

    Parameters
    ----------
    errors : name -> (columns,) errors, all of one length
    """
    series = {name: numbers(values).ravel() for name, values in errors.items()}
    figure, (axes,) = canvas()
    draw_columns(axes, series)
    axes.set_ylabel("error")
    axes.legend(loc="upper left")
    sums = {name: values.sum() for name, values in series.items()}
    axes.set_title("Sum of errors: " + ", ".join(f"{n} {short(s)}" for n, s in sums.items()))
    listed = "; ".join(
        f"{name} sum {short(values.sum())}, largest {short(values.max())} "
        f"in column {values.argmax()}"
        for name, values in series.items()
    )
    return Picture(figure, f"Error per column: {listed}.")


def draw_columns(axes: Axes, series: Mapping[str, Any]) -> None:
    """Draw series of equal length side by side as hatched bars."""
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        shift = (index - (len(series) - 1) / 2) * width
        axes.bar(np.arange(len(values)) + shift, values, width, label=name, **fill(index))
    axes.set_xlabel("column")


@styled
def layer_errors(reports: Mapping[str, Any]) -> Picture:
    """Draw the error of each layer under one or more reports, layers in the model's order.

    Parameters
    ----------
    reports : name -> Report of ``quantize_``, or {layer name -> error}
        Layers that the first one lacks are left out. Where a report holds no output errors (no
        calibration data), all show the weights' errors, from their SQNR.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    weights_only = any(lacks_output(report) for report in reports.values())
    series = {name: errors_of(report, weights_only) for name, report in reports.items()}
    first, *others = series
    layers = list(series[first])
    figure, (axes,) = canvas(height=max(3.0, 1.2 + 0.19 * len(layers)))
    for index, (name, errors) in enumerate(series.items()):
        values = [errors.get(layer, np.nan) for layer in layers]
        axes.plot(values, range(len(layers)), MARKERS[index % len(MARKERS)], ms=6, label=name,
                  color=PALETTE[CYCLE[index % len(CYCLE)]])  # fmt: skip
    axes.set_yticks(range(len(layers)), layers, fontsize=8 if len(layers) > 12 else 10)
    axes.invert_yaxis()
    if all(error > 0 for errors in series.values() for error in errors.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())  # labels of 3, 4, 6 would overlap
    axes.grid(axis="both")
    axes.set_xlabel(f"{'weight' if weights_only else 'output'} error (share of the energy)")
    axes.legend(loc="best")
    worst = max(layers, key=lambda layer: series[first][layer])
    text = f"{first}: largest error {short(series[first][worst])} in {worst}"
    axes.set_title(text)
    for name in others:
        ratio = short(median_ratio(series[name], series[first]))
        text += f"; {name} has {ratio} times the error of {first} in the median layer"
        axes.set_title(f"{name}: {ratio} times the error of {first} in the median layer")
    return Picture(figure, f"Error of {len(layers)} layers. {text}.")


def lacks_output(report: Any) -> bool:
    """Return whether a Report was made without calibration data."""
    return any(row.output_error is None for row in getattr(report, "rows", ()))


def errors_of(report: Any, weights_only: bool) -> dict[str, float]:
    """Return layer name -> error of a Report, or of a mapping as it is."""
    if isinstance(report, Mapping):
        return dict(report)
    if weights_only:
        return {row.name: 10 ** (-row.sqnr / 10) for row in report.rows}
    return {row.name: row.output_error for row in report.rows}


def median_ratio(errors: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Return the median over shared layers of errors / base; NaN if they share none."""
    ratios = [errors[name] / base[name] for name in base if name in errors and base[name] > 0]
    return float(np.median(ratios)) if ratios else float("nan")


@styled
def sweep_panels(matrix: Any, cumulative: Mapping[str, Any]) -> Picture:
    """Draw H beside the output error after each column: the still picture of the column sweep.

    Parameters
    ----------
    matrix : (columns, columns)
    cumulative : method -> (columns + 1,) output error after that many columns
    """
    figure, (left, right) = canvas(2)
    draw_matrix(figure, left, numbers(matrix))
    left.set_title("H: which columns move together")
    left.set_xlabel("column")
    left.set_ylabel("column")
    ends = {}
    for index, (name, values) in enumerate(cumulative.items()):
        errors = numbers(values)
        ends[name] = errors[-1]
        style = {"color": fill(index)["color"], "marker": "os^D"[index % 4], "ms": 4}
        right.plot(np.arange(errors.size), errors, label=f"{name}: {short(errors[-1])}", **style)
    right.set_xlabel("columns rounded")
    right.set_ylabel("mean squared output error")
    right.set_title("Error so far")
    right.legend(loc="upper left")
    listed = ", ".join(f"{name} {short(value)}" for name, value in ends.items())
    return Picture(figure, f"Output error after the last column: {listed}.")
