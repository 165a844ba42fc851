"""Sixteen numbers at a time: vector registers as values that Numba understands.

Numba compiles loops over scalars and leaves vectors to the optimizer, which misses the one
instruction that integer products need. So a *bundle of registers* becomes a Numba type here, and
each function below says in LLVM's language what it does to them. Kernels are then plain Python
loops over these functions, and every name in them is one or two machine instructions.

A ``Plan`` says how many registers a kernel works on: ``tiles`` x ``tokens``, register
``tile * tokens + token`` for each pair. It is a type without a value: Numba compiles the
kernel anew for each plan, as a C++ template is.
"""

# Bodies are LLVM builders: pyright sees Numba's types only at run time.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import Signature
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from quantlab.kernels.tiles import LANES

BYTE, SHORT, INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)
HALF, FLOAT = ir.HalfType(), ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
SHORTS, BYTES = ir.VectorType(SHORT, 2 * LANES), ir.VectorType(BYTE, 4 * LANES)
HALVES = ir.VectorType(HALF, LANES)
VECTORS = {"int": INTS, "float": FLOATS}
Codegen = tuple[Signature, Callable[..., Any]]


class Registers(types.Type):
    """``count`` registers of sixteen int32 or float32 each."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        super().__init__(f"Registers({kind}, {count})")


@register_model(Registers)
class RegistersModel(models.PrimitiveModel):
    """In LLVM: an array of vectors, which it keeps in registers while they last."""

    def __init__(self, manager: Any, kind: Registers) -> None:
        super().__init__(manager, kind, ir.ArrayType(VECTORS[kind.kind], kind.count))


class PlanType(types.Type):
    """The type that a plan is: all of it is known to the compiler."""

    def __init__(self, path: str, bits: int, tiles: int, tokens: int) -> None:
        self.path, self.bits, self.tiles, self.tokens = path, bits, tiles, tokens
        super().__init__(f"Plan({path}, {bits}, {tiles}, {tokens})")

    def registers(self, kind: str) -> Registers:
        """Return the type of one register for each pair of a tile and a token."""
        return Registers(kind, self.tiles * self.tokens)


@register_model(PlanType)
class PlanModel(models.OpaqueModel):
    """In LLVM: nothing."""


class Plan:
    """How a kernel works: instructions, bits of a code, and tiles and tokens at a time."""

    def __init__(self, path: str, bits: int, tiles: int, tokens: int) -> None:
        self.path, self.bits, self.tiles, self.tokens = path, bits, tiles, tokens
        self._numba_type_ = PlanType(path, bits, tiles, tokens)


@unbox(PlanType)
def unbox_plan(kind: PlanType, plan: Plan, context: Any) -> NativeValue:
    """Hand a plan to compiled code: there is nothing to hand over."""
    return NativeValue(context.context.get_dummy_value())


# ---------------------------------------------------------------- small words of LLVM


def pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Return the address of ``array[at]``."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def read(builder: Any, address: Any, vector: Any) -> Any:
    """Load a vector that need not be aligned."""
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=1)


def splat(builder: Any, number: Any, vector: Any = None) -> Any:
    """Return a vector with one number in all lanes."""
    vector = vector or (INTS if number.type == INT else FLOATS)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(INT, 0))
    zeros = ir.Constant(ir.VectorType(INT, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, nothing, zeros)


def fill(number: int | float, vector: Any = INTS) -> Any:
    """Return a constant vector."""
    return ir.Constant(vector, [number] * vector.count)


def bundle(builder: Any, vectors: list[Any]) -> Any:
    """Put vectors into one value."""
    whole = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for k, vector in enumerate(vectors):
        whole = builder.insert_value(whole, vector, k)
    return whole


def unbundle(builder: Any, whole: Any) -> list[Any]:
    """Take a bundle apart."""
    return [builder.extract_value(whole, k) for k in range(whole.type.count)]


def steps(builder: Any, at: Any, stride: Any, count: int) -> list[Any]:
    """Return the places at, at + stride, at + 2 stride, ..."""
    places = [at]
    for _ in range(count - 1):
        places.append(builder.add(places[-1], stride))
    return places


def declare(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return an LLVM intrinsic by its full name, declaring it once a module."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


# ---------------------------------------------------------------- loads and stores


@intrinsic
def load_words(typing: Any, plan: Any, words: Any, at: Any, stride: Any) -> Codegen:
    """Load a word of sixteen rows from each of the plan's tiles, ``stride`` apart."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, at, stride = arguments
        places = steps(builder, at, stride, plan.tiles)
        kind = signature.args[1]
        return bundle(
            builder,
            [read(builder, pointer(context, builder, kind, array, p), INTS) for p in places],
        )

    return Registers("int", plan.tiles)(plan, words, at, stride), build


