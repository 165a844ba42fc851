"""The parts of a prepared model: each rounds what it hands on, in float, and can be trained.

A tensor that a quantizer rounded carries that quantizer along, so that the next layer knows the
scale of its input: it is needed for the bias, which integers add to sums of products.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.fake_quant import Quantizer, fake_quantize, stored_scale
from quantlab.observers import ObservedRange
from quantlab.scheme import Scheme
from quantlab.training import straight_through

RELU6 = 6.0


def tagged(x: Tensor, source: Quantizer | None) -> Tensor:
    """Return a view of ``x`` that names the quantizer it came through."""
    view = x.view_as(x)
    view.quantlab_source = source  # type: ignore[attr-defined]
    return view


def source_of(x: Tensor) -> Quantizer | None:
    """Return the quantizer that ``x`` came through, or None: a float tensor."""
    return getattr(x, "quantlab_source", None)


class WeightRange(Quantizer):
    """Round a weight on the symmetric min-max grids of its rows, found anew at each call."""

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a scale for each row, and the middle code."""
        scheme = Scheme(self.bits)
        rows = x.detach().double().flatten(1)
        scale, zero_point = scheme.grid(rows)
        shape = (-1, *[1] * (x.ndim - 1))
        return stored_scale(scale).view(shape), zero_point.view(shape)


class Rounded(nn.Module):
    """Anything whose output is rounded: its quantizer, and where its inputs came from."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.sources: tuple[Quantizer | None, ...] = ()

    def note(self, *inputs: Tensor) -> None:
        """Remember the inputs' quantizers, as tuples hide them from ``parameters()``."""
        self.sources = tuple(map(source_of, inputs))

    def hand_on(self, y: Tensor) -> Tensor:
        """Round, and tag."""
        return tagged(self.quantizer(y), self.quantizer)


class FakeStub(Rounded):
    """Rounds the model's input."""

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x``."""
        return self.hand_on(x)


class FakeAdd(Rounded):
    """Adds, and rounds the sum."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return left + right on the grid."""
        self.note(left, right)
        return self.hand_on(left + right)


class FakePool(Rounded):
    """Averages over all positions of a channel, and rounds the mean."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, channels, height, width) to (samples, channels, 1, 1)."""
        self.note(x)
        return self.hand_on(x.mean((-2, -1), keepdim=True))


class Carried(nn.Module):
    """A module that leaves a grid as it is: flatten, identity, dropout, ReLU."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if isinstance(module, nn.ReLU):
            module = nn.ReLU()  # never in place: a quantizer's output is kept for its gradient
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Call the module, and pass the tag on."""
        return tagged(self.module(x), source_of(x))


class FakeLayer(Rounded):
    """A Conv2d or Linear with rounded weights and bias, its activation, and a rounded output.

    Parameters
    ----------
    layer : nn.Conv2d or nn.Linear
        Its weight is what training moves.
    weight_quantizer, quantizer : Quantizer
        Of the weight, and of the output.
    activation : nn.ReLU, nn.ReLU6, or None
        Between the product and the rounding.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_quantizer: Quantizer,
        quantizer: Quantizer,
        activation: nn.ReLU | nn.ReLU6 | None = None,
    ) -> None:
        super().__init__(quantizer)
        self.layer, self.weight_quantizer = layer, weight_quantizer
        self.activation = activation
        self.weights_rounded = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer with numbers that lie on grids."""
        self.note(x)
        weight, bias = self.layer.weight, self.layer.bias
        if self.weights_rounded:
            scale, zero_point = (
                part.to(weight.dtype) for part in self.weight_quantizer.grid(weight)
            )
            bias = self.rounded_bias(scale)
            weight = fake_quantize(weight, scale, zero_point, self.weight_quantizer.bits)
        y = product(self.layer, x, weight, bias)
        return self.hand_on(y if self.activation is None else self.activation(y))

    def rounded_bias(self, scale: Tensor) -> Tensor | None:
        """Return the bias as a multiple of input scale times weight scale, straight through.

        The unit is a product of two scales, 22 bits, so that it is exact in float32 already.
        """
        bias, (source,) = self.layer.bias, self.sources
        if bias is None or source is None or not is_rounding(source):
            return bias
        unit = (source.grid(bias)[0].to(bias.dtype) * scale.flatten()).detach()
        return straight_through(bias / unit) * unit


def is_rounding(quantizer: Quantizer) -> bool:
    """Tell whether a quantizer's range is known and in use."""
    return not isinstance(quantizer, ObservedRange) or quantizer.rounding


def product(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a Conv2d or Linear with another weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight, bias)
