"""Describe a uniform grid, and move numbers onto it and back.

The one convention of this library: ``w = scale * (code - zero_point)``, codes 0 .. 2**bits - 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_BITS = 16  # a packed scale is a float16


@dataclass(frozen=True)
class Scheme:
    """A grid of 2**bits levels for each group of consecutive weights of a row.

    Parameters
    ----------
    bits : 1..8, or 16
        Width of a code. 16 is for activations; packing takes 1..8.
    group_size : weights, or None
        Weights that share one scale along a row. None: the whole row shares it.
    symmetric : bool
        True puts zero_point at 2**(bits - 1) and takes
        scale = (signed extreme weight) / -2**(bits - 1), so the largest weight of a group is met
        exactly by code 0 and **the scale may be negative**.
        False stretches the range to include 0 and rounds the zero point to an integer.

    Raises
    ------
    ValueError
        If bits or group_size is out of range.

    Examples
    --------
    >>> Scheme(bits=4, group_size=64, symmetric=False).bits_per_weight
    4.3125
    >>> print(Scheme.parse("w4g64sym"))
    w4g64sym
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        """Refuse widths and groups that no grid has."""
        if type(self.bits) is not int or self.bits not in (*range(1, 9), 16):
            raise ValueError(f"bits is {self.bits!r}; choose 1..8, or 16 for activations")
        size = self.group_size
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(
                f"group_size is {size!r}; choose a positive integer or None (whole row)"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Read a name such as ``w4g64sym``, ``w3g32asym`` or ``w8`` (whole row, symmetric).

        Raises
        ------
        ValueError
            If the text is not of that form.
        """
        match = re.fullmatch(r"w(\d+)(?:g(\d+))?(sym|asym)?", text.strip().lower())
        if match is None:
            raise ValueError(
                f"{text!r} is no scheme; write w<bits>[g<group>][sym|asym], as w4g64sym"
            )
        bits, group, kind = match.groups()
        return cls(int(bits), int(group) if group else None, kind != "asym")

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else ""
        return f"w{self.bits}{group}{'sym' if self.symmetric else 'asym'}"

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 2 ** (self.bits - 1)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: the code, and its share of a float16 scale and of a zero point.

        Raises
        ------
        ValueError
            If the group is a whole row, whose share depends on the row: use ``stored_bits``.
        """
        if self.group_size is None:
            raise ValueError("a whole-row scheme needs the row's length: use stored_bits(columns)")
        return self.stored_bits(self.group_size)

    def stored_bits(self, columns: int) -> float:
        """Return stored bits per weight of a row of ``columns`` weights, padding not counted."""
        shared = SCALE_BITS + (0 if self.symmetric else self.bits)
        return self.bits + shared / (self.group_size or columns)

    def group(self, weight: Tensor) -> Tensor:
        """View (..., columns) as (..., groups, group_size).

        Raises
        ------
        ValueError
            If group_size does not divide the columns, or there are none.
        """
        columns = weight.shape[-1]
        if columns == 0:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; a row needs a weight")
        size = self.group_size or columns
        if columns % size:
            raise ValueError(
                f"in_features {columns} is not a multiple of group_size {size}; "
                f"choose {choices(columns)} or None (whole row)"
            )
        return weight.unflatten(-1, (columns // size, size))

    def grid(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scale and zero point to (..., size) groups by their extreme values.

        A group of zeros (or of subnormal numbers) gets scale 1, so that it decodes to exactly 0.
        Half precision is computed in float32: there a step of 6e-5 would already be subnormal.

        Returns
        -------
        scale, zero_point : (...) tensors of the groups' dtype, at least float32
            The zero point is a whole number. The scale may be negative if symmetric.
        """
        groups = groups.to(torch.promote_types(groups.dtype, torch.float32))
        low, high = groups.amin(-1), groups.amax(-1)
        if self.symmetric:
            extreme = torch.where(high.abs() > low.abs(), high, low)
            scale = usable(extreme / -self.middle)
            return scale, torch.full_like(scale, self.middle)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = usable(high / (self.levels - 1) - low / (self.levels - 1))
        return scale, torch.round(-low / scale).clamp(0, self.levels - 1)

    def encode(self, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Round (..., columns) weights to codes on the grids (..., groups).

        code = clip(round(w / scale) + zero_point), half to even.

        Returns
        -------
        (..., columns) uint8 tensor, int32 at 16 bits.
        """
        groups = self.group(weight)
        codes = torch.round(groups / scale[..., None]) + zero_point[..., None]
        dtype = torch.uint8 if self.bits <= 8 else torch.int32
        return codes.clamp(0, self.levels - 1).to(dtype).flatten(-2)

    def decode(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return scale * (code - zero_point), (..., columns), in the scale's dtype."""
        groups = self.group(codes.to(scale.dtype))
        return ((groups - zero_point[..., None]) * scale[..., None]).flatten(-2)


def usable(scale: Tensor) -> Tensor:
    """Replace scales that are zero or subnormal by 1: a grid must be finite and invertible."""
    return torch.where(scale.abs() < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)


def choices(columns: int, most: int = 4) -> str:
    """Return the largest group sizes below ``columns`` that divide it, as text.

    Examples
    --------
    >>> choices(100)
    '10, 20, 25, 50'
    """
    divisors = [size for size in range(2, columns) if columns % size == 0]
    return ", ".join(map(str, divisors[-most:])) if divisors else "1"
