"""Triton kernels for activations that stay floats (W4A16, W8A16), and for dequantization.

All read ``Tiles``: word w of row 16 t + r lies at (t * words + w) * 16 + r, so that sixteen
neighboring rows are one piece of 64 bytes, whatever the shape of the block that a program takes.

What limits them. One token: memory. A weight byte is read once, so the time cannot be below
bytes / bandwidth; but at 4 bits a fast GPU has time for about five instructions a weight, and
turning a code into a float by shift, mask, conversion and subtraction takes four. Hence the two
tricks below, which build floats out of bits. Many tokens: the tensor cores, if they are fed.
"""

from __future__ import annotations

from quantlab.kernels.gpu_language import constexpr, kernel, tl

# ---------------------------------------------------------------- codes to floats


@kernel
def code_as_float(words, zero, PLACE: constexpr, BITS: constexpr):
    """Return (code - zero) as float32, for the PLACE-th code of each word, without a conversion.

    A float32 of exponent e has a last bit worth 2**(e - 23). Put the code's bits into its fraction
    where they stand, shift bits above the last: if e is 23 - shift, the float is 2**e + code.
    One AND-OR (a single instruction), one exact subtraction. The upper half is shifted down once.
    """
    shift: constexpr = BITS * PLACE % 16
    if BITS * PLACE >= 16:
        words = words >> 16
    bits = (words & ((2**BITS - 1) << shift)) | ((127 + 23 - shift) << 23)
    return bits.to(tl.float32, bitcast=True) - (zero + 2.0 ** (23 - shift))


