"""Loops compiled with Numba, and rows shared over threads: what every fast path needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic


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
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # Numba's word for: no cache folder is writable
        dispatcher._cache = LinkedCache(function)
    return dispatcher


def compiled_parallel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as ``compiled`` does, and share the turns of ``prange`` over threads."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", parallel=True)(function)
    with suppress(RuntimeError):
        dispatcher._cache = LinkedCache(function)
    return dispatcher


class LinkedCache(FunctionCache):
    """Numba's cache on disk, which also notices edits in the other files that a function uses.

    Machine code contains all that it calls, but Numba's own key is the defining file alone: after
    an upgrade of the package, a caller in an unchanged file would go on running the old code.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), fingerprint(self._py_func))


def fingerprint(function: Callable[..., Any]) -> str:
    """Return a hash of what a function uses by name: compiled functions, numbers and arrays.

    Asked at the first call, when all names exist. Uses of a module's attributes are not seen:
    compiled functions import by name. An intrinsic's instructions are built by any code: it counts
    as changed when a file beside it changes.
    """
    digest, waiting, seen = hashlib.sha256(), [function], {function}
    while waiting:
        used = waiting.pop()
        code = used.__code__
        literals = [value for value in code.co_consts if not isinstance(value, CodeType)]
        digest.update(repr((code.co_code, literals, code.co_names)).encode())
        for value in (used.__globals__.get(name) for name in code.co_names):
            if isinstance(value, Dispatcher) and value.py_func not in seen:
                seen.add(value.py_func)
                waiting.append(value.py_func)
            elif isinstance(value, _Intrinsic):
                digest.update(folder_digest(Path(value._defn.__code__.co_filename).parent))
            elif isinstance(value, np.ndarray):
                digest.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
            elif isinstance(value, (int, float, tuple, np.generic)):
                digest.update(repr(value).encode())
    return digest.hexdigest()


@cache
def folder_digest(folder: Path) -> bytes:
    """Return a hash of the Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()
