"""Loops compiled with Numba, and rows shared over threads: what every fast path needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba


def share_rows(work: Callable[[int, int], None], rows: int, threads: int) -> None:
    """Call ``work(low, high)`` on ranges of rows that together cover them, one a thread."""
    bounds = [rows * k // threads for k in range(threads + 1)]
    if threads == 1:
        work(0, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, low, high) for low, high in pairwise(bounds)]:
            done.result()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba, keeping the machine code on disk where a folder can be written.

    Division by zero gives inf or NaN as in C and NumPy: a check would stop vectorizing.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # Numba's word for: no cache folder is writable
        return numba.njit(nogil=True, error_model="numpy")(function)
