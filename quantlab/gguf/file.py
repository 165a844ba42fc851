"""Read GGUF files, versions 2 and 3: checked whole when opened, mapped lazily.

    "GGUF" | u32 version | u64 tensors | u64 pairs                          24 bytes
    pairs:    string key, u32 type, value
    tensors:  string name, u32 dimensions, u64 sizes[], u32 type, u64 offset
    zeros up to the alignment
    data:     each tensor's blocks, padded with zeros to the alignment

A string is a u64 byte length and UTF-8. Sizes stand in the reverse of NumPy's order: a weight of
shape (out, in) is written as in, out. Everything is little-endian.

A count is compared with the bytes that are left before anything is allocated or looped over on
its word, so the largest lie costs no more than the file's own length.

References
----------
ggml-org/ggml, ``docs/gguf.md``, and the limits of its reader, ``src/gguf.cpp``.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantlab.gguf import layout
from quantlab.gguf.block_type import BlockType, Bytes, Floats
from quantlab.gguf.codec import TYPES, dequantize
from quantlab.gguf.cursor import Cursor, FormatError
from quantlab.gguf.layout import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, ValueType

ROWS_SHOWN = 12  # of a printed file


class Source:
    """The bytes of a file, shared by its tensors until it is closed."""

    def __init__(self, data: Bytes | None) -> None:
        self.data = data


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """One tensor of a file; its bytes are read when asked for.

    Attributes
    ----------
    name, type : str
        ``type`` is a name in ``quantlab.gguf.TYPES``.
    shape : tuple of int
        In NumPy's order: a linear layer's weight is (out, in).
    nbytes, offset : int
        Size of its blocks, and where in the file they begin.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    source: Source = field(repr=False)

    @property
    def data(self) -> Bytes:
        """The blocks as (..., bytes of a row) uint8: a read-only view of the file, no copy."""
        if self.source.data is None:
            raise ValueError(f"the file of {self.name!r} is closed; read it again")
        rows = self.shape[:-1]
        columns = self.shape[-1] if self.shape else 1
        view = self.source.data[self.offset : self.offset + self.nbytes]
        return view.reshape(*rows, TYPES[self.type].row_bytes(columns))

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes in this type."""
        return TYPES[self.type].bits_per_weight()

    def dequantize(self) -> Floats:
        """Return the weights as a float32 array of ``shape``."""
        return dequantize(self.data, self.type, self.shape)


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """An open GGUF file.

    Attributes
    ----------
    version, alignment : int
    metadata : dict
        int, float, bool, str; arrays of strings as lists, of numbers as NumPy arrays (copies).
    types : dict of str
        How each value is stored, such as ``"u32"`` or ``"[str]"``; ``write`` takes it back.
    tensors : dict of GGUFTensor
        By name, in the order of the file.
    """

    version: int
    alignment: int
    metadata: dict[str, Any]
    types: dict[str, ValueType]
    tensors: dict[str, GGUFTensor]
    source: Source = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without padding and metadata."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def close(self) -> None:
        """Let go of the file; arrays taken from it keep it mapped until they go as well."""
        self.source.data = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Return a short table."""
        lines = [
            f"GGUF version {self.version}: {len(self.metadata)} metadata values, "
            f"{len(self.tensors)} tensors, {self.nbytes:,} bytes of weights"
        ]
        for tensor in list(self.tensors.values())[:ROWS_SHOWN]:
            shape = " x ".join(map(str, tensor.shape)) or "one number"
            lines.append(f"  {tensor.name:<32} {tensor.type:<7} {shape:>16} {tensor.nbytes:>14,}")
        if len(self.tensors) > ROWS_SHOWN:
            lines.append(f"  and {len(self.tensors) - ROWS_SHOWN} more")
        return "\n".join(lines)


