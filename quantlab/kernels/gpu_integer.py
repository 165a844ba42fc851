"""Triton kernels for activations rounded to int8 (W4A8, W8A8): sums over integers.

A sum of integers does not depend on its order, so tensor cores, plain instructions and a processor
give the same one. Floats come in once a group: there these kernels add in the order of the
definition, and are compiled without fused multiply-add, which rounds once where two operations
round twice. Hence the result equals ``reference.matmul`` in every bit.
"""

from __future__ import annotations

from quantlab.kernels.gpu_language import constexpr, kernel, tl


@kernel
def quantize(codes, scale, sums, x, columns, groups, GROUP: constexpr, BLOCK: constexpr):
    """Round one group of one token to int8; write codes, scale, and the sum of the codes.

    BLOCK is the group's size, rounded up to a power of two. Adding 1.5 * 2**23 to a small float32
    and taking it off again rounds it to a whole number, half to even: the sum has no bits left
    for a fraction.
    """
    token, group = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, BLOCK)
    column = group * GROUP + place
    inside = (place < GROUP) & (column < columns)
    values = tl.load(x + token * columns + column, mask=inside, other=0).to(tl.float32)
    step = tl.div_rn(tl.max(tl.abs(values), 0), 127.0)
    ratio = tl.div_rn(values, tl.where(step == 0, 1.0, step))
    whole = (ratio + 12582912.0) - 12582912.0
    code = tl.minimum(tl.maximum(whole, -127.0), 127.0).to(tl.int32)
    tl.store(codes + token * columns + column, code.to(tl.int8), mask=inside)
    tl.store(scale + token * groups + group, step)
    tl.store(sums + token * groups + group, tl.sum(code, 0))


@kernel
def add_in_order(total, terms, COUNT: constexpr):
    """Return total (16,) plus the COUNT rows of terms, one after another: floats mind the order.

    Each turn adds up one row and zeros, which is exact.
    """
    for i in tl.static_range(COUNT):
        total += tl.sum(tl.where(tl.arange(0, COUNT)[:, None] == i, terms, 0.0), 0)
    return total


