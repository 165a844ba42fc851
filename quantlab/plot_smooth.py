"""The figure of SmoothQuant: ranges of inputs and weights, and the error at each strength.

Numbers in, a Picture out: nothing here scales or rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.plot_style import PALETTE, Picture, canvas, numbers, short, styled

__all__ = ["migration_panels"]


@styled
def migration_panels(
    inputs: Any,
    weights: Any,
    errors: Mapping[float, float],
    *,
    alpha: float,
    before: float,
    form: str = "W8A8",
) -> Picture:
    """Draw the ranges of each channel beside the error at each alpha: the slider, still.

    Parameters
    ----------
    inputs, weights : (channels,) at this alpha, loudest input first
        max |x_j| / s_j, and max |w_j| s_j.
    errors : alpha -> percent of the output
    alpha : the one in force
    before : the error without any scales, in percent
    form : bits of weights and activations, for the title
    """
    loud, large = numbers(inputs), numbers(weights)
    figure, (left, right) = canvas(2)
    columns = np.arange(loud.size)
    left.plot(columns, loud, "o", ms=4, color=PALETTE["orange"], label="max |x| / s")
    left.plot(columns, large, "^", ms=4, color=PALETTE["blue"], label="max |w| · s")
    left.set_yscale("log")
    left.set_xlabel("channel, loudest input first")
    left.set_ylabel("range")
    left.set_title(f"Alpha {short(alpha)}: inputs, weights")
    drawn = np.concatenate([loud, large])
    left.set_ylim(bottom=drawn[drawn > 0].min(initial=1.0) / 5)
    left.legend(loc="lower center", ncols=2)  # in the room made below the points
    tried, percent = numbers(list(errors)), numbers(list(errors.values()))
    best, at = int(percent.argmin()), int(np.abs(tried - alpha).argmin())
    right.plot(tried, percent, "o-", ms=4, color=PALETTE["ink"])
    right.axhline(before, color=PALETTE["quiet"], lw=1.5, ls=":", label="no scales")
    right.plot(tried[best], percent[best], "v", ms=10, color=PALETTE["vermillion"],
               label=f"least, at {short(tried[best])}")  # fmt: skip
    right.axvline(tried[at], color=PALETTE["vermillion"], lw=1.5, ls="--")
    right.set_ylim(0, 1.35 * max(before, percent.max()))
    right.set_xlabel("alpha")
    right.set_ylabel("output error, %")
    right.set_title(f"What {form} costs")
    right.legend(loc="upper center", ncols=2)
    return Picture(
        figure,
        f"At alpha {short(alpha)} inputs span {short(loud.min())} to {short(loud.max())}, weights "
        f"{short(large.min())} to {short(large.max())}; output error {short(percent[at])} %, "
        f"{short(before)} % without scales; least {short(percent[best])} % at alpha "
        f"{short(tried[best])}.",
    )
