"""A contestant that multiplies nothing and reads as many bytes: the limit, in the same race.

Memory that a machine shares with others is not as fast now as it was a minute ago. So the limit of
a product with one vector takes its turns beside the products.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from quantlab.kernels import threads
from quantlab.kernels.bandwidth import add_up
from quantlab.kernels.contest import Calls, Contestant, Prepared, Product
from quantlab.native import compiled_parallel

STEP = 64  # integers: parts begin at whole cache lines
NAME = "read only"


def add_up_parts(numbers: NDArray[np.uint64], sums: NDArray[np.uint64], step: int) -> None:
    """Add up numbers (n,) uint64 in as many parts as there are sums."""
    parts = sums.size
    for k in prange(parts):
        low = numbers.size // step * k // parts * step
        high = numbers.size // step * (k + 1) // parts * step
        sums[k] = add_up(numbers[low:high], 1)


add_up_shared = compiled_parallel(add_up_parts)


def read_only(product: Product, nbytes: int) -> Contestant:
    """Return a contestant that reads ``nbytes`` of weights and answers with zeros.

    It claims no product: its truth is zero.

    Raises
    ------
    ValueError
        If nbytes is less than a thread's share of cache lines.
    """
    if nbytes < 8 * STEP:
        raise ValueError(f"asked to read {nbytes} bytes; take at least {8 * STEP}")
    size = nbytes // 8 // STEP * STEP
    nothing = torch.zeros(len(product.x), len(product.weight))

    def read(numbers: NDArray[np.uint64]) -> torch.Tensor:
        sums = np.zeros(threads.threads(), np.uint64)
        with threads.borrowed(len(sums)) as count:
            if count == 1:
                add_up(numbers, 1)
            else:
                add_up_shared(numbers, sums, STEP)
        return nothing

    def prepare(sets: int) -> Prepared:
        return Calls([partial(read, np.full(size, k, np.uint64)) for k in range(sets)])

    return Contestant(
        name=NAME,
        activations="float32",
        weight_bytes=8 * size,
        truth=nothing.double().numpy(),
        prepare=prepare,
        bits=8 * 8 * size / product.weight.numel(),
        note="multiplies nothing: the limit of memory in this race",
    )
