"""Look into a model file without loading it: metadata, tensors, and the bits a weight really takes.

A file of any size opens at once, because only its header is read. Weights are read for a
histogram, and of a large tensor only some of them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab import gguf
from quantlab.safetensors_file import BITS, files_of_index, read_header, sample_weights
from quantlab.weight_histogram import Histogram, check_bins, count_weights, read_blocks

LONGEST_VALUE = 60  # characters of a metadata value in text


@dataclass(frozen=True)
class TensorInfo:
    """A row of the table; ``sample`` reads weights of it."""

    name: str
    type: str
    shape: tuple[int, ...]
    bits_per_weight: float
    nbytes: int
    sample: Callable[[], NDArray[Any]] = field(repr=False, compare=False)

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Inspection:
    """What a model file holds.

    Attributes
    ----------
    path, format : str
        ``format`` is such as "GGUF version 3" or "safetensors".
    file_bytes : int
        Of all files together where there are several.
    metadata : dict
    tensors : list of TensorInfo
    """

    path: str
    format: str
    file_bytes: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]

    def totals(self) -> dict[str, dict[str, float]]:
        """Return tensors, weights, bytes and bits per weight by type, the largest type first."""
        types: dict[str, list[TensorInfo]] = {}
        for tensor in self.tensors:
            types.setdefault(tensor.type, []).append(tensor)
        rows = {name: sum_up(tensors) for name, tensors in types.items()}
        return dict(sorted(rows.items(), key=lambda row: -row[1]["bytes"]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, strings, lists and dicts: what ``--json`` prints."""
        return {
            "path": self.path,
            "format": self.format,
            "file_bytes": self.file_bytes,
            "metadata": {key: as_json(value) for key, value in self.metadata.items()},
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "type": tensor.type,
                    "bits_per_weight": tensor.bits_per_weight,
                    "bytes": tensor.nbytes,
                }
                for tensor in self.tensors
            ],
            "types": self.totals(),
            "total": sum_up(self.tensors),
        }

    def histogram(self, name: str, bins: int = 20) -> Histogram:
        """Count the weights of a tensor in ``bins`` equal steps from the least to the largest.

        Of a tensor with more than four million weights an even sample is read.

        Raises
        ------
        ValueError
            If there is no such tensor, its type holds no weights that become floats, or ``bins``
            is not 1 to 1000.
        """
        check_bins(bins)
        for tensor in self.tensors:
            if tensor.name == name:
                return count_weights(tensor.sample(), bins, tensor.weights)
        near = difflib.get_close_matches(name, [tensor.name for tensor in self.tensors], n=3)
        hint = f"near it: {', '.join(near)}" if near else f"see: quantlab inspect {self.path}"
        raise ValueError(f"{self.path} holds no tensor {name!r}; {hint}")

    def __str__(self) -> str:
        """Return metadata, tensors and totals as text for a terminal."""
        head = f"{self.path}: {self.format}, {self.file_bytes:,} bytes"
        pairs = [[printable(key), brief(value)] for key, value in self.metadata.items()]
        rows = [
            [
                printable(tensor.name),
                " x ".join(map(str, tensor.shape)) or "one number",
                tensor.type,
                f"{tensor.bits_per_weight:.4g}",
                f"{tensor.nbytes:,}",
            ]
            for tensor in self.tensors
        ]
        totals = {**self.totals(), "all": sum_up(self.tensors)}
        sums = [
            [
                name,
                *(f"{row[column]:,}" for column in ("tensors", "weights", "bytes")),
                f"{row['bits_per_weight']:.4f}",
            ]
            for name, row in totals.items()
        ]
        tables = [
            in_columns(["metadata", ""], pairs, "<<") if pairs else "no metadata",
            in_columns(["tensor", "shape", "type", "bits", "bytes"], rows, "<><>>"),
            in_columns(["type", "tensors", "weights", "bytes", "bits per weight"], sums, "<>>>>"),
        ]
        return "\n\n".join([head, *tables])


