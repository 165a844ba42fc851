"""Weights to blocks and back: the arguments checked once, the rows shared over threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from quantlab.gguf import blocks, fp4, iq, k_quants, lattice, plain, ternary
from quantlab.gguf.block_type import TYPES, Blocks, BlockType, Bytes, Floats, find_type
from quantlab.gguf.rounding import bits
from quantlab.native import compiled, share_rows

__all__ = ["TYPES", "blocks", "dequantize", "fp4", "iq", "k_quants", "lattice", "plain", "ternary"]

CHUNK = 2**19  # weights checked and then quantized together: fewer turns at the interpreter's lock

HALF = np.dtype("<f2")


def quantize(
    array: ArrayLike,
    type: str | type[BlockType],
    imatrix: ArrayLike | None = None,
    *,
    threads: int | None = None,
) -> Bytes:
    """Quantize rows of weights to the bytes that ggml would write.

    Parameters
    ----------
    array : (..., columns) floats
        Computed in float32. ``columns`` is a multiple of the type's block.
    type : str
        Such as ``"Q4_K"``; see ``quantlab.gguf.TYPES``.
    imatrix : (columns,) floats >= 0, optional
        E[x_j^2] of each input. Ignored by the types that ggml ignores it for.
    threads : int, optional
        Rows are shared over them; None: ``torch.get_num_threads()``.

    Returns
    -------
    (..., bytes of a row) uint8 array

    Raises
    ------
    ValueError
        If a weight is not finite or beyond the type's range, columns do not fill blocks, the
        imatrix has a wrong length or value, or the type can only be read.

    References
    ----------
    ggml-org/ggml, ``ggml_quantize_chunk`` in ``src/ggml.c``: equal in every byte.

    Examples
    --------
    >>> import numpy as np
    >>> quantize(np.linspace(-1, 1, 32), "Q4_0").tolist()[:4]  # scale 0.125 as float16, codes
    [0, 48, 128, 145]
    """
    cls = find_type(type)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and inf is refused
        whole = np.ascontiguousarray(array, dtype=np.float32)
    if whole.ndim == 0:
        raise ValueError("one number is no row of weights; pass an array (..., columns)")
    rows = whole.reshape(-1, whole.shape[-1])
    out = np.zeros((len(rows), cls.row_bytes(rows.shape[1])), np.uint8)
    if out.size:
        importance = check_imatrix(imatrix, rows.shape[1], cls)
        fill(rows, importance, out, cls, threads or torch.get_num_threads())
    return out.reshape(*whole.shape[:-1], -1)


def fill(
    rows: Floats, imatrix: Floats | None, out: Bytes, cls: type[BlockType], threads: int
) -> None:
    """Quantize ``rows`` into ``out``, a chunk of rows at a time."""
    structs = out.view(cls.layout)
    step = max(1, CHUNK // rows.shape[1])

    def work(low: int, high: int) -> None:
        for first in range(low, high, step):
            last = min(first + step, high)
            check_weights(rows[first:last], cls, first)
            cls.encode(rows[first:last], imatrix, structs[first:last])
            check_scales(structs[first:last], rows[first:last], cls, first)

    share_rows(work, len(rows), min(threads, len(rows)))


def check_weights(rows: Floats, cls: type[BlockType], first: int) -> None:
    """Raise a ValueError that names the first weight which is not finite or too large."""
    if within(rows, np.float32(cls.limit)):
        return
    row, column = np.argwhere(~(np.abs(rows) <= np.float32(cls.limit)))[0].tolist()
    value = rows[row, column]
    where = f"weight [{first + row}, {column}] is {value:.6g}"
    if not np.isfinite(value):
        raise ValueError(f"{where}; repair the checkpoint: {cls.__name__} holds finite numbers")
    raise ValueError(f"{where}, and {cls.__name__} holds sizes up to {cls.limit:.6g}; use F32 here")


@compiled
def within(rows, limit):
    """Tell whether no weight is NaN, infinite or larger than ``limit``."""
    flat = rows.reshape(-1)
    bad = 0
    for i in range(flat.size):
        bad += not abs(flat[i]) <= limit
    return bad == 0


def check_scales(structs: Blocks, rows: Floats, cls: type[BlockType], first: int) -> None:
    """Raise a ValueError if a float16 field of a block overflowed (rows already checked)."""
    for name, (kind, *_) in (cls.layout.fields or {}).items():
        if kind != HALF or finite(bits(structs[name])):
            continue
        row, block = np.argwhere(~np.isfinite(structs[name]))[0].tolist()
        largest = np.abs(rows[row, block * cls.size : (block + 1) * cls.size]).max()
        raise ValueError(
            f"row {first + row}, block {block} holds a weight of size {largest:.6g}, whose "
            f"scale does not fit float16; {cls.__name__} cannot hold it, use F32 here"
        )


@compiled
def finite(halves):
    """Tell whether none of (rows, blocks) float16 numbers, as bits, is infinite or NaN."""
    bad = 0
    for row in range(halves.shape[0]):
        for block in range(halves.shape[1]):
            bad += (halves[row, block] & np.uint16(0x7C00)) == np.uint16(0x7C00)
    return bad == 0


def check_imatrix(imatrix: ArrayLike | None, columns: int, cls: type[BlockType]) -> Floats | None:
    """Return the importance of each column as float32, or None where the type ignores it."""
    if imatrix is None or cls.imatrix == "ignored":
        if cls.imatrix == "required":
            raise ValueError(f"{cls.__name__} needs an imatrix: the importance of each column")
        return None
    importance = np.ascontiguousarray(imatrix, dtype=np.float32)
    if importance.shape != (columns,):
        raise ValueError(f"imatrix has shape {importance.shape}; pass {columns} numbers, E[x_j^2]")
    bad = ~(np.isfinite(importance) & (importance >= 0))
    if bad.any():
        column = int(np.argmax(bad))
        raise ValueError(
            f"imatrix is {importance[column]} at column {column}; importances are finite and >= 0"
        )
    return importance


def dequantize(
    data: Bytes,
    type: str | type[BlockType],
    shape: Sequence[int] | None = None,
    *,
    threads: int | None = None,
) -> Floats:
    """Read rows of blocks back as the floats that ggml would compute.

    Parameters
    ----------
    data : (..., bytes of a row) uint8 array
    type : str
        Such as ``"Q4_K"``.
    shape : sequence of int, optional
        Of the result; None: the shape of ``data`` with bytes replaced by weights.
    threads : int, optional
        None: ``torch.get_num_threads()``.

    Returns
    -------
    float32 array of ``shape``

    Raises
    ------
    ValueError
        If the bytes are not whole blocks, or their weights do not fill ``shape``.

    Examples
    --------
    >>> import numpy as np
    >>> row = np.linspace(-1, 1, 32, dtype=np.float32)
    >>> dequantize(quantize(row, "Q8_0"), "Q8_0").shape
    (32,)
    """
    cls = find_type(type)
    whole = np.ascontiguousarray(data, dtype=np.uint8)
    if whole.ndim == 0 or whole.shape[-1] % cls.layout.itemsize:
        raise ValueError(
            f"a {cls.__name__} row is blocks of {cls.layout.itemsize} bytes, and the last axis of "
            f"{whole.shape} holds no whole number of them"
        )
    columns = whole.shape[-1] // cls.layout.itemsize * cls.size
    result = np.empty((*whole.shape[:-1], columns), np.float32)
    if shape is not None and result.size != np.prod(shape, dtype=object):
        raise ValueError(f"the blocks hold {result.size} weights, which do not fill {tuple(shape)}")
    if result.size:
        rows = result.reshape(-1, columns)
        structs = whole.reshape(len(rows), -1).view(cls.layout)
        share_rows(
            lambda low, high: cls.decode(structs[low:high], rows[low:high]),
            len(rows),
            min(threads or torch.get_num_threads(), len(rows)),
        )
    return result if shape is None else result.reshape(tuple(shape))
