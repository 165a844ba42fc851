"""Threshold slider (module 08): columns kept in float, what is lost, and what they cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quantlab.methods.llm_int8 import int8_rows, llm_int8
from quantlab.plot import Picture, threshold_panels
from quantlab.plot_style import short
from quantlab.widgets.base import Widget
from quantlab.widgets.ratio_slider import drawn_columns

STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # in each factor of ten


class ThresholdSlider(Widget):
    """A slider over the threshold of LLM.int8() for one weight and the inputs it meets.

    Parameters
    ----------
    x : (tokens, in) float tensor
    weight : (out, in) float tensor
    threshold : at the start; one of the table's

    Notes
    -----
    The error is that of the product, ``|y - x W^T| / |x W^T|``. Bytes are the paper's: int8 weights
    for ordinary columns, float16 for outlier columns, a float32 scale a row.
    """

    script = "threshold_slider"

    def __init__(self, x: Tensor, weight: Tensor, *, threshold: float = 6.0) -> None:
        x, W = x.detach().float(), weight.detach().float()
        sizes, rows = x.abs().amax(0), int8_rows(W)
        exact = x.double() @ W.double().T
        thresholds = candidates(sizes)
        errors, kept, nbytes = [], [], []
        for candidate in thresholds:
            y = llm_int8(x, rows, threshold=candidate).double()
            errors.append(100 * ((y - exact).norm() / exact.norm()).item())
            kept.append(int(int8_rows(x, threshold=candidate).outliers.sum()))
            nbytes.append(W.numel() + W.shape[0] * (kept[-1] + 4))
        order = drawn_columns(sizes.argsort(descending=True, stable=True))
        table: dict[str, Any] = {
            "choices": {"threshold": thresholds},
            "columns": x.shape[1],
            "sizes": [float(f"{s:.4g}") for s in sizes[order].tolist()],
            "errors": [float(f"{e:.3g}") for e in errors],
            "kept": kept,
            "bytes": nbytes,
            "half": 2 * W.numel(),
        }
        table["sentences"] = [describe(table, place) for place in range(len(thresholds))]
        super().__init__(table, threshold=threshold)

    @property
    def sentence(self) -> str:
        """What the present threshold keeps, loses and costs."""
        return self.table["sentences"][self.place]

    @property
    def place(self) -> int:
        """Position of the present threshold in the table."""
        return self.table["choices"]["threshold"].index(self.position["threshold"])

    def picture(self) -> Picture:
        """Return the channels beside the error at each threshold."""
        table = self.table
        thresholds = table["choices"]["threshold"]
        return threshold_panels(
            table["sizes"], thresholds, table["errors"], table["kept"], self.place
        )


def candidates(sizes: Tensor) -> list[float]:
    """Return round numbers from a tenth of the median size to beyond the largest; 6 always.

    Examples
    --------
    >>> import torch
    >>> candidates(torch.tensor([7.0, 8.0, 9.0]))
    [0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
    """
    low, high = sizes.median().item() / 10, sizes.max().item()
    found = [float(f"{step * 10.0**power:.3g}") for power in range(-6, 6) for step in STEPS]
    above = [value for value in found if value > max(high, 6.0)][:1]
    return [value for value in found if min(low, 6.0) <= value <= max(high, 6.0)] + above


def describe(table: dict[str, Any], place: int) -> str:
    """Say what one threshold does."""
    share = 100 * table["bytes"][place] / table["half"]
    return (
        f"Threshold {table['choices']['threshold'][place]:g}: {table['kept'][place]} of "
        f"{table['columns']} input channels are multiplied in float; the output's error is "
        f"{short(table['errors'][place])} %; the weight takes {table['bytes'][place]:,} bytes, "
        f"{share:.1f} % of float16."
    )
