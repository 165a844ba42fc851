"""Module 04: repairs by hand, the blocked loop, column order, damping, and a control."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quantlab.block import second_moment
from quantlab.factor import inverse_cholesky
from quantlab.methods.gptq import gptq
from quantlab.methods.rtn import rtn
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect, show
from quantlab.scheme import Scheme
from quantlab.tensor import output_error

THREE = Scheme(bits=3)
DAMPS = [0.001, 0.01, 0.1, 1.0]


def check_steps(answer: Any) -> None:
    """Compare two repaired weights and the levels; name a turned sign and a stale inverse."""
    right = {"w2": 0.6, "w3": 2 / 15, "levels": [0, 1, 0]}
    if isinstance(answer, dict) and set(right) <= set(answer):
        if close(answer["w2"], 0.2):
            raise Wrong("w2 0.2: the sign is turned; -e * H^-1_12 is positive, as H^-1_12 = -1")
        if close(answer["w2"], 0.8):
            raise Wrong("w2 0.8: divide the error 0.4 by H^-1_11 = 2 before you pass it on")
        if close(answer["w3"], 0.2):
            raise Wrong("w3 0.2 uses H^-1_22 = 2; once weight 1 is eliminated it is 2 - 1/2 = 1.5")
        if answer["levels"] == [0, 0, 0]:
            raise Wrong("levels [0, 0, 0] are those of rounding to nearest: round the repaired w2")
    expect(answer, right, "two steps", abs_=0.005)


def close(value: Any, number: float) -> bool:
    """Tell whether a learner's value is this number."""
    return isinstance(value, int | float) and math.isclose(value, number, abs_tol=0.005)


def blocked(W: Tensor, U: Tensor, scale: Tensor, block_size: int) -> Tensor:
    """GPTQ in blocks: columns inside a block one by one, all later ones in one product."""
    W, Q = W.clone(), torch.zeros_like(W)
    for start in range(0, W.shape[1], block_size):
        stop = min(start + block_size, W.shape[1])
        errors = torch.zeros_like(W[:, start:stop])
        for j in range(start, stop):
            Q[:, j] = scale * torch.clamp(torch.round(W[:, j] / scale), -4, 3)
            errors[:, j - start] = (W[:, j] - Q[:, j]) / U[j, j]
            W[:, j + 1 : stop] -= torch.outer(errors[:, j - start], U[j, j + 1 : stop])
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return Q


def no_later_columns(W: Tensor, U: Tensor, scale: Tensor, block_size: int) -> Tensor:
    """Typical error: what lies after the block never hears of its errors."""
    parts = []
    for start in range(0, W.shape[1], block_size):
        stop = min(start + block_size, W.shape[1])
        inner = U[start:stop, start:stop]
        parts.append(blocked(W[:, start:stop], inner, scale, stop - start))
    return torch.cat(parts, 1)


def undivided(W: Tensor, U: Tensor, scale: Tensor, block_size: int) -> Tensor:
    """Typical error: pass w - q on without dividing it by U_jj."""
    return blocked(W, U - torch.diag(U.diagonal()) + torch.eye(len(U)), scale, block_size)


def nearest(W: Tensor, U: Tensor, scale: Tensor, block_size: int) -> Tensor:
    """Typical error: no repair at all."""
    return scale[:, None] * torch.clamp(torch.round(W / scale[:, None]), -4, 3)


