"""Multiply activations with GGUF blocks as they lie in a file: not repacked, not dequantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.gguf import find_type
from quantlab.kernels import paths, reference, threads
from quantlab.kernels.block_activations import arranged_blocks, rounded_blocks
from quantlab.kernels.block_kernels import block_rows, shared_block_rows
from quantlab.kernels.block_layouts import LAYOUTS
from quantlab.kernels.block_products import BlockPlan, bias_of

Array = NDArray[Any]
Step = tuple[int, int]
BACKENDS = (None, "cpu", "reference")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PLANS: dict[tuple[str, str, int, int], BlockPlan] = {}
PARALLEL = shared_block_rows
WORTH_SHARING = 1 << 19  # multiplications: below, waking a thread takes longer than they do
FEW = 3  # tokens up to which one at a time is fastest


def gguf_matmul(
    x: Tensor,
    blocks: NDArray[np.uint8] | Tensor,
    type_name: str,
    shape: Sequence[int] | None = None,
    *,
    activation_bits: int = 16,
    backend: str | None = None,
) -> Tensor:
    """Multiply activations with the transpose of a weight stored as GGUF blocks: y = x @ W.T.

    Parameters
    ----------
    x : (..., in) float32, bfloat16 or float16 tensor
    blocks : (out, bytes of a row) uint8 array or tensor
        As mapped from a file, such as ``gguf.read(path)["name"].data``: read, never copied.
    type_name : str
        Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K.
    shape : (out, in) of the weight, optional
        None: what ``blocks`` hold.
    activation_bits : 16 or 8
        16 multiplies floats. 8 rounds each 32 activations of a token to int8 and multiplies
        integers, as ggml does: faster, with an error of its own (ggml rounds to 8 bits
        too, and for K types gives 256 activations one scale).
    backend : None, "cpu" or "reference"
        "reference" is the definition, in NumPy.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``
        With 8 bits equal to the definition in every bit, on every path.

    Raises
    ------
    ValueError
        If there is no kernel for the type, the blocks do not fill the shape, or ``x`` does not fit.

    Examples
    --------
    >>> import quantlab as ql
    >>> blocks = ql.gguf.quantize(np.eye(2, 32), "Q8_0")
    >>> gguf_matmul(torch.arange(32.0), blocks, "Q8_0").round(decimals=3).tolist()
    [0.0, 1.0]
    """
    name = type_name if type_name in LAYOUTS else find_type(type_name).__name__
    rows = check_blocks(blocks, name, shape)
    columns = rows.shape[1] // LAYOUTS[name].block_bytes * LAYOUTS[name].block_weights
    check_activations(x, columns, activation_bits, backend)
    if backend == "reference":
        return reference.block_matmul(x, rows, name, (len(rows), columns), activation_bits)
    tokens = x.detach().reshape(-1, columns).to(torch.float32).contiguous().numpy()
    y = torch.from_numpy(product(tokens, rows, name, activation_bits))
    return y.reshape(*x.shape[:-1], len(rows)).to(x.dtype)


def check_blocks(blocks: Array | Tensor, name: str, shape: Sequence[int] | None) -> Array:
    """Return the blocks as rows (out, bytes), the same memory; a ValueError if they do not fit."""
    if name not in LAYOUTS:
        raise ValueError(
            f"there is no product for {name} blocks, only for {', '.join(LAYOUTS)}; multiply with "
            "ql.gguf.dequantize(blocks, type) instead"
        )
    data = blocks.numpy() if isinstance(blocks, Tensor) else np.asarray(blocks)
    if data.dtype != np.uint8:
        raise ValueError(f"blocks have dtype {data.dtype}; pass the file's bytes as uint8")
    if shape is None:
        if data.ndim != 2:
            raise ValueError(
                f"blocks have shape {data.shape}; pass (out, bytes of a row), or shape"
            )
        shape = (
            len(data),
            data.shape[1] // LAYOUTS[name].block_bytes * LAYOUTS[name].block_weights,
        )
    row_bytes = find_type(name).row_bytes(shape[1])
    if len(shape) != 2 or min(shape) < 1 or data.size != shape[0] * row_bytes:
        raise ValueError(
            f"{data.size} bytes are no {name} weight of shape {tuple(shape)}, which takes "
            f"{shape[0]} rows of {row_bytes}; are the blocks whole?"
        )
    return np.ascontiguousarray(data).reshape(shape[0], row_bytes)


def check_activations(x: Tensor, columns: int, bits: int, backend: str | None) -> None:
    """Raise a ValueError unless the product is defined."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose 'cpu', 'reference' or None")
    if bits not in (8, 16):
        raise ValueError(f"activation_bits is {bits!r}; choose 16 (floats) or 8 (int8)")
    if x.dtype not in FLOATS:
        raise ValueError(f"x has dtype {x.dtype}; pass float32, bfloat16 or float16")
    if x.ndim == 0 or x.shape[-1] != columns:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last axis must be {columns}")
    if x.is_cuda:
        raise ValueError("x lies on a GPU, and GGUF blocks are multiplied on the CPU; pass x.cpu()")


def product(x: Array, blocks: Array, name: str, activation_bits: int) -> Array:
    """Return x @ W.T (tokens, rows) of float32 activations and rows of blocks."""
    layout, (rows, row_bytes) = LAYOUTS[name], blocks.shape
    step = step_of(len(x), rows)
    chunks, whole = -(-row_bytes // layout.chunk_bytes), row_bytes // layout.chunk_bytes
    tokens = -(-len(x) // step[1]) * step[1]
    if activation_bits == 8:
        inputs = rounded_blocks(x, layout, chunks, tokens, bias_of(paths.chosen(), name))
    else:
        inputs = arranged_blocks(x, layout, chunks, tokens)
    data = blocks.reshape(-1).view()
    data.flags.writeable = False  # one type for files and arrays: one kernel
    out = np.empty((tokens, rows), np.float32)
    bounds = row_bytes, whole, layout.chunk_bytes, rows
    flat = tuple(part.reshape(-1) for part in inputs)
    sizes = chunks, layout.chunk
    arguments = (plan_of(name, step), step, data, bounds, flat, sizes, out.reshape(-1))
    work = tokens * rows * chunks * layout.chunk
    wanted = min(threads.threads(), rows // step[0], max(1, work // WORTH_SHARING))
    with threads.borrowed(wanted) as count:
        if count == 1:
            block_rows(*arguments, 0, rows)
        else:
            PARALLEL(*arguments, count)
    return out[: len(x)]


def step_of(batch: int, rows: int) -> Step:
    """Return how many rows and tokens to take at a time, so that all sums stay in registers."""
    if batch > FEW:
        return (1, 4) if paths.chosen() == "avx512_vnni" else (1, 2)
    return (2 if rows > 1 and paths.chosen() == "avx512_vnni" else 1, 1)


def plan_of(name: str, step: Step) -> BlockPlan:
    """Return the plan of a step on the path chosen now; the same object each time."""
    key = (paths.chosen(), name, *step)
    if key not in PLANS:
        PLANS[key] = BlockPlan(*key)
    return PLANS[key]
