"""The parts of a simulation: quantizers of activations, and layers with weights on a grid."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.export.encodings import Encoding
from quantlab.methods.adascale import start_range
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight


class Quantizer(nn.Module):
    """Quantizes and dequantizes one activation, per tensor, once its range is known."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme, self.encoding = scheme, None
        self.observing = False
        self.low = self.high = 0.0  # zero is inside every range

    encoding: Encoding | None

    def forward(self, x: Tensor) -> Tensor:
        """Observe, or round to the grid; before a range is known, pass."""
        if self.observing:
            low, high = (bound.item() for bound in x.detach().aminmax())
            self.low = low if math.isnan(low) else min(self.low, low)  # once NaN, always NaN
            self.high = max(self.high, high)
        if self.observing or self.encoding is None:
            return x
        return self.encoding.quantize(x)

    def observe(self) -> None:
        """Forget the range and watch what passes."""
        self.encoding, self.observing, self.low, self.high = None, True, 0.0, 0.0

    def settle(self) -> None:
        """Turn what was seen into a grid: min-max, with 0 on it."""
        self.observing = False
        seen = torch.tensor([[self.low, self.high]])
        scale, zero_point = plain_grid(seen, self.scheme)
        self.encoding = Encoding(
            "activation", self.scheme.bits, self.scheme.symmetric, scale[0, 0], zero_point[0, 0]
        )


def plain_grid(rows: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return min-max grids (out, groups) of a matrix (out, in), scales positive.

    Symmetric grids are those AdaScale starts from; ``Scheme.grid`` has scales of both signs.
    """
    groups = scheme.group(rows)
    if not scheme.symmetric:
        return scheme.grid(groups)
    low, high = start_range(groups.flatten(0, 1), scheme.bits)
    scale = ((high - low) / (scheme.levels - 1)).view(groups.shape[:2])
    return scale, torch.full_like(scale, scheme.middle)


class SimulatedLayer(nn.Module):
    """A Linear or Conv2d with weights on a grid, between two activation quantizers.

    Attributes
    ----------
    layer : nn.Linear or nn.Conv2d
        With quantized weights.
    weight_encoding : Encoding
    """

    def __init__(
        self, float_layer: nn.Module, layer: nn.Module, encoding: Encoding, scheme: Scheme | None
    ) -> None:
        super().__init__()
        self.kept = (float_layer,)  # in a tuple, so that it is no child: no part of the simulation
        self.layer, self.weight_encoding = layer, encoding
        self.input = Quantizer(scheme) if scheme else None
        self.output = Quantizer(scheme) if scheme else None

    @property
    def weight(self) -> Any:
        """The quantized weight, for modules that read it themselves."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The bias, for modules that read it themselves."""
        return self.layer.bias

    @property
    def float_layer(self) -> nn.Module:
        """The layer as it was in the model."""
        return self.kept[0]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer between its quantizers."""
        y = self.layer(self.input(x) if self.input else x)
        return self.output(y) if self.output else y


def plain(weight: Tensor, scheme: Scheme, name: str) -> QuantizedTensor:
    """Round a weight to nearest on its min-max grid; a kernel as a matrix (out, in * kh * kw)."""
    rows = weight.detach().flatten(1).float()
    if weight.ndim > 2 and scheme.group_size is not None:
        raise ValueError(f"{name}: a Conv2d has no groups inside a row; choose group_size=None")
    check_weight(rows, name)
    try:
        scale, zero_point = plain_grid(rows, scheme)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return QuantizedTensor(scheme.encode(rows, scale, zero_point), scale, zero_point, scheme)


def with_weight(layer: nn.Module, tensor: QuantizedTensor) -> nn.Module:
    """Return a copy of a layer whose weight is what the tensor stands for."""
    quantized = copy.deepcopy(layer)
    weight = quantized.weight
    assert isinstance(weight, Tensor)  # for the type checker
    exact = torch.promote_types(weight.dtype, torch.float32)
    tensor = replace(tensor, scale=tensor.scale.to(exact), zero_point=tensor.zero_point.to(exact))
    weight.data = tensor.dequantize().view(weight.shape).to(weight.dtype)
    return quantized


def replace_(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
