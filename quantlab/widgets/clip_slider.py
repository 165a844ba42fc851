"""Clip slider (module 03): cut more, round finer; the sum of both errors has a least place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlab.plot import Picture, clip_panels
from quantlab.plot_style import short
from quantlab.scheme import Scheme
from quantlab.tensor import sqnr
from quantlab.widgets.base import Widget

PERCENT = range(1, 101)  # of the largest weight: whole numbers print short
MOST_WEIGHTS = 2**17  # 400 positions over more would take longer than a reader waits


class ClipSlider(Widget):
    """A slider over the clip of a grid of 2**bits - 1 levels from -clip to clip.

    Parameters
    ----------
    weight : tensor of at most 131,072 numbers
    bits : widths to choose from, 2..8
    start : (bits, clip in percent of the largest weight)

    Raises
    ------
    ValueError
        If there are too many weights, or none that differs from 0.
    """

    script = "clip_slider"

    def __init__(
        self,
        weight: Tensor,
        bits: Sequence[int] = (2, 3, 4, 8),
        *,
        start: tuple[int, int] = (4, 100),
    ) -> None:
        values = weight.detach().double().flatten()
        if not 0 < values.numel() <= MOST_WEIGHTS or not values.abs().max() > 0:
            raise ValueError(
                f"weight holds {values.numel():,} numbers; pass 1 to {MOST_WEIGHTS:,}, not all 0 "
                "(a slice such as weight[:128])"
            )
        self.weight = values
        largest, spread = values.abs().max().item(), values.std(correction=0).item()
        curves = {str(width): curve(values, width, largest) for width in bits}
        counts, edges = np.histogram(values.numpy(), bins=80)
        table = {
            "choices": {"bits": list(bits), "clip": list(PERCENT)},
            "largest": largest,
            "spread": spread,
            "counts": counts.tolist(),
            "edges": [float(f"{edge:.6g}") for edge in edges],
            "curves": curves,
            "sentences": {
                width: [describe(int(width), row, largest, spread) for row in zip(*c, strict=True)]
                for width, c in curves.items()
            },
        }
        super().__init__(table, bits=start[0], clip=start[1])

    @property
    def sentence(self) -> str:
        """What the present clip costs."""
        return self.table["sentences"][str(self.position["bits"])][self.position["clip"] - 1]

    def picture(self) -> Picture:
        """Return weights and levels beside the error of clipping and rounding."""
        bits, percent = self.position["bits"], self.position["clip"]
        largest = self.table["largest"]
        clip = percent / 100 * largest
        middle = 2 ** (bits - 1) - 1
        levels = clip * np.arange(-middle, middle + 1) / middle
        _, clipping, rounding, _, _ = self.table["curves"][str(bits)]
        clips = np.array(PERCENT) / 100 * largest
        drawn = levels if bits <= 4 else levels[[0, -1]]  # 255 lines would hide the weights
        curves = (clips, clipping, rounding)
        return clip_panels(self.weight, drawn, curves, position=clip, name=f"{bits} bits")


def clip_errors(weight: Tensor, bits: int, clip: float) -> tuple[float, float, float]:
    """Return mean squared error of clipping, of rounding, and the SQNR of both in dB.

    The two add up exactly: a weight that is cut lands on the outermost level.

    Examples
    --------
    >>> clip_errors(torch.tensor([0.0, 1.0, 3.0, -2.0]), bits=2, clip=2.0)[:2]
    (0.25, 0.25)
    """
    scheme = Scheme(bits)
    scale = torch.tensor([clip / (scheme.middle - 1)], dtype=weight.dtype)
    zero_point = torch.full_like(scale, scheme.middle)
    cut = weight.clamp(-clip, clip)
    rounded = scheme.decode(scheme.encode(cut, scale, zero_point), scale, zero_point)
    clipping, rounding = (cut - weight).square().mean(), (rounded - cut).square().mean()
    return clipping.item(), rounding.item(), sqnr(weight, rounded)


def curve(weight: Tensor, bits: int, largest: float) -> list[list[float]]:
    """Return percent, clipping, rounding, SQNR and the share of cut weights, at every position."""
    columns: list[list[float]] = [[], [], [], [], []]
    for percent in PERCENT:
        clip = percent / 100 * largest
        cut = (weight.abs() > clip).double().mean().item()
        for column, value in zip(
            columns, (percent, *clip_errors(weight, bits, clip), cut), strict=True
        ):
            column.append(float(f"{value:.6g}"))
    return columns


def describe(bits: int, row: Sequence[Any], largest: float, spread: float) -> str:
    """Say what one position costs."""
    percent, clipping, rounding, decibels, cut = row
    clip = percent / 100 * largest
    return (
        f"{bits} bits, clip at {percent:.0f} % of the largest weight ({short(clip)}, "
        f"{clip / spread:.2f} standard deviations, {100 * cut:.2f} % of the weights cut): "
        f"mean squared error {short(clipping + rounding)} = {short(clipping)} from clipping + "
        f"{short(rounding)} from rounding; SQNR {decibels:.2f} dB."
    )