def read(path: str | Path, *, copy: bool = False) -> GGUFFile:
    """Open a GGUF file: check all of its header, map its tensors without reading them.

    Parameters
    ----------
    path : str or path
    copy : bool
        Read the whole file into memory instead. A mapped file that shrinks while it is open ends
        the process (SIGBUS); copy where other programs or machines may write to it.

    Raises
    ------
    FormatError
        If the file breaks a rule of the format; the message names the byte.
    OSError
        If it cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe could make us wait forever
        raise FormatError(f"{path} is not a file; pass the path of a .gguf file")
    with path.open("rb") as file:
        if copy or path.stat().st_size == 0:  # nothing can be mapped of an empty file
            return parse(file.read(), name=str(path))
        return parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), name=str(path))


def parse(buffer: Any, name: str = "GGUF") -> GGUFFile:
    """Check and open the bytes of a GGUF file: anything with Python's buffer interface.

    Raises
    ------
    FormatError
        If the bytes break a rule of the format; the message begins with ``name``.

    Examples
    --------
    >>> parse(b"GGUF" + bytes(20), name="story.gguf")
    Traceback (most recent call last):
    quantlab.gguf.cursor.FormatError: story.gguf, byte 4: version 0; only 2 and 3 are read
    """
    data = np.frombuffer(buffer, np.uint8) if len(buffer) else np.zeros(0, np.uint8)
    data.flags.writeable = False
    cursor = Cursor(data, name)
    version = read_version(cursor)
    tensors = cursor.count("tensors", layout.SMALLEST_TENSOR)
    pairs = cursor.count("metadata values", layout.SMALLEST_PAIR)
    metadata, types = read_pairs(cursor, pairs)
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    source = Source(data)
    entries = read_tensors(cursor, tensors, alignment, source)
    return GGUFFile(version, alignment, metadata, types, entries, source)


def read_version(cursor: Cursor) -> int:
    """Check the magic and return the version."""
    magic = cursor.take(4, "the magic GGUF")
    if magic != layout.MAGIC:
        cursor.fail(f"begins with {magic!r}, not with b'GGUF': this is no GGUF file", 0)
    version = cursor.number("u32", "the version")
    if version and version & 0xFFFF == 0:
        cursor.fail(f"version {version} has its bytes swapped: a big-endian file; convert it", 4)
    if version not in (2, 3):
        cursor.fail(f"version {version}; only 2 and 3 are read", 4)
    return version


def read_pairs(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, ValueType]]:
    """Return the metadata, and how each value is stored."""
    metadata: dict[str, Any] = {}
    types: dict[str, ValueType] = {}
    for number in range(count):
        start = cursor.at
        key = cursor.text(f"the key of metadata value {number}", layout.key_fault)
        if key in metadata:
            cursor.fail(f"the metadata key {shown(key)} stands here a second time", start)
        start = cursor.at
        metadata[key], types[key] = cursor.value(shown(key))
        if key == ALIGNMENT_KEY:
            fault = layout.alignment_fault(metadata[key], types[key])
            if fault:
                cursor.fail(fault, start)
    return metadata, types


def read_tensors(
    cursor: Cursor, count: int, alignment: int, source: Source
) -> dict[str, GGUFTensor]:
    """Read the table of tensors, then check that the data section holds them all."""
    entries: dict[str, tuple[type[BlockType], tuple[int, ...], int, int]] = {}
    running = 0
    for number in range(count):
        start = cursor.at
        name, cls, shape = read_entry(cursor, number)
        if name in entries:
            cursor.fail(f"the tensor name {shown(name)} stands here a second time", start)
        offset = cursor.number("u64", f"the offset of tensor {shown(name)}")
        if offset != running:
            cursor.fail(
                f"tensor {shown(name)} has offset {offset}; it must be {running}, where the "
                "tensor before it ends",
                cursor.at - 8,
            )
        nbytes = layout.tensor_bytes(shape, cls)
        entries[name] = cls, shape, nbytes, offset
        running += nbytes + layout.pad(nbytes, alignment)
    begin = cursor.at + layout.pad(cursor.at, alignment)
    for name, (_, _, nbytes, offset) in entries.items():
        if begin + offset + nbytes > len(cursor.view):
            cursor.fail(
                f"tensor {shown(name)} ends at byte {begin + offset + nbytes}, and the file has "
                f"{len(cursor.view)}: it is cut or damaged",
                begin + offset,
            )
    return {
        name: GGUFTensor(name, cls.__name__, shape, nbytes, begin + offset, source)
        for name, (cls, shape, nbytes, offset) in entries.items()
    }


def read_entry(cursor: Cursor, number: int) -> tuple[str, type[BlockType], tuple[int, ...]]:
    """Return the name, type and shape of the next tensor in the table."""
    name = cursor.text(f"the name of tensor {number}", layout.name_fault)
    what = f"tensor {shown(name)}"
    start = cursor.at
    dimensions = cursor.number("u32", f"the number of dimensions of {what}")
    if dimensions > layout.MOST_DIMENSIONS:
        cursor.fail(f"{what} has {dimensions} dimensions; at most 4 are allowed", start)
    sizes = [cursor.number("u64", f"a dimension of {what}") for _ in range(dimensions)]
    kind = cursor.number("u32", f"the type of {what}")
    cls = known_types().get(kind)
    if cls is None:
        cursor.fail(f"{what} has type {kind}, which ggml removed or never had", cursor.at - 4)
    shape = tuple(reversed(sizes))
    fault = layout.shape_fault(shape, cls)
    if fault:
        cursor.fail(f"{what} {fault}", start + 4)
    return name, cls, shape


@cache
def known_types() -> dict[int, type[BlockType]]:
    """Return the block types by their number in a file."""
    return {cls.id: cls for cls in TYPES.values()}


def shown(name: str) -> str:
    """Return a name from a file so that it is safe to print: quoted, escaped and not endless."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
