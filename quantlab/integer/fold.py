"""Fold batch norms into the convolutions before them: one layer less, the same function.

y = gain * (W x + b - mean) / sqrt(variance + eps) + shift
  = (W * f) x + (b - mean) * f + shift        with f = gain / sqrt(variance + eps)
"""

from __future__ import annotations

import copy

import torch
from torch import nn

NORMS = nn.BatchNorm2d | nn.BatchNorm1d


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
    """Scale a layer's rows by its norm's factor and move the rest into its bias, in place.

    Computed in float64, as the norm runs in evaluation mode: with its running statistics.

    Raises
    ------
    ValueError
        If the norm keeps no running statistics, or its channels are not the layer's outputs.

    References
    ----------
    Jacob et al., arXiv:1712.05877v1, Eq. 14.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("the batch norm has no running statistics; train it with them")
    if len(mean) != len(conv.weight):
        raise ValueError(
            f"the batch norm has {len(mean)} channels, the layer before it {len(conv.weight)} "
            "outputs; fold it into the layer it follows"
        )
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias
    factor = gain.double() * torch.rsqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias
    folded = (bias.double() - mean.double()) * factor + shift.double()
    rows = factor.view(-1, *[1] * (conv.weight.ndim - 1))
    conv.weight.copy_(conv.weight.double() * rows)
    conv.bias = nn.Parameter(folded.to(conv.weight.dtype))


def folded(model: nn.Module) -> nn.Module:
    """Return a copy in which each batch norm right after a layer of an nn.Sequential is folded.

    The norm becomes ``nn.Identity``. A norm anywhere else stays.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    >>> [type(part).__name__ for part in folded(net)]
    ['Conv2d', 'Identity', 'ReLU']
    """
    model = copy.deepcopy(model)
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            for here in range(len(parent) - 1):
                layer, norm = parent[here], parent[here + 1]
                if isinstance(layer, nn.Conv2d | nn.Linear) and isinstance(norm, NORMS):
                    fold_batch_norm(layer, norm)
                    parent[here + 1] = nn.Identity()
    return model
