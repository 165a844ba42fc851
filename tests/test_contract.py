"""What every Method promises, tried on each class found in quantlab/methods.

Ties: where a weight lies within rounding noise of the middle between two levels, float32 and
float64 may round it to different sides. A method that repairs or learns carries such a difference
on to other weights, so that codes agree in nearly all places and errors to a small part.
"""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import quantlab.methods
from quantlab.block import Block, Method
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

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


METHODS = [cls for cls in found() if not getattr(cls, "own_grid", False)]
FORMATS = [cls for cls in found() if getattr(cls, "own_grid", False)]  # test_contract_formats.py
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)


class Gated(nn.Module):
    """A block in small: two linears on the same input, a third on what they make of it."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size, bias=False)
        self.up = nn.Linear(size, size, bias=False)
        self.down = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, size) to the same shape."""
        return x + self.down(torch.tanh(self.gate(x)) * self.up(x))


def block(size: int = SIZE) -> Block:
    """Make a block with two micro-batches of inputs and its float targets."""
    torch.manual_seed(0)
    module = Gated(size)
    inputs = [((torch.randn(2, 24, size),), {}) for _ in range(2)]
    with torch.no_grad():
        targets = [module(*args) for args, _ in inputs]
    linears = {name: getattr(module, name) for name in ("gate", "up", "down")}
    return Block(module, linears, inputs=inputs, float_inputs=inputs, targets=targets)


def quick(method: type, steps: int = 12) -> Method:
    """Return the method with its defaults, or, where it trains, with a dozen steps."""
    return method(iterations=steps) if has(method, "iterations") else method()


def has(method: type, name: str) -> bool:
    """Tell whether a method has this hyperparameter."""
    return any(entry.name == name for entry in dataclasses.fields(method))


