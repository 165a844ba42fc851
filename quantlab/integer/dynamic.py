"""Dynamic quantization: int8 linears whose activations are rounded on the fly, token by token."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn

from quantlab.methods.rtn import rtn
from quantlab.nn import QuantizedLinear
from quantlab.scheme import Scheme


@torch.no_grad()
def quantize_dynamic(model: nn.Module, *, skip: Collection[str] = ()) -> nn.Module:
    """Return a copy whose linear layers compute in int8; nothing else changes.

    Convolutions and embeddings stay in float: a convolution meets each activation in many windows,
    and needs a static grid (``prepare``, ``calibrate``, ``convert``).

    Parameters
    ----------
    model : nn.Module
    skip : names of linear layers to leave in float

    Raises
    ------
    ValueError
        If there is no linear layer to quantize, ``skip`` names none, or a weight is not finite.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> [type(part).__name__ for part in quantize_dynamic(net)]
    ['Conv2d', 'Flatten', 'QuantizedLinear']
    """
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    unknown = sorted(set(skip) - linears.keys())
    if unknown:
        raise ValueError(f"skip names {unknown}; no linear layer has that name")
    chosen = {name: linear for name, linear in linears.items() if name not in skip}
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to quantize; convolutions need prepare, "
            "calibrate and convert"
        )
    if "" in chosen:
        return dynamic(chosen[""])
    quantized = copy.deepcopy(model).eval()
    for name, linear in chosen.items():
        parent, _, attribute = name.rpartition(".")
        setattr(quantized.get_submodule(parent), attribute, dynamic(linear))
    return quantized


def dynamic(linear: nn.Linear) -> QuantizedLinear:
    """Return a linear's int8 form: symmetric, one scale a row, another a token."""
    packed = rtn(linear.weight, Scheme(8)).pack()
    return QuantizedLinear(packed, linear.bias, activation_bits=8)
