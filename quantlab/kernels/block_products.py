"""Products of GGUF blocks with int8 activations: what a chunk adds to the sums of rows.

As ``lanes.py``, these are words for kernels: each takes a *plan* and builds its instructions. A
plan's ``rows`` x ``tokens`` sums are registers of sixteen lanes, one for each sub-block of a chunk.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_model, unbox

from quantlab.kernels.block_layouts import LAYOUTS
from quantlab.kernels.block_reading import CODES, SCALES, concat, shuffle
from quantlab.kernels.dot_products import HIGH, LOW, dot_nibbles, half
from quantlab.kernels.lanes import (
    BYTE,
    BYTES,
    FLOATS,
    INT,
    INTS,
    Codegen,
    PlanModel,
    PlanType,
    Registers,
    bundle,
    declare,
    fill,
    pointer,
    read,
    steps,
    unbox_plan,
    unbundle,
)
from quantlab.kernels.tiles import LANES

FOUR = ir.VectorType(INT, 4)
HALF_BYTES, HALF_INTS, HALF_SHORTS = (
    ir.VectorType(BYTE, 32),
    ir.VectorType(INT, 8),
    ir.VectorType(ir.IntType(16), 16),
)


class BlockPlanType(PlanType):
    """The type that a plan for blocks is."""

    def __init__(self, path: str, name: str, rows: int, tokens: int) -> None:
        super().__init__(path, 0, rows, tokens)
        self.block, self.rows, self.layout = name, rows, LAYOUTS[name]
        self.name = f"BlockPlan({path}, {name}, {rows}, {tokens})"


register_model(BlockPlanType)(PlanModel)


class BlockPlan:
    """How a kernel works: instructions, type of the blocks, and rows and tokens at a time."""

    def __init__(self, path: str, name: str, rows: int, tokens: int) -> None:
        self.path, self.name, self.rows, self.tokens = path, name, rows, tokens
        self._numba_type_ = BlockPlanType(path, name, rows, tokens)


unbox(BlockPlanType)(unbox_plan)


def bias_of(path: str, name: str) -> int:
    """Return what a path adds to codes before it multiplies: VPDPBUSD takes unsigned bytes."""
    layout = LAYOUTS[name]
    return 128 if layout.signed and "vnni" in path else layout.offset


# ---------------------------------------------------------------- reading


@intrinsic
def read_codes(typing: Any, plan: Any, data: Any, at: Any, stride: Any) -> Codegen:
    """Unpack a chunk of each row, ``stride`` bytes apart, to registers of 64 codes."""
    each = 8 if plan.layout.weights == 32 else 4

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, at, stride = arguments
        found = []
        for place in steps(builder, at, stride, plan.rows):
            base = pointer(context, builder, signature.args[1], array, place)
            for registers in CODES[plan.block](builder, base):
                found += [builder.bitcast(codes, INTS) for codes in registers]
        return bundle(builder, found)

    return Registers("int", plan.rows * each)(plan, data, at, stride), build


@intrinsic
def read_scales(typing: Any, plan: Any, data: Any, at: Any, stride: Any) -> Codegen:
    """Read sixteen scales of each row, and after all of them the minimums, if the type has some."""
    layout = plan.layout

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, at, stride = arguments
        pairs = []
        for place in steps(builder, at, stride, plan.rows):
            base = pointer(context, builder, signature.args[1], array, place)
            pairs.append(SCALES[plan.block](builder, base, plan.path))
        found = [scale for scale, _ in pairs]
        return bundle(builder, found + [m for _, m in pairs if m is not None])

    count = plan.rows * (2 if layout.shift else 1)
    return Registers("float", count)(plan, data, at, stride), build


# ---------------------------------------------------------------- integer products


@intrinsic
def dot_codes(
    typing: Any,
    plan: Any,
    codes: Any,
    x: Any,
    at: Any,
    stride: Any,
    base: Any,
    base_at: Any,
    base_stride: Any,
) -> Codegen:
    """Return the dot products of sixteen sub-blocks with int8 activations, one a lane.

    ``base`` holds what is added to each: minus the codes' offset times the sum of activations.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, codes, x, at, stride, base, base_at, base_stride = arguments
        registers = unbundle(builder, codes)
        each = len(registers) // plan.rows
        places = steps(builder, at, stride, plan.tokens)
        starts = steps(builder, base_at, base_stride, plan.tokens)
        found = []
        for row in range(plan.rows):
            mine = registers[row * each : row * each + each]
            for token in range(plan.tokens):
                address = pointer(context, builder, signature.args[2], x, places[token])
                sums = four_sums(builder, plan, mine, address)
                added = pointer(context, builder, signature.args[5], base, starts[token])
                found.append(builder.add(crosswise(builder, *sums), read(builder, added, INTS)))
        return bundle(builder, found)

    result = plan.registers("int")
    return result(plan, codes, x, at, stride, base, base_at, base_stride), build


def four_sums(builder: Any, plan: Any, codes: list[Any], x: Any) -> list[Any]:
    """Multiply registers of codes with activations from address ``x`` on, into four sums."""
    each, sums = len(codes) // 4, []
    for k in range(4):
        total = fill(0)
        for part in range(each):
            place = builder.gep(x, [INT(64 * (k * each + part))])
            total = dot(builder, plan, total, codes[k * each + part], read(builder, place, INTS))
        sums.append(total)
    return sums


