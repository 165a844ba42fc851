"""Rounding map (module 14): weights rounded away from their nearest level, and what it saved."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.plot import Picture
from quantlab.plot_rounding import rounding_panels
from quantlab.plot_style import short
from quantlab.tensor import QuantizedTensor, output_error
from quantlab.widgets.base import Widget
from quantlab.widgets.column_sweep import plain_lists


class RoundingMap(Widget):
    """A slider over the weights that a method rounded the other way, best saving first.

    Parameters
    ----------
    weight : (out, in) float tensor
        Small, such as 8 by 32.
    kept : QuantizedTensor
        What the method made of it. Nearest rounding is taken on the same grid.
    moment : (in, in) float tensor
        E[x x^T] of the inputs.
    step : weights turned at the start; by default all
    """

    script = "rounding_map"

    def __init__(
        self, weight: Tensor, kept: QuantizedTensor, moment: Tensor, *, step: int | None = None
    ) -> None:
        W, M = weight.detach().double(), moment.detach().double()
        scheme, scale, zero = kept.scheme, kept.scale.double(), kept.zero_point.double()
        nearest = scheme.encode(W, scale, zero)
        near = scheme.decode(nearest, scale, zero)
        end = kept.dequantize().double()
        order, errors = turn(W, near, end, M)
        steps = (scheme.group(W - near) / scale[..., None]).flatten(-2)
        turned = (end - near).sign()  # of the value: where the scale is negative, codes fall
        table = {
            "choices": {"step": list(range(len(order) + 1))},
            "distance": plain_lists(steps.abs().clamp(max=0.5)),
            "order": [[row, column, int(turned[row, column])] for row, column in order],
            "errors": plain_lists(torch.tensor(errors, dtype=torch.float64)),
            "sentences": [describe(k, W.numel(), errors) for k in range(len(errors))],
        }
        super().__init__(table, step=len(order) if step is None else step)

    @property
    def sentence(self) -> str:
        """How many weights are turned, and what has become of the output error."""
        return self.table["sentences"][self.position["step"]]

    def picture(self) -> Picture:
        """Return the map beside the output error after each turned weight."""
        step = self.position["step"]
        return rounding_panels(
            self.table["distance"], self.table["order"][:step], self.errors, step
        )

    @property
    def errors(self) -> list[float]:
        """What the output error is after 0, 1, 2 .. turned weights."""
        return self.table["errors"]


def turn(
    weight: Tensor, start: Tensor, end: Tensor, moment: Tensor
) -> tuple[list[tuple[int, int]], list[float]]:
    """Go from one rounding to another, one weight at a time, the largest saving first.

    Parameters
    ----------
    weight, start, end : (out, in) float64 tensors
    moment : (in, in) float64 tensor

    Returns
    -------
    list of (row, column), list of output errors
        The errors begin with that of ``start`` and end with that of ``end``.
    """
    D, change = start - weight, end - start
    errors, order = [output_error(weight, start, moment)], []
    left = change != 0
    while left.any():
        # tr(D M D^T) with one entry changed by c: 2 c (D M) + c^2 M_jj
        rise = 2 * change * (D @ moment) + change.square() * moment.diagonal()
        place = int(rise.masked_fill(~left, torch.inf).argmin())
        row, column = divmod(place, weight.shape[1])
        errors.append(errors[-1] + rise[row, column].item())
        D[row, column] += change[row, column]
        left[row, column] = False
        order.append((row, column))
    return order, errors


def describe(step: int, weights: int, errors: list[float]) -> str:
    """Say how many weights are turned and what share of the error is left."""
    if step == 0:
        return f"All {weights} weights at their nearest level: output error {short(errors[0])}."
    share = errors[step] / errors[0] if errors[0] > 0 else 1.0
    return (
        f"{step} of {weights} weights rounded away from their nearest level: output error "
        f"{short(errors[step])}, {short(100 * share)} % of nearest rounding's {short(errors[0])}."
    )
