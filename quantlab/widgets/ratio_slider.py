"""Ratio slider (module 05): quieter inputs, larger weights, and an output error with a least."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.methods.awq import input_scale, rounded
from quantlab.plot import Picture, ratio_panels
from quantlab.plot_style import short
from quantlab.scheme import Scheme
from quantlab.tensor import output_error
from quantlab.widgets.base import Widget
from quantlab.widgets.column_sweep import plain_lists

DRAWN = 96  # columns: more would overlap
LOUDEST = 16  # of them always the loudest


class RatioSlider(Widget):
    """A slider over the twenty ratios that AWQ tries on one weight.

    Parameters
    ----------
    weight : (out, in) float tensor
    moment : (in, in) tensor
        E[x x^T] of the inputs.
    sizes : (in,) tensor
        mean |x_j|.
    scheme : Scheme
    ratio : at the start; by default the best
    """

    script = "ratio_slider"

    def __init__(
        self,
        weight: Tensor,
        moment: Tensor,
        sizes: Tensor,
        scheme: Scheme,
        *,
        ratio: float | None = None,
    ) -> None:
        W, sizes = weight.detach().double(), sizes.detach().double()
        ratios = [step / 20 for step in range(20)]
        scales = [input_scale(sizes, r) for r in ratios]
        losses = [output_error(W, rounded(W, s, scheme), moment) for s in scales]
        steps = [column_steps(W * s, scheme) / s for s in scales]
        order = sizes.argsort(descending=True, stable=True)
        shown = drawn_columns(order)
        quieter = torch.stack([(sizes / s)[shown] for s in scales])
        larger = torch.stack([(W.abs().amax(0) * s)[shown] for s in scales])
        percent = [round(100 * loss / losses[0], 1) if losses[0] > 0 else 100.0 for loss in losses]
        table = {
            "choices": {"ratio": ratios},
            "columns": len(sizes),
            "inputs": plain_lists(quieter),
            "weights": plain_lists(larger),
            "losses": [float(f"{loss:.6g}") for loss in losses],
            "percent": percent,
            "sentences": [
                describe(r, percent[k], quieter[k], larger[k], (steps[k] / steps[0])[order])
                for k, r in enumerate(ratios)
            ],
        }
        best = ratios[losses.index(min(losses))]
        super().__init__(table, ratio=best if ratio is None else ratio)

    @property
    def sentence(self) -> str:
        """What the present ratio does to inputs, weights and output."""
        return self.table["sentences"][self.place]

    @property
    def place(self) -> int:
        """Position of the present ratio among the twenty."""
        return self.table["choices"]["ratio"].index(self.position["ratio"])

    def picture(self) -> Picture:
        """Return sizes of inputs and weights beside the error at each ratio."""
        ratios = self.table["choices"]["ratio"]
        return ratio_panels(
            self.table["inputs"][self.place],
            self.table["weights"][self.place],
            dict(zip(ratios, self.table["losses"], strict=True)),
            ratios[self.place],
        )


def drawn_columns(order: Tensor) -> Tensor:
    """Return the columns to draw, from all in order: the first and a sample of the rest."""
    if len(order) <= DRAWN:
        return order
    sample = torch.linspace(LOUDEST, len(order) - 1, DRAWN - LOUDEST).round().long()
    return torch.cat([order[:LOUDEST], order[sample]])


def column_steps(weight: Tensor, scheme: Scheme) -> Tensor:
    """Return the mean distance of neighboring levels that each column meets, (in,)."""
    groups = scheme.group(weight)
    return scheme.grid(groups)[0].abs().mean(0).repeat_interleave(groups.shape[-1])


def describe(ratio: float, percent: float, inputs: Tensor, weights: Tensor, steps: Tensor) -> str:
    """Say what one ratio does; ``steps`` are relative to ratio 0, the loudest column first."""
    spread = [short((t.max() / t.clamp(min=1e-300).min()).item()) for t in (inputs, weights)]
    return (
        f"Ratio {ratio:g}: the output error is {percent:g} % of rounding to nearest; the loudest "
        f"input is {spread[0]} times the quietest, the largest column of weights {spread[1]} times "
        f"the smallest; for the loudest column the grid is {short(steps[0].item(), 2)} times as "
        f"coarse as at ratio 0, for the median column {short(steps.median().item(), 3)} times."
    )
