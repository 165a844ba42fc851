"""Triton, where it is installed; elsewhere the GPU kernels can be imported and read, not launched.

Under ``TRITON_INTERPRET=1``, set before Python starts, Triton runs the same kernels with NumPy, one
program after another: slow, and enough to test them on a computer without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # Triton's types are its own: a checker of Python's cannot follow them
    triton: Any
    tl: Any
    constexpr: TypeAlias = Any
else:
    try:
        import triton
        import triton.language as tl
        from triton.language import constexpr
    except ModuleNotFoundError:
        triton = tl = constexpr = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def kernel(function: Callable[..., Any]) -> Any:
    """Hand a function to Triton, which compiles its source text when it is launched first.

    Its arguments in capitals are constants of the compiled code. Pointers and sizes carry no types:
    Triton finds them by itself, and compiles once for each combination.
    """
    return function if triton is None else triton.jit(function)


def missing() -> str | None:
    """Return why no kernel can be launched here, or None."""
    if triton is None:
        return "the GPU kernels need Triton; run: pip install 'quantlab[gpu]'"
    return None
