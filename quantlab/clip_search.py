"""Search how far to clip each group of weights, judged by the group's own part of the output."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

SHRINKS = [1 - step / 20 for step in range(10)]  # 1.0 down to 0.55 of the range


def clip_and_round(weight: Tensor, moment: Tensor | None, scheme: Scheme) -> QuantizedTensor:
    """Round (out, in) weights on each group's best clipped range; without a moment, on the full.

    A group's range is m = 1.0, 0.95 .. 0.55 of its largest |w|, both sides; the first m of least
    error in the group's own part of the output wins.
    """
    groups = scheme.group(weight)  # (out, groups, size)
    best = scheme.grid(groups)
    if moment is not None:
        blocks = moment_blocks(moment.to(weight), groups.shape[1])
        best_error = torch.full_like(best[0], torch.inf)
        for shrink in SHRINKS:
            scale, zero_point = clipped_grid(groups, shrink, scheme)
            error = group_errors(weight, groups, (scale, zero_point), blocks, scheme)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1])
    return QuantizedTensor(scheme.encode(weight, *best), *best, scheme)


def clipped_grid(groups: Tensor, shrink: float, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the grids (out, groups) of groups clipped to ``shrink`` of their largest size.

    A symmetric grid keeps the sign of its scale: that of the extreme weight before clipping.
    """
    if scheme.symmetric or shrink == 1:
        return scheme.grid(groups * shrink)
    low, high = groups.amin(-1), groups.amax(-1)
    limit = torch.maximum(-low, high) * shrink
    low, high = low.clamp(min=-limit), high.clamp(max=limit)
    scale, zero_point = scheme.grid(torch.stack([low, high], -1))
    both = low == -high  # -low / scale is then half a code from two zero points: noise decides
    return scale, torch.where(both, torch.full_like(zero_point, scheme.middle), zero_point)


def moment_blocks(moment: Tensor, groups: int) -> Tensor:
    """Return the diagonal blocks (groups, size, size) of a second moment (in, in)."""
    size = len(moment) // groups
    return torch.stack([moment[g : g + size, g : g + size] for g in range(0, len(moment), size)])


def group_errors(
    weight: Tensor, groups: Tensor, grid: tuple[Tensor, Tensor], blocks: Tensor, scheme: Scheme
) -> Tensor:
    """Return E |d_g x_g|^2 of every group's own part of the output, (out, groups)."""
    D = scheme.group(scheme.decode(scheme.encode(weight, *grid), *grid)) - groups
    return (torch.einsum("ogi,gij->ogj", D, blocks) * D).sum(-1)
