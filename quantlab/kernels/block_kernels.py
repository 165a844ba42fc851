"""Products of GGUF blocks, read where they lie in the file."""

# Bodies use words whose first arguments Numba fills in.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import prange

from quantlab.kernels.block_floats import add_float_terms
from quantlab.kernels.block_products import (
    add_terms,
    dot_codes,
    read_codes,
    read_scales,
    store_sums,
)
from quantlab.kernels.lanes import zeros_like_plan
from quantlab.native import compiled, compiled_parallel


@compiled
def add_chunk(plan, total, data, at, stride, inputs, place, sizes):
    """Add the products of one chunk of each row to the plan's sums.

    ``inputs`` are arrays of ``block_activations.py``: four of rounded activations, two of floats.
    """
    chunks, weights = sizes
    codes = read_codes(plan, data, at, stride)
    scales = read_scales(plan, data, at, stride)
    row, lane, lanes = chunks * weights, place * 16, chunks * 16
    if len(inputs) == 2:
        x, sums = inputs
        at = place * weights
        return add_float_terms(plan, total, codes, scales, x, at, row, sums, lane, lanes)
    x, x_scale, base, sums = inputs
    dots = dot_codes(plan, codes, x, place * weights, row, base, lane, lanes)
    return add_terms(plan, total, dots, scales, x_scale, sums, lane, lanes)


@compiled
def block_rows(plan, step, data, bounds, inputs, sizes, out, low, high):
    """Multiply rows low..high with all tokens, ``step`` = (rows, tokens) at a time.

    Rows taken together share the loads of activations. They lie far apart, so that each is the
    next of its own run through memory: processors foresee such runs, but not jumps between rows.
    """
    row_bytes, whole, chunk_bytes, rows = bounds
    chunks = sizes[0]
    tokens = out.size // rows
    rest = row_bytes - whole * chunk_bytes
    tail = np.zeros(
        step[0] * chunk_bytes, np.uint8
    )  # the last chunk of a row, filled up with zeros
    apart = (high - low) // step[0]
    stride = apart * row_bytes
    for row in range(low, high - (step[0] - 1) * apart):  # may repeat a row: same numbers again
        first = row * row_bytes
        for k in range(step[0] if rest else 0):
            at = first + k * stride + whole * chunk_bytes
            tail[k * chunk_bytes : k * chunk_bytes + rest] = data[at : at + rest]
        for token in range(0, tokens, step[1]):
            total = zeros_like_plan(plan)
            for c in range(whole):
                at, place = first + c * chunk_bytes, token * chunks + c
                total = add_chunk(plan, total, data, at, stride, inputs, place, sizes)
            if rest:
                place = token * chunks + whole
                total = add_chunk(plan, total, tail, 0, chunk_bytes, inputs, place, sizes)
            store_sums(plan, total, out, token * rows + row, rows, apart)


@compiled_parallel
def shared_block_rows(plan, step, data, bounds, inputs, sizes, out, threads):
    """Multiply all rows, shared out over threads."""
    rows = bounds[3]
    for k in prange(threads):
        low, high = rows * k // threads, rows * (k + 1) // threads
        block_rows(plan, step, data, bounds, inputs, sizes, out, low, high)
