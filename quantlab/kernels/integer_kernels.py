"""Products over integers: packed weights of 4 or 8 bits times int8 activations."""

from __future__ import annotations

from quantlab.kernels.dot_products import add_byte_products, add_products
from quantlab.kernels.lanes import (
    add_scaled,
    load_scales,
    load_words,
    load_zero_points,
    minus_zero_point,
    nibbles,
    store,
    zeros_like_plan,
)
from quantlab.native import compiled


@compiled
def int4_block(plan, words, scale, zeros, x, x_scale, x_sums, out, tile, token, sizes):
    """Multiply the plan's tiles, from ``tile`` on, with its tokens, from ``token`` on."""
    row_words, groups, group_words = sizes
    word, place = tile * row_words * 16, tile * groups * 16
    width = x.size // (x_scale.size // groups)  # 32-bit words of a token: two for each weight word
    x_at, g_at = token * width, token * groups
    total = zeros_like_plan(plan)
    for g in range(groups):
        if zeros is None:
            sums = minus_zero_point(plan, 8, x_sums, g_at + g, groups)
        else:
            zero = load_zero_points(plan, zeros, place, groups * 16)
            sums = minus_zero_point(plan, zero, x_sums, g_at + g, groups)
        for _ in range(group_words):
            w = load_words(plan, words, word, row_words * 16)
            sums = add_products(plan, sums, nibbles(w, 0), x, x_at, width)
            sums = add_products(plan, sums, nibbles(w, 4), x, x_at + 1, width)
            word, x_at = word + 16, x_at + 2
        scales = load_scales(plan, scale, place, groups * 16)
        total = add_scaled(plan, total, sums, scales, x_scale, g_at + g, groups)
        place += 16
    stride = out.size // (x_scale.size // groups)
    store(plan, total, out, token * stride + tile * 16, stride)


@compiled
def int8_block(plan, words, scale, zeros, x, x_scale, x_sums, out, tile, token, sizes):
    """Multiply the plan's tiles, from ``tile`` on, with its tokens, from ``token`` on."""
    row_words, groups, group_words = sizes
    word, place = tile * row_words * 16, tile * groups * 16
    x_at, g_at = token * row_words, token * groups
    total = zeros_like_plan(plan)
    for g in range(groups):
        if zeros is None:
            sums = minus_zero_point(plan, 128, x_sums, g_at + g, groups)
        else:
            zero = load_zero_points(plan, zeros, place, groups * 16)
            sums = minus_zero_point(plan, zero, x_sums, g_at + g, groups)
        for _ in range(group_words):
            w = load_words(plan, words, word, row_words * 16)
            sums = add_byte_products(plan, sums, w, x, x_at, row_words)
            word, x_at = word + 16, x_at + 1
        scales = load_scales(plan, scale, place, groups * 16)
        total = add_scaled(plan, total, sums, scales, x_scale, g_at + g, groups)
        place += 16
    stride = out.size // (x_scale.size // groups)
    store(plan, total, out, token * stride + tile * 16, stride)


@compiled
def int4_tiles(plan, step, words, scale, zeros, x, x_scale, x_sums, out, sizes, low, high):
    """Multiply the tiles low..high with all tokens, ``step`` = (tiles, tokens) at a time."""
    tokens = x_scale.size // sizes[1]
    for tile in range(low, high, step[0]):
        first = min(tile, high - step[0])  # the last block may repeat a tile: same numbers again
        for token in range(0, tokens, step[1]):
            int4_block(plan, words, scale, zeros, x, x_scale, x_sums, out, first, token, sizes)


@compiled
def int8_tiles(plan, step, words, scale, zeros, x, x_scale, x_sums, out, sizes, low, high):
    """Multiply the tiles low..high with all tokens, ``step`` = (tiles, tokens) at a time."""
    tokens = x_scale.size // sizes[1]
    for tile in range(low, high, step[0]):
        first = min(tile, high - step[0])
        for token in range(0, tokens, step[1]):
            int8_block(plan, words, scale, zeros, x, x_scale, x_sums, out, first, token, sizes)
