"""Module 06: a header, weights from blocks, packed scales, a hostile claim, and a control."""

from __future__ import annotations

import math
import struct
from functools import cache
from typing import Any

import numpy as np

from quantlab.gguf.codec import dequantize, quantize
from quantlab.gguf.cursor import FormatError
from quantlab.quiz.check import Exercise
from quantlab.quiz.exercises.gguf_answers import (
    Row,
    added,
    another_error,
    big_endian,
    control,
    cut_short,
    end_to_end,
    fixed_places,
    header,
    in_letters,
    in_words,
    judged_by_itself,
    low_bits_only,
    neighbors,
    pack_scales,
    start_only,
    swapped_halves,
    tensor_data,
    topless,
    uncentered,
    untouched,
    unweighted,
    weight,
    wrapping,
)
from quantlab.quiz.expect import NotAttempted, Wrong, call, describe, expect, show


def example(version: int, tensors: int, pairs: int, key: str, value: str) -> bytes:
    """Return the beginning of a file with this header, and some bytes of what follows."""
    parts = [b"GGUF", struct.pack("<IQQ", version, tensors, pairs)]
    for number, text in enumerate((key, value)):
        raw = text.encode()
        parts += [struct.pack("<I", 8)] * number + [struct.pack("<Q", len(raw)), raw]
    return b"".join(parts) + bytes(range(64, 104))


def check_header(answer: Any) -> None:
    """Compare the header of three files, one with a value that is not plain letters."""
    cases = [
        (3, 38, 21, "general.architecture", "llama"),
        (2, 3, 1, "general.name", "small"),
        (3, 5_000_000_000, 2, "author", "Zoë \u2605"),
    ]
    for case in cases:
        mine = call(answer, example(*case))
        if isinstance(mine, list | tuple) and list(mine[:3]) == list(
            big_endian(example(*case))[:3]
        ):
            raise Wrong("these numbers have their bytes in reverse: GGUF is little-endian, '<'")
        expect(mine, case, "version, tensors, pairs, key, value", reveal=True)


def check_weight(answer: Any) -> None:
    """Compare all weights of a block of each type with the library's; name the usual slips."""
    rng = np.random.default_rng(6)
    slips = {
        neighbors: "a byte holds weights that lie 16 (Q4_0) or 32 (Q4_K) apart, not neighbors",
        added: "the minimum of Q4_K is subtracted: d * scale * code - dmin * minimum",
        low_bits_only: "scales and minima 4 to 7 have two more bits, on top of bytes 0-3 and 4-7",
        uncentered: "in Q4_0 the code 8 stands for zero",
    }
    for type, size in (("Q4_0", 32), ("Q4_K", 256)):
        block = quantize(rng.standard_normal(size), type)
        right = dequantize(block, type).tolist()
        for i in (0, 17, 31) if size == 32 else (0, 33, 70, 127, 128, 161, 230, 255):
            mine = call(answer, type, block.tobytes(), i)
            if matches(mine, right[i]):
                continue
            for slip, reason in slips.items():
                if matches(mine, slip(type, block.tobytes(), i)):
                    raise Wrong(f"{type}, weight {i}: {show(mine)}; {reason}")
            expect(mine, right[i], f"{type}, weight {i}", rel=1e-5, abs_=1e-7, reveal=True)


