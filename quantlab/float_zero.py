"""Weights on uniform grids whose zero points are no whole numbers: w = scale (code - zero_point).

A whole zero point makes 0.0 a level and needs as many bits as a code. A float16 one costs more, and
lets the grid lie where the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.codebook_tensor import tensor_bytes
from quantlab.packing import pack_codes, packed_bytes, unpack_codes
from quantlab.scheme import Scheme


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class FloatZeroTensor:
    """A weight matrix as integers, with a float zero point in each group of a row.

    Attributes
    ----------
    codes : (out, in) uint8 tensor
    scale, zero_point : (out, groups) float tensors
        Stored as float16.
    scheme : Scheme
    notes : tuple of str
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    scheme: Scheme
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        return self.codes.shape

    def dequantize(self) -> Tensor:
        """Return the (out, in) weight that the codes stand for, in the scale's dtype."""
        return self.scheme.decode(self.codes, self.scale, self.zero_point)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: codes, float16 scales and float16 zero points."""
        rows, columns = self.codes.shape
        return rows * (packed_bytes(columns, self.scheme.bits) + 4 * self.scale.shape[-1])

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return 8 * self.nbytes / self.codes.numel()

    def pack(self) -> PackedFloatZero:
        """Return the storage form.

        Raises
        ------
        ValueError
            If a scale or a zero point does not fit float16, or all scales would become 0.
        """
        scale, zero_point = self.scale.half(), self.zero_point.half()
        fit = torch.isfinite(scale).all() and torch.isfinite(zero_point).all()
        if not fit or (scale == 0).all():
            raise ValueError(
                f"scales up to {self.scale.abs().max():.3g} and zero points up to "
                f"{self.zero_point.abs().max():.3g} do not fit float16 (5.96e-08 to 65504); "
                "multiply the weight by a power of two first"
            )
        data = pack_codes(self.codes, self.scheme.bits)
        return PackedFloatZero(data, scale, zero_point, self.scheme, self.shape)


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedFloatZero:
    """A ``FloatZeroTensor`` as it lies in memory and in files.

    Attributes
    ----------
    data : (out, bytes per row) uint8 tensor
    scale, zero_point : (out, groups) float16 tensors
    scheme : Scheme
    shape : (out, in)
    """

    data: Tensor
    scale: Tensor
    zero_point: Tensor
    scheme: Scheme
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return tensor_bytes(self)

    def unpack(self, dtype: torch.dtype = torch.float32) -> FloatZeroTensor:
        """Return codes, scales and zero points as separate tensors, floats in ``dtype``."""
        codes = unpack_codes(self.data, self.scheme.bits, self.shape[1])
        return FloatZeroTensor(codes, self.scale.to(dtype), self.zero_point.to(dtype), self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``."""
        return self.unpack(dtype).dequantize()
