"""Module 08: levels from quantiles, outlier channels, the price of scales, and a mixed product."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quantlab.double_quantization import stored_bits
from quantlab.floats import nf4_levels
from quantlab.methods.llm_int8 import int8_rows, llm_int8
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, Wrong, as_float, call, expect, show

P = 929 / 960  # the outermost probability of NF4

# ---------------------------------------------------------------- a: the levels


def levels(p: float, below: int, above: int) -> Tensor:
    """Return quantiles of even probabilities on both sides of zero, divided by the largest."""
    q = torch.special.ndtri
    up = q(torch.linspace(0.5, p, above + 1, dtype=torch.float64)[1:])
    down = -q(torch.linspace(0.5, p, below + 1, dtype=torch.float64)[1:]).flip(0)
    found = torch.cat([down, torch.zeros(1, dtype=torch.float64), up])
    return found / found.abs().max()


def unnormalized(p: float, below: int, above: int) -> Tensor:
    """Typical error: the outermost level is not 1."""
    scale = torch.special.ndtri(torch.tensor(p, dtype=torch.float64))
    return levels(p, below, above) * scale


def evenly_spaced(p: float, below: int, above: int) -> Tensor:
    """Typical error: even steps in the weights instead of even probabilities."""
    return torch.cat([torch.linspace(-1, 0, below + 1)[:-1], torch.linspace(0, 1, above + 1)])


def without_zero(p: float, below: int, above: int) -> Tensor:
    """Typical error: one row of probabilities from 1 - p to p, in which 1/2 is missing."""
    count = below + above + 1
    found = torch.special.ndtri(torch.linspace(1 - p, p, count, dtype=torch.float64))
    return found / found.abs().max()


def sides_exchanged(p: float, below: int, above: int) -> Tensor:
    """Typical error: more levels below zero than above."""
    return levels(p, above, below)


def check_levels(answer: Any) -> None:
    """Compare the sixteen levels of NF4 and the eight of a 3-bit table; name the usual slips."""
    for p, below, above in ((P, 7, 8), (0.9, 3, 4)):
        mine = call(answer, p, below, above)
        if isinstance(mine, list | tuple):
            mine = torch.tensor(mine, dtype=torch.float64)
        if not isinstance(mine, Tensor):
            raise Wrong(f"return {below + above + 1} levels as a tensor, yours is {show(mine)}")
        right = levels(p, below, above)
        if mine.shape == right.shape:
            for mistake, reason in {
                unnormalized: "divide by the largest magnitude: the outermost level is 1",
                evenly_spaced: "the probabilities are evenly spaced, not the levels",
                without_zero: "zero must be a level: make the two sides apart",
                sides_exchanged: "that is mirrored: `above` levels lie above zero",
            }.items():
                if torch.allclose(mine.double(), mistake(p, below, above).double(), atol=1e-6):
                    raise Wrong(reason)
        expect(mine, right, f"levels for p = {p:.4f}", abs_=1e-6)
    expect(call(answer, P, 7, 8), nf4_levels(), "NF4", abs_=1e-6)


# ---------------------------------------------------------------- b: the outliers


def outlier_columns(x: Tensor, threshold: float) -> list[int]:
    """Return the columns in which any token reaches the threshold."""
    return (x.abs() >= threshold).any(0).nonzero().flatten().tolist()


def signed(x: Tensor, threshold: float) -> list[int]:
    """Typical error: only positive numbers are looked at."""
    return (x >= threshold).any(0).nonzero().flatten().tolist()


def rows_instead(x: Tensor, threshold: float) -> list[int]:
    """Typical error: tokens instead of channels."""
    return (x.abs() >= threshold).any(1).nonzero().flatten().tolist()


def by_mean(x: Tensor, threshold: float) -> list[int]:
    """Typical error: the mean size, as AWQ has it."""
    return (x.abs().mean(0) >= threshold).nonzero().flatten().tolist()


def strictly(x: Tensor, threshold: float) -> list[int]:
    """Typical error: a number equal to the threshold does not count."""
    return (x.abs() > threshold).any(0).nonzero().flatten().tolist()


def check_outliers(answer: Any) -> None:
    """Compare the columns for a matrix with a negative outlier, and one equal to the threshold."""
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(8))
    x[3, 4], x[7, 11], x[2, 17] = -9.0, 6.0, 20.0
    for threshold in (6.0, 2.0, 50.0):
        mine = call(answer, x.clone(), threshold)
        if isinstance(mine, Tensor):
            mine = mine.flatten().tolist()
        if not isinstance(mine, list | tuple | set):
            raise Wrong(f"return a list of columns, yours is {show(mine)}")
        mine = sorted(int(as_float(value, "column")) for value in mine)
        if mine != outlier_columns(x, threshold):
            for mistake, reason in {
                signed: "take magnitudes: -9 is an outlier too",
                rows_instead: "these are tokens; a column is an input channel",
                by_mean: "one token is enough: any, not the mean",
                strictly: "a magnitude equal to the threshold counts: >=",
            }.items():
                if mine == mistake(x, threshold):
                    raise Wrong(reason)
        expect(mine, outlier_columns(x, threshold), f"columns at threshold {threshold:g}")


# ---------------------------------------------------------------- c: the price


def bits(block: int, second: int) -> float:
    """Return bits per weight: 4-bit codes, 8-bit scales, a float32 for `second` scales."""
    return 4 + 8 / block + 32 / (block * second)


def check_bits(answer: Any) -> None:
    """Compare bits per weight for four shapes of blocks; name the usual slips."""
    assert math.isclose(bits(64, 256), stored_bits(4, 64, double=True))
    for block, second in ((64, 256), (128, 256), (32, 64), (64, 128)):
        mine = as_float(call(answer, block, second), "bits per weight")
        for value, reason in {
            4 + 32 / block: "these are float32 scales; double quantization stores 8 bits a block",
            4 + 8 / block: "the second level needs a float32 too, for each group of scales",
            4 + 8 / block + 32 / second: "the second float32 serves block * second weights",
            4 + 32 / (block * second): "the 8-bit codes of the scales are stored as well",
        }.items():
            if math.isclose(mine, value, rel_tol=1e-9):
                raise Wrong(f"blocks of {block}, {second} scales: {reason}")
        expect(mine, bits(block, second), f"blocks of {block}, {second} scales", rel=1e-9)


# ---------------------------------------------------------------- d: the mixed product


def decompose(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Multiply outlier columns in float and the others as int8."""
    loud = (x.abs() >= threshold).any(0)
    codes, rows = int8_rows(x, threshold=threshold), int8_rows(weight)
    ordinary = codes.codes.double() @ rows.codes.double().T
    y = ordinary * codes.absmax[:, None] / 127 * rows.absmax / 127
    return y + x[:, loud].double() @ weight[:, loud].double().T