def inspect_file(path: str | Path) -> Inspection:
    """Look into a GGUF or safetensors file, an index of several, or a folder that holds them.

    Raises
    ------
    ValueError
        If the file is neither, or damaged; the message says where.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = find_in_folder(path)
    if path.exists() and not path.is_file():  # a pipe could make us wait forever
        raise ValueError(f"{path} is not a file; pass a GGUF or safetensors file")
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"GGUF") or path.suffix == ".gguf":
        return inspect_gguf(path)
    if path.name.endswith(".index.json"):
        return inspect_safetensors(path, files_of_index(path))
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return inspect_safetensors(path, [path])
    raise ValueError(f"{path} begins with {head!r}: neither a GGUF nor a safetensors file")


def find_in_folder(folder: Path) -> Path:
    """Return the file of a folder to look into: an index, or the only model file."""
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.gguf"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{folder} holds {len(found)} files {pattern}; pass one of them")
    raise ValueError(f"{folder} holds no GGUF or safetensors file")


def inspect_gguf(path: Path) -> Inspection:
    """Look into a GGUF file."""
    file = gguf.read(path)
    tensors = [
        TensorInfo(
            tensor.name,
            tensor.type,
            tensor.shape,
            tensor.bits_per_weight,
            tensor.nbytes,
            partial(sample_gguf, path, tensor),
        )
        for tensor in file.tensors.values()
    ]
    size = path.stat().st_size
    return Inspection(str(path), f"GGUF version {file.version}", size, file.metadata, tensors)


def sample_gguf(path: Path, tensor: gguf.GGUFTensor) -> NDArray[np.float32]:
    """Return the weights of a tensor; of a large one an even sample."""
    cls = gguf.find_type(tensor.type)
    block = cls.layout.itemsize, cls.size
    blocks = read_blocks(path, tensor.offset, tensor.nbytes, block)
    return gguf.dequantize(blocks, cls).reshape(-1)


def inspect_safetensors(path: Path, files: list[Path]) -> Inspection:
    """Look into safetensors files that together are one model."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        found, entries = read_header(file)
        metadata |= found
        for name, entry in entries.items():
            if name in tensors:
                raise ValueError(f"{file} holds tensor {name!r}, which an earlier file has as well")
            tensors[name] = TensorInfo(
                name,
                entry.dtype,
                entry.shape,
                BITS[entry.dtype],
                entry.end - entry.begin,
                partial(sample_weights, file, entry),
            )
    size = sum(file.stat().st_size for file in files)
    count = f" in {len(files)} files" if len(files) > 1 else ""
    return Inspection(str(path), f"safetensors{count}", size, metadata, list(tensors.values()))


def sum_up(tensors: list[TensorInfo]) -> dict[str, float]:
    """Return the number of tensors and weights, their bytes, and the real bits per weight."""
    weights = sum(tensor.weights for tensor in tensors)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    bits = 8 * nbytes / weights if weights else 0.0
    return {"tensors": len(tensors), "weights": weights, "bytes": nbytes, "bits_per_weight": bits}


def as_json(value: Any) -> Any:
    """Return a metadata value as JSON can hold it; NaN and infinity, which it cannot, as text."""
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list):
        return [as_json(element) for element in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def brief(value: Any) -> str:
    """Return a metadata value in one short line."""
    if isinstance(value, list | np.ndarray):
        first = ", ".join(brief(element) for element in list(value[:6]))
        more = ", ..." if len(value) > 6 else ""
        return f"{len(value):,} values: {first}{more}" if len(value) else "no values"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def printable(name: str) -> str:
    """Return a name from a file as it is, or escaped where it could upset a terminal."""
    return name if name.isprintable() and name else repr(name)


def in_columns(head: list[str], rows: list[list[str]], sides: str) -> str:
    """Return a table as text; ``sides`` says for each column where its words stand, < or >."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            f"{word:{side}{width}}" for word, side, width in zip(row, sides, widths, strict=True)
        )
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
