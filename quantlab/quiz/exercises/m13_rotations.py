"""Module 13: a fast transform, a fusion through norms, incoherence, and what a rotation gains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quantlab.hadamard import hadamard_transform
from quantlab.orthogonal import incoherence, rotation_matrix
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, Wrong, call, expect, show
from quantlab.scheme import Scheme

FOUR = Scheme(bits=4)


# ---------------------------------------------------------------- a: the transform


def transform(x: Tensor) -> Tensor:
    """Take sums and differences at distance 1, 2, 4 ...; divide by the root of the length."""
    x, reach = x.clone(), 1
    while reach < len(x):
        for start in range(0, len(x), 2 * reach):
            for i in range(start, start + reach):
                low, high = x[i].item(), x[i + reach].item()
                x[i], x[i + reach] = low + high, low - high
        reach *= 2
    return x / math.sqrt(len(x))


def not_normalized(x: Tensor) -> Tensor:
    """Typical error: the matrix of 1 and -1 itself."""
    return transform(x) * math.sqrt(len(x))


def one_stage(x: Tensor) -> Tensor:
    """Typical error: stop after the first stage."""
    pairs = x.unflatten(0, (-1, 2))
    return torch.stack([pairs.sum(1), pairs[:, 0] - pairs[:, 1]], 1).flatten() / math.sqrt(len(x))


def turned_difference(x: Tensor) -> Tensor:
    """Typical error: second minus first."""
    signs = [(-1) ** i.bit_count() for i in range(len(x))]
    return transform(x) * torch.tensor(signs, dtype=x.dtype)


def divided_by_length(x: Tensor) -> Tensor:
    """Typical error: divide by n instead of its root."""
    return transform(x) / math.sqrt(len(x))


def check_transform(answer: Any) -> None:
    """Compare with the matrix on vectors of 4, 8 and 16 numbers; name the usual slips."""
    named = {
        not_normalized: "the vector has become longer: divide by the root of its length",
        divided_by_length: "the vector has become shorter: divide by the root of its length",
        turned_difference: "a difference is first minus second, in every stage",
        one_stage: "only neighbors have met: repeat at distance 2, 4 ...",
    }
    x = torch.tensor([3.0, -1.0, 2.0, 4.0], dtype=torch.float64)
    for case in (x, torch.cat([x, x.square() - 1]), torch.linspace(-1, 2, 16).double() ** 3):
        mine = call(answer, case.clone())
        if mine is ...:
            raise NotAttempted
        for mistake, reason in named.items():
            if isinstance(mine, Tensor) and same(mine, mistake(case)):
                raise Wrong(f"{len(case)} numbers: {reason}")
        expect(mine, hadamard_transform(case), f"H x for {len(case)} numbers", abs_=1e-9)


def same(mine: Tensor, target: Tensor) -> bool:
    """Tell whether two tensors agree."""
    return mine.shape == target.shape and torch.allclose(mine.double(), target, atol=1e-9)


# ---------------------------------------------------------------- b: the fusion

Weights = dict[str, Tensor]


def forward(w: Weights, tokens: Tensor) -> Tensor:
    """Run a network with a residual stream, two norms and an untied head."""
    x = w["embedding"][tokens]
    x = x + torch.tanh(norm(x) * w["gain1"] @ w["up"].T) @ w["down"].T
    return norm(x) * w["gain2"] @ w["head"].T


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def fuse(w: Weights, R: Tensor) -> Weights:
    """Fold the gains into what reads the stream; readers times R, writers R^T times."""
    return {
        "embedding": w["embedding"] @ R,
        "gain1": torch.ones_like(w["gain1"]),
        "up": (w["up"] * w["gain1"]) @ R,
        "down": R.T @ w["down"],
        "gain2": torch.ones_like(w["gain2"]),
        "head": (w["head"] * w["gain2"]) @ R,
    }


def gains_left(w: Weights, R: Tensor) -> Weights:
    """Typical error: turn everything and leave the gains in their norms."""
    ones = {"gain1": torch.ones_like(w["gain1"]), "gain2": torch.ones_like(w["gain2"])}
    return fuse(w | ones, R) | {"gain1": w["gain1"], "gain2": w["gain2"]}


def down_not_turned_back(w: Weights, R: Tensor) -> Weights:
    """Typical error: R where R^T belongs."""
    return fuse(w, R) | {"down": R @ w["down"]}


def readers_turned_back(w: Weights, R: Tensor) -> Weights:
    """Typical error: the readers get R^T."""
    return fuse(w, R) | {"up": (w["up"] * w["gain1"]) @ R.T}


def embedding_forgotten(w: Weights, R: Tensor) -> Weights:
    """Typical error: the stream starts unturned."""
    return fuse(w, R) | {"embedding": w["embedding"]}


def nothing_turned(w: Weights, R: Tensor) -> Weights:
    """Typical error: only the gains are folded."""
    return fuse(w, torch.eye(len(R)).to(R))


def network() -> tuple[Weights, Tensor]:
    """Return weights of a network with a stream of 8, and tokens."""
    generator = torch.Generator().manual_seed(13)
    shapes = {"embedding": (10, 8), "gain1": (8,), "up": (6, 8), "down": (8, 6), "gain2": (8,)}
    w = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (shapes | {"head": (5, 8)}).items()
    }
    return w, torch.arange(10)


def check_fuse(answer: Any) -> None:
    """Prove equal outputs and a turned stream; name what was left out."""
    w, tokens = network()
    R = rotation_matrix(8, "random", seed=1)
    mine = call(answer, {name: weight.clone() for name, weight in w.items()}, R.clone())
    if mine is None or mine is ...:
        raise NotAttempted
    if not isinstance(mine, dict) or mine.keys() != w.keys():
        raise Wrong(f"return a dict with the keys {', '.join(w)}, yours is {show(mine)}")
    for name in ("gain1", "gain2"):
        if not torch.equal(mine[name], torch.ones_like(w[name])):
            raise Wrong(f"{name} must be all ones: a gain does not commute with a turn, fold it")
    if same(mine["embedding"], w["embedding"]):
        raise Wrong("the stream is not turned: the embedding writes its first value")
    for name, right in fuse(w, R).items():
        expect(mine[name], right, f"{name}: does it read the stream, or write it?", abs_=1e-9)
    expect(forward(mine, tokens), forward(w, tokens), "the output", abs_=1e-9)


# ---------------------------------------------------------------- c: incoherence


def mu(W: Tensor) -> float:
    """Largest entry over the root mean square of all entries."""
    return (W.abs().max() * math.sqrt(W.numel()) / W.norm()).item()


def without_size(W: Tensor) -> float:
    """Typical error: forget the number of entries."""
    return (W.abs().max() / W.norm()).item()


def signed_largest(W: Tensor) -> float:
    """Typical error: the largest signed entry."""
    return (W.max() * math.sqrt(W.numel()) / W.norm()).item()


def over_deviation(W: Tensor) -> float:
    """Typical error: subtract the mean."""
    return (W.abs().max() / W.std(correction=0)).item()


def over_mean_size(W: Tensor) -> float:
    """Typical error: the mean of the sizes."""
    return (W.abs().max() / W.abs().mean()).item()


def one_side(W: Tensor) -> float:
    """Typical error: the root of the columns only."""
    return (W.abs().max() * math.sqrt(W.shape[1]) / W.norm()).item()


def check_mu(answer: Any) -> None:
    """Compare on three matrices; name the usual slips."""
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(6, 10, generator=generator, dtype=torch.float64) + 0.5
    spike = W.clone()
    spike[2, 3] = -40
    named = {
        without_size: "this is max|W| / |W|: multiply by the root of the number of entries",
        signed_largest: "take the largest size; here it is negative",
        over_deviation: "the root mean square is not the standard deviation: nothing is centered",
        over_mean_size: "this divides by the mean size; the definition has the root mean square",
        one_side: "count all entries, rows times columns",
    }
    for case in (spike, W, rotation_matrix(8)):
        mine = call(answer, case.clone())
        for mistake, reason in named.items():
            if close(mine, mistake(case)) and not close(mistake(case), incoherence(case)):
                raise Wrong(f"{show(float(mine))}: {reason}")
        expect(mine, incoherence(case), "mu", rel=1e-9)


def close(value: Any, number: float) -> bool:
    """Tell whether a learner's value is this number."""
    return hasattr(value, "__float__") and math.isclose(float(value), number, rel_tol=1e-6)


