"""Module 14: soft rounding and its penalty, a FlexRound code, LWC's grid, and a control."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quantlab.block import second_moment
from quantlab.methods.gptq import gptq
from quantlab.methods.rtn import rtn
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect, show
from quantlab.scheme import Scheme

Learn = Callable[[Tensor, Tensor], Tensor]  # (W, inputs) -> rounded W
THREE = Scheme(bits=3)
POINTS = [(0.0, 2.0), (1.0, 2.0), (-1.5, 8.0), (2.5, 20.0), (-4.0, 3.0), (0.7, 20.0)]


def soft(V: float, beta: float) -> tuple[float, float]:
    """Return h(V) and the penalty of one weight."""
    h = min(max(1.2 / (1 + math.exp(-V)) - 0.1, 0.0), 1.0)
    return h, 1 - abs(2 * h - 1) ** beta


def unclipped(V: float, beta: float) -> tuple[float, float]:
    """Typical error: stretch the sigmoid and forget to clip it."""
    h = 1.2 / (1 + math.exp(-V)) - 0.1
    return h, 1 - abs(2 * h - 1) ** beta


def unstretched(V: float, beta: float) -> tuple[float, float]:
    """Typical error: a plain sigmoid never reaches 0 or 1."""
    h = 1 / (1 + math.exp(-V))
    return h, 1 - abs(2 * h - 1) ** beta


def reversed_penalty(V: float, beta: float) -> tuple[float, float]:
    """Typical error: reward what should be punished."""
    h, f = soft(V, beta)
    return h, 1 - f


def uncentered(V: float, beta: float) -> tuple[float, float]:
    """Typical error: |h|^beta in place of |2h - 1|^beta."""
    h, _ = soft(V, beta)
    return h, 1 - abs(h) ** beta


def check_soft(answer: Any) -> None:
    """Compare h and f at six points; name the part that is wrong."""
    for V, beta in POINTS:
        mine = call(answer, V, beta)
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong(f"soft({V}, {beta}) returns {show(mine)}; return two numbers, (h, f)")
        h, f = soft(V, beta)
        numbers = [float(value) if hasattr(value, "__float__") else math.nan for value in mine]
        if math.isclose(numbers[0], h, abs_tol=1e-9) and math.isclose(
            numbers[1], 1 - f, abs_tol=1e-9
        ):
            raise Wrong(f"f({V}) is {show(numbers[1])}: 1 where h has chosen; it has to be 0 there")
        expect(mine[0], h, f"h({V})", abs_=1e-6)
        expect(mine[1], f, f"f at V = {V}, beta = {beta}", abs_=1e-6)


# ---------------------------------------------------------------- FlexRound

CODES = [
    (0.42, 0.1, 1.0, 4),
    (0.42, 0.1, 1.3, 4),
    (-0.77, 0.1, 0.9, 4),
    (1.9, 0.2, 0.5, 4),
    (-0.3, -0.1, 0.8, 3),
    (0.26, 0.1, 0.95, 2),
]


def flex(w: float, s1: float, S2: float, bits: int) -> tuple[int, float]:
    """Return code and value of a weight on a symmetric grid."""
    middle = 2 ** (bits - 1)
    code = min(max(round(w / (s1 * S2)) + middle, 0), 2**bits - 1)
    return code, s1 * (code - middle)


def multiplied_back(w: float, s1: float, S2: float, bits: int) -> tuple[int, float]:
    """Typical error: give the divisor back afterwards."""
    code, value = flex(w, s1, S2, bits)
    return code, value * S2


def forgets_divisor(w: float, s1: float, S2: float, bits: int) -> tuple[int, float]:
    """Typical error: nearest rounding."""
    return flex(w, s1, 1.0, bits)


def forgets_clip(w: float, s1: float, S2: float, bits: int) -> tuple[int, float]:
    """Typical error: codes beyond the grid."""
    q = round(w / (s1 * S2))
    return q + 2 ** (bits - 1), s1 * q


def signed_codes(w: float, s1: float, S2: float, bits: int) -> tuple[int, float]:
    """Typical error: signed integers, where this library counts from 0."""
    code, value = flex(w, s1, S2, bits)
    return code - 2 ** (bits - 1), value


def check_flex(answer: Any) -> None:
    """Compare codes and values; name a divisor that is multiplied back or missing."""
    for arguments in CODES:
        mine = call(answer, *arguments)
        text = f"flex{arguments}"
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong(f"{text} returns {show(mine)}; return (code, value)")
        right = flex(*arguments)
        for mistake, reason in {
            multiplied_back: "the value is multiplied by S2 again; only s1 moves the levels",
            forgets_divisor: "S2 has no effect; divide the weight by s1 * S2 before rounding",
            forgets_clip: "the code leaves the grid; clip it to 0 .. 2**bits - 1",
            signed_codes: "codes count from 0: add the zero point 2**(bits - 1) before clipping",
        }.items():
            if tuple(mine) == mistake(*arguments) != right:
                raise Wrong(f"{text}: {reason}")
        expect(mine[0], right[0], f"code of {text}")
        expect(mine[1], right[1], f"value of {text}", abs_=1e-9)


# ---------------------------------------------------------------- LWC

RANGES = [(4.0, 4.0, "sigmoid"), (0.0, 4.0, "sigmoid"), (-1.0, 2.0, "sigmoid")]
RANGES += [(0.0, 0.0, "exp"), (0.3, 0.0, "exp"), (-0.5, 0.2, "exp")]
SQUASH = {"sigmoid": lambda p: 1 / (1 + math.exp(-p)), "exp": math.exp}


def lwc(low: float, high: float, g: float, b: float, bits: int, kind: str) -> tuple[float, int]:
    """Return step and zero point of the range [factor(b) low, factor(g) high]."""
    low, high = SQUASH[kind](b) * low, SQUASH[kind](g) * high
    s = (high - low) / (2**bits - 1)
    return s, round(-low / s)


def always_sigmoid(low: float, high: float, g: float, b: float, bits: int, kind: str) -> Any:
    """Typical error: ignore the kind."""
    return lwc(low, high, g, b, bits, "sigmoid")


def swapped(low: float, high: float, g: float, b: float, bits: int, kind: str) -> Any:
    """Typical error: g for the lower end, b for the upper."""
    return lwc(low, high, b, g, bits, kind)


def raw(low: float, high: float, g: float, b: float, bits: int, kind: str) -> Any:
    """Typical error: multiply by the parameter itself."""
    s = (g * high - b * low) / (2**bits - 1)
    return s, round(-b * low / s) if s else 0


def too_many_steps(low: float, high: float, g: float, b: float, bits: int, kind: str) -> Any:
    """Typical error: 2**bits steps; between 2**bits levels there is one less."""
    s, z = lwc(low, high, g, b, bits, kind)
    return s * (2**bits - 1) / 2**bits, z


def check_lwc(answer: Any) -> None:
    """Compare step and zero point for both kinds; name swapped ends and a wrong count."""
    for g, b, kind in RANGES:
        arguments = (-0.9, 1.4, g, b, 4, kind)
        mine = call(answer, *arguments)
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong(f"lwc{arguments} returns {show(mine)}; return (step, zero point)")
        right = lwc(*arguments)
        for mistake, reason in {
            always_sigmoid: "this is a sigmoid; kind says exp",
            swapped: "g belongs to the upper end and b to the lower one",
            too_many_steps: "2**bits levels have 2**bits - 1 steps between them",
        }.items():
            other = mistake(*arguments)
            if alike(mine, other) and not alike(right, other):
                raise Wrong(f"lwc{arguments}: {reason}")
        expect(mine[0], right[0], f"step of lwc{arguments}", rel=1e-6)
        expect(mine[1], right[1], f"zero point of lwc{arguments}")


def alike(mine: Any, other: Any) -> bool:
    """Tell whether two pairs of numbers agree."""
    if not all(hasattr(value, "__float__") for value in mine):
        return False
    pairs = zip(mine, other, strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-6) for a, b in pairs)


# ---------------------------------------------------------------- the control


def learn(W: Tensor, x: Tensor) -> Tensor:
    """Stand in for a learned rounding: quick, and as dependent on the inputs as one."""
    return gptq(W, second_moment(x), THREE).dequantize()


@cache
def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight (16, 24), 300 calibration inputs and 300 test inputs, float64."""
    generator = torch.Generator().manual_seed(14)
    mix = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    mix += 3 * torch.randn(24, 2, generator=generator, dtype=torch.float64).repeat(1, 12)
    tokens = torch.randn(600, 24, generator=generator, dtype=torch.float64) @ mix.T
    W = torch.randn(16, 24, generator=generator, dtype=torch.float64)
    return W, tokens[:300], tokens[300:]


