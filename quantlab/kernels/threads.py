"""How many threads a product may use, and when it must not use them.

One setting, ``set_threads``; until it is called, torch's own number counts, so that
``torch.set_num_threads(1)`` and the variable OMP_NUM_THREADS=1 hold for kernels too. torch and
Numba each own a pool of threads. Products are not nested and end before they return, so the two
never compute at the same time, unless a caller's own Python threads make them.

A product takes the pool only if nobody else has it at that moment; otherwise it runs on the
caller's thread. Two Python threads that multiply at once therefore neither wait for each other nor
put four threads on two cores. After a fork the child's products stay on one thread: the pool's
threads do not exist there.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

_setting: list[int] = []
_pool = threading.Lock()
_forked: list[bool] = []


def set_threads(count: int | None) -> None:
    """Let products use up to ``count`` threads; None follows torch's number again.

    Raises
    ------
    ValueError
        If count is not a positive integer.

    Examples
    --------
    >>> set_threads(1)
    >>> threads()
    1
    >>> set_threads(None)
    """
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"threads is {count!r}; pass a positive integer, or None to follow torch")
    _setting[:] = [] if count is None else [count]


def setting() -> int | None:
    """Return what was set, or None if torch's number counts."""
    return _setting[0] if _setting else None


def threads() -> int:
    """Return how many threads a product may use now."""
    wanted = _setting[0] if _setting else torch.get_num_threads()
    return 1 if _forked else max(1, min(wanted, numba.config.NUMBA_NUM_THREADS))


@contextmanager
def borrowed(wanted: int) -> Iterator[int]:
    """Take the pool of threads for one product; gives 1 if it is not needed or not free."""
    if wanted == 1 or not _pool.acquire(blocking=False):
        yield 1
        return
    try:
        numba.set_num_threads(wanted)
        yield wanted
    finally:
        _pool.release()


def _after_fork() -> None:
    global _pool
    _forked[:] = [True]
    _pool = threading.Lock()  # the thread that held it is not in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
