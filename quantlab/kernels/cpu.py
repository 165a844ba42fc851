"""Multiply activations with packed weights on the CPU: choose a kernel, hand it the arrays.

The kernels are in ``integer_kernels.py`` and ``float_kernels.py``; ``versions.py`` shows how one
gets there from the plain loop. What is decided here: how many tiles and tokens a kernel takes at a
time (so that its sums stay in registers, and several chains of additions run side by side), and
how many threads share the tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.kernels import paths, threads
from quantlab.kernels.activations import rounded
from quantlab.kernels.float_kernels import float_tiles, shared_float_tiles
from quantlab.kernels.integer_kernels import integer_tiles, shared_integer_tiles
from quantlab.kernels.lanes import Plan
from quantlab.kernels.tiles import LANES, Tiles

Array = NDArray[Any]
PLANS: dict[tuple[str, int, int, int], Plan] = {}
PARALLEL = {integer_tiles: shared_integer_tiles, float_tiles: shared_float_tiles}
WORTH_SHARING = 1 << 19  # multiplications: below, waking a thread takes longer than they do
INT32_SAFE = (2**31 - 1) // (255 * 127)  # products of a byte and an int8 that an int32 can add up


def matmul(
    x: Tensor, weight: Tiles, activation_bits: int = 16, table: Tensor | None = None
) -> Tensor:
    """Multiply activations (..., in) with the transpose of a tiled weight (out, in).

    Parameters
    ----------
    x : (..., in) float32 or bfloat16 tensor
    weight : Tiles, (out, in)
    activation_bits : 16 or 8
        16 multiplies floats. 8 rounds each group of ``x`` to int8 and multiplies integers.
    table : (16,) float32 tensor, optional
        What 4-bit codes stand for before scaling, if not code - 8. Only with 16 bits.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``
        With 8 bits equal to ``reference.matmul`` bit for bit, on every path.

    Raises
    ------
    ValueError
        If whole-row integer sums could overflow.
    """
    tokens = as_rows(x)
    product = int8_product if activation_bits == 8 else float_product
    y = product(tokens, weight, table)[: len(tokens), : weight.shape[0]]
    return torch.from_numpy(y).reshape(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def as_rows(x: Tensor) -> Array:
    """Return activations as a (tokens, in) float32 array, without a copy where none is needed."""
    if x.ndim == 2 and x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad:
        return x.numpy()
    return x.detach().reshape(-1, x.shape[-1]).to(torch.float32).contiguous().numpy()


def int8_product(x: Array, weight: Tiles, table: Tensor | None) -> Array:
    """Return (tokens, out) sums of integer products; ``table`` must be None."""
    check_integer(weight, table)
    step = step_of(len(x), weight, INTEGER_STEPS)
    tokens = -(-len(x) // step[1]) * step[1]
    inputs = rounded_for(x, weight, tokens)
    return launch(integer_tiles, weight, inputs, tokens, step, 8 // weight.scheme.bits)


def rounded_for(x: Array, weight: Tiles, tokens: int) -> tuple[Array, Array, Array]:
    """Return int8 activations, scales and sums, flat, for a weight; zeros beyond the batch."""
    groups = weight.scale.shape[1]
    codes, scale, sums = rounded(
        x,
        tokens=tokens,
        words=weight.words.shape[1],
        groups=groups,
        group_size=weight.shape[1] // groups,
        bits=weight.scheme.bits,
    )
    return codes.reshape(-1), scale.reshape(-1), sums.reshape(-1)


def float_product(x: Array, weight: Tiles, table: Tensor | None) -> Array:
    """Return (tokens, out) sums of float products."""
    step = step_of(len(x), weight, FLOAT_STEPS)
    groups, width = weight.scale.shape[1], weight.words.shape[1] * weight.codes_per_word
    padded = pad_to(x, -(-len(x) // step[1]) * step[1], width)
    levels = EVEN_LEVELS if table is None else table.numpy()
    if weight.zeros is None:  # then nothing is shifted, and nothing needs the sums
        sums = np.zeros((len(padded), groups), np.float32)
    else:
        sums = padded[:, : x.shape[1]].reshape(len(padded), groups, -1).sum(-1)
    flat = (padded.reshape(-1), levels, sums.reshape(-1))
    return launch(float_tiles, weight, flat, len(padded), step, weight.codes_per_word)


EVEN_LEVELS = np.arange(-8, 8, dtype=np.float32)
# (tiles, tokens) of a plan, by tokens, for 32 registers of 512 bits, and for 16 of 256
INTEGER_STEPS = {True: {1: (4, 1), 2: (4, 2), 4: (4, 4)}, False: {1: (2, 1), 2: (2, 2), 4: (1, 4)}}
FLOAT_STEPS = {True: {1: (4, 1), 4: (4, 4)}, False: {1: (2, 1), 4: (1, 4)}}


def step_of(
    batch: int, weight: Tiles, steps: dict[bool, dict[int, tuple[int, int]]]
) -> tuple[int, int]:
    """Return how many tiles and tokens to take at a time: the least work, padding counted."""
    fitting = steps[paths.chosen() == "avx512_vnni"]
    tiles, tokens = min(fitting.values(), key=lambda s: -(-batch // s[1]) * (s[1] + 1))
    return (tiles if tiles <= weight.words.shape[0] else 1), tokens


def check_integer(weight: Tiles, table: Tensor | None) -> None:
    """Raise a ValueError unless integer sums are defined and cannot overflow."""
    if table is not None:
        raise ValueError("int8 activations need an even grid; pass activation_bits=16 for a table")
    group = weight.shape[1] // weight.scale.shape[1]
    if weight.scheme.bits == 8 and group > INT32_SAFE:
        raise ValueError(
            f"{group} products of 8 bits can overflow an int32, which holds {INT32_SAFE}; "
            "quantize with a group_size"
        )


def pad_to(x: Array, rows: int, columns: int) -> Array:
    """Return x with zeros below and to the right; x itself if it has that shape."""
    if x.shape == (rows, columns):
        return x
    padded = np.zeros((rows, columns), np.float32)
    padded[: x.shape[0], : x.shape[1]] = x
    return padded


def launch(
    kernel: Any, weight: Tiles, inputs: Any, tokens: int, step: tuple[int, int], x_words: int
) -> Array:
    """Run a kernel over all tiles and return its (tokens, rows of all tiles) float32 result."""
    tiles, row_words, _ = weight.words.shape
    sizes = (row_words, weight.scale.shape[1], weight.words_per_group, x_words, tiles * LANES)
    out = np.empty((tokens, tiles * LANES), np.float32)
    scheme = weight.scheme
    arguments = (plan_of(scheme.bits, step), step, *weight.arrays, scheme.middle, inputs)
    work = tokens * weight.words.numel() * weight.codes_per_word
    wanted = min(threads.threads(), tiles // step[0], max(1, work // WORTH_SHARING))
    with threads.borrowed(wanted) as count:
        if count == 1:
            kernel(*arguments, out.reshape(-1), sizes, 0, tiles)
        else:
            PARALLEL[kernel](*arguments, out.reshape(-1), sizes, tiles, count)
    return out


def plan_of(bits: int, step: tuple[int, int]) -> Plan:
    """Return the plan of a step on the path chosen now; the same object each time."""
    key = (paths.chosen(), bits, *step)
    if key not in PLANS:
        PLANS[key] = Plan(*key)
    return PLANS[key]