def correlated(tokens: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw inputs (tokens, in) that move together; their values are the same in every dtype."""
    mix = torch.randn(columns, columns) + 2 * torch.randn(columns, 1)
    return (torch.randn(tokens, columns) @ mix.T).to(dtype)


def one_linear(W: torch.Tensor, x: torch.Tensor) -> Block:
    """Make a block of one linear, its inputs (tokens, in) in four batches."""
    module = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False).to(W.dtype))
    with torch.no_grad():
        module[0].weight.copy_(W)
        inputs = [((part[None],), {}) for part in x.chunk(4)]
        targets = [module(*args) for args, _ in inputs]
    return Block(module, {"0": module[0]}, inputs=inputs, float_inputs=inputs, targets=targets)


def mean_error(answer: QuantizedTensor, W: torch.Tensor, x: torch.Tensor) -> float:
    """Return the mean squared output error over rows and tokens."""
    D = answer.dequantize().double() - W.double()
    return (x.double() @ D.T).square().mean().item()


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
    names = {"RTN", "GPTQ", "AWQ", "AdaRound", "FlexRound", "OmniQuant", "AdaScale", "HQQ"}
    assert names <= {cls.__name__ for cls in METHODS}


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
        whole = isinstance(answer, QuantizedTensor)
        assert not whole or answer.zero_point.equal(answer.zero_point.round())
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
    for one, other in zip(made.float_inputs, untouched.float_inputs, strict=True):
        assert one[0][0].equal(other[0][0])
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


# ------------------------------------------------------------------ how good, and where


@every_method
@pytest.mark.parametrize("scheme", ["w4g16sym", "w3asym", "w3", "w2g8sym"])
def test_the_mean_error_of_256_rows_is_not_worse_than_plain_rounding_s(method, scheme):
    scheme = Scheme.parse(scheme)
    if not scheme.symmetric and symmetric_only(method):
        return
    W, x = torch.randn(256, SIZE, dtype=torch.float64), correlated(320, SIZE)
    if method.__name__ == "HQQ":  # it never sees the inputs: white ones are all it can promise
        x = torch.randn(320, SIZE, dtype=torch.float64)
    steps = 600 if method.__name__ == "AdaScale" and scheme.bits == 2 else 100  # a clipped start
    answer = quick(method, steps).quantize_block(one_linear(W, x), scheme)["0"]
    plain = mean_error(rtn(W, scheme), W, x)
    assert mean_error(answer, W, x) <= plain * (1 + 1e-9)  # single rows may well be worse


@every_method
def test_float32_and_float64_agree_except_on_ties(method):
    W, x = torch.randn(32, SIZE), correlated(200, SIZE, torch.float32)
    scheme = Scheme(4, 16)
    single = quick(method).quantize_block(one_linear(W, x), scheme)["0"]
    double = quick(method).quantize_block(one_linear(W.double(), x.double()), scheme)["0"]
    assert double.scale.dtype == torch.float64
    assert (single.codes != double.codes).double().mean() <= 0.01
    errors = mean_error(single, W, x), mean_error(double, W, x)
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@every_method
@pytest.mark.parametrize("shape", [(7, 15), (3, 50), (1, SIZE), (5, 1), (1, 1)])
@pytest.mark.parametrize("scheme", ["w3", "w4asym"])
def test_any_shape_can_be_quantized_with_one_grid_a_row(method, shape, scheme):
    scheme = Scheme.parse(scheme)
    if not scheme.symmetric and symmetric_only(method):
        return
    W, x = torch.randn(shape), correlated(64, shape[1], torch.float32)
    answer = quick(method).quantize_block(one_linear(W, x), scheme)["0"]
    assert answer.shape == shape
    assert answer.scale.shape == (shape[0], 1)
    assert torch.isfinite(answer.dequantize()).all()
    assert answer.pack().unpack().codes.equal(answer.codes)


@every_method
def test_inputs_that_are_always_zero_do_no_harm(method):
    W, x = torch.randn(24, SIZE), correlated(200, SIZE, torch.float32)
    dead = [0, 5, 31]
    x[:, dead] = 0
    answer = quick(method).quantize_block(one_linear(W, x), Scheme(4, 16))["0"]
    Q = answer.dequantize()
    step = answer.scale.abs().repeat_interleave(16, 1)
    assert torch.isfinite(Q).all()
    # They are rounded as well as they can be, not set to some other value.
    largest = W.abs().unflatten(1, (2, 16)).amax(-1).repeat_interleave(16, 1)
    inside = W.abs() <= largest - 2 * step
    assert ((Q - W).abs()[:, dead] <= 1.5 * step[:, dead])[inside[:, dead]].all()


@every_method
def test_rows_of_one_sign_and_rows_of_zeros_are_met(method):
    # A row whose extreme is positive has a negative scale on the signed symmetric grid.
    W = torch.randn(16, SIZE, dtype=torch.float64)
    W[0], W[1], W[2] = W[0].abs(), -W[1].abs(), 0
    x = correlated(200, SIZE)
    answer = quick(method, 100).quantize_block(one_linear(W, x), Scheme(3, 16))["0"]
    Q = answer.dequantize()
    assert torch.isfinite(Q).all()
    assert (answer.scale != 0).all()
    assert (Q[2] == 0).all()
    assert (Q[0] >= -answer.scale[0].abs().max()).all()
    assert mean_error(answer, W, x) <= mean_error(rtn(W, Scheme(3, 16)), W, x)


@every_method
def test_codes_stand_in_the_order_of_the_weight_s_columns(method):
    # Whatever order a method works in: nothing but codes and grid is needed to decode.
    W = 2.0 ** torch.arange(SIZE).remainder(16).double() * torch.randn(64, SIZE).double().sign()
    x = torch.randn(200, SIZE, dtype=torch.float64) * torch.linspace(0.1, 5, SIZE)
    options = [{}, {"act_order": True}] if has(method, "act_order") else [{}]
    for option in options:
        chosen = dataclasses.replace(quick(method), **option)
        answer = chosen.quantize_block(one_linear(W, x), Scheme(8, 1))["0"]
        assert torch.allclose(answer.dequantize(), W, rtol=0.03)  # clipped a little by one


@every_method
def test_one_input_for_several_batches_is_enough(method):
    W = torch.randn(8, SIZE)
    made = one_linear(W, correlated(1, SIZE, torch.float32))
    answer = quick(method).quantize_block(made, Scheme(4, 16))["0"]
    assert torch.isfinite(answer.dequantize()).all()
