"""Products over integers: packed weights of 4 or 8 bits times int8 activations."""

# Bodies are compiled by Numba, which fills in the first argument of an intrinsic.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from numba import prange

from quantlab.kernels.dot_products import add_products
from quantlab.kernels.lanes import (
    add_scaled,
    load_scales,
    load_words,
    load_zero_points,
    minus_zero_point,
    store,
    zeros_like_plan,
)
from quantlab.native import compiled, compiled_parallel


@compiled
def integer_block(plan, weight, zeros, middle, inputs, out, tile, token, sizes):
    """Multiply the plan's tiles, from ``tile`` on, with its tokens, from ``token`` on."""
    words, scale = weight
    x, x_scale, x_sums = inputs
    row_words, groups, group_words, x_words, stride = sizes
    word, place = tile * row_words * 16, tile * groups * 16
    x_at, g_at = token * row_words * x_words, token * groups
    total = zeros_like_plan(plan)
    for g in range(groups):
        if zeros is None:
            sums = minus_zero_point(plan, middle, x_sums, g_at + g, groups)
        else:
            zero = load_zero_points(plan, zeros, place, groups * 16)
            sums = minus_zero_point(plan, zero, x_sums, g_at + g, groups)
        for _ in range(group_words):
            w = load_words(plan, words, word, row_words * 16)
            sums = add_products(plan, sums, w, x, x_at, row_words * x_words)
            word, x_at = word + 16, x_at + x_words
        scales = load_scales(plan, scale, place, groups * 16)
        total = add_scaled(plan, total, sums, scales, x_scale, g_at + g, groups)
        place += 16
    store(plan, total, out, token * stride + tile * 16, stride)


@compiled
def integer_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, low, high):
    """Multiply the tiles low..high with all tokens, ``step`` = (tiles, tokens) at a time."""
    tokens = out.size // sizes[4]
    for tile in range(low, high, step[0]):
        first = min(tile, high - step[0])  # the last block may repeat a tile: same numbers again
        for token in range(0, tokens, step[1]):
            integer_block(plan, weight, zeros, middle, inputs, out, first, token, sizes)


@compiled_parallel
def shared_integer_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, tiles, threads):
    """Multiply all tiles, shared out over threads."""
    for k in prange(threads):
        low, high = tiles * k // threads, tiles * (k + 1) // threads
        integer_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, low, high)
