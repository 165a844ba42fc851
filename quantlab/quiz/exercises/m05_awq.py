"""Module 05: the search for a ratio, a fold, the search for a clip, and what keeping would save."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quantlab.block import second_moment
from quantlab.methods.awq import input_scale, mean_size, rounded
from quantlab.methods.rtn import rtn
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, Wrong, call, expect, show
from quantlab.scheme import Scheme
from quantlab.tensor import output_error

RATIOS = [0.0, 0.25, 0.5, 0.75, 1.0]
SHRINKS = [1 - step / 20 for step in range(10)]
FOUR = Scheme(bits=4)


@cache
def layer(seed: int = 5) -> tuple[Tensor, Tensor]:
    """Return a weight (16, 64) and 300 input tokens with a few loud channels, float64."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(16, 64, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    loud = torch.randperm(64, generator=generator)[:3]
    x[:, loud] *= 30
    W[:, loud] /= 10
    return W, x


# ---------------------------------------------------------------- a: the ratio


def ratio_losses(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> list[float]:
    """Return the output error at each ratio."""
    M, sizes = second_moment(x), mean_size(x)
    return [output_error(W, rounded(W, input_scale(sizes, r), scheme), M) for r in ratios]


def best_ratio(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> tuple[float, float]:
    """Round W scaled by each candidate, undo the scale, and keep the least output error."""
    losses = ratio_losses(W, x, scheme, ratios)
    best = losses.index(min(losses))
    return ratios[best], losses[best]


def not_undone(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> tuple[float, float]:
    """Typical error: compare Q(W s) with W, without dividing by s."""
    M, sizes = second_moment(x), mean_size(x)
    scales = [input_scale(sizes, r) for r in ratios]
    losses = [output_error(W, rtn(W * s, scheme).dequantize(), M) for s in scales]
    return ratios[losses.index(min(losses))], min(losses)


def by_weight_error(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> tuple:
    """Typical error: judge by the error of the weights."""
    return best_ratio(W, torch.eye(W.shape[1]).to(x) * mean_size(x), scheme, ratios)


def weights_alone(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> tuple:
    """Typical error: scale by the sizes of x, but judge with E[x x^T] = identity."""
    sizes = mean_size(x)
    losses = [(rounded(W, input_scale(sizes, r), scheme) - W).square().sum().item() for r in ratios]
    return ratios[losses.index(min(losses))], min(losses)


def turned(W: Tensor, x: Tensor, scheme: Scheme, ratios: list[float]) -> tuple[float, float]:
    """Typical error: divide the loud columns instead of multiplying them."""
    M, sizes = second_moment(x), mean_size(x)
    losses = [output_error(W, rounded(W, 1 / input_scale(sizes, r), scheme), M) for r in ratios]
    return ratios[losses.index(min(losses))], min(losses)


def check_ratio(answer: Any) -> None:
    """Compare ratio and loss on two layers; name the usual slips."""
    named = {
        not_undone: "this compares Q(W s) with W: divide by s before you measure",
        weights_alone: "this is the error of the weights; the output error weighs it with x",
        turned: "this divides the loud columns; multiply them, then divide the result",
    }
    for seed in (5, 6):
        arguments = (*layer(seed), FOUR, RATIOS)
        mine = call(answer, *(a.clone() if isinstance(a, Tensor) else a for a in arguments))
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            raise Wrong(f"return (ratio, its output error), yours is {show(mine)}")
        if ... in mine:
            raise NotAttempted
        for mistake, reason in named.items():
            if close(mine[1], mistake(*arguments)[1]):
                raise Wrong(reason)
        expect(list(mine), list(best_ratio(*arguments)), "(ratio, error)", rel=1e-6)


def close(value: Any, number: float) -> bool:
    """Tell whether a learner's value is this number."""
    return hasattr(value, "__float__") and math.isclose(float(value), number, rel_tol=1e-6)


# ---------------------------------------------------------------- b: the fold

Folded = tuple[Tensor, Tensor, list[Tensor]]


def fold(gain: Tensor, bias: Tensor, weights: list[Tensor], s: Tensor) -> Folded:
    """Divide what makes x by s, multiply the columns that read it."""
    return gain / s, bias / s, [W * s for W in weights]


def forgotten_bias(gain: Tensor, bias: Tensor, weights: list[Tensor], s: Tensor) -> Folded:
    """Typical error: the norm's bias still has its old size."""
    return gain / s, bias, [W * s for W in weights]


def both_multiplied(gain: Tensor, bias: Tensor, weights: list[Tensor], s: Tensor) -> Folded:
    """Typical error: multiply everywhere."""
    return gain * s, bias * s, [W * s for W in weights]


def first_only(gain: Tensor, bias: Tensor, weights: list[Tensor], s: Tensor) -> Folded:
    """Typical error: only one of the linears that read x."""
    return gain / s, bias / s, [weights[0] * s, *weights[1:]]


def other_way(gain: Tensor, bias: Tensor, weights: list[Tensor], s: Tensor) -> Folded:
    """Typical error: gain and weights exchanged."""
    return gain * s, bias * s, [W / s for W in weights]


def check_fold(answer: Any) -> None:
    """Prove bit-identical outputs for powers of two, and that the columns were scaled by s."""
    generator = torch.Generator().manual_seed(0)
    h, gain, bias = torch.randn(3, 16, generator=generator)
    weights = [torch.randn(8, 16, generator=generator) for _ in range(3)]
    s = 2.0 ** torch.randint(-2, 3, (16,), generator=generator)
    before = [W @ (h * gain + bias) for W in weights]
    mine = call(answer, gain.clone(), bias.clone(), [W.clone() for W in weights], s.clone())
    if not isinstance(mine, tuple | list) or len(mine) != 3:
        raise Wrong(f"return (gain, bias, weights), yours is {show(mine)}")
    if any(part is ... for part in mine):
        raise NotAttempted
    new_gain, new_bias, new_weights = mine
    for number, (W, old, target) in enumerate(zip(new_weights, weights, before, strict=True)):
        if torch.equal(W, old / s):
            raise Wrong(f"weight {number} was divided by s: a column grows by s before rounding")
        if not torch.equal(W, old * s):
            raise Wrong(f"weight {number} is not W * s, with s_j for all of column j")
        if not torch.equal(W @ (h * new_gain + new_bias), target):
            raise Wrong(f"the output of linear {number} has changed: what makes x takes 1 / s")


# ---------------------------------------------------------------- c: the clip


def best_clip(w: Tensor, x: Tensor, scheme: Scheme) -> float:
    """Try ten grids on one group; the first of least output error wins."""
    M = second_moment(x)
    errors = [output_error(w[None], clipped(w, m, scheme)[None], M) for m in SHRINKS]
    return SHRINKS[errors.index(min(errors))]


def clipped(w: Tensor, m: float, scheme: Scheme) -> Tensor:
    """Round a group on the grid that ends at m times its extreme weight."""
    scale, zero_point = (value.view(1) for value in scheme.grid(w * m))
    return scheme.decode(scheme.encode(w, scale, zero_point), scale, zero_point)


def least_weight_error(w: Tensor, x: Tensor, scheme: Scheme) -> float:
    """Typical error: compare the weights."""
    return best_clip(w, torch.eye(len(w)).to(w), scheme)


def old_grid(w: Tensor, x: Tensor, scheme: Scheme) -> float:
    """Typical error: clamp the weights but keep the grid of the unclamped ones."""
    M, (scale, zero_point) = second_moment(x), (value.view(1) for value in scheme.grid(w))
    limit, errors = w.abs().max(), []
    for m in SHRINKS:
        codes = scheme.encode(w.clamp(-limit * m, limit * m), scale, zero_point)
        Q = scheme.decode(codes, scale, zero_point)
        errors.append(output_error(w[None], Q[None], M))
    return SHRINKS[errors.index(min(errors))]


def against_clamped(w: Tensor, x: Tensor, scheme: Scheme) -> float:
    """Typical error: measure against the clamped weights, as if clipping cost nothing."""
    M, limit, errors = second_moment(x), w.abs().max(), []
    for m in SHRINKS:
        cut = w.clamp(-limit * m, limit * m)
        errors.append(output_error(cut[None], clipped(w, m, scheme)[None], M))
    return SHRINKS[errors.index(min(errors))]


def check_clip(answer: Any) -> None:
    """Compare the factor on twelve groups, of which no typical slip gets all right."""
    scheme = Scheme(bits=3)
    W, x = layer()
    for row in range(12):
        w, tokens = W[row, :32], x[:, :32]
        mine = call(answer, w.clone(), tokens.clone(), scheme)
        right = best_clip(w, tokens, scheme)
        if not close(mine, right):
            for mistake, reason in {
                least_weight_error: "that is least for the weights; weigh their errors with x",
                old_grid: "clamped weights on the old grid: the grid must end where you clip",
                against_clamped: "measure against w, not against the clamped w",
            }.items():
                if close(mine, mistake(w, tokens, scheme)):
                    raise Wrong(f"group {row}: {show(mine)}: {reason}")
        expect(mine, right, f"factor of group {row}", abs_=1e-9)


# ---------------------------------------------------------------- d: the control


def saved(W: Tensor, x: Tensor, scheme: Scheme, channels: Tensor) -> float:
    """Return the percentage of RTN's output error that float columns would save."""
    M, Q = second_moment(x), rtn(W, scheme).dequantize()
    base = output_error(W, Q, M)
    Q[:, channels] = W[:, channels]
    return 100 * (1 - output_error(W, Q, M) / base)


def kept_rows(W: Tensor, x: Tensor, scheme: Scheme, channels: Tensor) -> float:
    """Typical error: keep outputs instead of input channels."""
    M, Q = second_moment(x), rtn(W, scheme).dequantize()
    base = output_error(W, Q, M)
    rows = channels % len(W)
    Q[rows] = W[rows]
    return 100 * (1 - output_error(W, Q, M) / base)


def what_remains(W: Tensor, x: Tensor, scheme: Scheme, channels: Tensor) -> float:
    """Typical error: the share that is left."""
    return 100 - saved(W, x, scheme, channels)


def as_fraction(W: Tensor, x: Tensor, scheme: Scheme, channels: Tensor) -> float:
    """Typical error: a fraction, not a percentage."""
    return saved(W, x, scheme, channels) / 100


def of_weights(W: Tensor, x: Tensor, scheme: Scheme, channels: Tensor) -> float:
    """Typical error: the share of the weights' error."""
    return saved(W, torch.eye(W.shape[1]).to(x), scheme, channels)


def check_control(answer: Any) -> None:
    """Compare the share for the loudest channels and for random ones."""
    W, x = layer()
    loudest = mean_size(x).argsort(descending=True)[:3]
    random = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:3]
    for word, channels in (("the loudest", loudest), ("random", random)):
        mine = call(answer, W.clone(), x.clone(), FOUR, channels.clone())
        arguments = (W, x, FOUR, channels)
        for mistake, reason in {
            what_remains: "that is the share of the error that remains; return what is saved",
            as_fraction: "that is a fraction; return percent",
            of_weights: "that is a share of the weights' error; measure the output's",
        }.items():
            if close(mine, mistake(*arguments)):
                raise Wrong(f"{word} channels: {show(float(mine))}: {reason}")
        expect(mine, saved(*arguments), f"percent saved by {word} channels", rel=1e-6)


EXERCISES = [
    Exercise(
        "a",
        "Write best_ratio: of five ratios, the one with the least output error.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_ratio,
        hints=[
            "scale, round, undo the scale; then compare with W where it counts: at the output",
            "s = sizes ** ratio / sqrt(max * min); Q = ql.rtn(W * s, scheme).dequantize() / s",
            "M, sizes = ql.second_moment(x), ql.mean_size(x); error: ql.output_error(W, Q, M)",
        ],
        solution=best_ratio,
        wrong=[
            not_undone,
            weights_alone,
            turned,
            by_weight_error,
            lambda W, x, scheme, ratios: (0.0, ratio_losses(W, x, scheme, [0.0])[0]),
        ],
    ),
    Exercise(
        "b",
        "Write fold: the same output to the last bit, with every column multiplied by its scale.",
        difficulty=2,
        importance=5,
        minutes=8,
        check=check_fold,
        hints=[
            "x = h * gain + bias feeds every weight; make x smaller by s, the columns larger",
            "(W * s) @ ((h * gain + bias) / s) must be W @ (h * gain + bias)",
            "return gain / s, bias / s, and each W times s: column j of W times s_j",
        ],
        solution=fold,
        wrong=[
            forgotten_bias,
            both_multiplied,
            first_only,
            other_way,
            lambda gain, bias, weights, s: (gain, bias, weights),
        ],
    ),
    Exercise(
        "c",
        "Write best_clip: the clip of one group that disturbs its output least.",
        difficulty=3,
        importance=4,
        minutes=12,
        check=check_clip,
        hints=[
            "ten candidates, each with its own grid; the unclipped weights are the truth for all",
            "for m in 1.0, 0.95 .. 0.55: scale, zero = scheme.grid(w * m); encode w, decode",
            "encode wants one scale a group: scale.view(1); ql.output_error(w[None], Q[None], M)",
        ],
        solution=best_clip,
        wrong=[least_weight_error, old_grid, against_clamped, lambda w, x, scheme: 1.0],
    ),
    Exercise(
        "d",
        "Write kept_share: the share of the error that float columns would save.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_control,
        hints=[
            "round everything, then put some columns of W back",
            "Q[:, channels] = W[:, channels]; compare ql.output_error before and after",
            "return 100 * (1 - after / before)",
        ],
        solution=saved,
        wrong=[kept_rows, what_remains, as_fraction, of_weights],
    ),
]