@kernel
def gemv(
    out, x, x_scale, x_sums, words, scale, zeros, rows, columns, groups,
    BITS: constexpr, GROUP_WORDS: constexpr, WORDS: constexpr, GROUPS: constexpr,
):  # fmt: skip
    """Multiply one token of int8 codes with 16 rows, GROUPS groups at a time.

    sum (code - zero) x = sum code x - zero sum x, so the zero point is met once a group. Small
    groups are taken together, to have more words on their way from memory; a large one (GROUPS is
    1 then) passes by in blocks of WORDS words.
    """
    PER_WORD: constexpr = 32 // BITS
    BLOCKS: constexpr = (GROUPS * GROUP_WORDS + WORDS - 1) // WORDS
    row_words = tl.cdiv(columns, PER_WORD)
    tile, lane = tl.program_id(0), tl.arange(0, 16)
    total = tl.zeros((16,), tl.float32)
    for first in tl.range(0, groups, GROUPS):
        last = tl.minimum((first + GROUPS) * GROUP_WORDS, row_words)
        part = tl.zeros((WORDS, 16), tl.int32)
        for block in tl.range(BLOCKS):
            word = first * GROUP_WORDS + block * WORDS + tl.arange(0, WORDS)
            at = (tile * row_words + word)[:, None] * 16 + lane[None, :]
            packed = tl.load(words + at, mask=(word < last)[:, None], other=0)
            for place in tl.static_range(PER_WORD):
                column = word * PER_WORD + place
                value = tl.load(x + column, mask=(word < last) & (column < columns), other=0)
                code = (packed >> (BITS * place)) & (2**BITS - 1)
                part += code * value.to(tl.int32)[:, None]
        dots = tl.sum(tl.reshape(part, (GROUPS, WORDS // GROUPS, 16)), 1)
        group = first + tl.arange(0, GROUPS)
        at = (tile * groups + group)[:, None] * 16 + lane[None, :]
        inside = group < groups
        if zeros is None:
            zero = 2 ** (BITS - 1)
        else:
            zero = tl.load(zeros + at, mask=inside[:, None], other=0).to(tl.int32)
        dots -= zero * tl.load(x_sums + group, mask=inside, other=0)[:, None]
        steps = tl.load(scale + at, mask=inside[:, None], other=0).to(tl.float32)
        steps *= tl.load(x_scale + group, mask=inside, other=0)[:, None]
        total = add_in_order(total, dots.to(tl.float32) * steps, GROUPS)
    row = tile * 16 + lane
    tl.store(out + row, total.to(out.dtype.element_ty), mask=row < rows)


@kernel
def codes_as_bytes(words, BITS: constexpr):
    """Return the codes of (A, B) words as (A, B * 32 / BITS) int8, four with one operation.

    4 bits: one AND keeps codes 0 2 4 6 of a word, each in a byte of its own, and after a shift
    codes 1 3 5 7. 8 bits: flipping the top bits, 0x80808080, subtracts 128, so that it fits.
    """
    four = tl.join(words, words >> 4) & 0x0F0F0F0F if BITS == 4 else words ^ -0x7F7F7F80
    parts = tl.join(four, four >> 16)
    parts = tl.join(parts, parts >> 8)
    return tl.reshape(parts.to(tl.int8), (words.shape[0], words.shape[1] * 32 // BITS))


@kernel
def gemm(
    out, x, x_scale, x_sums, words, scale, zeros, tokens, rows, columns, groups,
    BITS: constexpr, GROUP_WORDS: constexpr, WORDS: constexpr,
    ROWS: constexpr, TOKENS: constexpr,
):  # fmt: skip
    """Multiply TOKENS tokens of int8 codes with ROWS rows on tensor cores, into int32."""
    PER_WORD: constexpr = 32 // BITS
    SHIFT: constexpr = 0 if BITS == 4 else 128  # which codes_as_bytes has subtracted
    row_words = tl.cdiv(columns, PER_WORD)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    tile, lane = row // 16, row % 16
    held = row < tl.cdiv(rows, 16) * 16
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for group in tl.range(groups):
        dots = tl.zeros((ROWS, TOKENS), tl.int32)
        for begin in tl.range(0, GROUP_WORDS, WORDS):
            place = begin + tl.arange(0, WORDS)
            at = (tile * row_words + group * GROUP_WORDS)[:, None] + place[None, :]
            inside = held[:, None] & (place < GROUP_WORDS)[None, :]
            packed = tl.load(words + at * 16 + lane[:, None], mask=inside, other=0)
            place = begin * PER_WORD + tl.arange(0, WORDS * PER_WORD)
            column = group * GROUP_WORDS * PER_WORD + place
            inside = (place < GROUP_WORDS * PER_WORD) & (column < columns)
            inside = (token < tokens)[:, None] & inside[None, :]
            at = token[:, None] * columns + column[None, :]
            values = tl.load(x + at, mask=inside, other=0)
            if BITS == 4:  # even activations before odd ones, as the codes are
                values = tl.reshape(values, (TOKENS, WORDS, 4, 2))
                values = tl.reshape(tl.permute(values, (0, 1, 3, 2)), (TOKENS, WORDS * 8))
            dots = tl.dot(codes_as_bytes(packed, BITS), tl.trans(values), dots, out_dtype=tl.int32)
        at = (tile * groups + group) * 16 + lane
        if zeros is None:
            zero = tl.full((ROWS, 1), 2 ** (BITS - 1), tl.int32)
        else:
            zero = tl.load(zeros + at, mask=held, other=0).to(tl.int32)[:, None]
        at_x = token * groups + group
        there = token < tokens
        dots -= (zero - SHIFT) * tl.load(x_sums + at_x, mask=there, other=0)[None, :]
        steps = tl.load(scale + at, mask=held, other=0).to(tl.float32)[:, None]
        steps = steps * tl.load(x_scale + at_x, mask=there, other=0)[None, :]
        total += dots.to(tl.float32) * steps
    at = token[None, :] * rows + row[:, None]
    inside = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
