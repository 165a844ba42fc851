"""Migration slider (module 12): ranges of inputs and weights, and W8A8's error, by alpha."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.methods.rtn import rtn
from quantlab.methods.smoothquant import smooth_scales
from quantlab.plot import Picture, migration_panels
from quantlab.plot_style import short
from quantlab.scheme import Scheme
from quantlab.widgets.base import Widget
from quantlab.widgets.column_sweep import plain_lists
from quantlab.widgets.ratio_slider import drawn_columns

ALPHAS = [step / 20 for step in range(21)]


class MigrationSlider(Widget):
    """A slider over SmoothQuant's migration strength for one weight and the inputs it meets.

    Parameters
    ----------
    x : (tokens, in) float tensor
    weight : (out, in) float tensor
    alpha : at the start; by default the best
    weight_bits : of weights, one grid a row
    activation_bits : of inputs, one grid for all tokens
    """

    script = "migration_slider"

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        alpha: float | None = None,
        weight_bits: int = 8,
        activation_bits: int = 8,
    ) -> None:
        x, W = x.detach().double(), weight.detach().double()
        loudest, largest = x.abs().amax(0), W.abs().amax(0)
        scales = [smooth_scales(loudest, largest, a) for a in ALPHAS]
        self.form = f"W{weight_bits}A{activation_bits}"
        schemes = Scheme(activation_bits), Scheme(weight_bits)
        errors = [rounding_error(x / s, W * s, *schemes) for s in scales]
        before = rounding_error(x, W, *schemes)
        shown = drawn_columns(loudest.argsort(descending=True, stable=True))
        inputs = torch.stack([(loudest / s)[shown] for s in scales])
        weights = torch.stack([(largest * s)[shown] for s in scales])
        table = {
            "choices": {"alpha": ALPHAS},
            "columns": len(loudest),
            "before": float(f"{before:.3g}"),
            "inputs": plain_lists(inputs),
            "weights": plain_lists(weights),
            "errors": [float(f"{error:.3g}") for error in errors],
        }
        table["sentences"] = [
            describe(a, errors[k], before, inputs[k], weights[k]) for k, a in enumerate(ALPHAS)
        ]
        best = ALPHAS[errors.index(min(errors))]
        super().__init__(table, alpha=best if alpha is None else alpha)

    @property
    def sentence(self) -> str:
        """What the present strength does to inputs, weights and output."""
        return self.table["sentences"][self.place]

    @property
    def place(self) -> int:
        """Position of the present strength among those tried."""
        return self.table["choices"]["alpha"].index(self.position["alpha"])

    def picture(self) -> Picture:
        """Return ranges of inputs and weights beside the error at each strength."""
        table, place = self.table, self.place
        errors = dict(zip(ALPHAS, table["errors"], strict=True))
        return migration_panels(
            table["inputs"][place],
            table["weights"][place],
            errors,
            alpha=ALPHAS[place],
            before=table["before"],
            form=self.form,
        )


def rounding_error(x: Tensor, weight: Tensor, inputs: Scheme, rows: Scheme) -> float:
    """Return the output's error in percent: one grid for all of x, one for each row of W."""
    exact = x @ weight.T
    rounded = rtn(x.flatten()[None], inputs).dequantize().view_as(x)
    y = rounded @ rtn(weight, rows).dequantize().T
    return (100 * (y - exact).norm() / exact.norm()).item()


def describe(alpha: float, error: float, before: float, inputs: Tensor, weights: Tensor) -> str:
    """Say what one strength does."""
    spread = [short((t.max() / t.clamp(min=1e-300).min()).item()) for t in (inputs, weights)]
    return (
        f"Alpha {alpha:g}: the widest input channel has {spread[0]} times the range of the "
        f"narrowest, the widest column of weights {spread[1]} times; the output's error is "
        f"{short(error)} %, {short(before)} % without scales."
    )
