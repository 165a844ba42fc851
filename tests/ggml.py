"""The real ggml, called through the optional wheel ``xllamacpp``: bytes to compare ours with.

Nothing here loads a file or a model: a failed assertion inside ggml ends the process.
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64


class Traits(ctypes.Structure):
    """``ggml_type_traits``: its first six members, in order."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", INT),
        ("interleave", INT),
        ("bytes", SIZE),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, POINTER, POINTER, INT)),
    )


@cache
def library() -> ctypes.CDLL:
    """Load ggml, or skip the test that asked for it."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("xllamacpp is not installed: no ggml to compare with")
    [path] = Path(spec.origin).parent.glob("xllamacpp*.so")
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_cpu_init()  # fills the float16 tables
    ggml.ggml_quantize_chunk.restype = SIZE
    ggml.ggml_quantize_chunk.argtypes = (ctypes.c_int, *[POINTER] * 2, *[INT] * 3, POINTER)
    ggml.ggml_row_size.restype, ggml.ggml_row_size.argtypes = SIZE, (ctypes.c_int, INT)
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    ggml.ggml_version.restype = ctypes.c_char_p
    for name in ("quantize_row_q8_K_ref", "dequantize_row_q8_K", "ggml_fp32_to_bf16_row_ref"):
        getattr(ggml, name).argtypes = (POINTER, POINTER, INT)
        getattr(ggml, name).restype = None
    return ggml


def row_bytes(number: int, columns: int) -> int:
    """Return the bytes of a row of type ``number``."""
    return library().ggml_row_size(number, columns)


def quantize(rows: np.ndarray, number: int, imatrix: np.ndarray | None = None) -> np.ndarray:
    """Return ggml's bytes of (rows, columns) float32, as (rows, bytes) uint8."""
    ggml = library()
    x = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((len(x), row_bytes(number, x.shape[1])), np.uint8)
    special = {15: "quantize_row_q8_K_ref", 30: "ggml_fp32_to_bf16_row_ref"}
    if number in special:
        getattr(ggml, special[number])(x.ctypes.data, out.ctypes.data, x.size)
        return out
    importance = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    pointer = None if importance is None else importance.ctypes.data
    ggml.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, pointer)
    return out


def dequantize(data: np.ndarray, number: int, columns: int) -> np.ndarray:
    """Return ggml's floats of (rows, bytes) uint8, as (rows, columns) float32."""
    data = np.ascontiguousarray(data)
    out = np.empty((len(data), columns), np.float32)
    ggml = library()
    traits = ggml.ggml_get_type_traits(number).contents
    to_float = ggml.dequantize_row_q8_K if number == 15 else traits.to_float
    to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
