"""The importance matrix: how large each input of each matrix is, and llama.cpp's file of that.

An error in column j of a weight is multiplied by the input x_j. E[x_j^2], measured over calibration
text, therefore says how much the column's errors matter; quantizers weight their search with it.
The columns are inputs, so the order of q's and k's rows does not touch them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quantlab.gguf import layout
from quantlab.gguf.block_type import Floats
from quantlab.gguf.cursor import Cursor, FormatError
from quantlab.gguf.file import GGUFFile, read, shown
from quantlab.gguf.writer import write

KIND = "imatrix"  # general.type
KEYS = {"imatrix.datasets": "[str]", "imatrix.chunk_count": "u32", "imatrix.chunk_size": "u32"}
SUMS, COUNTS = ".in_sum2", ".counts"
SMALLEST_ENTRY = 4 + 1 + 4 + 4 + 4  # bytes of an old file: length, name, calls, columns, value


class Imatrix(Mapping[str, Floats]):
    """Sums of squared inputs of matrices, read as their means E[x_j^2].

    A mapping of a tensor's name, in GGUF's words, to its importances: (columns,) float32, or
    (experts, columns) for stacked experts. What was never seen counts as equally important: ones.

    Parameters
    ----------
    sums : mapping of name to (columns,) or (experts, columns) floats
        Of x_j^2 over tokens.
    counts : mapping of name to int or (experts,) ints
        How many tokens were summed.
    datasets : strings
        What the tokens were, for the reader of the file.
    chunk_count, chunk_size : int
        How many windows of how many tokens; 0 where an old file does not say.

    Raises
    ------
    ValueError
        If a sum is negative or not finite, a count is no count, or they do not fit each other.

    Examples
    --------
    >>> matrix = Imatrix({"blk.0.ffn_up.weight": [2.0, 8.0]}, {"blk.0.ffn_up.weight": 4})
    >>> matrix["blk.0.ffn_up.weight"].tolist()
    [0.5, 2.0]
    """

    def __init__(
        self,
        sums: Mapping[str, ArrayLike],
        counts: Mapping[str, ArrayLike],
        datasets: Iterable[str] = (),
        chunk_count: int = 0,
        chunk_size: int = 0,
    ) -> None:
        if sums.keys() != counts.keys():
            odd = sorted(sums.keys() ^ counts.keys())[0]
            raise ValueError(f"{odd} has sums or counts, and not both; the file or call is cut")
        pairs = {name: check_entry(name, sums[name], counts[name]) for name in sums}
        self.sums: dict[str, Floats] = {name: pair[0] for name, pair in pairs.items()}
        self.counts: dict[str, Floats] = {name: pair[1] for name, pair in pairs.items()}
        self.datasets = tuple(datasets)
        self.chunk_count, self.chunk_size = chunk_count, chunk_size

    def __getitem__(self, name: str) -> Floats:
        """Return the importance of each column of a tensor."""
        sums, counts = self.sums[name], self.counts[name][:, None]
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return means[0] if len(means) == 1 else means

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.sums)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.sums)

    def __repr__(self) -> str:
        """Say how much there is."""
        return (
            f"Imatrix({len(self)} tensors, {self.chunk_count} chunks of {self.chunk_size} tokens)"
        )

    def save(self, path: str | Path) -> None:
        """Write the GGUF file that llama.cpp's ``llama-quantize --imatrix`` reads.

        Raises
        ------
        ValueError
            If a name is too long for a file (55 bytes), or there is no tensor.
        OSError
            If the file cannot be written.
        """
        if not self:
            raise ValueError("this imatrix holds no tensor; llama.cpp refuses such a file")
        tensors: dict[str, Floats] = {}
        for name in sorted(self):
            sums, counts = self.sums[name], self.counts[name]
            single = len(sums) == 1  # ggml drops trailing dimensions of 1
            tensors[name + SUMS] = sums[0] if single else sums
            tensors[name + COUNTS] = counts if single else counts[:, None]
        values = (list(self.datasets), self.chunk_count, self.chunk_size)
        metadata = {"general.type": KIND, **dict(zip(KEYS, values, strict=True))}
        write(path, tensors, metadata, types=KEYS)

    @classmethod
    def load(cls, path: str | Path) -> Imatrix:
        """Read a file of ``llama-imatrix``, GGUF or the older ``.dat``, or of ``save``.

        Raises
        ------
        FormatError
            If it is neither, is damaged, or holds a number that cannot be an importance.
        OSError
            If it cannot be opened.
        """
        path = Path(path)
        if path.exists() and not path.is_file():
            raise FormatError(f"{path} is not a file; pass the path of an imatrix")
        with path.open("rb") as file:
            old = file.read(4) != layout.MAGIC
        try:
            if old:
                return cls(**read_old(path))
            with read(path) as opened:
                return cls(**read_fields(opened))
        except FormatError:
            raise
        except ValueError as error:  # of someone who does not know the file's name
            raise FormatError(f"{path}: {error}") from None


def check_entry(name: str, sums: ArrayLike, counts: ArrayLike) -> tuple[Floats, Floats]:
    """Return sums (experts, columns) and counts (experts,) of a tensor; a ValueError if wrong."""
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused
        total, tokens = np.array(sums, np.float32), np.array(counts, np.float32).reshape(-1)
    total = total[None] if total.ndim == 1 else total
    if total.ndim != 2 or not total.size or len(total) != len(tokens):
        raise ValueError(
            f"{name}: sums of shape {np.shape(sums)} with counts of shape {np.shape(counts)}; "
            "pass (columns,) and one count, or (experts, columns) and (experts,)"
        )
    refuse(f"{name}: the sum of squares", total, np.isfinite(total) & (total >= 0), ">= 0")
    whole = np.isfinite(tokens) & (tokens >= 0) & (tokens == np.floor(tokens))
    refuse(f"{name}: the count", tokens, whole, "a number of tokens")
    return total, tokens


def refuse(what: str, values: Floats, good: Any, wanted: str) -> None:
    """Raise a ValueError that names the first of ``values`` which is not good."""
    if not good.all():
        where = np.argwhere(~good)[0].tolist()
        raise ValueError(f"{what} at {where} is {values[tuple(where)]}; it must be {wanted}")


def read_fields(file: GGUFFile) -> dict[str, Any]:
    """Return the constructor's arguments from a GGUF file.

    Of an entry's tensors only sums of squares and counts are read: newer versions add others.
    """
    kind = file.metadata.get("general.type")
    if kind != KIND:
        raise ValueError(f"general.type is {kind!r:.80}, not {KIND!r}: this is no imatrix")
    for key, wanted in KEYS.items():
        if file.types.get(key) != wanted:
            raise ValueError(
                f"{key} is {file.types.get(key, 'missing')}; an imatrix stores {wanted}"
            )
    parts: dict[str, dict[str, Floats]] = {SUMS: {}, COUNTS: {}}
    for name, tensor in file.tensors.items():
        for end, found in parts.items():
            if name.endswith(end):
                if tensor.type != "F32" or len(tensor.shape) > 2:
                    raise ValueError(
                        f"{shown(name)} is {tensor.type} {tensor.shape}; it must be F32"
                    )
                found[name.removesuffix(end)] = tensor.dequantize()
    if not parts[SUMS]:
        raise ValueError(f"no tensor is named *{SUMS}: this imatrix is empty")
    values = [file.metadata[key] for key in KEYS]
    return dict(zip(("datasets", "chunk_count", "chunk_size"), values, strict=True)) | {
        "sums": parts[SUMS],
        "counts": parts[COUNTS],
    }


def read_old(path: Path) -> dict[str, Any]:
    """Return the constructor's arguments from a ``.dat`` file.

    i32 entries; each an i32 length, name, i32 calls, i32 columns, float32 sums; after them perhaps
    i32 chunks, i32 length, name of the data set.
    """
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    cursor = Cursor(data, str(path))
    sums: dict[str, Floats] = {}
    counts: dict[str, int] = {}
    for _ in range(size(cursor, "the number of entries", 1, SMALLEST_ENTRY)):
        start = cursor.at
        name = old_text(cursor, f"the name of entry {len(sums)}", 1)
        if name in sums:
            cursor.fail(f"the entry {shown(name)} stands here a second time", start)
        counts[name] = size(cursor, f"the calls of {shown(name)}", 0, 0)
        columns = size(cursor, f"the columns of {shown(name)}", 1, 4)
        sums[name] = np.frombuffer(cursor.take(4 * columns, "values"), "<f4")
    fields: dict[str, Any] = {"sums": sums, "counts": counts}
    if cursor.at < len(data):
        fields["chunk_count"] = size(cursor, "the number of chunks", 0, 0)
        dataset = old_text(cursor, "the name of the data set", 0)
        fields["datasets"] = (dataset,) if dataset else ()
    if cursor.at < len(data):
        cursor.fail(f"{len(data) - cursor.at} bytes follow the end of an imatrix")
    return fields


def size(cursor: Cursor, what: str, least: int, width: int) -> int:
    """Read an i32 that is ``least`` or more, of things that take ``width`` bytes each."""
    start = cursor.at
    value = cursor.number("i32", what)
    left = len(cursor.view) - cursor.at
    if value < least or value * width > left:
        cursor.fail(f"{what} is {value}, and {left} bytes follow: no imatrix, or a cut one", start)
    return value


def old_text(cursor: Cursor, what: str, least: int) -> str:
    """Read an i32 length and so many bytes of UTF-8."""
    raw = cursor.take(size(cursor, f"the length of {what}", least, 1), what)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        cursor.fail(f"{what} is not UTF-8: {error.reason}", cursor.at - len(raw) + error.start)
