"""Module 12: scales of four channels, an exact fold, hard weights, and a control that can fail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantlab.methods.rtn import rtn
from quantlab.methods.smoothquant import smooth_scales
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect, show
from quantlab.scheme import Scheme
from quantlab.sim.dynamic import round_tokens

EIGHT = Scheme(8)


def case(seed: int, *, tokens: int = 24, rows: int = 16, columns: int = 12) -> tuple[Tensor, ...]:
    """Return seeded inputs with one loud channel, a gain and a weight, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    gain = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.5
    gain[seed % columns] *= 40
    return x, gain, torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def smooth(inputs: list[float], weights: list[float], alpha: float) -> list[float]:
    """Share each channel's range between inputs and weights."""
    return [x**alpha / w ** (1 - alpha) for x, w in zip(inputs, weights, strict=True)]


def check_smooth(answer: Any) -> None:
    """Compare four channels; name a swapped or forgotten exponent."""
    cases = [
        ([16.0, 1.0, 4.0, 64.0], [0.25, 1.0, 0.5, 0.25], 0.5),
        ([2.0, 3.0, 5.0, 7.0], [0.5, 0.2, 0.9, 0.4], 0.75),
        ([2.0, 3.0, 5.0, 7.0], [0.5, 0.2, 0.9, 0.4], 0.0),
        ([2.0, 3.0, 5.0, 7.0], [0.5, 0.2, 0.9, 0.4], 1.0),
    ]
    for inputs, weights, alpha in cases:
        value = call(answer, list(inputs), list(weights), alpha)
        if isinstance(value, Tensor):
            value = value.tolist()
        if not isinstance(value, list | tuple) or len(value) != 4:
            raise Wrong(f"expected a list of four numbers, yours is {show(value)}")
        right = smooth(inputs, weights, alpha)
        named = [
            (smooth(weights, inputs, alpha), "inputs and weights are exchanged"),
            (smooth(inputs, weights, 1 - alpha), "alpha belongs to the inputs, 1 - alpha to w"),
            ([1 / s for s in right], "this is 1 / s: s multiplies the weights"),
        ]
        for other, reason in named:
            if close(value, other) and not close(value, right):
                raise Wrong(f"alpha = {alpha}: {reason}")
        expect(list(value), right, f"s for inputs {inputs}, alpha = {alpha}", rel=1e-9, reveal=True)


def close(one: Any, other: list[float]) -> bool:
    """Tell whether two lists of numbers agree."""
    try:
        return bool(torch.allclose(torch.tensor(one).double(), torch.tensor(other).double()))
    except (TypeError, ValueError, RuntimeError):
        return False


