"""Module 09: what is swapped, where stubs go, one integer layer by hand, and a control."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.integer import Add, DequantStub, QuantStub, calibrate, convert, prepare
from quantlab.methods.qat import accuracy
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, Wrong, call, expect, show

# ---------------------------------------------------------------- a: what is swapped


class Special(nn.Linear):
    """A linear of a type of its own."""


def network() -> nn.Module:
    """Return a nested model with five linears, one of them special."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Special(4, 4))
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(4, 4), inner, nn.Linear(4, 2))


def swapped(model: nn.Module, kinds: Collection[type], skip: Collection[str]) -> list[str]:
    """Return the names of children whose exact type is asked for."""
    found = {name: type(module) for name, module in model.named_modules()}
    return sorted(n for n, kind in found.items() if n and kind in kinds and n not in skip)


def with_root(model: nn.Module, kinds: Collection[type], skip: Collection[str]) -> list[str]:
    """Typical error: the model itself is counted."""
    found = {name: type(module) for name, module in model.named_modules()}
    return sorted(n for n, kind in found.items() if kind in kinds and n not in skip)


def top_level(model: nn.Module, kinds: Collection[type], skip: Collection[str]) -> list[str]:
    """Typical error: only direct children."""
    found = {name: type(module) for name, module in model.named_children()}
    return sorted(n for n, kind in found.items() if kind in kinds and n not in skip)


def subclasses(model: nn.Module, kinds: Collection[type], skip: Collection[str]) -> list[str]:
    """Typical error: subclasses count as well."""
    found = dict(model.named_modules())
    return sorted(
        n for n, m in found.items() if n and isinstance(m, tuple(kinds)) and n not in skip
    )


def unskipped(model: nn.Module, kinds: Collection[type], skip: Collection[str]) -> list[str]:
    """Typical error: nothing is left out."""
    return swapped(model, kinds, ())


def check_swapped(answer: Any) -> None:
    """Compare the names on a nested model and on a bare layer."""
    named = {
        with_root: "the root is never swapped: its name is the empty string",
        top_level: "layers inside other modules are swapped too: use named_modules()",
        subclasses: "a subclass may compute something else: compare type(module) with the kinds",
        unskipped: "names in skip stay as they are",
    }
    cases: tuple[tuple[nn.Module, tuple[type, ...], tuple[str, ...]], ...] = (
        (network(), (nn.Linear,), ()),
        (network(), (nn.Linear, nn.Conv2d), ("3",)),
        (nn.Linear(4, 4), (nn.Linear,), ()),
    )
    for case in cases:
        mine = call(answer, *case)
        right = swapped(*case)
        if mine != right:
            for mistake, reason in named.items():
                if mine == mistake(*case):
                    raise Wrong(f"yours is {show(mine)}: {reason}")
        expect(mine, right, f"names in a {type(case[0]).__name__}")


# ---------------------------------------------------------------- b: stubs


class Quantizable(nn.Module):
    """A residual block that can be converted."""

    def __init__(self, a: nn.Linear, b: nn.Linear) -> None:
        super().__init__()
        self.quant, self.dequant, self.add = QuantStub(), DequantStub(), Add()
        self.body = nn.Sequential(a, nn.ReLU(), b)

    def forward(self, x: Tensor) -> Tensor:
        """Return b(relu(a(x))) + x."""
        x = self.quant(x)
        return self.dequant(self.add(self.body(x), x))


class NoStubs(Quantizable):
    """Typical error: integers begin nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum without stubs."""
        return self.add(self.body(x), x)


class PlusSign(Quantizable):
    """Typical error: a sum that prepare cannot see."""

    def forward(self, x: Tensor) -> Tensor:
        """Add with a sign."""
        x = self.quant(x)
        return self.dequant(self.body(x) + x)


class NoSum(Quantizable):
    """Typical error: the residual is forgotten."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the body."""
        return self.dequant(self.body(self.quant(x)))


class FloatSum(Quantizable):
    """Typical error: the sum is taken in float, after the stub."""

    def forward(self, x: Tensor) -> Tensor:
        """Add behind the stub."""
        return self.dequant(self.body(self.quant(x))) + x


class Functional(Quantizable):
    """Typical error: relu as a function."""

    def forward(self, x: Tensor) -> Tensor:
        """Call a function between two layers."""
        x = self.quant(x)
        y = self.body[2](torch.relu(self.body[0](x)))
        return self.dequant(self.add(y, x))


