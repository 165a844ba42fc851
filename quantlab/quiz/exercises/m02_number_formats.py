"""Module 02: codes of E4M3, scale and zero point, ties, and saturation against wrapping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from quantlab.floats import FP8_E4M3
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, compare_calls, expect, show

E4M3_VALUES = (1.0, 0.3, -20.0, 0.005)


def e4m3_code(value: float) -> int:
    """Return the E4M3 byte nearest to a number."""
    return int(FP8_E4M3.encode(torch.tensor([value], dtype=torch.float64))[0])


def check_e4m3(answer: Any) -> None:
    """Compare four bytes; say what a wrong byte decodes to."""
    if not isinstance(answer, list | tuple) or len(answer) != len(E4M3_VALUES):
        raise Wrong(f"expected a list of {len(E4M3_VALUES)} codes, yours is {show(answer)}")
    for value, mine in zip(E4M3_VALUES, answer, strict=True):
        code = as_byte(mine)
        if code == e4m3_code(value):
            continue
        if code == e4m3_code(value) ^ 0x80:
            raise Wrong(f"{value:g}: 0x{code:02x} has the wrong sign bit (the first one)")
        decoded = float(FP8_E4M3.decode(torch.tensor([code], dtype=torch.uint8))[0])
        raise Wrong(f"{value:g}: 0x{code:02x} decodes to {decoded:g}, and another code is nearer")


def as_byte(code: Any) -> int:
    """Read 0x38, "0x38" or "38" as a byte."""
    if isinstance(code, str):
        digits = code.strip().lower().removeprefix("0x")
        if not digits or set(digits) - set("0123456789abcdef"):
            raise Wrong(f"{code!r} is no hexadecimal byte; write '0x38'")
        code = int(digits, 16)
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= 255:
        raise Wrong(f"expected a byte from 0x00 to 0xff, yours is {show(code)}")
    return code


def check_affine(answer: Any) -> None:
    """Compare scale and both zero points of [-0.5, 2]; name the usual confusions."""
    right = {"scale": 2.5 / 255, "uint8": 51, "int8": -77}
    if isinstance(answer, dict) and set(right) <= set(answer):
        scale = answer["scale"]
        if isinstance(scale, float) and math.isclose(scale, 2.5 / 256, rel_tol=1e-3):
            raise Wrong("scale 2.5/256 divides by the levels; 256 levels have 255 steps")
        if (answer["uint8"], answer["int8"]) == (204, 76):
            raise Wrong("204 counts the steps down from the top; count up from -0.5 to 0")
        if (answer["uint8"], answer["int8"]) == (-51, 77):
            raise Wrong("both signs are turned: Z is the code that means 0.0, x = S * (q - Z)")
        if answer["uint8"] == answer["int8"]:
            raise Wrong(
                f"both zero points are {answer['int8']}; int8 codes begin 128 below uint8's"
            )
    expect(answer, right, "range [-0.5, 2]", rel=1e-3)


def half_away(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties away from zero."""
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)


def check_half_away(answer: Any) -> None:
    """Try ties of both signs, then seeded numbers."""
    ties = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], dtype=torch.float64)
    rounded = call(answer, ties.clone())
    if isinstance(rounded, Tensor) and torch.equal(rounded.double(), torch.round(ties)):
        raise Wrong("0.5 becomes 0 and 2.5 becomes 2: this is half to even, torch.round's own rule")
    generator = torch.Generator().manual_seed(0)
    quarters = torch.randint(-40, 40, (50,), generator=generator).double() / 4
    compare_calls(answer, half_away, [(tie.reshape(1),) for tie in ties] + [(quarters,)])


def saturate(x: Tensor) -> Tensor:
    """Round to the nearest int8 code and stop at the ends of the range."""
    return torch.clamp(torch.round(x), -128, 127).to(torch.int8)


def wrap(x: Tensor) -> Tensor:
    """Round and keep the last eight bits: the control that must fail."""
    return (torch.round(x).to(torch.int64) & 255).to(torch.uint8).view(torch.int8)


