"""Module 03: errors predicted in dB, the best clip, groups against one grid, ties, a control."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlab.methods.rtn import rtn
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, as_float, call, expect
from quantlab.scheme import Scheme
from quantlab.tensor import sqnr

Rule = Callable[[np.ndarray], np.ndarray]


def formula(bits: int, reach: float) -> float:
    """SQNR in dB of 2**bits cells that reach ``reach`` standard deviations, nothing cut."""
    return 20 * math.log10(2**bits) + 10 * math.log10(3) - 20 * math.log10(reach)


PREDICTIONS = {
    "box": formula(5, math.sqrt(3)),
    "sine": formula(8, math.sqrt(2)),
    "bell": formula(8, 5.0),
    "outlier": formula(8, 20.0),
}


def check_predictions(answer: Any) -> None:
    """Compare four SQNRs within 0.3 dB; name halved logarithms, a lost bit, the wrong sign."""
    if not isinstance(answer, dict):
        raise Wrong(f"expected a dict with {', '.join(PREDICTIONS)}, yours is {answer!r:.60}")
    for name, right in PREDICTIONS.items():
        if name not in answer:
            raise Wrong(f"{name!r} is missing")
        mine = as_float(answer[name], name)
        if abs(mine - right / 2) <= 0.3:
            raise Wrong(f"{name}: {mine:.2f} is half of it; amplitudes take 20 log10, not 10")
        if abs(abs(mine - right) - 20 * math.log10(2)) <= 0.1:
            raise Wrong(f"{name}: {mine:.2f} is one bit off; 2**b cells of width 2c / 2**b")
        if name in ("bell", "outlier") and abs(mine - 20 * math.log10(256)) <= 0.3:
            raise Wrong(f"{name}: {mine:.2f} is the value of a box; reaching further costs dB")
        expect(mine, right, name, abs_=0.3)


def clip_error(weight: Tensor, bits: int, clip: float) -> float:
    """Mean squared error on the 2**bits - 1 levels from -clip to clip."""
    top = 2 ** (bits - 1) - 1
    step = clip / top
    rounded = torch.round(weight / step).clamp(-top, top) * step
    return (rounded - weight).square().mean().item()


def best_clip(weight: Tensor, bits: int) -> float:
    """Try 300 clips up to the largest weight and keep the best."""
    largest = weight.abs().max().item()
    clips = [largest * step / 300 for step in range(1, 301)]
    return min(clips, key=lambda clip: clip_error(weight, bits, clip))


def samples() -> dict[str, Tensor]:
    """Seeded weights of three shapes."""
    rng = np.random.default_rng(0)
    return {
        "a bell": torch.tensor(rng.standard_normal(5000)),
        "a narrow bell": torch.tensor(0.02 * rng.standard_normal(5000)),
        "a box": torch.tensor(rng.uniform(-1, 1, 5000)),
    }


def check_best_clip(answer: Any) -> None:
    """Measure what the learner's clip costs, whatever way it was found."""
    for bits in (4, 3):
        for name, weight in samples().items():
            mine = as_float(call(answer, weight.clone(), bits), f"clip of {name}, {bits} bits")
            if not 0 < mine < math.inf:
                raise Wrong(f"{name}, {bits} bits: a clip is a positive number, yours is {mine:g}")
            largest = weight.abs().max().item()
            cost = clip_error(weight, bits, mine)
            excess = cost / clip_error(weight, bits, best_clip(weight, bits)) - 1
            if excess > 0.01 and abs(mine - largest) < 1e-9 * largest:
                raise Wrong(f"{name}, {bits} bits: you return the largest weight; cutting it helps")
            if excess > 0.01:
                sigmas = mine / weight.std().item()
                raise Wrong(
                    f"{name}, {bits} bits: your clip {mine:.4g} ({sigmas:.2f} standard deviations) "
                    f"has {100 * excess:.1f} % more error than the best"
                )


def gain(weight: Tensor, group_size: int) -> float:
    """DB gained by one 4-bit grid per group over one grid for the whole matrix."""
    flat = weight.reshape(1, -1)
    whole = sqnr(flat, rtn(flat, Scheme(bits=4)).dequantize())
    return sqnr(weight, rtn(weight, Scheme(bits=4, group_size=group_size)).dequantize()) - whole


