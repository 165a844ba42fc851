"""Module 15: codes from four parameters, the fold, an ablation, a guard against doing nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.methods.adascale import AdaScale, AdaScaleWeight, start_range, train_block
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

EXAMPLE = (
    [[0.50, -0.30, 0.11, -0.62], [0.07, 0.21, -0.14, 0.02]],
    [[-0.5], [-0.05]],
    [[-0.3], [0.0]],
    [[0.1, -0.2, 0.0, -0.1], [0.3, 0.0, -0.3, -0.8]],
    [[-0.05], [-0.05]],
)


def codes_and_step(
    W: Tensor, gamma: Tensor, beta: Tensor, s2: Tensor, s3: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Divide, divide by the step, round and clamp."""
    low, high = start_range(W, bits)
    steps = 2**bits - 1
    s = (torch.exp(gamma) * high[:, None] - torch.exp(beta) * low[:, None]) / steps
    x = W / torch.exp(s2) / torch.exp(s3) / s
    return x.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), s


def multiplied(
    W: Tensor, gamma: Tensor, beta: Tensor, s2: Tensor, s3: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Typical error: multiply by e^s2 and e^s3."""
    return codes_and_step(W, gamma, beta, -s2, -s3, bits)


def squashed(
    W: Tensor, gamma: Tensor, beta: Tensor, s2: Tensor, s3: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Typical error: a sigmoid on the range, as in OmniQuant."""
    return codes_and_step(W, gamma.sigmoid().log(), beta.sigmoid().log(), s2, s3, bits)


def unclamped(
    W: Tensor, gamma: Tensor, beta: Tensor, s2: Tensor, s3: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Typical error: no clamp."""
    _, s = codes_and_step(W, gamma, beta, s2, s3, bits)
    return (W / torch.exp(s2) / torch.exp(s3) / s).round(), s


def swapped(
    W: Tensor, gamma: Tensor, beta: Tensor, s2: Tensor, s3: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """Typical error: gamma on the lower end, beta on the upper."""
    return codes_and_step(W, beta, gamma, s2, s3, bits)


def check_codes(answer: Any) -> None:
    """Compare codes and step of the worked example, then of random rows with 2, 4 and 8 bits."""
    named: list[tuple[Callable[..., tuple[Tensor, Tensor]], str]] = [
        (multiplied, "these weights are multiplied by e^s2 and e^s3; they are divided"),
        (squashed, "this range goes through a sigmoid; that is OmniQuant's, AdaScale takes exp"),
        (unclamped, "some codes lie outside -4..3: clamp what you round"),
        (swapped, "gamma moves the upper end hi, beta the lower end lo"),
    ]
    generator = torch.Generator().manual_seed(15)
    example = [torch.tensor(part, dtype=torch.float64) for part in EXAMPLE]
    cases: list[tuple[list[Tensor], int]] = [(example, 3)]
    for bits in (2, 4, 8):
        W = torch.randn(5, 9, generator=generator, dtype=torch.float64)
        shapes = (5, 1), (5, 1), (5, 9), (5, 1)
        parts = [torch.randn(shape, generator=generator).double() * 0.2 for shape in shapes]
        cases.append(([W, *parts], bits))
    for parts, bits in cases:
        mine = call(answer, *(part.clone() for part in parts), bits)
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong("return two tensors: codes, s")
        for mistake, reason in named:
            if equal(mine, mistake(*parts, bits)) and bits == 3:
                raise Wrong(f"3 bits: {reason}")
        W, gamma, beta, s2, s3 = parts
        codes, s = codes_and_step(W, gamma, beta, s2, s3, bits)
        expect(mine[1], s, f"s for {bits} bits", rel=1e-9, reveal=True)
        expect(mine[0], codes, f"codes for {bits} bits", reveal=True)


def equal(mine: Any, other: tuple[Tensor, ...]) -> bool:
    """Tell whether a learner's tensors are these."""
    if not all(isinstance(part, Tensor) for part in mine):
        return False
    pairs = list(zip(mine, other, strict=True))
    return all(a.shape == b.shape and torch.allclose(a.double(), b) for a, b in pairs)


def reopen(folded: Tensor, s: Tensor, bits: int) -> Tensor:
    """Ordinary quantize-dequantize with the step that was trained."""
    codes = (folded / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * s


def new_range(folded: Tensor, s: Tensor, bits: int) -> Tensor:
    """Typical error: derive the range from the folded weight."""
    low, high = start_range(folded, bits)
    return reopen(folded, ((high - low) / (2**bits - 1))[:, None], bits)


def only_folded(folded: Tensor, s: Tensor, bits: int) -> Tensor:
    """Typical error: take the folded weight for the quantized one."""
    return folded


def only_codes(folded: Tensor, s: Tensor, bits: int) -> Tensor:
    """Typical error: forget to multiply by the step."""
    return reopen(folded, s, bits) / s


@cache
def trained(bits: int) -> AdaScaleWeight:
    """Return a weight whose parameters have moved."""
    generator = torch.Generator().manual_seed(bits)
    weight = AdaScaleWeight(torch.randn(6, 10, generator=generator).double(), Scheme(bits))
    for parameter in weight.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return weight.requires_grad_(False)


def check_reopen(answer: Any) -> None:
    """Compare with Q of trained weights; name a range derived anew."""
    for bits in (3, 2, 4):
        weight = trained(bits)
        folded, s = weight.folded(), weight.scale()
        mine = call(answer, folded.clone(), s.clone(), bits)
        for mistake, reason in (
            (new_range, "this range comes from the folded weight and undoes the training; use s"),
            (only_folded, "this is W' itself, with no rounding: what do 3 bits leave of it?"),
            (only_codes, "these are codes; a weight is code times s"),
        ):
            if isinstance(mine, Tensor) and equal((mine,), (mistake(folded, s, bits),)):
                raise Wrong(f"{bits} bits: {reason}")
        expect(mine, weight(), f"Q for {bits} bits", abs_=1e-12, reveal=True)


Train = Callable[[AdaScale], tuple[list[float], dict[str, QuantizedTensor]]]
Judge = Callable[[dict[str, QuantizedTensor]], float]


def ablate(train: Train, judge: Judge, iterations: int) -> dict[str, float]:
    """Freeze one kind of parameter by a rate of 0; judge what is kept."""
    methods = {
        "both": AdaScale(iterations),
        "range": AdaScale(iterations, divisor_lr=0.0),
        "divisors": AdaScale(iterations, range_lr=0.0),
    }
    return {name: judge(train(method)[1]) for name, method in methods.items()}


def ablate_the_other(train: Train, judge: Judge, iterations: int) -> dict[str, float]:
    """Typical error: the rate of 0 on the parameters that should stay."""
    found = ablate(train, judge, iterations)
    return {"both": found["both"], "range": found["divisors"], "divisors": found["range"]}


def ablate_by_loss(train: Train, judge: Judge, iterations: int) -> dict[str, float]:
    """Typical error: report the last training loss."""
    last = {}

    def remember(method: AdaScale) -> tuple[list[float], dict[str, QuantizedTensor]]:
        losses, quantized = train(method)
        last[method.range_lr, method.divisor_lr] = losses[-1]
        return losses, quantized

    ablate(remember, judge, iterations)
    return dict(zip(("both", "range", "divisors"), last.values(), strict=True))


def ablate_at_default(train: Train, judge: Judge, iterations: int) -> dict[str, float]:
    """Typical error: forget to hand iterations on."""
    return ablate(train, judge, 5)


def check_ablation(answer: Any) -> None:
    """Compare three folded errors of a small layer; name swapped names and training losses."""
    train, judge = small_training()
    right = ablate(train, judge, 60)
    mine = call(answer, train, judge, 60)
    if not isinstance(mine, dict):
        raise Wrong("return a dict with the keys 'both', 'range' and 'divisors'")
    named = {
        ablate_the_other: "a rate of 0 freezes: 'range' trains gamma and beta, so divisor_lr is 0",
        ablate_by_loss: "these are training losses; judge(quantized) says what is kept",
        ablate_at_default: "hand iterations on to AdaScale",
    }
    for mistake, reason in named.items():
        wrong = mistake(train, judge, 60)
        if mine.keys() == wrong.keys() and all(same(mine[k], wrong[k]) for k in wrong):
            raise Wrong(reason)
    expect(mine, right, "errors", rel=1e-6)


def same(one: Any, other: float) -> bool:
    """Tell whether a learner's number is this one."""
    return isinstance(one, int | float) and abs(one - other) <= 1e-6 * abs(other)


def small_training() -> tuple[Train, Judge]:
    """Return train and judge of one linear layer with correlated inputs."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(12, 8, bias=False, dtype=torch.float64)
    mix = torch.randn(12, 12, generator=generator).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, 12, generator=generator))
        inputs = [torch.randn(1, 16, 12, generator=generator).double() @ mix for _ in range(4)]
        targets = [layer(x) for x in inputs]

    def train(method: AdaScale) -> tuple[list[float], dict[str, QuantizedTensor]]:
        return train_block(layer, inputs, targets, Scheme(2), method)

    def judge(quantized: dict[str, QuantizedTensor]) -> float:
        Q = quantized[""].dequantize()
        pairs = zip(inputs, targets, strict=True)
        return sum((x @ Q.T - y).square().mean().item() for x, y in pairs) / len(inputs)

    return train, judge


def guarded(apply: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    """Compare all weights before and after; nothing changed is an error."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply(model)
    after = model.state_dict()
    changed = sorted(name for name in before if not before[name].equal(after[name]))
    if not changed:
        raise ValueError(f"{type(model).__name__}: nothing was changed; are its blocks known?")
    return changed


def trusting(apply: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    """Typical error: believe that a call that returns has worked."""
    apply(model)
    return sorted(model.state_dict())


def by_reference(apply: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    """Typical error: compare tensors with themselves."""
    before = dict(model.state_dict())
    apply(model)
    changed = [name for name in before if not before[name].equal(model.state_dict()[name])]
    if not changed:
        raise ValueError("nothing was changed")
    return sorted(changed)


def never(apply: Callable[[nn.Module], Any], model: nn.Module) -> list[str]:
    """Typical error: raise always."""
    raise ValueError("nothing was changed")


@torch.no_grad()
def halve(model: nn.Module, names: tuple[str, ...]) -> None:
    """Change some weights in place."""
    for name in names:
        model.get_submodule(name).weight.mul_(0.5)  # type: ignore[operator]


def outcome(answer: Any, apply: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    """Return what a guard answers, or the word ValueError if it refuses."""
    try:
        return answer(apply, model)
    except ValueError:
        return "ValueError"


def check_guard(answer: Any) -> None:
    """Try the guard on a method that works, one that works in part, and one that does nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    cases = [
        (("0", "2"), ["0.weight", "2.weight"], "a method that changes both layers"),
        (("2",), ["2.weight"], "a method that changes one layer"),
        ((), "ValueError", "a method that does nothing"),
    ]
    for names, right, what in cases:
        mine = call(outcome, answer, lambda m, names=names: halve(m, names), copy.deepcopy(model))
        if right == "ValueError" and mine != right:
            raise Wrong(f"{what} went through without an error")
        if right != "ValueError" and mine == "ValueError":
            raise Wrong(f"{what} was refused; does `before` hold copies, made by clone()?")
        expect(mine, right, what, reveal=True)


EXERCISES = [
    Exercise(
        "a",
        "Write codes_and_step: codes and step of a weight from gamma, beta, s2 and s3.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_codes,
        hints=[
            "first the step from the two ends, then the division, then rounding and clamping",
            "s = (e^gamma hi - e^beta lo) / (2^bits - 1); x = W / e^s2 / e^s3 / s",
            "low, high = start_range(W, bits) gives one number a row: low[:, None], high[:, None]",
        ],
        solution=codes_and_step,
        wrong=[
            multiplied,
            squashed,
            unclamped,
            swapped,
            lambda W, gamma, beta, s2, s3, bits: codes_and_step(W, gamma, beta, s2, s3, bits)[0],
        ],
    ),
    Exercise(
        "b",
        "Write reopen: the quantized weight from a folded weight and its step.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_reopen,
        hints=[
            "after the fold nothing is left of AdaScale: this is ordinary rounding",
            "codes = clamp(round(folded / s)); the weight is codes * s",
            "do not look for the largest weight: s is given, and it is not the one you would find",
        ],
        solution=reopen,
        wrong=[new_range, only_folded, only_codes, lambda folded, s, bits: folded * s],
    ),
    Exercise(
        "c",
        "Write ablate: the error with both kinds of parameters, with the range, with the divisors.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_ablation,
        hints=[
            "a parameter with a learning rate of 0 stays at 0, where it does nothing",
            "ql.AdaScale(iterations, divisor_lr=0.0) trains the range alone",
            "losses, quantized = train(method); then judge(quantized)",
        ],
        solution=ablate,
        wrong=[ablate_the_other, ablate_by_loss, ablate_at_default, lambda *arguments: {}],
    ),
    Exercise(
        "d",
        "Write guarded, the control: a method that changed no weight must raise.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_guard,
        hints=[
            "compare the weights before with the weights after",
            "state_dict() returns the living tensors: clone() them before you call apply",
            "before = {name: tensor.clone() for name, tensor in model.state_dict().items()}",
        ],
        solution=guarded,
        wrong=[trusting, by_reference, never, lambda apply, model: []],
    ),
]
