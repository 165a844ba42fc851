"""Pictures of AdaScale: a row on its grid, factors on a range, short and long training, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.plot_errors import fill
from quantlab.plot_style import Picture, canvas, numbers, short, styled


@styled
def row_on_grid(
    weights: Any, divided: Any, step: float, codes: Sequence[int], bits: int
) -> Picture:
    """Draw where the weights of a row go: divided first, then rounded to a level.

    Parameters
    ----------
    weights, divided : (in,)
        Before and after division; ``divided`` is what training folds.
    step : distance of levels
    codes : (in,) signed
    bits : of the grid
    """
    W, folded = numbers(weights), numbers(divided)
    figure, (axes,) = canvas(height=3.0)
    levels = step * np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    axes.hlines([2, 1, 0], *span(W, folded, levels), color="0.8", lw=1, zorder=0)
    axes.vlines(levels, -0.18, 0.18, color="0.35", lw=1.5)
    for place, code in zip(levels, range(-(2 ** (bits - 1)), 2 ** (bits - 1)), strict=True):
        axes.text(place, -0.3, str(code), ha="center", va="top")
    for k, (before, after, code) in enumerate(zip(W, folded, codes, strict=True)):
        look = {"color": fill(k)["color"], "marker": "os^D"[k % 4]}
        axes.plot([before, after, code * step], [2, 1, 0], ms=7, lw=1.5, **look)
    axes.set_yticks([2, 1, 0], ["weight W", "divided W'", "level"])
    axes.set_ylim(-0.85, 2.4)
    axes.grid(visible=False)
    axes.set_xlabel("value")
    listed = " ".join(str(code) for code in codes)
    axes.set_title(f"Codes {listed}")
    return Picture(figure, f"Step {short(step)}, codes {listed}.")


def span(*values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of everything drawn, with a margin."""
    everything = np.concatenate(values)
    low, high = float(everything.min()), float(everything.max())
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def sigmoid(value: Any) -> Any:
    """Return 1 / (1 + e^-value)."""
    return 1 / (1 + np.exp(-value))


@styled
def range_factors(reach: float = 6.0) -> Picture:
    """Draw the factor on the range over its parameter: AdaScale's exp, OmniQuant's sigmoid."""
    figure, (axes,) = canvas(height=3.2)
    parameter = np.linspace(-reach, reach, 241)
    curves = {
        "AdaScale: exp, starts at 0": (np.exp(parameter), 0.0, 1.0),
        "OmniQuant: sigmoid, starts at 4": (
            1 / (1 + np.exp(-parameter)),
            4.0,
            1 / (1 + np.exp(-4)),
        ),
    }
    for index, (name, (factor, start, value)) in enumerate(curves.items()):
        look = {"color": fill(index)["color"], "ls": ("-", "--")[index]}
        axes.plot(parameter, factor, label=name, **look)
        axes.plot([start], [value], marker="os"[index], ms=8, color=look["color"], zorder=3)
    axes.axhline(1, color="0.5", lw=1)
    axes.text(-reach, 1.04, "factor 1: the whole range", va="bottom")
    axes.set_ylim(0, 2.5)
    axes.set_xlabel("parameter")
    axes.set_ylabel("factor on the range")
    axes.set_title("exp can widen a range, a sigmoid cannot")
    axes.legend(loc="upper left")
    sentence = "AdaScale's factor starts at 1 and may grow; OmniQuant's starts at 0.982 and"
    return Picture(figure, f"{sentence} stays below 1.")


@styled
def budgets(errors: Mapping[str, Mapping[int, float]], searched: Mapping[str, float]) -> Picture:
    """Draw the error of a folded block over the length of training, a panel a width.

    Parameters
    ----------
    errors : width ("4 bits") -> iterations -> test error; 0 iterations is plain rounding
    searched : width -> test error of the clip search
    """
    figure, panels = canvas(len(errors), height=3.2)
    told = []
    for axes, (width, curve) in zip(panels, errors.items(), strict=True):
        places = np.arange(len(curve))
        axes.plot(
            places, list(curve.values()), marker="o", color=fill(0)["color"], label="AdaScale"
        )
        axes.axhline(searched[width], color=fill(1)["color"], ls="--", label="clip search")
        axes.set_xticks(places, [str(steps) for steps in curve])
        axes.set_ylim(0, 1.12 * max(*curve.values(), searched[width]))
        axes.set_title(width)
        axes.set_xlabel("iterations")
        winners = [str(steps) for steps, error in curve.items() if error < searched[width]]
        told.append(f"{width}: {' and '.join(winners) or 'none'}")
    panels[0].set_ylabel("test error of the block")
    panels[0].legend(loc="lower left")
    return Picture(figure, f"Iterations that beat the clip search. {'; '.join(told)}.")


@styled
def loss_and_folded(losses: Any, folded: Mapping[int, float], *, window: int = 16) -> Picture:
    """Draw training losses beside what the folded block would be worth at some steps.

    Parameters
    ----------
    losses : (steps,)
    folded : steps done -> error of the folded block, in the losses' unit
    window : steps in one pass over the data
    """
    values = numbers(losses)
    figure, (axes,) = canvas(height=3.4)
    axes.plot(np.arange(1, values.size + 1), values, color="0.75", lw=1, label="loss of each step")
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    look = {"color": fill(0)["color"]}
    axes.plot(np.arange(window, values.size + 1), mean, label=f"mean of {window} steps", **look)
    look = {"color": fill(1)["color"], "marker": "s", "ls": "--"}
    axes.plot(list(folded), list(folded.values()), label="folded block, unseen inputs", **look)
    axes.set_ylim(0, float(values.max()) * 1.05)
    axes.set_xlabel("steps")
    axes.set_ylabel("squared error")
    axes.set_title("A loss says little of what is kept")
    axes.legend(loc="upper right")
    first, last = folded[min(folded)], folded[max(folded)]
    # In words: the digits of a long training depend on the processor.
    shares = {"a tenth": 0.1, "a quarter": 0.25, "a half": 0.5, "its start": 1.0}
    below = [name for name, share in shares.items() if last < 0.95 * share * first]
    end = f"below {below[0]}" if below else "not below its start"
    return Picture(figure, f"The folded block's error begins at {short(first)} and ends {end}.")
