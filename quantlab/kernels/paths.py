"""Which instructions the integer kernels may use on this processor, and how to force others.

Four paths lead to the same sums, bit for bit:

===========  ========================================================================
avx512_vnni  VPDPBUSD on 64 bytes: 64 products and their sums in one instruction
avx_vnni     VPDPBUSD on 32 bytes
avx2         VPMADDUBSW and VPMADDWD: two instructions, and 16-bit sums that must not overflow
portable     16-bit products that any compiler turns into what its processor has
===========  ========================================================================
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import llvmlite.binding
from numba.core import config

NAMES = ("avx512_vnni", "avx_vnni", "avx2", "portable")
NEEDS = {  # each path: sets of features of which one must be there
    "avx512_vnni": [{"avx512f", "avx512bw", "avx512vnni"}],
    "avx_vnni": [{"avx2", "avxvnni"}, {"avx512vl", "avx512vnni"}],
    "avx2": [{"avx2"}],
    "portable": [set()],
}
_forced: list[str] = []


def features() -> set[str]:
    """Return the processor features that Numba compiles for, under LLVM's names.

    The environment variable NUMBA_CPU_FEATURES, which restricts Numba, restricts this as well.
    """
    if config.CPU_FEATURES is not None:
        named = str(config.CPU_FEATURES).split(",")
        return {name[1:] for name in named if name.startswith("+")}
    host = llvmlite.binding.get_host_cpu_features()
    return {name for name, present in host.items() if present}


def available() -> list[str]:
    """Return the paths that this processor can take, fastest first.

    Examples
    --------
    >>> available()[-1]
    'portable'
    """
    here = features()
    return [name for name in NAMES if any(needs <= here for needs in NEEDS[name])]


def chosen() -> str:
    """Return the path that the kernels take now: the fastest, unless one is forced."""
    return _forced[-1] if _forced else FASTEST


@contextmanager
def force(name: str) -> Iterator[None]:
    """Make all kernels of this process take one path within a ``with`` block.

    Raises
    ------
    ValueError
        If there is no such path, or this processor cannot take it.

    Examples
    --------
    >>> with force("portable"):
    ...     chosen()
    'portable'
    """
    if name not in NAMES:
        raise ValueError(f"path {name!r} is unknown; choose from {', '.join(NAMES)}")
    if name not in available():
        raise ValueError(f"this processor has no {name}; it has {', '.join(available())}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


FASTEST = available()[0]