def check_saturation(answer: Any) -> None:
    """Refuse wrapping by name, then compare on inputs inside and outside the range."""
    probe = call(answer, torch.tensor([200.0]))
    if not isinstance(probe, Tensor) or probe.dtype != torch.int8:
        kind = probe.dtype if isinstance(probe, Tensor) else type(probe).__name__
        raise Wrong(f"expected an int8 tensor, yours is {kind}")
    if probe.tolist() == [-56]:
        raise Wrong("200 becomes -56: the cast wraps. Saturation keeps it at 127")
    generator = torch.Generator().manual_seed(0)
    spread = torch.randint(-4000, 4000, (200,), generator=generator).double() / 10
    edges = torch.tensor([127.4, 127.6, -128.4, -128.6, math.inf, -math.inf])
    compare_calls(answer, saturate, [(torch.tensor([200.0]),), (edges,), (spread,)])


EXERCISES = [
    Exercise(
        "a",
        "Write 1.0, 0.3, -20.0 and 0.005 as E4M3 bytes in hexadecimal.",
        difficulty=2,
        importance=4,
        minutes=10,
        check=check_e4m3,
        hints=[
            "sign, 4 exponent bits, 3 mantissa bits: find the power of two below the number first",
            "stored exponent = E + 7; below 2**-6 the step stays 2**-9 (subnormal numbers)",
            "1.0 = 1.000 * 2**0, so the fields are 0 0111 000: the byte 0x38",
        ],
        solution=["0x38", "0x2a", "0xda", "0x03"],
        wrong=[
            ["0x38", "0x2a", "0x5a", "0x03"],
            ["0x40", "0x32", "0xe2", "0x0b"],
            ["0x38", "0x29", "0xda", "0x02"],
            ["0x38", "0x2a", "0xda"],
            ["one", "0x2a", "0xda", "0x03"],
        ],
    ),
    Exercise(
        "b",
        "Give scale and zero point of the range [-0.5, 2] for uint8 and for int8.",
        difficulty=1,
        importance=5,
        minutes=8,
        check=check_affine,
        hints=[
            "256 codes have 255 steps between the first and the last",
            "scale = (high - low) / 255, zero point = lowest code + round(-low / scale)",
            "uint8 begins at 0, int8 at -128: the same grid, the codes shifted by 128",
        ],
        solution={"scale": 2.5 / 255, "uint8": 51, "int8": -77},
        wrong=[
            {"scale": 2.5 / 256, "uint8": 51, "int8": -77},
            {"scale": "2.5 / 255", "uint8": 51, "int8": -77},
            {"scale": 2.5 / 255, "uint8": 51, "int8": 51},
            {"scale": 2.5 / 255, "uint8": -51, "int8": 77},
            {"scale": 2.5 / 255, "uint8": 204, "int8": 76},
            {"scale": 2 / 127, "uint8": 0, "int8": 0},
            {"scale": 2.5 / 255},
        ],
    ),
    Exercise(
        "c",
        "Write half_away(x): round a tensor to the nearest integers, ties away from zero.",
        difficulty=2,
        importance=3,
        minutes=8,
        check=check_half_away,
        hints=[
            "torch.round sends 0.5 to 0 and 2.5 to 2 (half to even); yours sends them to 1 and 3",
            "floor(x + 0.5) is right for positive numbers; look at -0.5 and -2.5",
            "round the size and put the sign back: torch.sign(x) * ...",
        ],
        solution=half_away,
        wrong=[
            torch.round,
            lambda x: torch.floor(x + 0.5),
            torch.trunc,
            lambda x: x + "half",
            3.0,
        ],
    ),
    Exercise(
        "d",
        "Write saturate(x): round to int8 and stop at -128 and 127; the wrapping cast must fail.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_saturation,
        hints=[
            "keep the value inside the range before you change the dtype",
            "torch.clamp(..., -128, 127) after torch.round, then .to(torch.int8)",
        ],
        solution=saturate,
        wrong=[
            wrap,
            lambda x: torch.clamp(torch.trunc(x), -128, 127).to(torch.int8),
            lambda x: torch.clamp(torch.round(x), -127, 127).to(torch.int8),
            lambda x: torch.clamp(torch.round(x), -128, 127),
        ],
    ),
]
