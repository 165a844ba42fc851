"""Metadata as the bytes of a GGUF file: which type a Python value takes, and how it is written."""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quantlab.gguf.layout import DTYPES, KINDS, LONGEST_ARRAY, LONGEST_TEXT, SCALARS, ValueType

KIND_OF = {dtype: kind for kind, dtype in DTYPES.items()}


def encode_name(name: str, rule: Callable[[bytes], str]) -> bytes:
    """Return a key or a tensor's name as the file holds it."""
    raw = encode_text(name, "the name")
    fault = rule(raw[8:])
    if fault:
        raise ValueError(fault)
    return raw


def encode_text(text: str, what: str) -> bytes:
    """Return a string as the file holds it."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {text!r}; it must be a string")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {text!r} cannot be written as UTF-8: {error.reason}") from error
    if len(raw) > LONGEST_TEXT:
        raise ValueError(f"{what} has {len(raw)} bytes; at most 2^30 are allowed")
    return struct.pack("<Q", len(raw)) + raw


def encode_value(key: str, value: Any, type: ValueType | None) -> bytes:
    """Return a value as the file holds it: the number of its type, then its bytes."""
    type = type or find_kind(key, value)
    kind = type.strip("[]")
    if kind not in KINDS or kind == "array" or type not in (kind, f"[{kind}]"):
        raise ValueError(f"metadata {key!r}: no type {type!r}; choose u32, f32, str, [i32], ...")
    if type == kind:
        return struct.pack("<I", KINDS.index(kind)) + encode_elements(key, [value], kind)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"metadata {key!r} is {value!r}; {type} holds lists")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ValueError(f"metadata {key!r} has {value.ndim} axes; an array in a file has one")
    if len(value) > LONGEST_ARRAY:
        raise ValueError(f"metadata {key!r} has {len(value)} elements; at most 2^30 are allowed")
    head = struct.pack("<IIQ", KINDS.index("array"), KINDS.index(kind), len(value))
    return head + encode_elements(key, value, kind)


def encode_elements(key: str, values: Sequence[Any] | np.ndarray, kind: str) -> bytes:
    """Return elements of one kind, without a header."""
    if kind == "str":
        return b"".join(encode_text(text, f"metadata {key!r}") for text in values)
    if isinstance(values, np.ndarray):
        if values.dtype == DTYPES[kind]:
            return values.tobytes()
        values = values.tolist()
    number = (int, float, np.integer, np.floating) if kind in ("f32", "f64") else (int, np.integer)
    expected = (bool, np.bool_) if kind == "bool" else number
    for value in values:
        if not isinstance(value, expected) or (kind != "bool" and isinstance(value, bool)):
            raise ValueError(f"metadata {key!r} holds {value!r}, which is no {kind}")
    try:
        return struct.pack(f"<{len(values)}{SCALARS[kind].format[1:]}", *values)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"metadata {key!r} does not fit {kind}: {error}") from error


def find_kind(key: str, value: Any) -> ValueType:
    """Return how a value is stored when nobody said."""
    if isinstance(value, np.ndarray):
        kind = scalar_kind(value.dtype.type(), value.dtype)
    elif isinstance(value, list | tuple):
        kind = list_kind(value)
    else:
        kind = scalar_kind(value)
    if kind is None:
        raise ValueError(
            f"metadata {key!r} is {reprlib.repr(value)}, and no type follows from that; pass one "
            "kind of bool, int, float or str, or name it in types"
        )
    return kind if np.isscalar(value) else f"[{kind}]"


def scalar_kind(value: Any, dtype: np.dtype | None = None) -> str | None:
    """Return the kind of a bool, number or string, or None."""
    if isinstance(value, bool | str):  # NumPy's strings are Python's, too
        return "bool" if isinstance(value, bool) else "str"
    if isinstance(value, np.generic):
        return KIND_OF.get((dtype or value.dtype).newbyteorder("<"))
    if isinstance(value, int):
        return integer_kind(value, value)
    return "f32" if isinstance(value, float) else None


def list_kind(values: Sequence[Any]) -> str | None:
    """Return the kind that holds every element of a list, or None."""
    classes = {type(value) for value in values}
    if classes == {int}:
        return integer_kind(min(values), max(values))
    if classes == {int, float}:
        return "f32"
    return scalar_kind(values[0]) if len(classes) == 1 else None


def integer_kind(low: int, high: int) -> str | None:
    """Return the first of u32, i32, u64, i64 that holds both numbers, or None.

    Examples
    --------
    >>> integer_kind(0, 7), integer_kind(-1, 7), integer_kind(-1, 2**32)
    ('u32', 'i32', 'i64')
    """
    for kind in ("u32", "i32", "u64", "i64"):
        limits = np.iinfo(DTYPES[kind])
        if limits.min <= low and high <= limits.max:
            return kind
    return None
