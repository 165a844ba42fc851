"""From the bytes of GGUF blocks to registers: 64 codes in each, and sixteen scales.

One function a type, in LLVM's language. ``base`` is the address of a chunk; all distances in it are
constants. ``*_codes`` return four lists of registers, one a sum: see ``block_layouts.py``.
``*_scales`` return the scales of the sixteen lanes, and their minimums or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from quantlab.kernels.block_layouts import LAYOUTS
from quantlab.kernels.lanes import BYTE, BYTES, FLOATS, HALF, INTS, SHORT, fill, read
from quantlab.kernels.paths import features
from quantlab.kernels.tiles import LANES

Codes = list[list[Any]]
EVEN_QUARTERS, ODD_QUARTERS = (0, 2, 4, 6), (1, 3, 5, 7)


# ---------------------------------------------------------------- small words


def load(builder: Any, base: Any, offset: int, count: int) -> Any:
    """Load ``count`` bytes."""
    address = builder.gep(base, [ir.Constant(ir.IntType(64), offset)])
    return read(builder, address, ir.VectorType(BYTE, count))


def shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    """Return the lanes of ``a``, continued by those of ``b``, that are named."""
    order = ir.VectorType(ir.IntType(32), len(lanes))
    return builder.shuffle_vector(a, b, ir.Constant(order, lanes))


def concat(builder: Any, *vectors: Any) -> Any:
    """Put 2 or 4 vectors side by side."""
    if len(vectors) == 4:
        return concat(builder, concat(builder, *vectors[:2]), concat(builder, *vectors[2:]))
    a, b = vectors
    return shuffle(builder, a, b, list(range(2 * a.type.count)))


def quarters(builder: Any, a: Any, b: Any, which: tuple[int, ...]) -> Any:
    """Return four of the eight 16-byte quarters of two registers."""
    return shuffle(builder, a, b, [16 * q + j for q in which for j in range(16)])


def low_nibbles(builder: Any, raw: Any) -> Any:
    """Return the low four bits of bytes."""
    return builder.and_(raw, fill(15, raw.type))


def high_nibbles(builder: Any, raw: Any) -> Any:
    """Return the high four bits of bytes."""
    return builder.lshr(raw, fill(4, raw.type))


def constant(vector: Any, numbers: list[int]) -> Any:
    """Return a constant vector."""
    return ir.Constant(vector, numbers)


def widen(builder: Any, raw: Any, path: str) -> Any:
    """Return sixteen float16, given as 16-bit integers, as float32.

    Without an instruction for it: the exponent and mantissa move into place and are multiplied by
    2^112, the difference of the formats' exponent offsets. Inf and NaN get back their exponent.
    """
    if path != "portable":
        return builder.fpext(builder.bitcast(raw, ir.VectorType(HALF, LANES)), FLOATS)
    wide = builder.zext(raw, INTS)
    size = builder.shl(builder.and_(wide, fill(0x7FFF)), fill(13))
    sign = builder.shl(builder.and_(wide, fill(0x8000)), fill(16))
    scaled = builder.fmul(builder.bitcast(size, FLOATS), fill(2.0**112, FLOATS))
    special = builder.icmp_unsigned(">=", size, fill(0x7C00 << 13))
    exponent = builder.select(special, fill(0x7F800000), fill(0))
    bits = builder.or_(builder.or_(builder.bitcast(scaled, INTS), exponent), sign)
    return builder.bitcast(bits, FLOATS)


def strided_halves(builder: Any, base: Any, stride: int, first: int, path: str) -> Any:
    """Return the float16 at ``first`` and each ``stride`` bytes on, sixteen of them.

    Two registers hold 64 16-bit words; one shuffle picks the scales of several blocks from them.
    """
    words, step, total = ir.VectorType(SHORT, 64), stride // 2, LANES * stride
    each = 8 if 7 * step < 64 - first // 2 else 4
    parts = []
    for block in range(0, LANES, each):
        start = min(block * stride, total - 128)  # never beyond the chunk
        address = builder.gep(base, [ir.Constant(ir.IntType(64), start)])
        window = read(builder, address, words)
        skipped = (block * stride + first - start) // 2
        parts.append(shuffle(builder, window, window, [skipped + step * j for j in range(each)]))
    halves = concat(builder, *parts)
    return widen(builder, shuffle(builder, halves, halves, LAYOUTS["Q4_0"].lanes), path)


def small_floats(builder: Any, numbers: Any, signed: bool = False) -> Any:
    """Return sixteen bytes as floats."""
    wide = builder.sext(numbers, INTS) if signed else builder.zext(numbers, INTS)
    return builder.sitofp(wide, FLOATS)


# ---------------------------------------------------------------- blocks of 32


def nibble_codes(builder: Any, base: Any, stride: int, first: int) -> Codes:
    """Unpack sixteen blocks whose nibbles lie from byte ``first`` on: elements j and j + 16."""
    found = []
    for k in range(4):
        raw = payloads(builder, base, stride, first, k)
        found.append([low_nibbles(builder, raw), high_nibbles(builder, raw)])
    return found


def payloads(builder: Any, base: Any, stride: int, first: int, k: int) -> Any:
    """Return 16 bytes each of blocks 4 k to 4 k + 3.

    With VPERMT2B two overlapping loads and one shuffle of bytes give all four.
    """
    if "avx512vbmi" not in features():
        parts = [load(builder, base, stride * (4 * k + i) + first, 16) for i in range(4)]
        return concat(builder, *parts)
    odd = k % 2
    start = stride * 8 * (k // 2)
    ends = (0, 64, 8 * stride - 64)  # of two groups of four blocks: the middle load serves both
    a, b = (load(builder, base, start + at, 64) for at in ends[odd : odd + 2])
    lanes = []
    for byte in range(64):
        at = stride * (4 * odd + byte // 16) + first + byte % 16
        lanes.append(at - ends[odd] if at < ends[odd] + 64 else at - ends[odd + 1] + 64)
    return shuffle(builder, a, b, lanes)


def fifth_bits(builder: Any, base: Any, stride: int, first: int, codes: Codes) -> Codes:
    """Add 16 to the codes whose bit is set: bit j of the 32 from byte ``first`` on for code j."""
    masks = ir.VectorType(ir.IntType(1), 64)
    for k in range(4):
        for half in range(2):
            parts = [
                load(builder, base, stride * (4 * k + i) + first + 2 * half, 2) for i in range(4)
            ]
            bits = builder.bitcast(concat(builder, *parts), masks)
            upper = builder.select(bits, fill(16, BYTES), fill(0, BYTES))
            codes[k][half] = builder.or_(codes[k][half], upper)
    return codes


def q8_0_codes(builder: Any, base: Any) -> Codes:
    """Load sixteen blocks of bytes, four at a time.

    With VPERMT2B three overlapping loads hold four blocks, and each register takes its pieces from
    two of them: therefore the halves of every second block of four are swapped.
    """
    found = []
    for k in range(4):
        if "avx512vbmi" in features():
            a, b, c = (load(builder, base, 136 * k + at, 64) for at in (0, 64, 72))
            first = [at + j for at in (2, 52, 70, 104) for j in range(16)]
            second = [at + j for at in (18, 36, 86 - 8, 120 - 8) for j in range(16)]
            found.append([shuffle(builder, a, b, first), shuffle(builder, a, c, second)])
        else:
            a, b, c, d = (load(builder, base, 34 * (4 * k + i) + 2, 32) for i in range(4))
            left, right = concat(builder, a, b), concat(builder, c, d)
            both = ((0, 3, 4, 6), (1, 2, 5, 7))
            found.append([quarters(builder, left, right, which) for which in both])
    return found


def scale_alone(stride: int) -> Callable[..., Any]:
    """Return the reader of a type whose blocks begin with d."""
    return lambda builder, base, path: (strided_halves(builder, base, stride, 0, path), None)


def scale_and_minimum(stride: int) -> Callable[..., Any]:
    """Return the reader of a type whose blocks begin with d and m."""
    return lambda builder, base, path: (
        strided_halves(builder, base, stride, 0, path),
        strided_halves(builder, base, stride, 2, path),
    )


# ---------------------------------------------------------------- super-blocks of 256


def paired_codes(builder: Any, base: Any, stride: int, first: int, high: int | None) -> Codes:
    """Unpack two super-blocks: 32 bytes hold two sub-blocks, low nibbles and high nibbles.

    ``high``: where the 32 bytes with fifth bits lie, if any: bit g of byte j for element 32 g + j.
    """
    found: Codes = [[], [], [], []]
    for block in range(2):
        left = load(builder, base, stride * block + first, 64)
        right = load(builder, base, stride * block + first + 64, 64)
        for half, which in enumerate((EVEN_QUARTERS, ODD_QUARTERS)):
            raw = quarters(builder, left, right, which)
            even, odd = low_nibbles(builder, raw), high_nibbles(builder, raw)
            if high is not None:
                bits = load(builder, base, stride * block + high + 16 * half, 16)
                bits = concat(builder, *[bits] * 4)
                even, odd = with_bit(builder, even, bits, 0), with_bit(builder, odd, bits, 1)
            found[2 * block].append(even)
            found[2 * block + 1].append(odd)
    return found


def with_bit(builder: Any, codes: Any, bits: Any, first: int) -> Any:
    """Add 16 to codes of quarter i where bit ``first`` + 2 i of ``bits`` is set."""
    tests = constant(BYTES, [1 << (first + 2 * (j // 16)) for j in range(64)])
    is_set = builder.icmp_unsigned("!=", builder.and_(bits, tests), fill(0, BYTES))
    return builder.or_(codes, builder.select(is_set, fill(16, BYTES), fill(0, BYTES)))


def paired_scales(stride: int) -> Callable[..., Any]:
    """Return the reader of two super-blocks' d, dmin and twelve bytes of 6-bit numbers.

    Numbers 0-3 are the low six bits of a byte; of numbers 4-7 four bits lie in a nibble of bytes
    12-15 and two above numbers 0-3. All 32 are put together at once, in lanes' order.
    """
    order = [(lane // 8, lane % 8) for lane in LAYOUTS["Q4_K"].lanes]
    near = [16 * s + (4 + j if j < 4 else 8 + j) for s, j in order]
    near += [16 * s + 8 + j for s, j in order]
    far = [16 * s + j for s, j in order] + [16 * s + 4 + j for s, j in order]
    low = [63 if j < 4 else 15 for _, j in order] + [63 if j < 4 else 0 for _, j in order]
    nibble = [0] * LANES + [0 if j < 4 else 15 for _, j in order]
    upper = [0 if j < 4 else 48 for _, j in order] * 2

    def scales(builder: Any, base: Any, path: str) -> tuple[Any, Any]:
        header = concat(builder, load(builder, base, 0, 16), load(builder, base, stride, 16))
        a, b = shuffle(builder, header, header, near), shuffle(builder, header, header, far)
        parts = [
            builder.and_(a, constant(a.type, low)),
            builder.and_(high_nibbles(builder, a), constant(a.type, nibble)),
            builder.and_(builder.lshr(b, fill(2, b.type)), constant(a.type, upper)),
        ]
        numbers = builder.or_(builder.or_(*parts[:2]), parts[2])
        halves = builder.bitcast(header, ir.VectorType(SHORT, 16))
        both = widen(builder, halves, path)  # d and dmin are its numbers 0, 1, 8 and 9
        found = []
        for part in range(2):
            each = shuffle(builder, both, both, [8 * s + part for s, _ in order])
            mine = list(range(LANES * part, LANES * part + LANES))
            number = small_floats(builder, shuffle(builder, numbers, numbers, mine))
            found.append(builder.fmul(each, number))
        return found[0], found[1]

    return scales


def q6_k_codes(builder: Any, base: Any) -> Codes:
    """Unpack a super-block of halves.

    Nibbles of 64 bytes are elements j and j + 64 of a half, pairs of bits of 32 bytes the upper
    bits of elements j, j + 32, j + 64, j + 96.
    """
    words = ir.VectorType(SHORT, 32)
    mask = fill(48, BYTES)
    found = []
    for half in range(2):
        raw = load(builder, base, 64 * half, 64)
        top = load(builder, base, 128 + 32 * half, 32)
        top = builder.bitcast(concat(builder, top, top), words)
        left = builder.shl(top, constant(words, [4] * 16 + [2] * 16))
        right = builder.lshr(top, constant(words, [0] * 16 + [2] * 16))
        for nibbles, upper in ((low_nibbles, left), (high_nibbles, right)):
            bits = builder.and_(builder.bitcast(upper, BYTES), mask)
            found.append([builder.or_(nibbles(builder, raw), bits)])
    return found


def q6_k_scales(builder: Any, base: Any, path: str) -> tuple[Any, Any]:
    """Return d s of sixteen sub-blocks."""
    numbers = load(builder, base, 192, 16)
    numbers = shuffle(builder, numbers, numbers, LAYOUTS["Q6_K"].lanes)
    return builder.fmul(
        one_half(builder, base, 208, path), small_floats(builder, numbers, True)
    ), None


def one_half(builder: Any, base: Any, offset: int, path: str) -> Any:
    """Return one float16 as a float in all lanes."""
    raw = builder.bitcast(load(builder, base, offset, 2), ir.VectorType(SHORT, 1))
    return widen(builder, shuffle(builder, raw, raw, [0] * LANES), path)


CODES: dict[str, Callable[..., Codes]] = {
    "Q4_0": lambda b, base: nibble_codes(b, base, 18, 2),
    "Q4_1": lambda b, base: nibble_codes(b, base, 20, 4),
    "Q5_0": lambda b, base: fifth_bits(b, base, 22, 2, nibble_codes(b, base, 22, 6)),
    "Q5_1": lambda b, base: fifth_bits(b, base, 24, 4, nibble_codes(b, base, 24, 8)),
    "Q8_0": q8_0_codes,
    "Q4_K": lambda b, base: paired_codes(b, base, 144, 16, None),
    "Q5_K": lambda b, base: paired_codes(b, base, 176, 48, 16),
    "Q6_K": q6_k_codes,
}
SCALES: dict[str, Callable[..., Any]] = {
    "Q4_0": scale_alone(18),
    "Q4_1": scale_and_minimum(20),
    "Q5_0": scale_alone(22),
    "Q5_1": scale_and_minimum(24),
    "Q8_0": scale_alone(34),
    "Q4_K": paired_scales(144),
    "Q5_K": paired_scales(176),
    "Q6_K": q6_k_scales,
}