def outliers_lost(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Typical error: the float part was never added."""
    return decompose(x, weight, threshold) - loud_part(x, weight, threshold)


def loud_part(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Return the float part of the product."""
    loud = (x.abs() >= threshold).any(0)
    return x[:, loud].double() @ weight[:, loud].double().T


def counted_twice(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Typical error: the outlier columns stay in the int8 part."""
    return decompose(x, weight, 1e9) + loud_part(x, weight, threshold)


def scaled_by_all(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Typical error: the rows' scales still come from the outliers."""
    loud = (x.abs() >= threshold).any(0)
    codes, rows = int8_rows(x), int8_rows(weight)
    ordinary = codes.codes.masked_fill(loud, 0).double() @ rows.codes.double().T
    y = ordinary * codes.absmax[:, None] / 127 * rows.absmax / 127
    return y + loud_part(x, weight, threshold)


def all_in_float(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Typical error: nothing is quantized."""
    return x.double() @ weight.double().T


def check_decompose(answer: Any) -> None:
    """Compare products, and demand plain int8 where the threshold is above every input."""
    generator = torch.Generator().manual_seed(8)
    x, W = torch.randn(10, 32, generator=generator), torch.randn(6, 32, generator=generator)
    x[:, 5] *= 30
    named = {
        outliers_lost: "the outlier columns are missing: add their product in float",
        counted_twice: "outlier columns are counted twice: they leave the int8 part",
        scaled_by_all: "each row's absmax is taken over its ordinary entries only",
        all_in_float: "this is the float product: the ordinary columns go through int8",
    }
    for threshold in (6.0, 1e9):
        mine = call(answer, x.clone(), W.clone(), threshold)
        if mine is ...:
            raise NotAttempted
        if not isinstance(mine, Tensor) or mine.shape != (10, 6):
            raise Wrong(f"return y (10, 6), yours is {show(mine)}")
        for mistake, reason in named.items():
            wrong = mistake(x, W, threshold)
            right = decompose(x, W, threshold)
            if near(mine, wrong, 1e-4) and not near(wrong, right, 1e-4):
                raise Wrong(reason)
        right = decompose(x, W, threshold)
        if not near(mine, right, 1e-4) and not near(mine, llm_int8_of(x, W, threshold), 1e-4):
            raise Wrong(
                f"y at threshold {threshold:g} is off by {off(mine, right):.2g} of its size"
            )


def llm_int8_of(x: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Return the library's product, whose outlier weights are read back from int8."""
    return llm_int8(x, int8_rows(weight), threshold=threshold)


def off(value: Tensor, right: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return ((value.double() - right.double()).norm() / right.double().norm()).item()


def near(value: Tensor, right: Tensor, tolerance: float) -> bool:
    """Tell whether two tensors differ by at most this share."""
    return off(value, right) <= tolerance


EXERCISES = [
    Exercise(
        "a",
        "Write levels: a table of normal quantiles around zero.",
        difficulty=3,
        importance=4,
        minutes=12,
        check=check_levels,
        hints=[
            "two sides, each with its own even row of probabilities from 1/2 to p",
            "torch.special.ndtri is the quantile function; the first of each row is 0",
            "torch.linspace(0.5, p, above + 1)[1:] for the upper side; negate and flip the lower",
        ],
        solution=levels,
        wrong=[unnormalized, evenly_spaced, without_zero, sides_exchanged],
    ),
    Exercise(
        "b",
        "Write outlier_columns: the input channels that LLM.int8() multiplies in float.",
        difficulty=1,
        importance=5,
        minutes=5,
        check=check_outliers,
        hints=[
            "one loud token makes a whole channel an outlier",
            "x.abs() >= threshold is a matrix of booleans; which axis are the tokens?",
            ".any(0) leaves one boolean a column; .nonzero() their places",
        ],
        solution=outlier_columns,
        wrong=[signed, rows_instead, by_mean, strictly, lambda x, threshold: []],
    ),
    Exercise(
        "c",
        "Write bits: what a weight costs when its scales are quantized too.",
        difficulty=2,
        importance=5,
        minutes=6,
        check=check_bits,
        hints=[
            "three things are stored: 4-bit codes, an 8-bit code a block, a float32 now and then",
            "the 8 bits are shared by `block` weights, the 32 by `block * second`",
            "add the three shares",
        ],
        solution=bits,
        wrong=[
            lambda block, second: 4 + 32 / block,
            lambda block, second: 4 + 8 / block,
            lambda block, second: 4 + 8 / block + 32 / second,
            lambda block, second: 4 + 32 / (block * second),
            lambda block, second: 4.5,
        ],
    ),
    Exercise(
        "d",
        "Write decompose: int8 for ordinary columns, float for outliers, and a control.",
        difficulty=3,
        importance=5,
        minutes=14,
        check=check_decompose,
        hints=[
            "two products of different columns; their sum is the answer",
            "ql.int8_rows(x, threshold=threshold) leaves the outliers out of scales and codes",
            "ordinary = codes @ codes^T * absmax_x / 127 * absmax_w / 127; then add the loud part",
        ],
        solution=decompose,
        wrong=[outliers_lost, counted_twice, scaled_by_all, all_in_float],
    ),
]
