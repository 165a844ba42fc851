"""Search the grid of least squared error for each group of weights: narrower than its extremes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quantlab.scheme import Scheme

FACTORS = [1 - step / 50 for step in range(36)]  # 1.0 down to 0.3 of the range
CHUNK = 2**17  # weights searched at once: small enough to stay in a core's cache


def search(groups: Tensor, importance: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the grids (out, groups) of least weighted squared error among all candidates.

    Parameters
    ----------
    groups : (out, groups, group_size) tensor
    importance : (groups, group_size) tensor
        Weight of each column's squared error.
    """
    rows = max(1, CHUNK // groups[0].numel())
    found = [search_rows(part, importance, scheme) for part in groups.split(rows)]
    scales, zero_points = zip(*found, strict=True)
    return torch.cat(scales), torch.cat(zero_points)


def search_rows(groups: Tensor, importance: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Search the grids of a few rows, (rows, groups, group_size)."""
    best_error = torch.full_like(groups[..., 0], torch.inf)
    best_scale, best_zero = scheme.grid(groups)
    for scale, zero_point in candidates(groups, scheme):
        codes = torch.round(groups / scale[..., None]) + zero_point[..., None]
        rounded = (codes.clamp_(0, scheme.levels - 1) - zero_point[..., None]) * scale[..., None]
        error = ((rounded - groups).square_() * importance).sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero_point, best_zero)
    return best_scale, best_zero


def candidates(groups: Tensor, scheme: Scheme) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield grids for (..., group_size) groups, the unclipped one first."""
    for factor in FACTORS:
        yield scheme.grid(groups * factor)
    if scheme.symmetric:
        # The other sign: the extreme weight meets the top code, one step nearer to zero.
        scale, middle = scheme.grid(groups)
        flipped = -scale * scheme.middle / max(1, scheme.middle - 1)
        for factor in FACTORS:
            yield flipped * factor, middle
