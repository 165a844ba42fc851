"""Products with float activations: codes become floats in registers, nowhere else."""

# Bodies are compiled by Numba, which fills in the first argument of an intrinsic.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from numba import prange

from quantlab.kernels.float_products import (
    add_float_products,
    add_scaled_floats,
    less,
    load_table,
)
from quantlab.kernels.lanes import (
    load_scales,
    load_words,
    load_zero_points,
    store,
    zeros_like_plan,
)
from quantlab.native import compiled, compiled_parallel


@compiled
def float_block(plan, weight, zeros, middle, inputs, out, tile, token, sizes):
    """Multiply the plan's tiles, from ``tile`` on, with its tokens, from ``token`` on."""
    words, scale = weight
    x, table, x_sums = inputs
    row_words, groups, group_words, x_words, stride = sizes
    word, place = tile * row_words * 16, tile * groups * 16
    x_at, g_at = token * row_words * x_words, token * groups
    levels = load_table(table, 0)
    total = zeros_like_plan(plan)
    for g in range(groups):
        sums = zeros_like_plan(plan)
        for _ in range(group_words):
            w = load_words(plan, words, word, row_words * 16)
            sums = add_float_products(plan, sums, w, levels, x, x_at, row_words * x_words)
            word, x_at = word + 16, x_at + x_words
        scales = load_scales(plan, scale, place, groups * 16)
        if zeros is None:
            total = add_scaled_floats(plan, total, sums, scales, None, x_sums, g_at + g, groups)
        else:
            shift = less(load_zero_points(plan, zeros, place, groups * 16), middle)
            total = add_scaled_floats(plan, total, sums, scales, shift, x_sums, g_at + g, groups)
        place += 16
    store(plan, total, out, token * stride + tile * 16, stride)


@compiled
def float_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, low, high):
    """Multiply the tiles low..high with all tokens, ``step`` = (tiles, tokens) at a time."""
    tokens = out.size // sizes[4]
    for tile in range(low, high, step[0]):
        first = min(tile, high - step[0])  # the last block may repeat a tile: same numbers again
        for token in range(0, tokens, step[1]):
            float_block(plan, weight, zeros, middle, inputs, out, first, token, sizes)


@compiled_parallel
def shared_float_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, tiles, threads):
    """Multiply all tiles, shared out over threads."""
    for k in prange(threads):
        low, high = tiles * k // threads, tiles * (k + 1) // threads
        float_tiles(plan, step, weight, zeros, middle, inputs, out, sizes, low, high)
