"""What a safetensors file holds, from its header alone, and weights when asked for.

    u64 length of the header | JSON {"name": {"dtype", "shape", "data_offsets"}} | data

References
----------
huggingface/safetensors, README.md, section Format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from quantlab.weight_histogram import read_blocks

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
DTYPES = {  # those that torch turns into floats
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000  # bytes, as the reference implementation has it
MOST_DIMENSIONS = 64  # NumPy's limit


@dataclass(frozen=True)
class Entry:
    """A tensor: its dtype, shape, and where in the file its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the metadata of a safetensors file and its tensors by name.

    Raises
    ------
    ValueError
        If the header is longer than the file, no JSON, or tells of tensors that overlap, leave
        gaps, have bytes that do not fill their shapes, or lie outside the file.
    OSError
        If the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError(
                f"{path}, byte 0: the header claims {length} bytes of a file of {size}; it is cut, "
                "damaged or no safetensors file"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}, byte 8: the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}, byte 8: the header is {header!r:.40}, not a table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}, byte 8: __metadata__ is {metadata!r:.40}, not a table")
    entries = {name: read_entry(path, name, item, 8 + length) for name, item in header.items()}
    check_cover(path, entries, 8 + length, size)
    return metadata, entries


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; a ValueError if a name stands in it twice."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {name!r:.80} stands in it twice")
        table[name] = value
    return table


def read_entry(path: Path, name: str, item: Any, start: int) -> Entry:
    """Return one tensor of the header, whose data section begins at byte ``start``."""

    def fail(reason: str) -> NoReturn:
        raise ValueError(f"{path}, byte 8: tensor {name!r:.80} {reason}")

    if not isinstance(item, dict) or not {"dtype", "shape", "data_offsets"} <= item.keys():
        fail("lacks dtype, shape or data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        fail(f"has dtype {dtype!r:.40}; known: {', '.join(BITS)}")
    if not (is_sizes(shape) and is_sizes(offsets) and len(offsets) == 2):
        fail(f"has shape {shape!r:.40} and offsets {offsets!r:.60}; both hold integers >= 0")
    begin, end = offsets
    if prod(shape) * BITS[dtype] != 8 * (end - begin):
        fail(f"has bytes {begin} to {end}, which are not {dtype} of shape {tuple(shape)}")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def is_sizes(value: Any) -> bool:
    """Tell whether a JSON value is a short list of integers 0 .. 2^63 (True and 1.0 are none)."""
    if not isinstance(value, list) or len(value) > MOST_DIMENSIONS:
        return False
    return all(type(size) is int and 0 <= size < 2**63 for size in value)


def check_cover(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Raise a ValueError unless the tensors cover the data section: no gap, no overlap."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise ValueError(
                f"{path}, byte {at}: tensor {name!r:.80} begins at byte {entry.begin}; a gap or an "
                "overlap, so the file is damaged"
            )
        at = entry.end
    if at != size:
        raise ValueError(f"{path}, byte {at}: the tensors end here, and the file has {size} bytes")


def sample_weights(path: Path, entry: Entry) -> NDArray[np.float64]:
    """Return the weights of a tensor as floats; of a large one an even sample."""
    if entry.dtype not in DTYPES:
        raise ValueError(f"no histogram of {entry.dtype}; known: {', '.join(DTYPES)}")
    size = entry.end - entry.begin
    blocks = read_blocks(path, entry.begin, size, (BITS[entry.dtype] // 8, 1))
    raw = torch.from_numpy(blocks.copy())  # torch warns of memory that it may not write to
    return raw.view(DTYPES[entry.dtype]).double().numpy().reshape(-1)


def files_of_index(path: Path) -> list[Path]:
    """Return the files that an index names, each beside it."""
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no index: it has no table weight_map of files") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path} names the file {name!r:.80}, which does not lie beside it")
    return [path.with_name(name) for name in names]
