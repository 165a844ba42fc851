"""How many operations a second this processor can do, measured: the limit of a large product.

Two loops of one instruction each, on registers only: a float32 multiply-add (the roof of A16), and
VPDPBUSD, which multiplies four pairs of bytes and adds them to a 32-bit sum (the roof of A8).
Twelve chains run side by side, so that no instruction waits for the one before it.
"""

# Bodies are LLVM builders: pyright sees Numba's types only at run time.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quantlab.kernels.bandwidth import SECONDS, calibrated, check_effort, together
from quantlab.kernels.lanes import FLOAT, INT, declare
from quantlab.kernels.paths import available, features
from quantlab.native import compiled

CHAINS = 12  # an instruction takes up to 5 cycles, and two can start in one


def float_lanes() -> int:
    """Return how many float32 the widest register holds: 16 or 8 on x86, else 4."""
    return 16 if "avx512f" in features() else 8 if "avx2" in features() else 4


def int_lanes() -> int:
    """Return how many sums one VPDPBUSD updates: 16 or 8; 0 where there is none."""
    return {"avx512_vnni": 16, "avx_vnni": 8}.get(available()[0], 0)


def chains(builder: Any, count: Any, start: Any, step: Callable[[Any], Any]) -> Any:
    """Apply ``step`` to twelve registers ``count`` times; return one number made of all of them."""
    before = builder.block
    with cgutils.for_range(builder, count) as loop:
        body, top = builder.block, loop.index.parent
        builder.position_at_start(top)
        sums = [builder.phi(start.type) for _ in range(CHAINS)]
        builder.position_at_end(body)
        for value in sums:
            value.add_incoming(start, before)
            value.add_incoming(step(value), body)
    total = sums[0]
    for value in sums[1:]:
        total = (
            builder.fadd(total, value) if start.type.element == FLOAT else builder.add(total, value)
        )
    return builder.extract_element(total, ir.Constant(INT, 0))


@intrinsic
def multiply_adds(typing: Any, count: Any) -> Any:
    """Run 12 x count multiply-adds of float32 vectors; return a float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = float_lanes()
        vector = ir.VectorType(FLOAT, lanes)
        fma = declare(builder, f"llvm.fma.v{lanes}f32", vector, vector, vector, vector)
        half, one = (ir.Constant(vector, [number] * lanes) for number in (0.5, 1.0))
        return chains(builder, arguments[0], one, lambda x: builder.call(fma, [x, half, one]))

    return types.float32(types.int64), codegen


@intrinsic
def byte_products(typing: Any, count: Any) -> Any:
    """Run 12 x count VPDPBUSD; return an int32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = int_lanes()
        vector = ir.VectorType(INT, lanes)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        dot = declare(builder, name, vector, vector, vector, vector)
        zero, ones = (ir.Constant(vector, [number] * lanes) for number in (0, 0x01010101))
        return chains(builder, arguments[0], zero, lambda x: builder.call(dot, [x, ones, ones]))

    return types.int32(types.int64), codegen


@compiled
def float_loop(count):
    """Keep the multipliers busy with float32."""
    return multiply_adds(count)


@compiled
def byte_loop(count):
    """Keep the multipliers busy with bytes."""
    return byte_products(count)


def float_peak(threads: int = 1, *, seconds: float = SECONDS, repeats: int = 5) -> float:
    """Return the float32 operations a second, a multiply-add counted as two.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    return 2 * float_lanes() * speed(float_loop, threads, seconds, repeats)


def byte_peak(threads: int = 1, *, seconds: float = SECONDS, repeats: int = 5) -> float | None:
    """Return the int8 operations a second, a multiply-add counted as two; None without VPDPBUSD.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if not int_lanes():
        return None
    return 2 * 4 * int_lanes() * speed(byte_loop, threads, seconds, repeats)


def speed(loop: Callable[[int], object], threads: int, seconds: float, repeats: int) -> float:
    """Return how many instructions a second a loop of twelve runs on all threads together."""
    check_effort(threads, seconds, repeats)

    def run(rounds: int) -> float:
        return together([partial(loop, rounds)] * threads)

    rounds = calibrated(run, seconds)
    return CHAINS * rounds * threads / min(run(rounds) for _ in range(repeats))