def ratio(W: Tensor, Q: Tensor, x: Tensor) -> float:
    """Return the output error of Q over that of rounding to nearest."""
    plain = rtn(W, THREE).dequantize()
    return ((x @ (Q - W).T).square().sum() / (x @ (plain - W).T).square().sum()).item()


def control(learn: Learn, W: Tensor, x: Tensor, test: Tensor, order: Tensor) -> list[float]:
    """Learn on true and on shuffled inputs; judge both on true test inputs."""
    return [ratio(W, learn(W, inputs), test) for inputs in (x, x[:, order])]


def judged_in_training(
    learn: Learn, W: Tensor, x: Tensor, test: Tensor, order: Tensor
) -> list[float]:
    """Typical error: judge on the inputs that were learned from."""
    return [ratio(W, learn(W, inputs), x) for inputs in (x, x[:, order])]


def judged_shuffled(learn: Learn, W: Tensor, x: Tensor, test: Tensor, order: Tensor) -> list[float]:
    """Typical error: shuffle the test inputs as well."""
    pairs = ((x, test), (x[:, order], test[:, order]))
    return [ratio(W, learn(W, inputs), judge) for inputs, judge in pairs]


def tokens_shuffled(learn: Learn, W: Tensor, x: Tensor, test: Tensor, order: Tensor) -> list[float]:
    """Typical error: shuffle tokens, which changes nothing, in place of channels."""
    return [ratio(W, learn(W, inputs), test) for inputs in (x, x.flip(0))]