def row_gain(weight: Tensor, group_size: int) -> float:
    """Make a typical error: ``group_size=None`` is a row, not the whole matrix."""
    rows = sqnr(weight, rtn(weight, Scheme(bits=4)).dequantize())
    return sqnr(weight, rtn(weight, Scheme(bits=4, group_size=group_size)).dequantize()) - rows


def check_gain(answer: Any) -> None:
    """Compare on a plain matrix and on one with a few large weights."""
    rng = np.random.default_rng(1)
    plain = torch.tensor(rng.standard_normal((64, 256)))
    tailed = torch.tensor(rng.standard_t(4, (64, 256)))
    for weight in (plain, tailed):
        for size in (64, 16):
            mine = as_float(call(answer, weight.clone(), size), f"gain of groups of {size}")
            right = gain(weight, size)
            if abs(mine - right) <= 0.01:
                continue
            if abs(mine + right) <= 0.01:
                raise Wrong(f"{mine:.2f} dB has the wrong sign: groups minus whole matrix")
            if abs(mine - row_gain(weight, size)) <= 0.01:
                raise Wrong(
                    f"{mine:.2f} dB is the gain over one grid per row; "
                    "a scheme without group size is a row: make the matrix one long row"
                )
            expect(mine, right, f"gain of groups of {size}", abs_=0.01, reveal=True)


def absmax_7(w: np.ndarray) -> np.ndarray:
    """Largest size over 7."""
    return np.abs(w).max(1, keepdims=True) / 7


def absmax_7_5(w: np.ndarray) -> np.ndarray:
    """Largest size over 7.5: the largest weight lands on a tie."""
    return np.abs(w).max(1, keepdims=True) / w.dtype.type(7.5)


def signed_max(w: np.ndarray) -> np.ndarray:
    """Signed extreme over -8."""
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    return np.where(high > -low, high, low) / -8


def codes(groups: np.ndarray, rule: Rule) -> np.ndarray:
    """4-bit codes of a symmetric rule, in the groups' own precision."""
    return np.clip(np.round(groups / rule(groups)), -8, 7)


def flips(groups: np.ndarray, rule: Rule) -> float:
    """Share of rows whose codes change from float32 to float64."""
    single = groups.astype(np.float32)
    double = single.astype(np.float64)
    changed = (codes(single, rule) != codes(double, rule)).any(axis=1)
    return float(changed.mean())


def weights_changed(groups: np.ndarray, rule: Rule) -> float:
    """Make a typical error: the share of weights, not of rows."""
    return float((codes(groups, rule) != codes(groups.astype(np.float64), rule)).mean())


def unclipped(groups: np.ndarray, rule: Rule) -> float:
    """Make a typical error: 7.5 as 8 or as 7 is the same code, once it is clipped."""
    single, double = (np.round(w / rule(w)) for w in (groups, groups.astype(np.float64)))
    return float((single != double).any(axis=1).mean())


def check_flips(answer: Any) -> None:
    """Compare three rules and two sizes."""
    rng = np.random.default_rng(2)
    for size in (32, 8):
        groups = rng.standard_normal((4000, size)).astype(np.float32)
        for rule in (absmax_7_5, signed_max, absmax_7):
            what = f"{rule.__name__}, groups of {size}"
            mine = as_float(call(answer, groups.copy(), rule), what)
            right = flips(groups, rule)
            if abs(mine - 100 * right) < 0.5 < mine:
                raise Wrong(f"{what}: {mine:g} looks like percent; return a share from 0 to 1")
            if right and abs(mine - weights_changed(groups, rule)) < 1e-6:
                raise Wrong(f"{what}: {mine:.4g} is the share of weights; count rows with a change")
            if right and abs(mine - unclipped(groups, rule)) < 1e-6:
                raise Wrong(f"{what}: {mine:.4g} forgets that codes end at -8 and 7")
            expect(mine, right, what, abs_=0.004, reveal=True)


FACTORS = {"5 bits": 2.90**2 / 3, "8 bits": 3.92**2 / 3}


def check_factors(answer: Any) -> None:
    """Compare both factors; name the forgotten square and the upside-down ratio."""
    if not isinstance(answer, dict):
        raise Wrong(f"expected a dict with {', '.join(FACTORS)}, yours is {answer!r:.60}")
    for name, right in FACTORS.items():
        if name not in answer:
            raise Wrong(f"{name!r} is missing")
        mine = as_float(answer[name], name)
        if abs(mine / math.sqrt(right) - 1) < 0.03:
            raise Wrong(f"{name}: {mine:.4g} is the factor of the step; the error is squared")
        if abs(mine * right - 1) < 0.03:
            raise Wrong(f"{name}: {mine:.4g} is upside down; a wider grid has the larger error")
        expect(mine, right, name, rel=0.03)