def check_quantizable(answer: Any) -> None:
    """Convert the module, and look for the sum among its integer layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a, b, data = nn.Linear(6, 6), nn.Linear(6, 6), torch.randn(64, 6)
    module = call(answer, a, b)
    if module is None or module is ...:
        raise NotAttempted
    if not isinstance(module, nn.Module):
        raise Wrong(f"return a module; yours is {show(module)}")
    with torch.no_grad():
        wanted = b(torch.relu(a(data))) + data
        expect(module(data).tolist(), wanted.tolist(), "the float output", rel=1e-5, abs_=1e-5)
        try:
            integers = convert(calibrate(prepare(module), data))
            output = integers(data)
        except (ValueError, TypeError) as error:
            raise Wrong(f"it cannot be converted: {error}") from None
    if not isinstance(output, Tensor):
        raise Wrong("the output is still integer codes: end with a ql.DequantStub()")
    if not any(type(part).__name__ == "IntegerAdd" for part in integers.modules()):
        raise Wrong("the sum is computed in float: put a ql.Add() between the stubs")
    if (output - wanted).abs().max() > 0.1:
        raise Wrong("the integers say something else than the float module")


# ---------------------------------------------------------------- c: one layer by hand


def input_grid(samples: Tensor) -> tuple[float, int]:
    """Return scale and zero point of min-max uint8 codes."""
    low, high = min(samples.min().item(), 0.0), max(samples.max().item(), 0.0)
    scale = (high - low) / 255
    return scale, round(-low / scale)


def static_linear(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Round input, weight and bias; add integers; return floats at the end."""
    scale, zero = input_grid(samples)
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    rows = W.abs().amax(1) / 127
    weights = torch.round(W / rows[:, None])
    unit = scale * rows
    return ((codes - zero) @ weights.T + torch.round(b / unit)) * unit


def own_range(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Typical error: the range of the input itself, which is dynamic."""
    return static_linear(W, b, x, x)


def no_zero_point(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Typical error: the zero point is not subtracted."""
    scale, zero = input_grid(samples)
    unit = scale * W.abs().amax(1) / 127
    weights = torch.round(W / W.abs().amax(1, keepdim=True) * 127)
    return static_linear(W, b, samples, x) + zero * weights.sum(1) * unit


def unclipped(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Typical error: codes run past 255."""
    scale, _ = input_grid(samples)
    rows = W.abs().amax(1) / 127
    unit = scale * rows
    return (
        torch.round(x / scale) @ torch.round(W / rows[:, None]).T + torch.round(b / unit)
    ) * unit


def one_scale(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Typical error: one scale for the whole weight."""
    scale, zero = input_grid(samples)
    codes = (torch.round(x / scale) + zero).clamp(0, 255)
    step = W.abs().max() / 127
    unit = scale * step
    return ((codes - zero) @ torch.round(W / step).T + torch.round(b / unit)) * unit


def float_bias(W: Tensor, b: Tensor, samples: Tensor, x: Tensor) -> Tensor:
    """Typical error: the bias is not rounded."""
    return static_linear(W, torch.zeros_like(b), samples, x) + b


def check_static_linear(answer: Any) -> None:
    """Compare outputs, some of whose inputs lie outside the calibrated range."""
    generator = torch.Generator().manual_seed(9)
    W, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 12), (5,)))
    W[2] /= 50  # a small row, which one scale for all would flatten
    samples = torch.randn(40, 12, generator=generator, dtype=torch.float64) + 0.5
    x = 1.5 * torch.randn(20, 12, generator=generator, dtype=torch.float64)
    mine = call(answer, W.clone(), b.clone(), samples.clone(), x.clone())
    if mine is None or mine is ...:
        raise NotAttempted
    if not isinstance(mine, Tensor) or mine.shape != (20, 5):
        raise Wrong(f"return a (20, 5) tensor, (tokens, out); yours is {show(mine)}")
    named = {
        own_range: "the range is that of x: it must come from the samples (this is dynamic)",
        no_zero_point: "subtract the zero point from the codes before you multiply",
        unclipped: "codes below 0 or above 255 do not exist: clip them",
        one_scale: "one scale for the whole weight: each row has its own",
        float_bias: "the bias is added as an integer: round it to input scale * weight scale",
    }
    right = static_linear(W, b, samples, x)
    for mistake, reason in named.items():
        if not close(mine, right) and close(mine, mistake(W, b, samples, x)):
            raise Wrong(reason)
    expect(mine.tolist(), right.tolist(), "the outputs", rel=1e-9, abs_=1e-9)