def matches(value: Any, number: float) -> bool:
    """Tell whether a learner's value is this number, up to float32's rounding."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return False
    return math.isclose(float(value), number, rel_tol=1e-5, abs_tol=1e-7)


def check_scales(answer: Any) -> None:
    """Compare packed bytes, first small numbers, then such as need all six bits."""
    rng = np.random.default_rng(12)
    cases = [(list(range(1, 9)), list(range(8, 0, -1)))]
    cases += [(rng.integers(64, size=8).tolist(), rng.integers(64, size=8).tolist())] * 2
    slips = {
        end_to_end: "these are 16 codes end to end; ggml keeps the first four of each in a byte's "
        "low six bits, so that they can be read without shifting over byte borders",
        swapped_halves: "in bytes 8 to 11 the scale has the low half, the minimum the high half",
        topless: "the upper two bits of numbers 4 to 7 are missing: they go on top of bytes 0 to 7",
    }
    for scales, minima in cases:
        mine = call(answer, list(scales), list(minima))
        mine = list(mine) if isinstance(mine, bytes | tuple | np.ndarray) else mine
        for slip, reason in slips.items():
            if mine == slip(scales, minima) != pack_scales(scales, minima):
                raise Wrong(reason)
        expect(mine, pack_scales(scales, minima), "bytes", reveal=True)


def check_claims(answer: Any) -> None:
    """Try honest claims, which must give the bytes, and false ones, which must raise."""
    if not callable(answer):
        raise Wrong(f"expected a function, yours is {show(answer)}")
    data = bytes(range(256)) * 4
    honest = [(32, 3, 18), (0, 7, 144), (1024 - 34, 1, 34), (512, 0, 18), (1024, 0, 18)]
    for claim in honest:
        expect(call(answer, data, *claim) == tensor_data(data, *claim), True,
               f"start, blocks, bytes {claim}: these bytes are in the file; equal")  # fmt: skip
    false = [(1024 - 33, 1, 34), (32, 1000, 18), (2000, 1, 18), (0, 2**60, 16), (32, 2**62, 20)]
    for claim in false:
        refuses(answer, data, claim)


def refuses(function: Any, data: bytes, claim: tuple[int, int, int]) -> None:
    """Raise Wrong unless a function refuses a claim with a FormatError."""
    what = f"start {claim[0]}, {claim[1]} blocks of {claim[2]}, in {len(data)} bytes"
    try:
        result = function(data, *claim)
    except FormatError:
        return
    except Exception as problem:  # whatever a learner's code raises is feedback, not our error
        raise Wrong(
            f"{what}: it raised {describe(problem)}; the caller waits for FormatError"
        ) from None
    if result is None or result is ...:
        raise NotAttempted
    found = f"{len(result)} bytes" if isinstance(result, bytes) else show(result)
    raise Wrong(f"{what}: it returned {found}, and should have raised FormatError")


@cache
def layer() -> tuple[Row, Row]:
    """Return a weight (16, 256) and an importance (256,) that spans three decades."""
    rng = np.random.default_rng(7)
    W = rng.standard_normal((16, 256)).astype(np.float32)
    return W, (10 ** rng.uniform(-2, 1, 256)).astype(np.float32)


def check_control(answer: Any) -> None:
    """Compare the ratio for the true order and for two shuffled ones."""
    W, importance = layer()
    slips = {
        judged_by_itself: "is judged by the shuffled imatrix; the judge is the true one",
        untouched: "comes from the true imatrix; quantize with importance[order]",
        unweighted: "is the plain error; weight each column with its importance",
    }
    for seed in (None, 1, 2):
        order = np.arange(256) if seed is None else np.random.default_rng(seed).permutation(256)
        mine = call(answer, W.copy(), importance.copy(), order, "Q4_K")
        right = control(W, importance, order, "Q4_K")
        for slip, reason in slips.items():
            number = slip(W, importance, order, "Q4_K")
            if matches(mine, number) and not math.isclose(number, right, rel_tol=1e-4):
                raise Wrong(f"{show(float(mine))} {reason}")
        word = "the true order" if seed is None else "a shuffled order"
        expect(mine, right, f"ratio for {word}", rel=1e-4, reveal=True)


EXERCISES = [
    Exercise(
        "a",
        "Read version, counts and the first string of a GGUF header.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_header,
        hints=[
            "24 bytes of fixed layout; then a string (its length first), a type, and a string",
            "struct.unpack_from('<IQQ', data, 4) gives the numbers; a string is '<Q' and so many "
            "bytes of UTF-8; the type between key and value takes 4 bytes",
            "version, tensors, pairs, length = struct.unpack_from('<IQQQ', data, 4); the key is "
            "data[32:32 + length].decode()",
        ],
        solution=header,
        wrong=[big_endian, in_words, fixed_places, in_letters],
    ),
    Exercise(
        "b",
        "Write weight(type, block, i) for Q4_0 and Q4_K.",
        difficulty=3,
        importance=5,
        minutes=15,
        check=check_weight,
        hints=[
            "three questions: which byte, which half of it, which scale",
            "Q4_0: byte 2 + i % 16, half i // 16. Q4_K: sub-block j = i // 32; byte 16 + 32 * "
            "(i // 64) + i % 32, half j % 2; scale j and minimum j from the twelve bytes",
            "struct.unpack_from('<e', block) reads a float16; (byte >> 4 * half) & 15 a half",
        ],
        solution=weight,
        wrong=[neighbors, added, low_bits_only, uncentered],
    ),
    Exercise(
        "c",
        "Pack 8 six-bit scales and 8 six-bit minima into the 12 bytes of Q4_K.",
        difficulty=3,
        importance=3,
        minutes=10,
        check=check_scales,
        hints=[
            "numbers 0 to 3 fill the low six bits of a byte each; what is left on top, two bits?",
            "byte j = scale j + the upper two bits of scale j + 4, moved to bits 6-7; byte 4 + j "
            "the same of the minima; byte 8 + j = low halves of scale and minimum j + 4",
            "first = [scales[j] | scales[j + 4] >> 4 << 6 for j in range(4)]",
        ],
        solution=pack_scales,
        wrong=[end_to_end, swapped_halves, topless],
    ),
    Exercise(
        "d",
        "Return a tensor's bytes, or refuse a claim that the file cannot keep.",
        difficulty=2,
        importance=5,
        minutes=8,
        check=check_claims,
        hints=[
            "Python's slices never complain: data[1000:2000] of 1,024 bytes has 24",
            "compute where the tensor should end and compare it with len(data), before the slice",
            "raise ql.gguf.FormatError(f'tensor should end at byte {end} ...')",
        ],
        solution=tensor_data,
        wrong=[cut_short, another_error, wrapping, start_only],
    ),
    Exercise(
        "e",
        "Write the control: an imatrix in the wrong order must lose its advantage.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_control,
        hints=[
            "one thing is shuffled, the imatrix that the search sees; the judge stays",
            "ql.gguf.quantize(W, type, importance[order]), and once more without an imatrix",
            "error = ((Q - W) ** 2 * importance).sum() in float64; return shuffled / without",
        ],
        solution=control,
        wrong=[judged_by_itself, untouched, unweighted],
    ),
]