EXERCISES = [
    Exercise(
        "a",
        "Predict the SQNR of a box, a sine, a bell and a bell with an outlier within 0.3 dB.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_predictions,
        hints=[
            "only two things count: the bits, and how many standard deviations the grid reaches",
            "SQNR = 6.02 b + 4.77 - 20 log10(c / sigma); c / sigma is sqrt(3) for a box",
            "a sine of amplitude 1 has sigma = 1 / sqrt(2); reaching 4 times further costs 2 bits",
        ],
        solution={"box": 30.1, "sine": 49.9, "bell": 39.0, "outlier": 26.9},
        wrong=[
            {"box": 15.05, "sine": 49.9, "bell": 39.0, "outlier": 26.9},
            {"box": 30.1, "sine": 48.2, "bell": 39.0, "outlier": 26.9},
            {"box": 30.1, "sine": 49.9, "bell": 48.2, "outlier": 48.2},
            {"box": 30.1, "sine": 49.9, "bell": 32.94, "outlier": 26.9},
            {"box": 30.1, "sine": 49.9, "bell": 39.0},
        ],
    ),
    Exercise(
        "b",
        "Write best_clip(weight, bits): the clip of least squared error on 2**bits - 1 levels.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_best_clip,
        hints=[
            "first a function that returns the error for one clip, then try many clips",
            "step = clip / (2**(bits - 1) - 1); round, keep codes within the range, times step",
            "try 100 or more clips between 0 and the largest weight, and return the best",
        ],
        solution=best_clip,
        wrong=[
            lambda weight, bits: weight.abs().max().item(),
            lambda weight, bits: 2.47 * weight.std().item(),
            lambda weight, bits: 2.47,
            lambda weight, bits: torch.quantile(weight.abs(), 0.95).item(),
            lambda weight, bits: -1.0,
            lambda weight: weight,
        ],
    ),
    Exercise(
        "c",
        "Write gain(weight, group_size): dB gained over one 4-bit grid for the whole matrix.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_gain,
        hints=[
            "ql.sqnr(weight, rounded) gives dB, and ql.rtn(weight, scheme).dequantize() rounds",
            "group_size=None is a row; reshape the matrix to (1, -1) for a single grid",
            "gain = SQNR with groups - SQNR of the one long row",
        ],
        solution=gain,
        wrong=[
            row_gain,
            lambda weight, group_size: -gain(weight, group_size),
            lambda weight, group_size: 10 ** (gain(weight, group_size) / 10),
            lambda weight, group_size: weight,
        ],
    ),
    Exercise(
        "d",
        "Write flips(groups, rule): the share of rows whose codes depend on the precision.",
        difficulty=3,
        importance=3,
        minutes=10,
        check=check_flips,
        hints=[
            "compute scale and codes twice: from the array, and from array.astype(np.float64)",
            "codes = np.clip(np.round(w / rule(w)), -8, 7)",
            "a row counts once, however many of its codes differ: (a != b).any(axis=1).mean()",
        ],
        solution=flips,
        wrong=[
            weights_changed,
            unclipped,
            lambda groups, rule: 100 * flips(groups, rule),
            lambda groups, rule: 0.133,
            lambda groups, rule: 0.0,
        ],
    ),
    Exercise(
        "e",
        "Say by which factor the bell's best clip raises the error of a box, at 5 and at 8 bits.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_factors,
        hints=[
            "nothing is cut in either grid, so only the rounding error counts: step**2 / 12",
            "a box from -1 to 1 has sigma = 1 / sqrt(3); its own grid reaches 1",
            "2.90 sigma is 1.674: the step grows by this factor, the squared error by its square",
        ],
        solution={"5 bits": 2.80, "8 bits": 5.12},
        wrong=[
            {"5 bits": 1.674, "8 bits": 2.263},
            {"5 bits": 0.357, "8 bits": 0.195},
            {"5 bits": 2.04, "8 bits": 2.04},
            {"5 bits": 2.80},
        ],
    ),
]