def check_control(answer: Any) -> None:
    """Compare both ratios; name the wrong judge and the wrong shuffle."""
    W, x, test = layer()
    for seed in (1, 2):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        mine = call(answer, learn, W.clone(), x.clone(), test.clone(), order)
        mine = mine.tolist() if isinstance(mine, Tensor) else mine
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong(f"control returns {show(mine)}; return [true ratio, shuffled ratio]")
        for mistake, reason in {
            judged_in_training: "these are errors on x, the inputs it has learned from; take test",
            judged_shuffled: "the judge is shuffled too, and then nothing has changed",
            tokens_shuffled: "both are the same: shuffle channels, x[:, order], not tokens",
        }.items():
            other = mistake(learn, W, x, test, order)
            if alike(mine, other):
                raise Wrong(reason)
        expect(list(mine), control(learn, W, x, test, order), "the two ratios", rel=1e-6)


EXERCISES = [
    Exercise(
        "a",
        "Write h(V) and the penalty that makes it choose.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_soft,
        hints=[
            "stretch the sigmoid from (0, 1) to (-0.1, 1.1), clip; the penalty looks at 2h - 1",
            "h = min(max(1.2 * sigmoid(V) - 0.1, 0), 1) and f = 1 - |2h - 1| ** beta",
            "sigmoid(V) = 1 / (1 + math.exp(-V))",
        ],
        solution=soft,
        wrong=[unclipped, unstretched, reversed_penalty, uncentered],
    ),
    Exercise(
        "b",
        "Compute a FlexRound code and the value that it stands for.",
        difficulty=2,
        importance=4,
        minutes=8,
        check=check_flex,
        hints=[
            "the divisor acts before rounding only",
            "code = clip(round(w / (s1 * S2)) + z, 0, 2**bits - 1), value = s1 * (code - z)",
            "z = 2 ** (bits - 1)",
        ],
        solution=flex,
        wrong=[multiplied_back, forgets_divisor, forgets_clip, signed_codes],
    ),
    Exercise(
        "c",
        "Compute LWC's grid, with its sigmoid and with an exp in its place.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_lwc,
        hints=[
            "first shrink or stretch both ends, then fit 2**bits levels between them",
            "s = (factor(g) * high - factor(b) * low) / (2**bits - 1); "
            "z = round(-factor(b) * low / s)",
            "factor = math.exp if kind == 'exp' else lambda p: 1 / (1 + math.exp(-p))",
        ],
        solution=lwc,
        wrong=[always_sigmoid, swapped, raw, too_many_steps],
    ),
    Exercise(
        "d",
        "Write the control: learn on shuffled channels, judge on true test inputs.",
        difficulty=3,
        importance=5,
        minutes=12,
        check=check_control,
        hints=[
            "call learn twice, and judge both answers with the same test inputs",
            "ratio = |test (Q - W)^T|^2 / |test (rtn - W)^T|^2, "
            "for learn(W, x) and learn(W, x[:, order])",
            "plain = ql.rtn(W, ql.Scheme(bits=3)).dequantize()",
        ],
        solution=control,
        wrong=[judged_in_training, judged_shuffled, tokens_shuffled],
    ),
]