def close(mine: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal up to the order of sums."""
    return torch.allclose(mine.double(), other, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- d: the control


@cache
def clusters() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network that tells four patterns apart, with images (400, 16) and labels."""
    generator = torch.Generator().manual_seed(4)
    centers = torch.rand(4, 16, generator=generator)
    labels = torch.arange(400) % 4
    images = (centers[labels] + 0.25 * torch.randn(400, 16, generator=generator)).clamp(0, 1)
    linear = nn.Linear(16, 4)
    with torch.no_grad():  # the nearest center: |x - c|^2 = |x|^2 - 2 x.c + |c|^2
        linear.weight.copy_(centers)
        linear.bias.copy_(-centers.square().sum(1) / 2)
    return nn.Sequential(QuantStub(), linear, DequantStub()).eval(), images, labels


def after_calibration(net: nn.Module, samples: Tensor, images: Tensor, labels: Tensor) -> float:
    """Calibrate on samples, judge on images."""
    return accuracy(calibrate(prepare(net), samples), images, labels)


def judged_on_samples(net: nn.Module, samples: Tensor, images: Tensor, labels: Tensor) -> float:
    """Typical error: calibrate on what is judged."""
    return accuracy(calibrate(prepare(net), images), images, labels)


def of_float(net: nn.Module, samples: Tensor, images: Tensor, labels: Tensor) -> float:
    """Typical error: judge the float network."""
    return accuracy(net, images, labels)


def in_percent(net: nn.Module, samples: Tensor, images: Tensor, labels: Tensor) -> float:
    """Typical error: percent."""
    return 100 * after_calibration(net, samples, images, labels)


def check_control(answer: Any) -> None:
    """Compare the accuracy for honest samples, dimmed ones and noise."""
    net, images, labels = clusters()
    noise = torch.rand(64, 16, generator=torch.Generator().manual_seed(5))
    cases = {"honest samples": images[:64], "dimmed samples": 0.1 * images[:64], "noise": noise}
    for word, samples in cases.items():
        arguments = (net, samples, images[64:], labels[64:])
        mine = call(answer, *arguments)
        right = after_calibration(*arguments)
        if mine != right:
            for mistake, reason in {
                judged_on_samples: "the twin was calibrated on the images it is judged on",
                of_float: "that is the float network's accuracy; prepare and calibrate it",
                in_percent: "return a share from 0 to 1",
            }.items():
                if mine == mistake(*arguments):
                    raise Wrong(f"{word}: {show(mine)}: {reason}")
        expect(mine, right, f"accuracy after {word}", abs_=1e-9)


EXERCISES = [
    Exercise(
        "a",
        "Write swapped: which layers a dynamic call replaces.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_swapped,
        hints=[
            "named_modules() walks to any depth; the root comes first, under the empty name",
            "type(module) in kinds, and not isinstance: a subclass is another type",
            "sorted(n for n, m in model.named_modules() if n and type(m) in kinds ...)",
        ],
        solution=swapped,
        wrong=[with_root, top_level, subclasses, unskipped],
    ),
    Exercise(
        "b",
        "Write quantizable: a residual block with stubs, a sum and a ReLU that can be seen.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_quantizable,
        hints=[
            "everything between the stubs must be a module, the sum and the ReLU too",
            "a class with quant, body = nn.Sequential(a, nn.ReLU(), b), add and dequant",
            "x = self.quant(x); return self.dequant(self.add(self.body(x), x))",
        ],
        solution=Quantizable,
        wrong=[NoStubs, PlusSign, NoSum, FloatSum, Functional],
    ),
    Exercise(
        "c",
        "Write static_linear: one layer of static int8, from its samples to its output.",
        difficulty=3,
        importance=5,
        minutes=15,
        check=check_static_linear,
        hints=[
            "three grids: the input's from samples, the weight's row by row, the bias's from both",
            "codes = clip(round(x / s) + z, 0, 255); the sums are (codes - z) @ weights.T + bias",
            "unit = s * rows; bias = round(b / unit); the output is the integer sums times unit",
        ],
        solution=static_linear,
        wrong=[own_range, no_zero_point, unclipped, one_scale, float_bias],
    ),
    Exercise(
        "d",
        "Write after_calibration: what the choice of calibration samples does to the accuracy.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_control,
        hints=[
            "two data sets: one gives ranges, the other judges",
            "ql.calibrate(ql.prepare(net), samples) is the twin",
            "return ql.accuracy(twin, images, labels)",
        ],
        solution=after_calibration,
        wrong=[judged_on_samples, of_float, in_percent],
    ),
]
