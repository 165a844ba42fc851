"""Column sweep (module 04): GPTQ at work, each rounded column pushing the ones to its right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quantlab.factor import inverse_cholesky
from quantlab.methods.rtn import rtn
from quantlab.plot import Picture, sweep_panels
from quantlab.plot_style import short
from quantlab.scheme import Scheme
from quantlab.tensor import output_error
from quantlab.widgets.base import Widget


class ColumnSweep(Widget):
    """A slider over the columns of a small matrix, in the order in which GPTQ rounds them.

    Parameters
    ----------
    weight : (out, in) float tensor
        Small, such as 8 by 16.
    hessian : (in, in) float tensor
        H up to a factor; E[x x^T] gives output errors in their own unit.
    scheme : Scheme
    damp : as in ``gptq``
    step : columns rounded at the start; by default half
    """

    script = "column_sweep"

    def __init__(
        self,
        weight: Tensor,
        hessian: Tensor,
        scheme: Scheme,
        *,
        damp: float = 0.01,
        step: int | None = None,
    ) -> None:
        W, H = weight.detach().double(), hessian.detach().double()
        states = sweep(W, H, scheme, damp)
        nearest = rtn(W, scheme).dequantize()
        columns = W.shape[1]
        plain = [torch.cat([nearest[:, :k], W[:, k:]], 1) for k in range(columns + 1)]
        errors = {
            "RTN": [output_error(W, state, H) for state in plain],
            "GPTQ": [output_error(W, state, H) for state in states],
        }
        moved = states - W
        by_column = {"RTN": (nearest - W).square().mean(0), "GPTQ": moved[-1].square().mean(0)}
        table = {
            "choices": {"step": list(range(columns + 1))},
            "moved": [plain_lists(state) for state in moved],
            "hessian": plain_lists(H),
            "errors": {name: plain_lists(torch.tensor(e)) for name, e in errors.items()},
            "columns": {name: plain_lists(values) for name, values in by_column.items()},
            "sentences": [
                describe(k, moved[k], errors["RTN"][k], errors["GPTQ"][k])
                for k in range(columns + 1)
            ],
        }
        super().__init__(table, step=columns // 2 if step is None else step)

    @property
    def sentence(self) -> str:
        """What rounding has cost so far, and what it has moved."""
        return self.table["sentences"][self.position["step"]]

    def picture(self) -> Picture:
        """Return H beside the output error after each column, for RTN and GPTQ."""
        return sweep_panels(self.table["hessian"], self.table["errors"])


def sweep(weight: Tensor, hessian: Tensor, scheme: Scheme, damp: float = 0.01) -> Tensor:
    """Return the weight before GPTQ and after each rounded column, (in + 1, out, in) float64.

    The paper's loop, column by column; the last state equals ``gptq(...).dequantize()``.
    """
    W, columns = weight.double().clone(), weight.shape[1]
    U = inverse_cholesky(hessian.double(), damp)
    one = replace(scheme, group_size=1)
    size = scheme.group_size or columns
    scheme.group(W)  # refuses a group size that does not divide the columns
    states = [W.clone()]
    scale, zero_point = scheme.grid(W[:, :size])
    for j in range(columns):
        if j % size == 0:
            scale, zero_point = scheme.grid(W[:, j : j + size])
        grid = scale[:, None], zero_point[:, None]
        rounded = one.decode(one.encode(W[:, j : j + 1], *grid), *grid)
        error = (W[:, j : j + 1] - rounded) / U[j, j]
        W[:, j + 1 :] -= error * U[j, j + 1 :]  # Algorithm 1: the columns to come repair it
        W[:, j : j + 1] = rounded
        states.append(W.clone())
    return torch.stack(states)


def plain_lists(values: Tensor) -> list:
    """Return nested lists with 5 significant digits: a drawing needs no more."""
    if values.ndim > 1:
        return [plain_lists(row) for row in values]
    return [float(f"{value:.5g}") for value in values.tolist()]


def describe(step: int, moved: Tensor, rtn_error: float, gptq_error: float) -> str:
    """Say what the columns rounded so far cost, and how far the others have moved."""
    columns = moved.shape[1]
    if step == 0:
        return f"No column of {columns} is rounded yet; nothing has moved and the error is 0."
    ratio = f", {short(gptq_error / rtn_error)} times" if rtn_error > 0 else ""
    text = (
        f"{step} of {columns} columns rounded: output error {short(gptq_error)} with GPTQ, "
        f"{short(rtn_error)} with RTN{ratio}"
    )
    if step == columns:
        return f"{text}."
    farthest = moved[:, step:].abs().max().item()
    return f"{text}; the {columns - step} to come have moved by up to {short(farthest)}."
