"""The layout that the kernels read: sixteen rows of packed weights side by side.

A vector register holds sixteen 32-bit words. Fill it with a word of *one* row, and the sum over the
row ends in sixteen partial sums that must be added across the register; and a group of 32 weights
is over before the register is full. Fill it with one word of each of sixteen *rows*, and each lane
adds up its own output, reads its own scale, and nothing crosses lanes. So the words of sixteen rows
are stored in turn:

    packed rows          row 0   a0 a1 a2 ...        tile   a0 b0 c0 ... p0  a1 b1 c1 ... p1  ...
    (32-bit words)       row 1   b0 b1 b2 ...               ^ one load of 64 bytes
                         ...     ...
                         row 15  p0 p1 p2 ...

It is a transposition of whole words: no bit inside a word moves, and it takes no more room.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.packing import pack_codes, packed_bytes, unpack_codes
from quantlab.scheme import Scheme
from quantlab.tensor import PackedTensor

LANES = 16  # rows of a tile: the 32-bit words of a 512-bit register
WORD_BITS = 32


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class Tiles:
    """A packed weight of 4 or 8 bits, rearranged for the kernels.

    Attributes
    ----------
    words : (tiles, words, 16) int32 tensor
        Word w of lane r of tile t is the w-th little-endian 32-bit word of row 16 t + r of
        ``PackedTensor.data``: eight 4-bit codes or four 8-bit ones, the first in the lowest bits.
        Rows are padded to whole tiles, columns to whole words.
    scale : (tiles, groups, 16) float16 tensor
        0 in rows that are padding.
    zeros : (tiles, groups, 16) uint8 tensor, or None if symmetric
        Zero points, one a byte.
    scheme : Scheme
    shape : (out, in) of the weight
    """

    words: Tensor
    scale: Tensor
    zeros: Tensor | None
    scheme: Scheme
    shape: torch.Size

    @classmethod
    def of(cls, packed: PackedTensor) -> Tiles:
        """Rearrange a packed weight.

        Raises
        ------
        ValueError
            If no kernel takes its scheme: see ``refusal``.

        Examples
        --------
        >>> import quantlab as ql
        >>> tiles = Tiles.of(ql.rtn(torch.eye(16, 64), ql.Scheme(group_size=32)).pack())
        >>> tuple(tiles.words.shape), tuple(tiles.scale.shape), tiles.nbytes
        ((1, 8, 16), (1, 2, 16), 576)
        """
        reason = refusal(packed.scheme)
        if reason:
            raise ValueError(reason)
        zeros = packed.zeros
        if zeros is not None:
            zeros = side_by_side(
                unpack_codes(zeros, packed.scheme.bits, packed.scale.shape[1]), multiple=1
            )
        data = side_by_side(packed.data, multiple=WORD_BITS // 8)
        scale = side_by_side(packed.scale, multiple=1)
        return cls(as_words(data), scale, zeros, packed.scheme, packed.shape)

    def packed(self) -> PackedTensor:
        """Return the weight row by row again, as it lies in files."""
        bits, (rows, columns) = self.scheme.bits, self.shape
        data = row_by_row(as_bytes(self.words), rows)[:, : packed_bytes(columns, bits)]
        zeros = self.zeros
        if zeros is not None:
            zeros = pack_codes(row_by_row(zeros, rows), bits)
        scale = row_by_row(self.scale, rows)
        return PackedTensor(data.contiguous(), scale, zeros, self.scheme, self.shape)

    @cached_property
    def arrays(self) -> tuple[tuple[NDArray[Any], NDArray[Any]], NDArray[Any] | None]:
        """(words, scales) and zeros as flat arrays; float16 as uint16: Numba has no such type."""
        half = self.scale.dtype == torch.float16
        scale = self.scale.view(torch.uint16) if half else self.scale
        zeros = None if self.zeros is None else self.zeros.numpy().reshape(-1)
        return (self.words.numpy().reshape(-1), scale.numpy().reshape(-1)), zeros

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy, padding included."""
        parts = [self.words, self.scale] + ([] if self.zeros is None else [self.zeros])
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def codes_per_word(self) -> int:
        """Codes in 32 bits: 8 of 4 bits, or 4 of 8 bits."""
        return WORD_BITS // self.scheme.bits

    @property
    def words_per_group(self) -> int:
        """32-bit words of one lane that share a scale."""
        return self.words.shape[1] // self.scale.shape[1]


def refusal(scheme: Scheme) -> str | None:
    """Return why no kernel takes a scheme, or None if one does.

    Examples
    --------
    >>> refusal(Scheme(bits=4, group_size=32)) is None
    True
    >>> refusal(Scheme(bits=3))
    'w3sym has 3-bit codes; kernels take 4 and 8 bits'
    """
    if scheme.bits not in (4, 8):
        return f"{scheme} has {scheme.bits}-bit codes; kernels take 4 and 8 bits"
    per_word = WORD_BITS // scheme.bits
    if scheme.group_size is not None and scheme.group_size % per_word:
        return (
            f"{scheme} has groups of {scheme.group_size}; kernels of {scheme.bits} bits take "
            f"multiples of {per_word}, or whole rows"
        )
    return None


def side_by_side(rows: Tensor, *, multiple: int) -> Tensor:
    """Turn (rows, n) into (tiles, n / multiple, 16, multiple), zeros where there is no row."""
    count, n = rows.shape
    tiles, parts = -(-count // LANES), -(-n // multiple)
    padded = rows.new_zeros(tiles * LANES, parts * multiple)
    padded[:count, :n] = rows
    tiled = padded.view(tiles, LANES, parts, multiple).transpose(1, 2).contiguous()
    return tiled if multiple > 1 else tiled.squeeze(-1)


def row_by_row(tiled: Tensor, rows: int) -> Tensor:
    """Turn (tiles, n, 16) or (tiles, n, 16, m) back into (rows, n) or (rows, n * m)."""
    return tiled.transpose(1, 2).flatten(0, 1)[:rows].flatten(1).contiguous()


def as_words(data: Tensor) -> Tensor:
    """View (..., 4) bytes as (...) little-endian 32-bit integers."""
    return data.view(torch.int32).squeeze(-1)


def as_bytes(words: Tensor) -> Tensor:
    """View (...) 32-bit integers as (..., 4) bytes."""
    return words.contiguous().unsqueeze(-1).view(torch.uint8)
