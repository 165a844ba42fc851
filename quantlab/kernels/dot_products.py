"""The instruction at the heart of the integer kernels, on each path.

It adds to each lane of a register the four products of that lane's bytes with four activations:
codes are unsigned bytes, activations signed ones. All paths give the same integers.
"""

# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from quantlab.kernels.lanes import (
    BYTES,
    INT,
    INTS,
    SHORTS,
    Codegen,
    bundle,
    declare,
    fill,
    pointer,
    splat,
    steps,
    unbundle,
)

HALF_INTS, HALF_BYTES = ir.VectorType(INT, 8), ir.VectorType(BYTES.element, 32)
HALF_SHORTS = ir.VectorType(SHORTS.element, 16)
LOW, HIGH = list(range(8)), list(range(8, 16))  # the lanes of the two halves of a register


@intrinsic
def add_products(
    typing: Any, plan: Any, sums: Any, words: Any, x: Any, at: Any, stride: Any
) -> Codegen:
    """Add the products of a word of codes, for every tile and token of the plan.

    Of 4-bit codes the low nibbles meet the first four activations at ``at`` and the high nibbles
    the next four: activations lie in that order. Of 8-bit codes there are only four.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, sums, words, array, at, stride = arguments
        totals, tiles, kind = unbundle(builder, sums), unbundle(builder, words), signature.args[3]
        places = steps(builder, at, stride, plan.tokens)
        for part in range(8 // plan.bits):
            codes = [nibbles(builder, tile, part) if plan.bits == 4 else tile for tile in tiles]
            dot = dot_nibbles if plan.bits == 4 else dot_bytes
            for token, place in enumerate(places):
                address = pointer(context, builder, kind, array, place)
                four = splat(builder, builder.load(builder.gep(address, [INT(part)]), align=4))
                for tile, code in enumerate(codes):
                    k = tile * plan.tokens + token
                    totals[k] = dot(builder, plan.path, totals[k], code, four)
        return bundle(builder, totals)

    return sums(plan, sums, words, x, at, stride), build


def nibbles(builder: Any, words: Any, part: int) -> Any:
    """Return the low (0) or high (1) nibble of each byte."""
    shifted = builder.lshr(words, fill(4)) if part else words
    return builder.and_(shifted, fill(0x0F0F0F0F))


def dot_bytes(builder: Any, path: str, total: Any, codes: Any, x: Any) -> Any:
    """Add four products of bytes (0..255) to each lane.

    VPDPBUSD takes bytes as they are. VPMADDUBSW adds two products in 16 bits, and 2 x 255 x 127 is
    too much for them, so there a byte is split into its nibbles: code = low + 16 high.
    """
    if "vnni" in path:
        return dot_nibbles(builder, path, total, codes, x)
    mask = fill(0x0F0F0F0F)
    low = builder.and_(codes, mask)
    high = builder.and_(builder.lshr(codes, fill(4)), mask)
    sixteenths = dot_nibbles(builder, path, fill(0), high, x)
    total = dot_nibbles(builder, path, total, low, x)
    return builder.add(total, builder.shl(sixteenths, fill(4)))


def dot_nibbles(builder: Any, path: str, total: Any, codes: Any, x: Any) -> Any:
    """Add four products to each lane; codes up to 15, or up to 255 with VNNI."""
    if path == "avx512_vnni":
        dot = declare(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, INTS, BYTES, BYTES)
        return builder.call(dot, [total, builder.bitcast(codes, BYTES), builder.bitcast(x, BYTES)])
    if path == "portable":
        return dot_shorts(builder, total, codes, x)
    instruction = vnni_256 if path == "avx_vnni" else maddubs_256
    parts = [
        instruction(builder, *(half(builder, v, lanes) for v in (total, codes, x)))
        for lanes in (LOW, HIGH)
    ]
    return builder.shuffle_vector(parts[0], parts[1], ir.Constant(INTS, LOW + HIGH))


def half(builder: Any, vector: Any, lanes: list[int]) -> Any:
    """Return eight lanes of a register of sixteen."""
    return builder.shuffle_vector(vector, vector, ir.Constant(HALF_INTS, lanes))


def vnni_256(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Multiply and add 32 bytes in one instruction."""
    name = "llvm.x86.avx512.vpdpbusd.256"  # one name for both encodings, VEX and EVEX
    dot = declare(builder, name, HALF_INTS, HALF_INTS, HALF_BYTES, HALF_BYTES)
    operands = [builder.bitcast(v, HALF_BYTES) for v in (codes, x)]
    return builder.call(dot, [total, *operands])


def maddubs_256(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Multiply 32 bytes, adding pairs in 16 bits (2 x 15 x 127 fits), then pairs of those in 32."""
    pairs = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", HALF_SHORTS, HALF_BYTES, HALF_BYTES)
    fours = declare(builder, "llvm.x86.avx2.pmadd.wd", HALF_INTS, HALF_SHORTS, HALF_SHORTS)
    twos = builder.call(pairs, [builder.bitcast(v, HALF_BYTES) for v in (codes, x)])
    ones = ir.Constant(HALF_SHORTS, [1] * 16)
    return builder.add(total, builder.call(fours, [twos, ones]))


def dot_shorts(builder: Any, total: Any, codes: Any, x: Any) -> Any:
    """Multiply bytes 0, 2 and bytes 1, 3 of each lane as 16-bit numbers, in plain LLVM.

    The mean of processors without a byte product has a 16-bit one that adds pairs, and the
    optimizer knows this shape of it. (LLVM's own ``vector.partial.reduce.add`` would say it in one
    word, but leaves open which lanes are added, and here each lane is another row.)
    """
    wide = ir.VectorType(INT, 32)
    for shift in (0, 8):
        weights = builder.and_(builder.lshr(codes, fill(shift)), fill(0x00FF00FF))
        unsigned = builder.bitcast(weights, SHORTS)
        # arithmetic shifts carry the sign of a byte into the whole of its 16 bits
        up = builder.shl(builder.bitcast(x, SHORTS), fill(8 - shift, SHORTS))
        signed = builder.ashr(up, fill(8, SHORTS))
        product = builder.mul(builder.sext(unsigned, wide), builder.sext(signed, wide))
        even = builder.shuffle_vector(product, product, ir.Constant(INTS, list(range(0, 32, 2))))
        odd = builder.shuffle_vector(product, product, ir.Constant(INTS, list(range(1, 32, 2))))
        total = builder.add(total, builder.add(even, odd))
    return total