@kernel
def unfold(words, BITS: constexpr):
    """Return the codes of (A, B) words as (A, B * 32 / BITS) integers, in order.

    Each join puts a shifted copy beside the words, in the same thread: 16 bits, then 8, then 4.
    """
    parts = tl.join(words, words >> 16)
    parts = tl.join(parts, parts >> 8)
    if BITS == 4:
        parts = tl.join(parts, parts >> 4)
    return tl.reshape(parts, (words.shape[0], words.shape[1] * 32 // BITS)) & (2**BITS - 1)


@kernel
def nibbles_as_halves(words, zero, HALF: constexpr, FLOAT: constexpr):
    """Return (code - zero) of (A, B) words of 4-bit codes as (A, 8 B) 16-bit floats.

    Nibbles i and i + 4 of a word stand 16 bits apart: one AND-OR turns both into floats at once,
    128 + code in bfloat16 or 1024 + code in float16, and one paired subtraction leaves the exact
    difference. So the codes of a word come out in the order 0 4 1 5 2 6 3 7; ``in_nibble_order``
    gives the activations the same order, and a sum does not mind.
    """
    words = tl.join(words, words >> 8)
    words = tl.join(words, words >> 4)
    if HALF == tl.bfloat16:  # noqa: SIM300 - capitals, yet no literal
        bits, one = (words & 0x000F000F) | 0x43004300, 128.0
    else:
        bits, one = (words & 0x000F000F) | 0x64006400, 1024.0
    low = bits.to(tl.int16).to(HALF, bitcast=True)
    high = (bits >> 16).to(tl.int16).to(HALF, bitcast=True)
    floats = tl.reshape(tl.join(low, high), (words.shape[0], words.shape[1] * 8))
    return floats.to(FLOAT) - (zero + one).to(FLOAT)


@kernel
def in_nibble_order(x, TOKENS: constexpr, WORDS: constexpr):
    """Reorder (TOKENS, 8 WORDS) activations: 0 4 1 5 2 6 3 7 in each eight."""
    x = tl.reshape(x, (TOKENS, WORDS, 2, 4))
    return tl.reshape(tl.permute(x, (0, 1, 3, 2)), (TOKENS, WORDS * 8))


# ---------------------------------------------------------------- kernels


@kernel
def dequantize(
    out, words, scale, zeros, rows, columns, groups,
    BITS: constexpr, GROUP_WORDS: constexpr, WORDS: constexpr,
):  # fmt: skip
    """Write scale * (code - zero) of 16 rows times WORDS words; out is (rows, columns)."""
    PER_WORD: constexpr = 32 // BITS
    row_words = tl.cdiv(columns, PER_WORD)
    tile, lane = tl.program_id(0), tl.arange(0, 16)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside = (word < row_words)[None, :]
    at = (tile * row_words + word)[None, :] * 16 + lane[:, None]
    code = unfold(tl.load(words + at, mask=inside, other=0), BITS)
    column = tl.program_id(1) * WORDS * PER_WORD + tl.arange(0, WORDS * PER_WORD)
    at = (tile * groups + column // (GROUP_WORDS * PER_WORD))[None, :] * 16 + lane[:, None]
    inside = (column < columns)[None, :] & (tile * 16 + lane < rows)[:, None]
    if zeros is None:
        zero = 2 ** (BITS - 1)
    else:
        zero = tl.load(zeros + at, mask=inside, other=0).to(tl.int32)
    factor = tl.load(scale + at, mask=inside, other=0).to(tl.float32)
    weight = (code - zero).to(tl.float32) * factor
    at = (tile * 16 + lane)[:, None] * columns + column[None, :]
    tl.store(out + at, weight.to(out.dtype.element_ty), mask=inside)


@kernel
def gemv(
    out, x, words, scale, zeros, rows, columns, groups, share,
    BITS: constexpr, GROUP_WORDS: constexpr, WORDS: constexpr, STAGES: constexpr,
):  # fmt: skip
    """Multiply one token with 16 rows and one share of their words; out is (shares, rows).

    Every thread keeps sums of its own words and rows in float32; they are added at the end only.
    """
    PER_WORD: constexpr = 32 // BITS
    row_words = tl.cdiv(columns, PER_WORD)
    tile, lane = tl.program_id(0), tl.arange(0, 16)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, row_words)
    total = tl.zeros((WORDS, 16), tl.float32)
    for start in tl.range(first, last, WORDS, num_stages=STAGES):
        word = start + tl.arange(0, WORDS)
        inside = (word < last)[:, None]
        at = (tile * row_words + word)[:, None] * 16 + lane[None, :]
        packed = tl.load(words + at, mask=inside, other=0)
        at = (tile * groups + word // GROUP_WORDS)[:, None] * 16 + lane[None, :]
        if zeros is None:
            zero = 2.0 ** (BITS - 1)
        else:
            zero = tl.load(zeros + at, mask=inside, other=0).to(tl.float32)
        part = tl.zeros((WORDS, 16), tl.float32)
        for place in tl.static_range(PER_WORD):
            column = word * PER_WORD + place
            value = tl.load(x + column, mask=(word < last) & (column < columns), other=0)
            code = code_as_float(packed, zero, place, BITS)
            part += code * value.to(tl.float32)[:, None]
        total += part * tl.load(scale + at, mask=inside, other=0).to(tl.float32)
    row = tile * 16 + lane
    y = tl.sum(total, 0).to(out.dtype.element_ty)
    tl.store(out + tl.program_id(1) * rows + row, y, mask=row < rows)


@kernel
def gemm(
    out, x, words, scale, zeros, tokens, rows, columns, groups, share,
    BITS: constexpr, GROUP_WORDS: constexpr, WORDS: constexpr,
    ROWS: constexpr, TOKENS: constexpr, FLOAT: constexpr,
):  # fmt: skip
    """Multiply TOKENS tokens with ROWS rows and one share of their blocks of WORDS words.

    Weights stand on the left, since tensor cores take 64 rows at a time on that side, and few
    tokens would waste them. The tensor cores multiply activations with (code - zero), whole numbers
    that 16-bit floats hold exactly; the scale follows in float32, once a block instead of once a
    weight. So a weight is never rounded to 16 bits.

    FLOAT is the type of x; but float32 for bfloat16 in the interpreter, which cannot add those.
    out is (shares, tokens, rows).
    """
    PER_WORD: constexpr = 32 // BITS
    BLOCKS: constexpr = (GROUP_WORDS + WORDS - 1) // WORDS  # of a group
    PAIRS: constexpr = BITS == 4 and x.dtype.element_ty != tl.float32
    row_words = tl.cdiv(columns, PER_WORD)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    tile, lane = row // 16, row % 16
    held = row < tl.cdiv(rows, 16) * 16
    first = tl.program_id(2) * share
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in tl.range(first, tl.minimum(first + share, groups * BLOCKS)):
        group, begin = block // BLOCKS, block % BLOCKS * WORDS
        place = begin + tl.arange(0, WORDS)
        at = (tile * row_words + group * GROUP_WORDS)[:, None] + place[None, :]
        inside = held[:, None] & (place < GROUP_WORDS)[None, :]
        packed = tl.load(words + at * 16 + lane[:, None], mask=inside, other=0)
        at = (tile * groups + group) * 16 + lane
        if zeros is None:
            zero = tl.full((ROWS, 1), 2 ** (BITS - 1), tl.float32)
        else:
            zero = tl.load(zeros + at, mask=held, other=0).to(tl.float32)[:, None]
        place = begin * PER_WORD + tl.arange(0, WORDS * PER_WORD)
        column = group * GROUP_WORDS * PER_WORD + place
        inside = (place < GROUP_WORDS * PER_WORD) & (column < columns)
        inside = (token < tokens)[:, None] & inside[None, :]
        values = tl.load(x + token[:, None] * columns + column[None, :], mask=inside, other=0)
        if PAIRS:
            weight = nibbles_as_halves(packed, zero, x.dtype.element_ty, FLOAT)
            values = in_nibble_order(values, TOKENS, WORDS)
        else:
            weight = (unfold(packed, BITS).to(tl.float32) - zero).to(FLOAT)
        dots = tl.dot(weight, tl.trans(values.to(FLOAT)), input_precision="ieee")
        total += dots * tl.load(scale + at, mask=held, other=0).to(tl.float32)[:, None]
    at = (tl.program_id(2) * tokens + token)[None, :] * rows + row[:, None]
    inside = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
