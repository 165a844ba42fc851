"""Figures of AWQ: what a ratio does to inputs and weights, and what keeping channels would save.

Numbers in, a Picture out: nothing here scales or rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.plot_errors import fill
from quantlab.plot_style import PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["ratio_panels", "saved_bars"]


@styled
def ratio_panels(inputs: Any, weights: Any, losses: Mapping[float, float], ratio: float) -> Picture:
    """Draw scaled inputs and weights beside the error at each ratio: the ratio slider, still.

    Parameters
    ----------
    inputs, weights : (columns,) sizes at this ratio, loudest input first
        mean |x_j| / s_j, and the largest |w_j| s_j.
    losses : ratio -> output error
        Drawn as a share of that at ratio 0.
    ratio : the one in force
    """
    loud, large = numbers(inputs), numbers(weights)
    figure, (left, right) = canvas(2)
    columns = np.arange(loud.size)
    left.plot(columns, loud, "o", ms=4, color=PALETTE["orange"], label="mean |x| / s")
    left.plot(columns, large, "^", ms=4, color=PALETTE["blue"], label="largest |w| · s")
    left.set_yscale("log")
    left.set_xlabel("column, loudest input first")
    left.set_ylabel("size")
    left.set_title(f"Ratio {short(ratio)}: inputs, weights")
    drawn = np.concatenate([loud, large])
    left.set_ylim(bottom=drawn[drawn > 0].min(initial=1.0) / 5)
    left.legend(loc="lower center", ncols=2)  # in the room made below the points
    tried, errors = numbers(list(losses)), numbers(list(losses.values()))
    shares = 100 * errors / errors[0] if errors[0] > 0 else np.full_like(errors, 100)
    best = int(shares.argmin())
    at = int(np.abs(tried - ratio).argmin())
    right.plot(tried, shares, "o-", ms=4, color=PALETTE["ink"])
    right.axhline(100, color=PALETTE["quiet"], lw=1, ls=":")
    right.plot(tried[best], shares[best], "v", ms=10, color=PALETTE["vermillion"],
               label=f"least, at {short(tried[best])}")  # fmt: skip
    right.axvline(tried[at], color=PALETTE["vermillion"], lw=1.5, ls="--")
    right.set_xlabel("ratio")
    right.set_ylabel("output error, % of ratio 0")
    right.set_title("What it costs")
    right.legend(loc="best")
    return Picture(
        figure,
        f"At ratio {short(ratio)} inputs span {short(loud.min())} to {short(loud.max())}, largest "
        f"weights {short(large.min())} to {short(large.max())}; output error {shares[at]:.0f} % of "
        f"ratio 0; least {shares[best]:.0f} % at ratio {short(tried[best])}.",
    )


@styled
def saved_bars(saved: Mapping[str, Mapping[str, float]]) -> Picture:
    """Draw how much of an error each choice of kept channels saves, in percent.

    Parameters
    ----------
    saved : model -> {choice -> percent of the rounding error}
        The same choices for each model.
    """
    choices = list(next(iter(saved.values())))
    figure, (axes,) = canvas(height=1.6 + 0.3 * len(choices) * len(saved))
    height = 0.8 / len(saved)
    for index, (model, shares) in enumerate(saved.items()):
        places = np.arange(len(choices)) + (index - (len(saved) - 1) / 2) * height
        values = [shares[choice] for choice in choices]
        axes.barh(places, values, height, label=model, **fill(index))
        for y, value in zip(places, values, strict=True):
            axes.annotate(f"{short(value, 2)} %", (max(value, 0), y), xytext=(5, 0), va="center",
                          textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(choices)), choices)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("share of the output error that goes away, %")
    axes.legend(loc="lower right")
    first, most = next(iter(saved)), max(saved, key=lambda model: max(saved[model].values()))
    best = max(saved[most], key=saved[most].__getitem__)
    axes.set_title(f"{best}: {short(saved[first][best], 2)} % and {short(saved[most][best], 2)} %")
    listed = "; ".join(
        f"{model}: "
        + ", ".join(f"{choice} {short(value, 2)} %" for choice, value in shares.items())
        for model, shares in saved.items()
    )
    return Picture(figure, f"Share of the output error that goes away. {listed}.")
