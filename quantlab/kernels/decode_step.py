"""One token through a Llama, compiled whole: nothing between two products but arithmetic.

In a small model a framework's overhead for each of its hundred calls a token takes ten times as
long as the arithmetic. Here Python is entered once a token.

All packed weights lie in one flat array of words, and a table says where each matrix begins; q, k
and v of a layer follow one another, as do gate and up, so each such group is one product.
"""

# Bodies are compiled by Numba, which fills in the first argument of an intrinsic.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from quantlab.kernels.activations import round_tokens
from quantlab.kernels.exponential import exponential
from quantlab.kernels.float_kernels import float_tiles
from quantlab.kernels.integer_kernels import integer_tiles
from quantlab.native import compiled

ONE = np.float32(1)
QKV, OUT, GATE_UP, DOWN = range(4)  # the products of a layer
# Columns of the table of places: sizes of a matrix, and where its words and its scales begin.
TILES, ROW_WORDS, GROUPS, GROUP_WORDS, COLUMNS, WORDS, SCALES = range(7)


@compiled
def normalize(x, gain, eps, out):
    """Divide x by its root mean square and multiply by a gain per channel."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    factor = np.float32(ONE / np.sqrt(np.float32(total / np.float32(x.size) + eps)))
    for i in range(x.size):
        out[i] = gain[i] * np.float32(x[i] * factor)


@compiled
def multiply(plan, step, levels, weight, zeros, place, x, out):
    """Write the product of one matrix with one vector, which ``levels`` None rounds to int8."""
    words, scale = weight
    tiles, row_words, groups = place[TILES], place[ROW_WORDS], place[GROUPS]
    per_word = place[COLUMNS] // row_words  # codes: 8 of 4 bits, 4 of 8 bits, 1 of 32
    low = place[SCALES]
    w = words[place[WORDS] : place[WORDS] + tiles * row_words * 16]
    s = scale[low : low + tiles * groups * 16]
    z = part_of(zeros, low, low + tiles * groups * 16)
    middle = 1 << (32 // per_word - 1)
    if levels is None:
        codes = np.empty((1, x.size), np.int8)
        x_scale, sums = np.empty((1, groups), np.float32), np.empty((1, groups), np.int32)
        round_tokens(x.reshape(1, -1), x.size // groups, codes, x_scale, sums, per_word == 8)
        inputs = (codes.view(np.int32).reshape(-1), x_scale.reshape(-1), sums.reshape(-1))
        sizes = (row_words, groups, place[GROUP_WORDS], per_word // 4, tiles * 16)
        integer_tiles(plan, step, (w, s), z, middle, inputs, out, sizes, 0, tiles)
    else:
        inputs = (x, levels, sums_of(x, groups))
        sizes = (row_words, groups, place[GROUP_WORDS], per_word, tiles * 16)
        float_tiles(plan, step, (w, s), z, middle, inputs, out, sizes, 0, tiles)


def part_of(zeros: Any, low: int, high: int) -> Any:
    """Return zeros[low:high], or None if there are none."""
    return None if zeros is None else zeros[low:high]


@overload(part_of)
def _part_of(zeros: Any, low: int, high: int) -> Any:
    """Choose by type, while compiling: a value that may be None would not fit a kernel."""

    def nothing(zeros: Any, low: int, high: int) -> Any:
        return None

    def part(zeros: Any, low: int, high: int) -> Any:
        return zeros[low:high]

    return nothing if isinstance(zeros, types.NoneType) else part


@compiled
def sums_of(x, groups):
    """Return the sum of each group of activations."""
    sums, size = np.zeros(groups, np.float32), x.size // groups
    for g in range(groups):
        for i in range(g * size, (g + 1) * size):
            sums[g] += x[i]
    return sums


@compiled
def rotate(x, cos, sin):
    """Turn the pairs (i, i + half) of each head, (heads, head_dim), in place."""
    half = x.shape[1] // 2
    for h in range(x.shape[0]):
        for i in range(half):
            left, right = x[h, i], x[h, i + half]
            x[h, i] = left * cos[i] - right * sin[i]
            x[h, i + half] = right * cos[i + half] + left * sin[i + half]


@compiled
def attend(q, keys, values, length, weights, out):
    """Mix the values of one head: keys (head_dim, context), values (context, head_dim).

    Keys lie with positions side by side, values with channels side by side, so that both inner
    loops run over neighbors and need no sum across a register.
    """
    shrink = np.float32(ONE / np.sqrt(np.float32(q.size)))
    weights[:length] = 0
    for d in range(q.size):
        factor = np.float32(q[d] * shrink)
        for t in range(length):
            weights[t] += factor * keys[d, t]
    largest = weights[0]
    for t in range(length):
        largest = max(largest, weights[t])
    for t in range(length):
        weights[t] = exponential(np.float32(weights[t] - largest))
    total = np.float32(0)
    for t in range(length):
        total += weights[t]
    out[:] = 0
    for t in range(length):
        share = np.float32(weights[t] / total)
        for d in range(out.size):
            out[d] += share * values[t, d]


@compiled
def attention(qkv, heads, keys, values, turn, position, out):
    """Add a token to one layer's cache and let each head look at all tokens so far."""
    kv_heads, head_dim, context = keys.shape
    parts = qkv[: (heads + 2 * kv_heads) * head_dim].reshape(-1, head_dim)
    q, k, v = parts[:heads], parts[heads : heads + kv_heads], parts[heads + kv_heads :]
    rotate(q, turn[0], turn[1])
    rotate(k, turn[0], turn[1])
    keys[:, :, position] = k
    values[:, position, :] = v
    weights = np.empty(context, np.float32)
    for h in range(heads):
        shared = h * kv_heads // heads
        mixed = out[h * head_dim : (h + 1) * head_dim]
        attend(q[h], keys[shared], values[shared], position + 1, weights, mixed)


