"""Activations laid out as the products of GGUF blocks read them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.kernels.activations import find_scale, round_group
from quantlab.kernels.block_layouts import Layout
from quantlab.kernels.tiles import LANES
from quantlab.native import compiled

Array = NDArray[Any]


@compiled
def round_blocks(x, weights, places, lanes, bias, sign, out):
    """Round (tokens, in) floats by blocks of 32 to int8, each piece and sum at its place."""
    codes, scale, base, sums = out
    pieces, parts = len(places), 32 // weights
    for t in range(x.shape[0]):
        for b in range(x.shape[1] // 32):
            block = x[t, 32 * b : 32 * b + 32]
            step = find_scale(block.view(np.int32))
            total = np.int32(0)
            for half in range(2):
                chunk, piece = divmod(2 * b + half, pieces)
                at = 16 * (chunk * pieces + places[piece])
                part = block[16 * half : 16 * half + 16]
                total += round_group(part, step, codes[t, at : at + 16])
                if half or parts == 2:
                    sub = parts * b + (half if parts == 2 else 0)
                    lane = sub // 16 * 16 + lanes[sub % 16]
                    scale[t, lane] = step
                    base[t, lane] = -bias * total
                    sums[t, lane] = np.float32(sign) * (np.float32(total) * step)
                    total = np.int32(0)


@compiled
def arrange_blocks(x, weights, places, lanes, sign, out):
    """Copy (tokens, in) floats, each piece to its place, and add up sub-blocks."""
    values, sums = out
    pieces, parts = len(places), weights // 16
    for t in range(x.shape[0]):
        for p in range(x.shape[1] // 16):
            chunk, piece = divmod(p, pieces)
            at = 16 * (chunk * pieces + places[piece])
            total = np.float32(0)
            for j in range(16):
                values[t, at + j] = x[t, 16 * p + j]
                total += x[t, 16 * p + j]
            sub = p // parts
            sums[t, sub // 16 * 16 + lanes[sub % 16]] += np.float32(sign) * total


def arranged_blocks(
    x: NDArray[np.float32], layout: Layout, chunks: int, tokens: int
) -> tuple[Array, Array]:
    """Return activations (batch, in) as floats in the order of the registers, and their sums.

    Returns
    -------
    values : (tokens, chunks * weights of a chunk) float32 array
    sums : (tokens, chunks * 16) float32 array
        Of each sub-block, in its lane; negative if minimums are subtracted.
    """
    values = aligned_zeros((tokens, chunks * layout.chunk), np.float32)
    sums = aligned_zeros((tokens, chunks * LANES), np.float32)
    out = values[: len(x)], sums[: len(x)]
    arrange_blocks(x, layout.weights, *orders(layout), layout.shift, out)
    return values, sums


def rounded_blocks(
    x: NDArray[np.float32], layout: Layout, chunks: int, tokens: int, bias: int
) -> tuple[Array, Array, Array, Array]:
    """Return activations (batch, in) as int8 in the order of the registers, and what is in lanes.

    Returns
    -------
    codes : (tokens, chunks * weights of a chunk) int8 array
    scale : (tokens, chunks * 16) float32 array
        Of each sub-block's activations, in its lane.
    base : (tokens, chunks * 16) int32 array
        Minus ``bias`` times the sum of a sub-block's codes.
    sums : (tokens, chunks * 16) float32 array
        The sum of a sub-block's codes times their scale, negative if minimums are subtracted.
    """
    width, lanes = chunks * layout.chunk, tokens * chunks * LANES
    whole = aligned_zeros((3, lanes + -(-tokens * width // 12)), np.int32).reshape(-1)
    scale, base, sums = (whole[k * lanes : k * lanes + lanes].reshape(tokens, -1) for k in range(3))
    scale, sums = scale.view(np.float32), sums.view(np.float32)
    codes = whole[3 * lanes :].view(np.int8)[: tokens * width].reshape(tokens, width)
    out = (codes, scale, base, sums)
    round_blocks(x, layout.weights, *orders(layout), np.int32(bias), layout.shift, out)
    return codes, scale, base, sums


@cache
def orders(layout: Layout) -> tuple[Array, Array]:
    """Return where each piece of a chunk goes, and each sub-block's lane."""
    return np.argsort(layout.pieces), np.argsort(layout.lanes)


def aligned_zeros(shape: tuple[int, int], kind: Any) -> Array:
    """Return zeros from a multiple of 64 bytes on: no load of a register meets two cache lines."""
    nbytes = shape[0] * shape[1] * np.dtype(kind).itemsize
    raw = np.zeros(nbytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + nbytes].view(kind).reshape(shape)