# ---------------------------------------------------------------- d: the control


def share(x: Tensor, scheme: Scheme) -> float:
    """Return the squared rounding error of rows as a share of their energy."""
    scale, zero_point = scheme.grid(scheme.group(x))
    rounded = scheme.decode(scheme.encode(x, scale, zero_point), scale, zero_point)
    return ((rounded - x).square().sum() / x.square().sum()).item()


def gain(x: Tensor, R: Tensor, scheme: Scheme) -> float:
    """Return how many times smaller the rounding error is after the turn."""
    return share(x, scheme) / share(x @ R, scheme)


def upside_down(x: Tensor, R: Tensor, scheme: Scheme) -> float:
    """Typical error: after over before."""
    return share(x @ R, scheme) / share(x, scheme)


def only_after(x: Tensor, R: Tensor, scheme: Scheme) -> float:
    """Typical error: no comparison."""
    return share(x @ R, scheme)


def not_squared(x: Tensor, R: Tensor, scheme: Scheme) -> float:
    """Typical error: the ratio of the errors, not of their squares."""
    return math.sqrt(gain(x, R, scheme))


def turned_rows(x: Tensor, R: Tensor, scheme: Scheme) -> float:
    """Typical error: mix the tokens instead of the channels."""
    return share(x, scheme) / share(R[: len(x), : len(x)] @ x, scheme)


