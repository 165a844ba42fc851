"""Write GGUF files, version 3: whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from quantlab.gguf import layout
from quantlab.gguf.block_type import Bytes, find_type
from quantlab.gguf.file import GGUFTensor
from quantlab.gguf.layout import ALIGNMENT_KEY, ValueType
from quantlab.gguf.metadata import encode_name, encode_value

VERSION = 3
TYPE_OF = {"f4": "F32", "f2": "F16", "f8": "F64", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64"}


@dataclass(frozen=True, eq=False)
class Raw:
    """A tensor whose bytes are ready, or will be when its turn comes.

    Parameters
    ----------
    type : str
        Such as ``"Q4_K"``.
    data : array, or function without arguments that returns one
        The blocks, as ``quantize`` returns them, or any other array of exactly these bytes. A
        function is called while the file is written and its result forgotten at once, so that a
        model larger than memory streams through.
    shape : tuple of int
        Of the weights, in NumPy's order.

    Examples
    --------
    >>> import numpy as np
    >>> Raw("F32", lambda: np.zeros((2, 3), np.float32), (2, 3)).type
    'F32'
    """

    type: str
    data: Any
    shape: tuple[int, ...]


def write(
    path: str | Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    types: Mapping[str, ValueType] | None = None,
    alignment: int | None = None,
) -> None:
    """Write a GGUF file.

    Parameters
    ----------
    path : str or path
        The file appears, or is replaced, when it is complete; after any failure nothing changed.
    tensors : mapping of name to array, ``Raw`` or ``GGUFTensor``
        In the order of the file. Arrays are stored in their own type: float32 as F32, and so on.
    metadata : mapping of key to value
        bool, str, float (stored as f32), int (u32; i32 if negative; 64 bits if need be), NumPy
        scalars and arrays (their exact types), and lists of one of these.
    types : mapping of key to str, optional
        Overrides how a value is stored: ``"u64"``, ``"[i32]"``; keys without a value are ignored,
        so ``GGUFFile.types`` fits.
    alignment : power of two, optional
        None: the metadata's ``general.alignment``, or 32.

    Raises
    ------
    ValueError
        If a name, shape, type or value breaks a rule of the format, or the bytes of a tensor do
        not fill its shape.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> from quantlab.gguf.file import read
    >>> path = os.path.join(tempfile.mkdtemp(), "tiny.gguf")
    >>> write(path, {"w": np.ones((2, 32), np.float32)}, {"general.name": "tiny"})
    >>> read(path)
    GGUF version 3: 1 metadata values, 1 tensors, 256 bytes of weights
      w                                F32               2 x 32            256
    """
    known = dict(types or {})
    values = with_alignment(metadata, known, alignment)
    entries = {name: as_raw(name, tensor) for name, tensor in tensors.items()}
    header, sizes = make_header(entries, values, known)
    step = values.get(ALIGNMENT_KEY, layout.DEFAULT_ALIGNMENT)
    with whole_file(Path(path)) as file:
        file.write(header + bytes(layout.pad(len(header), step)))
        for (name, raw), size in zip(entries.items(), sizes, strict=True):
            file.write(tensor_data(name, raw, size).data)
            file.write(bytes(layout.pad(size, step)))


def with_alignment(
    metadata: Mapping[str, Any], types: dict[str, ValueType], alignment: int | None
) -> dict[str, Any]:
    """Return the metadata, holding the alignment where it is not the usual one; note its type."""
    values = dict(metadata)
    stored = values.get(ALIGNMENT_KEY)
    if alignment is not None and stored is not None and stored != alignment:
        raise ValueError(f"alignment is {alignment}, and the metadata says {stored}; pass only one")
    if alignment is not None and stored is None and alignment != layout.DEFAULT_ALIGNMENT:
        values[ALIGNMENT_KEY] = alignment
    if ALIGNMENT_KEY in values:
        types[ALIGNMENT_KEY] = "u32"
        value = values[ALIGNMENT_KEY]
        values[ALIGNMENT_KEY] = int(value) if isinstance(value, np.integer) else value
        fault = layout.alignment_fault(values[ALIGNMENT_KEY], "u32")
        if fault:
            raise ValueError(fault)
    return values


def as_raw(name: str, tensor: Any) -> Raw:
    """Return whatever was passed as a tensor as its type, bytes and shape."""
    if isinstance(tensor, Raw):
        return tensor
    if isinstance(tensor, GGUFTensor):
        return Raw(tensor.type, tensor.data, tensor.shape)
    array = np.asarray(tensor)
    kind = TYPE_OF.get(array.dtype.str[1:])
    if kind is None:
        raise ValueError(
            f"tensor {name!r} has dtype {array.dtype}; convert it to a float or signed integer "
            "type, or pass Raw(type, blocks, shape)"
        )
    return Raw(kind, array, array.shape)


def make_header(
    entries: Mapping[str, Raw], metadata: Mapping[str, Any], types: Mapping[str, ValueType]
) -> tuple[bytes, list[int]]:
    """Return everything before the data section, and the bytes of each tensor in it."""
    step = metadata.get(ALIGNMENT_KEY, layout.DEFAULT_ALIGNMENT)
    parts = [layout.MAGIC, struct.pack("<IQQ", VERSION, len(entries), len(metadata))]
    for key, value in metadata.items():
        parts += [encode_name(key, layout.key_fault), encode_value(key, value, types.get(key))]
    offset, sizes = 0, []
    for name, raw in entries.items():
        cls = find_type(raw.type)
        shape = [int(size) for size in raw.shape]
        fault = layout.shape_fault(shape, cls)
        if fault:
            raise ValueError(f"tensor {name!r} {fault}")
        parts.append(encode_name(name, layout.name_fault))
        parts.append(struct.pack("<I", len(shape)))
        parts.append(struct.pack(f"<{len(shape)}QIQ", *reversed(shape), cls.id, offset))
        sizes.append(layout.tensor_bytes(shape, cls))
        offset += sizes[-1] + layout.pad(sizes[-1], step)
    return b"".join(parts), sizes


def tensor_data(name: str, raw: Raw, size: int) -> Bytes:
    """Return the bytes of a tensor, computed now if they were promised; a ValueError if wrong."""
    array = np.asarray(raw.data() if callable(raw.data) else raw.data)
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    if array.nbytes != size:
        raise ValueError(
            f"tensor {name!r} has {array.nbytes} bytes; {raw.type} of shape {tuple(raw.shape)} "
            f"takes {size}"
        )
    return array.reshape(-1).view(np.uint8)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its place at the end, or vanishes."""
    if path.exists() and not path.is_file():  # replacing /dev/null would break the machine
        raise OSError(errno.EEXIST, "is no regular file; nothing written", str(path))
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # temporary files are private
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None:  # a write failed, as on a full disk
            raise OSError(error.errno, f"{error.strerror}; nothing written", str(path)) from error
        raise
    finally:
        Path(partial).unlink(missing_ok=True)