@compiled
def gated(both, width):
    """Write silu(gate) * up over the gate; both (>= 2 * width,): gate first, then up."""
    for i in range(width):
        gate = both[i]
        both[i] = np.float32(gate / np.float32(ONE + exponential(-gate))) * both[width + i]


@compiled
def decode_step(plan, levels, zeros, head_plan, head_levels, layout, gains, cache, x, numbers):
    """Run a token's vector x (hidden,) through all layers and return its logits.

    Parameters
    ----------
    plan, levels, zeros : how the layers multiply, and their zero points
        ``levels`` None rounds activations to int8. Plans stand by themselves, outside of tuples:
        Numba finds the type of a tuple fast only if it knows all types in it.
    head_plan, head_levels : how the output head multiplies
    layout : (step, (words, scales), places) of the layers, then of the head
        ``places`` (4 * layers, 7) tells where each product's matrix lies.
    gains : (2 * layers + 1, hidden) float32 array of the norms
    cache : keys (layers, kv_heads, head_dim, context), values (layers, kv_heads, context,
        head_dim), cos and sin (context, head_dim)
    x : (hidden,) float32 array, overwritten
    numbers : (query heads, eps of the norms, position)
    """
    step, weight, places, head_step, head_weight, head_place = layout
    keys, values, cos, sin = cache
    heads, eps, position = numbers
    hidden, layers = x.size, keys.shape[0]
    widest = 16
    for product in range(places.shape[0]):
        widest = max(widest, places[product, TILES] * 16)
    h, wide = np.empty(hidden, np.float32), np.empty(widest, np.float32)
    narrow = np.empty(places[OUT, TILES] * 16, np.float32)
    mixed = np.empty(places[OUT, COLUMNS], np.float32)
    for layer in range(layers):
        at = 4 * layer
        normalize(x, gains[2 * layer], eps, h)
        qkv = wide[: places[at + QKV, TILES] * 16]
        multiply(plan, step, levels, weight, zeros, places[at + QKV], h, qkv)
        turn = (cos[position], sin[position])
        attention(qkv, heads, keys[layer], values[layer], turn, position, mixed)
        multiply(plan, step, levels, weight, zeros, places[at + OUT], mixed, narrow)
        for i in range(hidden):
            x[i] += narrow[i]
        normalize(x, gains[2 * layer + 1], eps, h)
        both = wide[: places[at + GATE_UP, TILES] * 16]
        multiply(plan, step, levels, weight, zeros, places[at + GATE_UP], h, both)
        width = places[at + DOWN, COLUMNS]
        gated(both, width)
        multiply(plan, step, levels, weight, zeros, places[at + DOWN], both[:width], narrow)
        for i in range(hidden):
            x[i] += narrow[i]
    normalize(x, gains[2 * layers], eps, h)
    logits = np.empty(head_place[TILES] * 16, np.float32)
    multiply(head_plan, head_step, head_levels, head_weight, None, head_place, h, logits)
    return logits
