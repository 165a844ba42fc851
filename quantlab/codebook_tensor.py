"""Weights as codes of a small float format, or of any table of levels, under stored scales.

    w = scale * value(code)          one scale for each tile of rows x columns weights

    tile (1, 32)      MX formats, NVFP4 (1, 16), NF4 (1, 64)
    tile (1, in)      one scale a row
    tile (128, 128)   blocks, as in DeepSeek-V3
    tile (out, in)    one scale for the whole matrix

Whatever has ``values()`` and tensors as dataclass fields can hold the scales: ``Scales`` here keeps
a code or a float for each tile; a method with a cleverer way (double quantization) brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from quantlab.floats import Codebook, FloatFormat, look_up
from quantlab.packing import pack_codes, packed_bytes, unpack_codes

Record = TypeVar("Record")


class StoredScales(Protocol):
    """A frozen dataclass that holds scales in the form in which they are stored."""

    def values(self) -> Tensor:
        """Return the scales, (tile rows, tile columns) float32."""
        ...


class Packed(Protocol):
    """A frozen dataclass that holds a weight in storage form: its tensor fields are all of it."""

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        ...

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``."""
        ...


class Quantized(Protocol):
    """What every method returns for a weight, whatever its codes mean."""

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        ...

    @property
    def scheme(self) -> object:
        """The grid or format; its ``str`` stands in reports."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened on the way and belongs in a report."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        ...

    def dequantize(self) -> Tensor:
        """Return the (out, in) weight that the codes stand for."""
        ...

    def pack(self) -> Any:
        """Return the storage form."""
        ...


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class Scales:
    """One stored scale for each tile, under one factor for the whole matrix: factor * value.

    Attributes
    ----------
    data : (tile rows, tile columns) tensor
        uint8 codes of ``format``; or, if that is None, the scales themselves as floats.
    format : FloatFormat, or None
    factor : () float32 tensor, or None for 1
        The second level of a two-level scale (NVFP4).
    """

    data: Tensor
    format: FloatFormat | None = None
    factor: Tensor | None = None

    def values(self) -> Tensor:
        """Return the scales, (tile rows, tile columns) float32.

        Examples
        --------
        >>> from quantlab.floats import E8M0
        >>> Scales(torch.tensor([[127, 124]], dtype=torch.uint8), E8M0).values().tolist()
        [[1.0, 0.125]]
        """
        scale = self.data.float() if self.format is None else self.format.decode(self.data)
        return scale if self.factor is None else scale * self.factor


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class CodebookTensor:
    """A weight matrix as codes into a table: ``w = scale * value(code)`` in each tile.

    Attributes
    ----------
    codes : (out, in) uint8 tensor
    scales : Scales, or another dataclass with ``values()``
    table : FloatFormat or Codebook
        What the codes mean.
    tile : (rows, columns)
        Weights that share a scale; the last tiles may be cut off by the matrix's edge.
    scheme : str
        The format's name, for reports.
    notes : tuple of str

    Examples
    --------
    >>> from quantlab.floats import FP4_E2M1
    >>> codes, scales = torch.tensor([[2, 7, 15]], dtype=torch.uint8), Scales(torch.ones(1, 1))
    >>> CodebookTensor(codes, scales, FP4_E2M1, (1, 3), "FP4").dequantize().tolist()
    [[1.0, 6.0, -6.0]]
    """

    codes: Tensor
    scales: StoredScales
    table: FloatFormat | Codebook
    tile: tuple[int, int]
    scheme: str
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        return self.codes.shape

    @property
    def scale(self) -> Tensor:
        """The scales, (tile rows, tile columns) float32."""
        return self.scales.values()

    @property
    def bits(self) -> int:
        """Width of a code."""
        return code_bits(self.table)

    def dequantize(self) -> Tensor:
        """Return the (out, in) float32 weight: value of the code, times the scale."""
        return look(self.table, self.codes) * spread(self.scale, self.tile, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: codes as a dense bit stream a row, and the stored scales."""
        rows, columns = self.shape
        return rows * packed_bytes(columns, self.bits) + tensor_bytes(self.scales)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return 8 * self.nbytes / self.codes.numel()

    def pack(self) -> PackedCodebook:
        """Return the storage form."""
        data = pack_codes(self.codes, self.bits)
        return PackedCodebook(data, self.scales, self.table, self.tile, self.scheme, self.shape)


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedCodebook:
    """A ``CodebookTensor`` as it lies in memory and in files.

    Attributes
    ----------
    data : (out, bytes per row) uint8 tensor
        The codes as a little-endian bit stream, each row padded to whole bytes.
    scales, table, tile, scheme
        As in ``CodebookTensor``.
    shape : (out, in)
    """

    data: Tensor
    scales: StoredScales
    table: FloatFormat | Codebook
    tile: tuple[int, int]
    scheme: str
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return tensor_bytes(self)

    def unpack(self) -> CodebookTensor:
        """Return the codes as a (out, in) tensor again."""
        codes = unpack_codes(self.data, code_bits(self.table), self.shape[1])
        return CodebookTensor(codes, self.scales, self.table, self.tile, self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``; computed in float32."""
        return self.unpack().dequantize().to(dtype)


def code_bits(table: FloatFormat | Codebook) -> int:
    """Return the width of a table's codes.

    Examples
    --------
    >>> code_bits(Codebook("thirds", (-1.0, 0.0, 1.0)))
    2
    """
    return table.bits if isinstance(table, FloatFormat) else (len(table.levels) - 1).bit_length()


def look(table: FloatFormat | Codebook, codes: Tensor) -> Tensor:
    """Return the values of codes as float32."""
    return look_up(table.values().float(), codes, table.name)


def spread(scale: Tensor, tile: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """Repeat each tile's scale for its weights: (tile rows, tile columns) to (out, in).

    Raises
    ------
    ValueError
        If there are not exactly as many scales as tiles.

    Examples
    --------
    >>> spread(torch.tensor([[1.0, 2.0]]), (2, 2), (2, 3)).tolist()
    [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]
    """
    expected = tuple(-(-size // side) for size, side in zip(shape, tile, strict=True))
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"scales have shape {tuple(scale.shape)}; a {shape[0]} x {shape[1]} matrix in tiles of "
            f"{tile[0]} x {tile[1]} has {expected}"
        )
    rows = scale.repeat_interleave(tile[0], 0)[: shape[0]]
    return rows.repeat_interleave(tile[1], 1)[:, : shape[1]]


# ---------------------------------------------------------------- the tensors of a record


def tensors(record: Any) -> dict[str, Tensor]:
    """Return the tensor fields of a dataclass, those of dataclasses inside it as ``outer_inner``.

    Examples
    --------
    >>> list(tensors(Scales(torch.ones(1, 1), factor=torch.tensor(2.0))))
    ['data', 'factor']
    """
    found: dict[str, Tensor] = {}
    for entry in fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, Tensor):
            found[entry.name] = value
        elif is_dataclass(value):
            found |= {f"{entry.name}_{name}": inner for name, inner in tensors(value).items()}
    return found


def with_tensors(record: Record, given: Mapping[str, Tensor]) -> Record:
    """Return a copy of a dataclass with other tensors, named as ``tensors`` names them."""
    changed: dict[str, Any] = {}
    for entry in fields(record):  # pyright: ignore[reportArgumentType]
        value, name = getattr(record, entry.name), entry.name
        if isinstance(value, Tensor):
            changed[name] = given[name]
        elif is_dataclass(value):
            inside = f"{name}_"
            inner = {k.removeprefix(inside): t for k, t in given.items() if k.startswith(inside)}
            changed[name] = with_tensors(value, inner)
    return replace(record, **changed)  # pyright: ignore[reportArgumentType]


def tensor_bytes(record: Any) -> int:
    """Return the bytes of a dataclass's tensors."""
    return sum(part.numel() * part.element_size() for part in tensors(record).values())