@cache
def layer() -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight (16, 24), 20 calibration inputs and 2,000 held-out ones, float64."""
    generator = torch.Generator().manual_seed(4)
    mix = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    mix += 3 * torch.randn(24, 2, generator=generator, dtype=torch.float64).repeat(1, 12)
    tokens = torch.randn(2020, 24, generator=generator, dtype=torch.float64) @ mix.T
    W = torch.randn(16, 24, generator=generator, dtype=torch.float64)
    return W, tokens[:20], tokens[20:]


def check_blocked(answer: Any) -> None:
    """Compare with the column-wise answer for block sizes that divide 24 and that do not."""
    W, _, tokens = layer()
    U = inverse_cholesky(second_moment(tokens))
    scale = W.abs().amax(1) / 4
    right = blocked(W, U, scale, 1)
    plain = nearest(W, U, scale, 1)
    for size in (24, 1, 8, 5):
        mine = call(answer, W.clone(), U.clone(), scale.clone(), size)
        if isinstance(mine, Tensor) and torch.equal(mine, plain):
            raise Wrong(
                f"block_size={size}: these are the levels of rounding to nearest: no repair"
            )
        expect(mine, right, f"block_size={size}", abs_=1e-12, reveal=True)


def check_order(answer: Any) -> None:
    """Compare an order of six columns; name the usual other rankings."""
    named: dict[tuple[Any, ...], str] = {
        (4, 0, 2, 3, 5, 1): "the smallest mean square comes first here; the largest should",
        (4, 5, 2, 3, 1, 0): "the largest weights come first here; the order asks the inputs alone",
        (1, 5, 3, 2, 0, 4): "columns 2 and 3 are equal, and equal ones keep their order",
        (0, 1, 2, 3, 4, 5): "this is left to right, GPTQ without act_order",
    }
    given = tuple(answer) if isinstance(answer, list | tuple) else ()
    if all(isinstance(place, int) for place in given) and given in named:
        raise Wrong(named[given])
    expect(answer, [1, 5, 2, 3, 0, 4], "order")


def sweep_damping(
    W: Tensor, calibration: Tensor, held_out: Tensor, scheme: Scheme, damps: list[float]
) -> list[float]:
    """Solve with H of the calibration tokens, measure on the held-out ones."""
    H, truth = second_moment(calibration), second_moment(held_out)
    solved = [gptq(W, H, scheme, damp=damp).dequantize() for damp in damps]
    return [output_error(W, Q, truth) for Q in solved]


def on_calibration(
    W: Tensor, calibration: Tensor, held_out: Tensor, scheme: Scheme, damps: list[float]
) -> list[float]:
    """Typical error: measure on the tokens that made H."""
    return sweep_damping(W, calibration, calibration, scheme, damps)


def peeking(
    W: Tensor, calibration: Tensor, held_out: Tensor, scheme: Scheme, damps: list[float]
) -> list[float]:
    """Typical error: solve with H of the held-out tokens."""
    return sweep_damping(W, held_out, held_out, scheme, damps)


def undamped(
    W: Tensor, calibration: Tensor, held_out: Tensor, scheme: Scheme, damps: list[float]
) -> list[float]:
    """Typical error: forget to hand damp on."""
    return sweep_damping(W, calibration, held_out, scheme, [0.01] * len(damps))


def check_damping(answer: Any) -> None:
    """Compare errors on held-out tokens; name the two ways to mix the texts up."""
    arguments = (*layer(), THREE, DAMPS)
    mine = call(answer, *arguments)
    mine = mine.tolist() if isinstance(mine, Tensor) else mine
    mixed = {
        on_calibration: "these errors are measured on the calibration tokens, where less damping "
        "always looks better; measure on held_out",
        peeking: "this H comes from held_out, the text that is to judge it; take calibration",
        undamped: "every damp gives the same error: hand damp on to ql.gptq",
    }
    for mistake, reason in mixed.items():
        if same(mine, mistake(*arguments)):
            raise Wrong(reason)
    expect(mine, sweep_damping(*arguments), "errors", rel=1e-6)


def same(mine: Any, errors: list[float]) -> bool:
    """Tell whether a learner's list holds these numbers."""
    if not isinstance(mine, list | tuple) or len(mine) != len(errors):
        return False
    if not all(hasattr(value, "__float__") for value in mine):
        return False
    pairs = zip(mine, errors, strict=True)
    return all(math.isclose(float(a), b, rel_tol=1e-6) for a, b in pairs)


def control(W: Tensor, H: Tensor, scheme: Scheme, order: Tensor) -> float:
    """Solve with a shuffled H, judge with the true one."""
    wrong_H = H[order][:, order]
    solved = gptq(W, wrong_H, scheme).dequantize()
    plain = rtn(W, scheme).dequantize()
    return output_error(W, solved, H) / output_error(W, plain, H)


def judged_by_shuffled(W: Tensor, H: Tensor, scheme: Scheme, order: Tensor) -> float:
    """Typical error: measure with the shuffled H, which then looks as good as the true one."""
    H = H[order][:, order]
    return control(W, H, scheme, torch.arange(len(H)))


def unshuffled(W: Tensor, H: Tensor, scheme: Scheme, order: Tensor) -> float:
    """Typical error: solve with the true H."""
    return control(W, H, scheme, torch.arange(len(H)))


def rows_only(W: Tensor, H: Tensor, scheme: Scheme, order: Tensor) -> float:
    """Typical error: a matrix with shuffled rows alone is no second moment."""
    solved = gptq(W, H[order], scheme).dequantize()
    return output_error(W, solved, H) / output_error(W, rtn(W, scheme).dequantize(), H)


