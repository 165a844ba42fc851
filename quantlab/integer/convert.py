"""Turn a calibrated or trained twin into a model that computes on integers."""

from __future__ import annotations

import copy
from fractions import Fraction

import torch
from torch import Tensor, nn

from quantlab.fake_quant import Quantizer
from quantlab.integer.codes import Grid
from quantlab.integer.fake_layers import (
    RELU6,
    Carried,
    FakeAdd,
    FakeLayer,
    FakePool,
    FakeStub,
    Rounded,
    is_rounding,
)
from quantlab.integer.layers import (
    INT32,
    IntegerAdd,
    IntegerConv2d,
    IntegerInput,
    IntegerLinear,
    IntegerOutput,
    IntegerPool,
    IntegerReLU,
)
from quantlab.integer.stubs import DequantStub
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, QuantizedTensor


@torch.no_grad()
def convert(prepared: nn.Module) -> nn.Module:
    """Return the integer model of a fake-quantized one.

    Between ``QuantStub`` and ``DequantStub`` all numbers are integers: uint8 activations, packed
    weights, int32 sums and biases, and one whole-number division a value. Its outputs equal those
    of ``prepared.double()`` in every bit: scales have eleven significant bits, so that float64
    holds each product and sum exactly, and only the division by the output's scale is rounded.
    (``prepared`` in float32 rounds its sums, and now and then crosses the middle of two codes.)

    Parameters
    ----------
    prepared : nn.Module
        From ``prepare``, after ``calibrate``. Not changed.

    Raises
    ------
    CalibrationError
        If ranges are unknown.
    ValueError
        If a layer reads a tensor that no quantizer rounded: a stub is missing, or ``forward``
        calls functions where modules belong.
    """
    converted: dict[str, nn.Module] = {}
    for path, module in prepared.named_modules():
        if isinstance(module, Rounded | Carried | DequantStub):
            converted[path] = integer_module(module, path)
    if not converted:
        raise ValueError(f"{type(prepared).__name__} has no quantized module; prepare it first")
    if list(converted) == [""]:
        return converted[""]
    integers = copy.deepcopy(prepared).eval()
    for path, module in converted.items():
        parent, _, name = path.rpartition(".")
        setattr(integers.get_submodule(parent), name, module)
    return integers


def integer_module(module: nn.Module, path: str) -> nn.Module:
    """Return what stands for a module of the twin."""
    if isinstance(module, DequantStub):
        return IntegerOutput()
    if isinstance(module, Carried):
        if isinstance(module.module, nn.ReLU):
            return IntegerReLU()
        return module.module if isinstance(module.module, nn.Flatten) else nn.Identity()
    assert isinstance(module, Rounded)  # for the type checker
    grid = grid_of(module.quantizer, path)
    if isinstance(module, FakeStub):
        return IntegerInput(grid)
    sources = grids_before(module, path)
    if isinstance(module, FakeAdd):
        return IntegerAdd(sources, grid)
    if isinstance(module, FakePool):
        return IntegerPool(sources, grid)
    assert isinstance(module, FakeLayer)  # for the type checker
    return integer_layer(module, sources[0], grid)


def grids_before(module: Rounded, path: str) -> tuple[Grid, ...]:
    """Return the grids of a module's inputs."""
    if not module.sources:
        raise CalibrationError(f"{path} was never run; run calibrate(model, data) first")
    for source in module.sources:
        if source is None:
            raise ValueError(
                f"{path} reads a tensor that no quantizer rounded; put a ql.QuantStub() where "
                "integers begin, and modules (nn.ReLU, ql.Add) where forward calls functions"
            )
    return tuple(grid_of(source, path) for source in module.sources if source is not None)


def grid_of(quantizer: Quantizer, path: str) -> Grid:
    """Return an activation's grid as plain numbers."""
    if not is_rounding(quantizer):
        raise CalibrationError(f"{path} has no frozen range; run calibrate(model, data) first")
    scale, zero_point = quantizer.grid(torch.zeros(1, dtype=torch.float64))
    return Grid(scale.item(), int(zero_point.item()), quantizer.bits)


def integer_layer(fake: FakeLayer, source: Grid, grid: Grid) -> nn.Module:
    """Return the integer form of a Conv2d or Linear."""
    packed = stored_weight(fake).pack()
    bias = stored_bias(fake, source, packed.scale[:, 0])
    limits = code_limits(fake.activation, grid)
    if isinstance(fake.layer, nn.Conv2d):
        return IntegerConv2d(fake.layer, packed, bias, source, grid, limits)
    return IntegerLinear(packed, bias, source, grid, limits)


def stored_weight(fake: FakeLayer) -> QuantizedTensor:
    """Return the weight's codes and scales as ``prepared.double()`` rounds them."""
    weight, bits = fake.layer.weight.double(), fake.weight_quantizer.bits
    scale, zero_point = (part.double() for part in fake.weight_quantizer.grid(weight))
    codes = (weight / scale).round() + zero_point
    codes = codes.clamp(0, 2**bits - 1).to(torch.uint8).flatten(1)
    rows = [
        part.expand(len(weight), *part.shape[1:]).reshape(-1, 1) for part in (scale, zero_point)
    ]
    return QuantizedTensor(codes, rows[0].float(), rows[1].float(), Scheme(bits))


def stored_bias(fake: FakeLayer, source: Grid, scale: Tensor) -> Tensor:
    """Return the bias in units of input scale * weight scale, as int32.

    Raises
    ------
    ValueError
        If it does not fit: a row of weights near zero with a large bias.
    """
    if fake.layer.bias is None:
        return torch.zeros(len(scale), dtype=torch.int32)
    codes = (fake.layer.bias.double() / (source.scale * scale.double())).round()
    if codes.abs().max() > INT32:
        raise ValueError(
            f"a bias of {codes.abs().max().item():.3g} units does not fit int32; "
            "look for a channel whose weights are near zero"
        )
    return codes.to(torch.int32)


def code_limits(activation: nn.ReLU | nn.ReLU6 | None, grid: Grid) -> tuple[int, int]:
    """Return the least and greatest code that an output can take."""
    if activation is None:
        return 0, grid.top
    high = grid.top
    if isinstance(activation, nn.ReLU6):
        six = round(Fraction(RELU6) / Fraction(grid.scale)) + grid.zero_point
        high = min(high, six)
    return min(grid.zero_point, grid.top), high
