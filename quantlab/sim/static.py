"""Simulate activations on fixed grids: one range per tensor, found beforehand on calibration text.

The cheapest integer inference: nothing is measured while the model runs. Its weakness is that one
loud channel or token sets the step for all. ``DynamicSim`` is the same with a grid for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.models.families import UnsupportedModelError
from quantlab.scheme import Scheme
from quantlab.sim.dynamic import block_layers
from quantlab.sim.layer import Quantizer
from quantlab.tensor import CalibrationError
from quantlab.walk import BATCH, check_data


class StaticSim(nn.Module):
    """A model whose blocks' linears see inputs rounded on one fixed grid each.

    The model itself is used, not copied, and is as before when a call is over. Its weights may be
    float or quantized: this adds the A8 of a static W8A8.

    Parameters
    ----------
    model : nn.Module
    data : (samples, length) LongTensor
        Calibration text for the ranges.
    activations : Scheme
        Of 2 to 16 bits and no groups; the head stays in float.

    Raises
    ------
    ValueError
        If the scheme has groups: they are not per tensor. If the text is empty.
    UnsupportedModelError
        If the model's blocks are unknown.
    CalibrationError
        If a linear sees nothing but zeros, NaN or infinity, or is never reached.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> sim = StaticSim(model, ql.calibration_set(tokenizer, samples=4), activations=Scheme(16))
    >>> tokens = ql.test_set(tokenizer, samples=1)
    >>> bool((sim(tokens) - model(tokens)).abs().max() < 0.1)
    True
    """

    def __init__(self, model: nn.Module, data: Tensor, *, activations: Scheme) -> None:
        super().__init__()
        if activations.group_size is not None:
            raise ValueError(
                f"{activations} has groups; one grid a tensor takes group_size=None "
                "(DynamicSim rounds groups)"
            )
        self.model, self.activations = model, activations
        self.layers = (block_layers(model),)  # in a tuple: these are no further children
        if not self.layers[0]:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no linear layer inside a ModuleList of blocks"
            )
        self.quantizers = nn.ModuleList(Quantizer(activations) for _ in self.layers[0])
        self.calibrate(data)

    @torch.no_grad()
    def calibrate(self, data: Tensor) -> None:
        """Find each layer's range on calibration text, in place of an earlier one."""
        check_data(self.model, data)
        quantizers: Any = list(self.quantizers)
        for quantizer in quantizers:
            quantizer.observe()
        for batch in data.split(BATCH):
            self(batch)
        for place, quantizer in enumerate(quantizers):
            if not quantizer.low < quantizer.high < float("inf"):  # also NaN
                raise CalibrationError(
                    f"linear {place} of the blocks saw the range {quantizer.low} .. "
                    f"{quantizer.high}; check the model in float and the calibration text"
                )
            quantizer.settle()

    def forward(self, tokens: Tensor) -> Any:
        """Map tokens (batch, length) to what the model returns."""
        handles = [
            layer.register_forward_pre_hook(entering(quantizer))
            for layer, quantizer in zip(self.layers[0], self.quantizers, strict=True)
        ]
        try:
            return self.model(tokens)
        finally:
            for handle in handles:
                handle.remove()


def entering(quantizer: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return the hook that sends a layer's input through a quantizer."""
    return lambda _, args: (quantizer(args[0]), *args[1:])
