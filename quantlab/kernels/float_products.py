"""From packed codes to floats without leaving the registers, and their products with floats."""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from quantlab.kernels.lanes import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    Codegen,
    Registers,
    bundle,
    declare,
    fill,
    pointer,
    read,
    splat,
    steps,
    unbundle,
)
from quantlab.kernels.tiles import LANES

HALF_FLOATS = ir.VectorType(FLOAT, 8)
LOW, HIGH = list(range(8)), list(range(8, 16))


@intrinsic
def load_table(typing: Any, table: Any, at: Any) -> Codegen:
    """Load the sixteen floats that the 4-bit codes stand for into one register."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = pointer(context, builder, signature.args[0], *arguments)
        return bundle(builder, [read(builder, address, FLOATS)])

    return Registers("float", 1)(table, at), build


@intrinsic
def add_float_products(
    typing: Any, plan: Any, sums: Any, words: Any, table: Any, x: Any, at: Any, stride: Any
) -> Codegen:
    """Add the products of a word of codes with floats; each code is decoded once for all tokens.

    A 4-bit code stands for an entry of the table, an 8-bit code for itself less 128.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, sums, words, table, array, at, stride = arguments
        kind, totals, tiles = signature.args[4], unbundle(builder, sums), unbundle(builder, words)
        levels = builder.extract_value(table, 0)
        places = steps(builder, at, stride, plan.tokens)
        for k in range(32 // plan.bits):
            weights = [decode(builder, plan, tile, k, levels) for tile in tiles]
            for token, place in enumerate(places):
                address = pointer(context, builder, kind, array, place)
                factor = splat(builder, builder.load(builder.gep(address, [INT(k)])))
                for tile, weight in enumerate(weights):
                    n = tile * plan.tokens + token
                    totals[n] = fused(builder, plan.path, weight, factor, totals[n])
        return bundle(builder, totals)

    return sums(plan, sums, words, table, x, at, stride), build


def decode(builder: Any, plan: Any, word: Any, k: int, levels: Any) -> Any:
    """Return code k of each lane as a float; a "code" of 32 bits is a float already."""
    if plan.bits == 32:
        return builder.bitcast(word, FLOATS)
    if plan.bits == 4:
        return look_up(builder, plan.path, levels, builder.lshr(word, fill(4 * k)))
    signed = builder.xor(word, fill(0x80808080 - (1 << 32)))  # code - 128 in each byte
    return builder.sitofp(builder.ashr(builder.shl(signed, fill(24 - 8 * k)), fill(24)), FLOATS)


def fused(builder: Any, path: str, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the processor can."""
    if path == "portable":
        return builder.fadd(builder.fmul(a, b), c)
    return builder.call(declare(builder, "llvm.fma.v16f32", FLOATS, *[FLOATS] * 3), [a, b, c])


def look_up(builder: Any, path: str, table: Any, index: Any) -> Any:
    """Return the table's entries at the lowest four bits of each lane of ``index``."""
    if path == "avx512_vnni":  # one instruction; it ignores the other bits
        permute = declare(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, FLOATS, INTS)
        return builder.call(permute, [table, index])
    if path == "portable":
        return look_up_one_by_one(builder, table, index)
    parts = [look_up_eight(builder, table, index, lanes) for lanes in (LOW, HIGH)]
    return builder.shuffle_vector(parts[0], parts[1], ir.Constant(INTS, LOW + HIGH))


def look_up_eight(builder: Any, table: Any, index: Any, lanes: list[int]) -> Any:
    """Look eight lanes up in the lower and in the upper half of the table, and choose by bit 3."""
    eight = ir.VectorType(INT, 8)
    permute = declare(builder, "llvm.x86.avx2.permps", HALF_FLOATS, HALF_FLOATS, eight)
    index = builder.shuffle_vector(index, index, ir.Constant(eight, lanes))
    halves = [
        builder.call(
            permute, [builder.shuffle_vector(table, table, ir.Constant(eight, part)), index]
        )
        for part in (LOW, HIGH)
    ]
    upper = builder.icmp_signed("<", builder.shl(index, fill(28, eight)), fill(0, eight))
    return builder.select(upper, halves[1], halves[0])


def look_up_one_by_one(builder: Any, table: Any, index: Any) -> Any:
    """Look each lane up by itself."""
    found = ir.Constant(FLOATS, ir.Undefined)
    masked = builder.and_(index, fill(15))
    for lane in range(LANES):
        entry = builder.extract_element(table, builder.extract_element(masked, INT(lane)))
        found = builder.insert_element(found, entry, INT(lane))
    return found


@intrinsic
def add_scaled_floats(
    typing: Any,
    plan: Any,
    total: Any,
    sums: Any,
    scales: Any,
    shifts: Any,
    x_sums: Any,
    at: Any,
    stride: Any,
) -> Codegen:
    """Return total + scale * (sums - shift * sum(x)) for every tile and token.

    ``shifts`` holds zero points less the table's middle, or is None: the sums stand as they are.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, sums, scales, shifts, array, at, stride = arguments
        totals, products = unbundle(builder, total), unbundle(builder, sums)
        rows, shifted = unbundle(builder, scales), isinstance(signature.args[4], Registers)
        for token, place in enumerate(steps(builder, at, stride, plan.tokens)):
            for tile, scale in enumerate(rows):
                k = tile * plan.tokens + token
                product = products[k]
                if shifted:
                    address = pointer(context, builder, signature.args[5], array, place)
                    whole = splat(builder, builder.load(address))
                    shift = builder.sitofp(builder.extract_value(shifts, tile), FLOATS)
                    product = builder.fsub(product, builder.fmul(shift, whole))
                totals[k] = builder.fadd(totals[k], builder.fmul(scale, product))
        return bundle(builder, totals)

    return total(plan, total, sums, scales, shifts, x_sums, at, stride), build


@intrinsic
def less(typing: Any, numbers: Any, amount: Any) -> Codegen:
    """Subtract one integer from all lanes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers, amount = arguments
        all_lanes = splat(builder, builder.trunc(amount, INT))
        return bundle(builder, [builder.sub(v, all_lanes) for v in unbundle(builder, numbers)])

    return numbers(numbers, amount), build