@intrinsic
def load_scales(typing: Any, plan: Any, scales: Any, at: Any, stride: Any) -> Codegen:
    """Load sixteen scales of each tile: float16 bits in a uint16 array, or float32."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, at, stride = arguments
        kind, found = signature.args[1], []
        for place in steps(builder, at, stride, plan.tiles):
            address = pointer(context, builder, kind, array, place)
            if kind.dtype == types.float32:
                found.append(read(builder, address, FLOATS))
            else:
                found.append(widen_half(builder, address, plan.path))
        return bundle(builder, found)

    return Registers("float", plan.tiles)(plan, scales, at, stride), build


def widen_half(builder: Any, address: Any, path: str) -> Any:
    """Load sixteen float16 and widen them.

    Without an instruction for it: shift the exponent and mantissa into place, and multiply by
    2^112, the difference of the two formats' exponent offsets; exact, subnormal numbers included.
    """
    if path != "portable":
        return builder.fpext(read(builder, address, HALVES), FLOATS)
    raw = builder.zext(read(builder, address, ir.VectorType(SHORT, LANES)), INTS)
    size = builder.shl(builder.and_(raw, fill(0x7FFF)), fill(13))
    sign = builder.shl(builder.and_(raw, fill(0x8000)), fill(16))
    scaled = builder.fmul(builder.bitcast(size, FLOATS), fill(2.0**112, FLOATS))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, INTS), sign), FLOATS)


@intrinsic
def load_zero_points(typing: Any, plan: Any, zeros: Any, at: Any, stride: Any) -> Codegen:
    """Load sixteen zero points of each tile from bytes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, array, at, stride = arguments
        kind, sixteen, found = signature.args[1], ir.VectorType(BYTE, LANES), []
        for place in steps(builder, at, stride, plan.tiles):
            address = pointer(context, builder, kind, array, place)
            found.append(builder.zext(read(builder, address, sixteen), INTS))
        return bundle(builder, found)

    return Registers("int", plan.tiles)(plan, zeros, at, stride), build


@intrinsic
def store(typing: Any, plan: Any, total: Any, out: Any, at: Any, stride: Any) -> Codegen:
    """Write each register: tokens ``stride`` apart, the tiles of a token next to one another."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, array, at, stride = arguments
        kind, vectors = signature.args[2], unbundle(builder, total)
        places = steps(builder, at, stride, plan.tokens)
        for k, vector in enumerate(vectors):
            tile, token = divmod(k, plan.tokens)
            place = builder.add(places[token], ir.Constant(at.type, tile * LANES))
            address = pointer(context, builder, kind, array, place)
            builder.store(vector, builder.bitcast(address, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(plan, total, out, at, stride), build


# ---------------------------------------------------------------- arithmetic


@intrinsic
def zeros_like_plan(typing: Any, plan: Any) -> Codegen:
    """Return float registers full of zeros, one for each tile and token."""
    result = plan.registers("float")

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return bundle(builder, [fill(0.0, FLOATS)] * result.count)

    return result(plan), build


@intrinsic
def minus_zero_point(
    typing: Any, plan: Any, zeros: Any, sums: Any, at: Any, stride: Any
) -> Codegen:
    """Return -zero * sum(activations of the group): where the integer sum starts.

    ``zeros`` is a bundle of zero points, or one integer for all rows.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, zeros, array, at, stride = arguments
        one = not isinstance(signature.args[1], Registers)
        rows = [splat(builder, builder.trunc(zeros, INT))] if one else unbundle(builder, zeros)
        rows = rows * plan.tiles if one else rows
        starts = []
        for place in steps(builder, at, stride, plan.tokens):
            total = builder.load(pointer(context, builder, signature.args[2], array, place))
            starts.append(splat(builder, builder.neg(total)))
        return bundle(builder, [builder.mul(row, start) for row in rows for start in starts])

    return plan.registers("int")(plan, zeros, sums, at, stride), build


@intrinsic
def add_scaled(
    typing: Any, plan: Any, total: Any, dots: Any, scales: Any, x_scale: Any, at: Any, stride: Any
) -> Codegen:
    """Return total + float(dots) * (scale of the row * scale of the token), each step rounded."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, total, dots, scales, array, at, stride = arguments
        kind = signature.args[4]
        totals, products = unbundle(builder, total), unbundle(builder, dots)
        rows = unbundle(builder, scales)
        tokens = [
            splat(builder, builder.load(pointer(context, builder, kind, array, place)))
            for place in steps(builder, at, stride, plan.tokens)
        ]
        pairs = [builder.fmul(row, token) for row in rows for token in tokens]
        added = [
            builder.fadd(t, builder.fmul(builder.sitofp(d, FLOATS), pair))
            for t, d, pair in zip(totals, products, pairs, strict=True)
        ]
        return bundle(builder, added)

    return total(plan, total, dots, scales, x_scale, at, stride), build