def check_gain(answer: Any) -> None:
    """Compare on Gaussian tokens and on tokens with a loud channel."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 64, generator=generator, dtype=torch.float64)
    loud = x.clone()
    loud[:, 5] *= 30
    R = rotation_matrix(64)
    for word, case in (("loud", loud), ("Gaussian", x)):
        mine = call(answer, case.clone(), R.clone(), FOUR)
        arguments = (case, R, FOUR)
        for mistake, reason in {
            upside_down: "this is after over before; a gain above 1 should mean less error",
            only_after: "this is the error after the turn; compare it with the error before",
            not_squared: "compare squared errors",
            turned_rows: "R stands on the right: it mixes channels, not tokens",
        }.items():
            if close(mine, mistake(*arguments)):
                raise Wrong(f"{word} tokens: {show(float(mine))}: {reason}")
        expect(mine, gain(*arguments), f"the gain on {word} tokens", rel=1e-6)


EXERCISES = [
    Exercise(
        "a",
        "Write transform: the orthonormal Walsh-Hadamard transform of 4, 8 or 16 numbers.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_transform,
        hints=[
            "for 4 numbers: sums and differences of (1, 2) and (3, 4), then of (1, 3) and (2, 4)",
            "stages reach = 1, 2, 4 ...: x[i] and x[i + reach] become their sum and difference",
            "keep both old values before you overwrite one; at the end divide by sqrt(len(x))",
        ],
        solution=transform,
        wrong=[not_normalized, one_stage, turned_difference, divided_by_length, lambda x: x],
    ),
    Exercise(
        "b",
        "Write fuse: turn the stream of a small network without changing what it computes.",
        difficulty=3,
        importance=5,
        minutes=15,
        check=check_fuse,
        hints=[
            "readers of the stream: up and head; writers: embedding and down",
            "first fold: up * gain1 and head * gain2, gains to ones",
            "readers: W @ R; down: R.T @ W; embedding rows are stream vectors: E @ R",
        ],
        solution=fuse,
        wrong=[
            gains_left,
            down_not_turned_back,
            readers_turned_back,
            embedding_forgotten,
            nothing_turned,
        ],
    ),
    Exercise(
        "c",
        "Write mu: how much larger than usual the largest entry of a matrix is.",
        difficulty=1,
        importance=4,
        minutes=6,
        check=check_mu,
        hints=[
            "largest size divided by the root mean square of all entries",
            "max|W| * sqrt(rows * columns) / |W|, with |W| the Frobenius norm",
            "W.abs().max() * W.numel() ** 0.5 / W.norm()",
        ],
        solution=mu,
        wrong=[without_size, signed_largest, over_deviation, over_mean_size, one_side],
    ),
    Exercise(
        "d",
        "Write gain: how many times smaller the rounding error gets by a turn.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_gain,
        hints=[
            "round the rows of x, and those of x @ R; compare the errors as shares of the energy",
            "scale, zero = scheme.grid(scheme.group(x)); encode, decode; |rounded - x|^2 / |x|^2",
            "return the share before divided by the share after",
        ],
        solution=gain,
        wrong=[upside_down, only_after, not_squared, turned_rows],
    ),
]
