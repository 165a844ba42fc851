"""What every Method promises, tried on each class found in quantlab/methods."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import quantlab.methods
from quantlab.block import Block, Method
from quantlab.scheme import Scheme

SIZE = 32


def found() -> list[type]:
    """Return the classes with a ``quantize_block`` that the modules of quantlab.methods define."""
    classes = []
    for entry in pkgutil.iter_modules(quantlab.methods.__path__):
        module = importlib.import_module(f"quantlab.methods.{entry.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and hasattr(cls, "quantize_block"):
                classes.append(cls)
    return classes


METHODS = found()
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)


class Gated(nn.Module):
    """A block in small: two linears on the same input, a third on what they make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(SIZE, SIZE, bias=False)
        self.up = nn.Linear(SIZE, SIZE, bias=False)
        self.down = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, SIZE) to the same shape."""
        return x + self.down(torch.tanh(self.gate(x)) * self.up(x))


def block() -> Block:
    """Make a block with two micro-batches of inputs and its float targets."""
    torch.manual_seed(0)
    module = Gated()
    inputs = [((torch.randn(2, 24, SIZE),), {}) for _ in range(2)]
    with torch.no_grad():
        targets = [module(*args) for args, _ in inputs]
    linears = {name: getattr(module, name) for name in ("gate", "up", "down")}
    return Block(module, linears, inputs=inputs, float_inputs=inputs, targets=targets)


def quick(method: type) -> Method:
    """Return the method with its defaults, or, where it trains, with a dozen steps."""
    trains = any(entry.name == "iterations" for entry in dataclasses.fields(method))
    return method(iterations=12) if trains else method()


def symmetric_only(method: type) -> bool:
    """Tell whether a method refuses an asymmetric grid; it may, but in these words only."""
    try:
        quick(method).quantize_block(block(), Scheme(4, 16, symmetric=False))
    except ValueError as error:
        if f"{method.__name__} needs symmetric=True; the scheme is w4g16asym" not in str(error):
            raise
        return True
    return False


def test_the_methods_are_found():
    assert {"RTN", "GPTQ", "AdaScale"} <= {cls.__name__ for cls in METHODS}


@every_method
def test_is_a_documented_frozen_dataclass_with_defaults(method):
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    assert method.__doc__
    assert not method.__doc__.startswith(f"{method.__name__}(")  # the text dataclass makes up
    assert method.quantize_block.__doc__
    assert isinstance(method(), Method)
    assert method() == method()


@every_method
@pytest.mark.parametrize("scheme", ["w4g16sym", "w3g32asym", "w2"])
def test_returns_codes_and_grids_of_each_linear(method, scheme):
    scheme, made = Scheme.parse(scheme), block()
    if not scheme.symmetric and symmetric_only(method):
        return
    answers = quick(method).quantize_block(made, scheme)
    assert answers
    assert set(answers) <= set(made.linears)
    for name, answer in answers.items():
        assert answer.shape == made.linears[name].weight.shape
        assert answer.codes.dtype == torch.uint8
        assert answer.codes.max() < answer.scheme.levels
        assert torch.isfinite(answer.scale).all()
        assert (answer.scale != 0).all()
        assert answer.zero_point.equal(answer.zero_point.round())
        assert torch.isfinite(answer.dequantize()).all()
        assert not answer.scale.requires_grad


@every_method
def test_the_same_block_gives_the_same_answer(method):
    one, other = (quick(method).quantize_block(block(), Scheme(4, 16)) for _ in range(2))
    assert all(one[name].codes.equal(other[name].codes) for name in one)
    assert all(one[name].scale.equal(other[name].scale) for name in one)


@every_method
def test_leaves_no_hook_behind(method):
    made = block()
    quick(method).quantize_block(made, Scheme(4, 16))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.module.modules())


@every_method
def test_changes_neither_the_block_nor_its_data(method):
    made, untouched = block(), block()
    quick(method).quantize_block(made, Scheme(4, 16))
    for name, parameter in untouched.module.named_parameters():
        assert parameter.equal(made.module.get_parameter(name))
    for one, other in zip(made.inputs, untouched.inputs, strict=True):
        assert one[0][0].equal(other[0][0])
    assert all(map(torch.equal, made.targets, untouched.targets))
    assert all(parameter.grad is None for parameter in made.module.parameters())


@every_method
def test_refuses_a_group_that_does_not_divide_and_a_weight_with_nan(method):
    with pytest.raises(ValueError, match="in_features 32 is not a multiple of group_size 5"):
        quick(method).quantize_block(block(), Scheme(4, 5))
    made = block()
    with torch.no_grad():
        made.linears["gate"].weight[3, 7] = torch.nan
    with pytest.raises(ValueError, match="non-finite"):
        quick(method).quantize_block(made, Scheme(4, 16))