def dot(builder: Any, plan: Any, total: Any, codes: Any, x: Any) -> Any:
    """Add 64 products so that each quarter of the sum holds those of its quarter."""
    signed = plan.layout.signed
    if plan.path == "portable":
        return dot_quarters(builder, total, codes, x)
    if signed and "vnni" in plan.path:
        codes = builder.xor(codes, fill(0x80808080 - (1 << 32)))  # code + 128
    if signed and plan.path == "avx2":
        parts = [
            signed_maddubs(builder, *(half(builder, v, lanes) for v in (total, codes, x)))
            for lanes in (LOW, HIGH)
        ]
        return builder.shuffle_vector(parts[0], parts[1], ir.Constant(INTS, LOW + HIGH))
    return dot_nibbles(builder, plan.path, total, codes, x)


def signed_maddubs(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Multiply |code| with x under the code's sign: pairs are at most 2 x 128 x 127 in 16 bits."""
    codes, x = builder.bitcast(codes, HALF_BYTES), builder.bitcast(x, HALF_BYTES)
    nothing, ones = fill(0, HALF_BYTES), ir.Constant(HALF_SHORTS, [1] * 16)
    minus = builder.icmp_signed("<", codes, nothing)
    size = builder.select(minus, builder.neg(codes), codes)
    factor = builder.select(minus, builder.neg(x), x)
    pairs = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", HALF_SHORTS, HALF_BYTES, HALF_BYTES)
    fours = declare(builder, "llvm.x86.avx2.pmadd.wd", HALF_INTS, HALF_SHORTS, HALF_SHORTS)
    return builder.add(total, builder.call(fours, [builder.call(pairs, [size, factor]), ones]))


def dot_quarters(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Do it with LLVM's own word for sums of products, a quarter of a register at a time.

    It leaves open which lanes it adds, and here all of a quarter are added later. ARM has an
    instruction for it; so codes, all below 128, count as signed, as activations are.
    """
    name = "llvm.vector.partial.reduce.add.v4i32.v16i32"
    partial = declare(builder, name, FOUR, FOUR, INTS)
    codes, x, found = builder.bitcast(codes, BYTES), builder.bitcast(x, BYTES), []
    for quarter in range(4):
        bytes_of = list(range(16 * quarter, 16 * quarter + 16))
        wide = [builder.sext(shuffle(builder, v, v, bytes_of), INTS) for v in (codes, x)]
        start = shuffle(builder, total, total, list(range(4 * quarter, 4 * quarter + 4)))
        found.append(builder.call(partial, [start, builder.mul(*wide)]))
    return concat(builder, *found)


def crosswise(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Add up the quarters of four registers: lane 4 i + k is the sum of register k's quarter i."""
    ab, cd = interleaved_sum(builder, a, b), interleaved_sum(builder, c, d)
    parts = []
    for side in (0, 2):  # pairs of lanes: those of ab, then those of cd
        lanes = [
            4 * i + side + j + (LANES if other else 0)
            for i in range(4)
            for other in (0, 1)
            for j in (0, 1)
        ]
        parts.append(shuffle(builder, ab, cd, lanes))
    return builder.add(*parts)


def interleaved_sum(builder: Any, a: Any, b: Any) -> Any:
    """Return a0 + a2, b0 + b2, a1 + a3, b1 + b3 of each quarter."""
    parts = []
    for side in (0, 2):
        lanes = [4 * i + side + j + other for i in range(4) for j in (0, 1) for other in (0, LANES)]
        parts.append(shuffle(builder, a, b, lanes))
    return builder.add(*parts)


@intrinsic
def add_terms(
    typing: Any,
    plan: Any,
    total: Any,
    dots: Any,
    scales: Any,
    x_scale: Any,
    x_sums: Any,
    at: Any,
    stride: Any,
) -> Codegen:
    """Return total + float(dots) * (scale * x_scale), then + minimum * x_sums, steps rounded."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, dots, scales, x_scale, x_sums, at, stride = arguments
        totals, products, rows = (unbundle(builder, v) for v in (total, dots, scales))
        for token, place in enumerate(steps(builder, at, stride, plan.tokens)):
            step, sums = (
                read(builder, pointer(context, builder, signature.args[n], array, place), FLOATS)
                for n, array in ((4, x_scale), (5, x_sums))
            )
            for row in range(plan.rows):
                k = row * plan.tokens + token
                factor = builder.fmul(rows[row], step)
                term = builder.fmul(builder.sitofp(products[k], FLOATS), factor)
                totals[k] = builder.fadd(totals[k], term)
                if plan.layout.shift:
                    shift = builder.fmul(rows[plan.rows + row], sums)
                    totals[k] = builder.fadd(totals[k], shift)
        return bundle(builder, totals)

    return total(plan, total, dots, scales, x_scale, x_sums, at, stride), build


# ---------------------------------------------------------------- results


@intrinsic
def store_sums(
    typing: Any, plan: Any, total: Any, out: Any, at: Any, stride: Any, apart: Any
) -> Codegen:
    """Add up the lanes of each register, halves first, and write the sums.

    Those of tokens are ``stride`` apart, those of rows ``apart``.
    """
    order = [plan.layout.lanes.index(s) for s in range(LANES)]

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, array, at, stride, apart = arguments
        kind = signature.args[2]
        places = [
            place
            for start in steps(builder, at, apart, plan.rows)
            for place in steps(builder, start, stride, plan.tokens)
        ]
        for k, vector in enumerate(unbundle(builder, total)):
            lanes = shuffle(builder, vector, vector, order)
            while lanes.type.count > 1:
                n = lanes.type.count // 2
                halves = [shuffle(builder, lanes, lanes, list(range(f, f + n))) for f in (0, n)]
                lanes = builder.fadd(*halves)
            address = pointer(context, builder, kind, array, places[k])
            builder.store(builder.extract_element(lanes, INT(0)), address, align=4)
        return context.get_dummy_value()

    return types.void(plan, total, out, at, stride, apart), build
