"""Products of GGUF blocks with float activations: codes become floats in registers only."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from quantlab.kernels.block_reading import shuffle
from quantlab.kernels.float_products import fused
from quantlab.kernels.lanes import (
    BYTES,
    FLOATS,
    INT,
    INTS,
    Codegen,
    bundle,
    fill,
    pointer,
    read,
    steps,
    unbundle,
)
from quantlab.kernels.tiles import LANES


@intrinsic
def add_float_terms(
    typing: Any,
    plan: Any,
    total: Any,
    codes: Any,
    scales: Any,
    x: Any,
    at: Any,
    stride: Any,
    x_sums: Any,
    lane: Any,
    lane_stride: Any,
) -> Codegen:
    """Return total + scale * (codes * x), codes turned into floats once for all tokens."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, codes, scales, x, at, stride, x_sums, lane, lane_stride = arguments
        totals, registers, rows = (unbundle(builder, v) for v in (total, codes, scales))
        each = len(registers) // plan.rows
        places = steps(builder, at, stride, plan.tokens)
        addresses = [pointer(context, builder, signature.args[4], x, p) for p in places]
        for row in range(plan.rows):
            mine = registers[row * each : row * each + each]
            first = row * plan.tokens
            for k in range(LANES):  # the sub-block that ends in lane k of an integer product
                sums = float_dots(builder, plan, mine, k, addresses)
                scale = shuffle(builder, rows[row], rows[row], [k] * LANES)
                for token, dots in enumerate(sums):
                    n = first + token
                    totals[n] = fused(builder, plan.path, scale, dots, totals[n])
            for token, place in enumerate(steps(builder, lane, lane_stride, plan.tokens)):
                if plan.layout.shift:
                    address = pointer(context, builder, signature.args[7], x_sums, place)
                    sums = read(builder, address, FLOATS)
                    n, shift = first + token, rows[plan.rows + row]
                    totals[n] = fused(builder, plan.path, shift, sums, totals[n])
        return bundle(builder, totals)

    arguments = (plan, total, codes, scales, x, at, stride, x_sums, lane, lane_stride)
    return total(*arguments), build


def float_dots(
    builder: Any, plan: Any, codes: list[Any], lane: int, addresses: list[Any]
) -> list[Any]:
    """Return for each token sixteen sums of a sub-block's products."""
    each, quarter = len(codes) // 4, lane // 4
    sums: list[Any] = [None] * len(addresses)
    for part in range(each):
        register = lane % 4 * each + part
        weights = float_codes(builder, plan, codes[register], quarter)
        for token, address in enumerate(addresses):
            place = builder.gep(address, [INT(64 * register + 16 * quarter)])
            x, before = read(builder, place, FLOATS), sums[token]
            first = before is None
            sums[token] = (
                builder.fmul(weights, x) if first else fused(builder, plan.path, weights, x, before)
            )
    return sums


def float_codes(builder: Any, plan: Any, codes: Any, quarter: int) -> Any:
    """Return a quarter of a register of codes as floats, less their offset."""
    codes = builder.bitcast(codes, BYTES)
    if plan.layout.offset:
        codes = builder.sub(codes, fill(plan.layout.offset, BYTES))
    sixteen = shuffle(builder, codes, codes, list(range(16 * quarter, 16 * quarter + 16)))
    return builder.sitofp(builder.sext(sixteen, INTS), FLOATS)