def check_control(answer: Any) -> None:
    """Compare the ratio for the true order and two shuffled ones."""
    W, _, tokens = layer()
    H = second_moment(tokens)
    for seed in (None, 1, 2):
        order = torch.arange(24)
        if seed is not None:
            order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        mine = call(answer, W.clone(), H.clone(), THREE, order)
        word = "the true order" if seed is None else "a shuffled order"
        if same([mine], [judged_by_shuffled(W, H, THREE, order)]) and seed is not None:
            raise Wrong(
                f"{word}: {show(float(mine))} is measured with the shuffled H; judge with H"
            )
        if same([mine], [unshuffled(W, H, THREE, order)]) and seed is not None:
            raise Wrong(
                f"{word}: {show(float(mine))} comes from the true H; solve with the shuffled"
            )
        expect(mine, control(W, H, THREE, order), f"ratio for {word}", rel=1e-6, reveal=True)


EXERCISES = [
    Exercise(
        "a",
        "Carry two GPTQ steps out by hand for three weights.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_steps,
        hints=[
            "round the first weight, divide its error by H^-1_11, pass it on along row 1 of H^-1",
            "w_i becomes w_i - (w_p - q) / H^-1_pp * H^-1_pi; then H^-1 loses row and column p: "
            "H^-1_22 becomes H^-1_22 - H^-1_21 H^-1_12 / H^-1_11",
            "step 1: q = 0, error 0.4, w2 = 0.4 - 0.4 / 2 * (-1)",
        ],
        solution={"w2": 0.6, "w3": 0.1333, "levels": [0, 1, 0]},
        wrong=[
            {"w2": 0.2, "w3": 0.4, "levels": [0, 0, 0]},
            {"w2": 0.8, "w3": 0.3, "levels": [0, 1, 0]},
            {"w2": 0.6, "w3": 0.2, "levels": [0, 1, 0]},
            {"w2": 0.6, "w3": 0.1333, "levels": [0, 0, 0]},
            {"w2": 0.6, "levels": [0, 1, 0]},
        ],
    ),
    Exercise(
        "b",
        "Write blocked GPTQ; every block size must give the column-wise answer to 1e-12.",
        difficulty=4,
        importance=5,
        minutes=15,
        check=check_blocked,
        hints=[
            "two loops: blocks start..stop, and columns j inside; keep the block's errors",
            "inside: columns j+1..stop get -e U[j, j+1:stop]; after the block: columns stop.. get "
            "-errors @ U[start:stop, stop:]",
            "e = (W[:, j] - Q[:, j]) / U[j, j]; begin with W = W.clone(), and mind a short last "
            "block",
        ],
        solution=blocked,
        wrong=[
            nearest,
            no_later_columns,
            undivided,
            lambda W, U, scale, block_size: blocked(W, U.T, scale, block_size),
            lambda W, U, scale, block_size: blocked(W, U, scale, block_size)[:, :-1],
        ],
    ),
    Exercise(
        "c",
        "Give the order in which act_order=True rounds six columns.",
        difficulty=1,
        importance=3,
        minutes=5,
        check=check_order,
        hints=[
            "which columns should be rounded while most others are still free to repair them?",
            "by falling H_jj, the mean square of the input; weights play no part; ties keep order",
            "the largest of (0.5, 9, 2, 2, 0, 4) is in column 1",
        ],
        solution=[1, 5, 2, 3, 0, 4],
        wrong=[
            [4, 0, 2, 3, 5, 1],
            [4, 5, 2, 3, 1, 0],
            [1, 5, 3, 2, 0, 4],
            [0, 1, 2, 3, 4, 5],
            [1, 5, 2],
        ],
    ),
    Exercise(
        "d",
        "Write sweep_damping: held-out output errors of GPTQ for several dampings.",
        difficulty=2,
        importance=5,
        minutes=12,
        check=check_damping,
        hints=[
            "two texts, two matrices: one to solve with, one to judge with",
            "H = ql.second_moment(calibration), truth = ql.second_moment(held_out)",
            "for each damp: Q = ql.gptq(W, H, scheme, damp=damp).dequantize(), then "
            "ql.output_error(W, Q, truth)",
        ],
        solution=sweep_damping,
        wrong=[on_calibration, peeking, undamped, lambda *arguments: [0.0]],
    ),
    Exercise(
        "e",
        "Write the control: GPTQ with a shuffled H must lose to RTN.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_control,
        hints=[
            "a shuffled H is still symmetric: rows and columns move together",
            "H[order][:, order] goes into ql.gptq; ql.output_error takes the true H, for both",
            "return error of GPTQ divided by the error of ql.rtn(W, scheme)",
        ],
        solution=control,
        wrong=[judged_by_shuffled, unshuffled, rows_only, lambda W, H, scheme, order: 1.0],
    ),
]