def fold(gain: Tensor, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Divide the gain and multiply the weight's columns."""
    return gain / s, weight * s


def check_fold(answer: Any) -> None:
    """Run the folded layer in float64: equal outputs, and inputs divided by s."""
    for seed in range(3):
        x, gain, weight = case(seed)
        s = smooth_scales((x * gain).abs().amax(0), weight.abs().amax(0))
        kept = gain.clone(), weight.clone()
        value = call(answer, gain, weight, s)
        if not gain.equal(kept[0]) or not weight.equal(kept[1]):
            raise Wrong("your function changed its arguments; return new tensors")
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise Wrong(f"expected a pair (gain, weight), yours is {show(value)}")
        right = fold(gain, weight, s)
        for mine, theirs, name in zip(value, right, ("gain", "weight"), strict=True):
            shape = tuple(theirs.shape)
            if not isinstance(mine, Tensor) or mine.shape != theirs.shape:
                raise Wrong(f"{name}: expected a tensor of shape {shape}, yours is {show(mine)}")
        y, exact = (x * value[0]) @ value[1].T, (x * gain) @ weight.T
        error = ((y - exact).norm() / exact.norm()).item()
        if not error < 1e-10:
            raise Wrong(f"the output moved by {error:.2g} of its size; in float64 it must not")
        expect(value[0], right[0], "gain", rel=1e-9)
        expect(value[1], right[1], "weight", rel=1e-9)


def w8a8_error(x: Tensor, weight: Tensor, bits: int) -> float:
    """Return the relative error with one grid for all of x and one for each row of W."""
    exact = x @ weight.T
    rounded = round_tokens(x.flatten()[None], EIGHT).view_as(x)
    return (
        (rounded @ rtn(weight, Scheme(bits)).dequantize().T - exact).norm() / exact.norm()
    ).item()


ALPHAS = [step / 10 for step in range(11)]


def best_alpha(x: Tensor, weight: Tensor, error: Any) -> float:
    """Try eleven strengths and return the one of the least error."""
    tried = []
    for alpha in ALPHAS:
        s = smooth_scales(x.abs().amax(0), weight.abs().amax(0), alpha)
        tried.append(float(error(x / s, weight * s)))
    return ALPHAS[tried.index(min(tried))]


def check_best(answer: Any) -> None:
    """Hand over weights of 8 and of 4 bits: the best strength must follow the error."""
    for seed, bits in ((0, 8), (1, 8), (0, 3), (1, 3), (2, 3)):
        x, gain, weight = case(seed, columns=24, tokens=48)

        def error(x: Tensor, weight: Tensor, bits: int = bits) -> float:
            return w8a8_error(x, weight, bits)

        value = call(answer, x * gain, weight, error)
        what = f"best alpha for weights of {bits} bits, problem {seed}"
        expect(value, best_alpha(x * gain, weight, error), what, abs_=1e-9, reveal=True)


def rescued(smoothed: float, shuffled: float, naive: float) -> bool:
    """Ask for a tenth of the naive error, which shuffled scales must not reach."""
    return smoothed < naive / 10 and not shuffled < naive / 10


def check_rescued(answer: Any) -> None:
    """Hand over measurements of honest rescues and of false ones."""
    cases = [
        (1.0, 400.0, 300.0, True, "scales help, shuffled ones do not: a rescue"),
        (1.0, 2.0, 300.0, False, "shuffled scales help as much: not these scales did it"),
        (100.0, 400.0, 300.0, False, "a third of the error is left: no rescue"),
        (400.0, 1.0, 300.0, False, "only the shuffled scales help"),
        (11.0, 500.0, 11.4, False, "nothing was lost, so nothing is rescued"),
    ]
    for smoothed, shuffled, naive, right, what in cases:
        verdict = call(answer, smoothed, shuffled, naive)
        if not isinstance(verdict, bool):
            raise Wrong(f"expected True or False, yours is {show(verdict)}")
        if verdict != right:
            raise Wrong(f"{what}; yours says {verdict}")


EXERCISES = [
    Exercise(
        "a",
        "Write smooth(inputs, weights, alpha): s of each channel, from two lists of largest sizes.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_smooth,
        hints=[
            "s divides the inputs: loud inputs need a large s",
            "s_j = inputs_j ** alpha / weights_j ** (1 - alpha)",
            "a list comprehension over zip(inputs, weights)",
        ],
        solution=smooth,
        wrong=[
            lambda x, w, a: smooth(w, x, a),
            lambda x, w, a: smooth(x, w, 1 - a),
            lambda x, w, a: [1 / s for s in smooth(x, w, a)],
            lambda x, w, a: smooth(x, w, 0.5),
            lambda x, w, a: smooth(x, w, a)[0],
        ],
    ),
    Exercise(
        "b",
        "Write fold(gain, weight, s): the new gain and weight, with the same output in float64.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_fold,
        hints=[
            "the layer computes (x * gain) @ weight.T",
            "what the gain loses, column j of the weight gains",
            "return gain / s, weight * s; s broadcasts along the rows",
        ],
        solution=fold,
        wrong=[
            lambda gain, weight, s: (gain * s, weight / s),
            lambda gain, weight, s: (gain / s, weight / s),
            lambda gain, weight, s: (gain, weight),
            lambda gain, weight, s: (gain.div_(s), weight.mul_(s)),
            lambda gain, weight, s: gain / s,
        ],
    ),
    Exercise(
        "c",
        "Write best_alpha(x, weight, error): of 0, 0.1, .. 1 the strength whose smoothed pair has "
        "the least error(x / s, weight * s).",
        difficulty=2,
        importance=4,
        minutes=12,
        check=check_best,
        hints=[
            "for each alpha: s from the largest sizes of x and weight, then the error",
            "s = ql.smooth_scales(x.abs().amax(0), weight.abs().amax(0), alpha)",
            "min([step / 10 for step in range(11)], key=lambda alpha: ...)",
        ],
        solution=best_alpha,
        wrong=[
            lambda x, weight, error: 0.5,
            lambda x, weight, error: 1.0,
            lambda x, weight, error: 1 - best_alpha(x, weight, error),
            lambda x, weight, error: best_alpha(x, weight, lambda a, b: -error(a, b)),
        ],
    ),
    Exercise(
        "d",
        "Write rescued(smoothed, shuffled, naive): three losses; True if the scales leave less "
        "than a tenth of the naive loss and the same scales on other channels do not.",
        difficulty=2,
        importance=5,
        minutes=8,
        check=check_rescued,
        hints=[
            "two conditions, joined by and",
            "smoothed < naive / 10, and shuffled is not",
            "return smoothed < naive / 10 <= shuffled",
        ],
        solution=rescued,
        wrong=[
            lambda smoothed, shuffled, naive: smoothed < naive / 10,
            lambda smoothed, shuffled, naive: smoothed < shuffled,
            lambda smoothed, shuffled, naive: smoothed < naive,
            lambda smoothed, shuffled, naive: True,
            lambda smoothed, shuffled, naive: "yes",
        ],
    ),
]
