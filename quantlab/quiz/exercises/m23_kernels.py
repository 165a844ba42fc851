"""Module 23: decode a byte, hoist the scale, read x once, and a judge that counts bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quantlab.kernels.traffic import Memory, tiled_gemv
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, Wrong, call, expect

GROUP = 8  # weights a scale, in the small problems here


def problem(rows: int, columns: int, seed: int) -> tuple[Memory, np.ndarray]:
    """Return a memory with a random 4-bit weight and a vector, and their product."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
    scale = rng.choice([0.5, -0.25, 1.0, 2.0], (rows, columns // GROUP)).astype(np.float16)
    x = rng.integers(-4, 5, columns).astype(np.float32)
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, columns).astype(np.float64)
    weight = (pairs - 8) * np.repeat(scale, GROUP, axis=1)
    return Memory(codes=codes, scale=scale, x=x, y=np.zeros(rows, np.float32)), weight @ x


def one_row(seed: int) -> tuple[Memory, np.ndarray]:
    """Return a problem of one row, its arrays without the axis of rows."""
    memory, target = problem(1, 32, seed)
    flat = {name: getattr(memory, name).values[0] for name in ("codes", "scale")}
    return Memory(**flat, x=memory.x.values, y=memory.y.values), target


# ---------------------------------------------------------------- a: the missing operation


def decode(byte: int) -> tuple[int, int]:
    """Return the codes of a byte, low nibble first, less 8."""
    return (byte & 15) - 8, (byte >> 4) - 8


def no_shift(byte: int) -> tuple[int, int]:
    """Forget to shift: the high code comes out sixteen times too large."""
    return (byte & 15) - 8, (byte & 240) - 8


def no_mask(byte: int) -> tuple[int, int]:
    """Forget to mask: the low code carries the high one on top."""
    return byte - 8, (byte >> 4) - 8


def high_first(byte: int) -> tuple[int, int]:
    """Return the codes in the other order."""
    return (byte >> 4) - 8, (byte & 15) - 8


def no_zero_point(byte: int) -> tuple[int, int]:
    """Forget that code 8 means zero."""
    return byte & 15, byte >> 4


def check_decode(answer: Any) -> None:
    """Try all bytes, and name the usual slips."""
    slips = {
        no_shift: "the high code still stands in bits 4 to 7: shift it down",
        no_mask: "the low code still carries the high one above it: mask it with & 15",
        high_first: "the first code lies in the low four bits",
        no_zero_point: "code 8 stands for 0: subtract it",
    }
    for byte in (0x21, *range(256)):
        mine = call(answer, byte)
        mine = tuple(mine) if isinstance(mine, list | np.ndarray) else mine
        for slip, reason in slips.items():
            if mine == slip(byte) != decode(byte):
                raise Wrong(f"byte 0x{byte:02x}: {reason}")
        expect(mine, decode(byte), f"codes of byte 0x{byte:02x}", reveal=True)


# ---------------------------------------------------------------- b: hoist the scale


def dot(memory: Memory, group_size: int) -> None:
    """Multiply one row; a scale is loaded after its group's sum."""
    total = np.float32(0)
    for g in range(len(memory.scale)):
        part = np.float32(0)
        for byte in range(g * group_size // 2, (g + 1) * group_size // 2):
            low, high = decode(int(memory.codes[byte]))
            part += low * memory.x[2 * byte] + high * memory.x[2 * byte + 1]
        total += np.float32(memory.scale[g]) * part
    memory.y[0] = total


def scale_each(memory: Memory, group_size: int) -> None:
    """Load the scale for every weight."""
    total = np.float32(0)
    for byte in range(len(memory.codes)):
        low, high = decode(int(memory.codes[byte]))
        for k, code in ((2 * byte, low), (2 * byte + 1, high)):
            total += np.float32(memory.scale[k // group_size]) * code * memory.x[k]
    memory.y[0] = total


def one_scale(memory: Memory, group_size: int) -> None:
    """Use the first group's scale for all."""
    scale, total = np.float32(memory.scale[0]), np.float32(0)
    for byte in range(len(memory.codes)):
        low, high = decode(int(memory.codes[byte]))
        total += low * memory.x[2 * byte] + high * memory.x[2 * byte + 1]
    memory.y[0] = scale * total


def sum_in_memory(memory: Memory, group_size: int) -> None:
    """Keep the sum in memory."""
    for g in range(len(memory.scale)):
        part = np.float32(0)
        for byte in range(g * group_size // 2, (g + 1) * group_size // 2):
            low, high = decode(int(memory.codes[byte]))
            part += low * memory.x[2 * byte] + high * memory.x[2 * byte + 1]
        memory.y[0] = memory.y[0] + np.float32(memory.scale[g]) * part


def check_dot(answer: Any) -> None:
    """Compare results, then bytes."""
    for seed in (1, 2):
        memory, target = one_row(seed)
        run(answer, memory, GROUP)
        compare(memory, target)
        spent(memory, {"scale": 8, "codes": 16, "x": 128}, 4)


# ---------------------------------------------------------------- c: read x once


def gemv(memory: Memory, group_size: int) -> None:
    """Multiply all rows at a time, so that each activation serves all of them."""
    tiled_gemv(memory, group_size, tile=memory.codes.shape[0])


def row_by_row(memory: Memory, group_size: int) -> None:
    """Load x for each row."""
    tiled_gemv(memory, group_size, tile=1)


def partial_tile(memory: Memory, group_size: int) -> None:
    """Load x for each half of the rows."""
    tiled_gemv(memory, group_size, tile=memory.codes.shape[0] // 2)


def unpack_first(memory: Memory, group_size: int) -> None:
    """Write a float matrix to memory, then multiply."""
    rows, columns = memory.codes.shape[0], 2 * memory.codes.shape[1]
    matrix = memory.allocate("matrix", (rows, columns))
    byte, scale = memory.codes[...], memory.scale[...].astype(np.float32)
    codes = np.stack([byte & 15, byte >> 4], axis=-1).reshape(rows, columns).astype(np.float32)
    matrix[...] = (codes - 8) * np.repeat(scale, group_size, axis=1)
    memory.y[...] = matrix[...] @ memory.x[...]


def check_gemv(answer: Any) -> None:
    """Compare results, then bytes: everything once."""
    for rows, columns in ((4, 32), (8, 48)):
        memory, target = problem(rows, columns, rows)
        run(answer, memory, GROUP)
        compare(memory, target)
        once = {name: getattr(memory, name).values.nbytes for name in ("codes", "scale", "x")}
        spent(memory, once, 4 * rows)


# ---------------------------------------------------------------- d: the control


def within_budget(kernel: Callable[[Memory], None], memory: Memory, target: np.ndarray) -> bool:
    """Tell whether a kernel is right and moves every byte once at most."""
    budget = sum(getattr(memory, name).values.nbytes for name in ("codes", "scale", "x", "y"))
    kernel(memory)
    right = np.allclose(memory.y.values, target, atol=1e-4)
    return bool(right and memory.moved <= budget)


def only_right(kernel: Callable[[Memory], None], memory: Memory, target: np.ndarray) -> bool:
    """Judge the result alone."""
    kernel(memory)
    return bool(np.allclose(memory.y.values, target, atol=1e-4))


def only_cheap(kernel: Callable[[Memory], None], memory: Memory, target: np.ndarray) -> bool:
    """Judge the bytes alone."""
    budget = sum(getattr(memory, name).values.nbytes for name in ("codes", "scale", "x", "y"))
    kernel(memory)
    return memory.moved <= budget


def four_arrays_only(kernel: Callable[[Memory], None], memory: Memory, target: np.ndarray) -> bool:
    """Count the four arrays and overlook a temporary one."""
    kernel(memory)
    names = ("codes", "scale", "x", "y")
    moved = sum(memory.loaded[name] + memory.stored[name] for name in names)
    budget = sum(getattr(memory, name).values.nbytes for name in names)
    right = np.allclose(memory.y.values, target, atol=1e-4)
    return bool(right and moved <= budget)


def check_control(answer: Any) -> None:
    """Hand over an honest kernel, a wasteful one, a wrong one and a lazy one."""
    kernels = {
        "a tiled kernel": (lambda memory: gemv(memory, GROUP), True),
        "a kernel that unpacks to a matrix (the result is right)": (
            lambda memory: unpack_first(memory, GROUP),
            False,
        ),
        "a kernel that loads x for each row (the result is right)": (
            lambda memory: row_by_row(memory, GROUP),
            False,
        ),
        "a kernel that computes nothing (it moves no byte)": (lambda memory: None, False),
    }
    for name, (kernel, verdict) in kernels.items():
        memory, target = problem(4, 32, 9)
        expect(call(answer, kernel, memory, target), verdict, name, reveal=True)


# ---------------------------------------------------------------- what the checks share


def run(answer: Any, memory: Memory, group_size: int) -> None:
    """Call a kernel, which returns nothing; if it stored nothing either, it was not attempted."""
    if not callable(answer):
        call(answer, memory, group_size)
        return
    call(lambda: answer(memory, group_size) or True)  # its exceptions become one line
    if memory.moved == 0:
        raise NotAttempted


def compare(memory: Memory, target: np.ndarray) -> None:
    """Raise Wrong at the first output that is not right."""
    for row, value in enumerate(target.tolist()):
        expect(float(memory.y.values[row]), value, f"y[{row}]", abs_=1e-3, reveal=True)


def spent(memory: Memory, budget: dict[str, int], stored: int) -> None:
    """Raise Wrong if an array was loaded, or the output stored, more often than the budget says."""
    for name, most in budget.items():
        if memory.loaded[name] > most:
            raise Wrong(
                f"the result is right, but {name} was loaded {memory.loaded[name] // most} times: "
                f"{memory.loaded[name]} bytes, budget {most}"
            )
    beyond = memory.moved - sum(budget.values()) - stored
    if beyond > 0:
        raise Wrong(
            f"the result is right, but {beyond} bytes were moved beyond codes, scales, x and one "
            "store of each output: keep sums in variables"
        )


EXERCISES = [
    Exercise(
        "a",
        "Decode the two codes of a packed byte.",
        difficulty=1,
        importance=5,
        minutes=6,
        check=check_decode,
        hints=[
            "two codes share eight bits: how do you look at four of them alone?",
            "byte & 15 keeps the low four bits, byte >> 4 brings the high four down",
            "both codes are stored with 8 added",
        ],
        solution=decode,
        wrong=[no_shift, no_mask, high_first, no_zero_point],
    ),
    Exercise(
        "b",
        "Multiply one row, and load each scale once.",
        difficulty=3,
        importance=5,
        minutes=10,
        check=check_dot,
        hints=[
            "the scale is the same for all weights of a group: when is it needed?",
            "two loops: over groups, and inside over the bytes of a group",
            "add codes times activations up in a variable; then total += scale[g] * part",
        ],
        solution=dot,
        wrong=[scale_each, one_scale, sum_in_memory],
    ),
    Exercise(
        "c",
        "Multiply all rows, and load every byte once.",
        difficulty=4,
        importance=5,
        minutes=15,
        check=check_gemv,
        hints=[
            "an activation is needed by all rows: do them all while you hold it",
            "memory.codes[:, byte] loads one byte of every row; sums are an array of one per row",
            "for g: for byte in the group: pair = x[2 * byte : 2 * byte + 2]; then the scales",
        ],
        solution=gemv,
        wrong=[row_by_row, partial_tile, unpack_first],
    ),
    Exercise(
        "d",
        "Judge a kernel by its result and by its bytes.",
        difficulty=3,
        importance=5,
        minutes=8,
        check=check_control,
        hints=[
            "a judge of results alone lets the unpacking kernel pass",
            "the budget: getattr(memory, name).values.nbytes of codes, scale, x and y",
            "memory.moved counts all arrays, temporary ones too",
        ],
        solution=within_budget,
        wrong=[only_right, only_cheap, four_arrays_only],
    ),
]
