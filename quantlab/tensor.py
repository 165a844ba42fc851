"""The result of every method, what it costs, and how far it is from the weight it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.packing import pack_codes, packed_bytes, unpack_codes
from quantlab.scheme import Scheme


class CalibrationError(ValueError):
    """Calibration data is missing, or no second moment can be made of it."""


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class QuantizedTensor:
    """A weight matrix as integers: ``w = scale * (code - zero_point)`` in each group of a row.

    Attributes
    ----------
    codes : (out, in) uint8 tensor
    scale : (out, groups) float tensor
        May be negative (symmetric grids).
    zero_point : (out, groups) float tensor of whole numbers
    scheme : Scheme
    notes : tuple of str
        What happened on the way and belongs in a report ("damping raised to 0.1").
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
        """Bytes of the packed form: codes, float16 scales, packed zero points if asymmetric."""
        rows, columns = self.codes.shape
        groups = self.scale.shape[-1]
        zero_bytes = 0 if self.scheme.symmetric else packed_bytes(groups, self.scheme.bits)
        return rows * (packed_bytes(columns, self.scheme.bits) + 2 * groups + zero_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return 8 * self.nbytes / self.codes.numel()

    def pack(self) -> PackedTensor:
        """Return the storage form: codes as a dense bit stream, scales as float16.

        A scale below 2**-25 (3e-08) becomes 0, and its group 0: real models hold a few dead groups.

        Raises
        ------
        ValueError
            If a scale does not fit float16 (above 65,504), or all of them would become 0.
        """
        scale = self.scale.to(torch.float16)
        if not torch.isfinite(scale).all() or (scale == 0).all():
            least, largest = self.scale.abs().aminmax()
            raise ValueError(
                f"scales from {least.item():.3g} to {largest.item():.3g} do not fit float16 "
                "(5.96e-08 to 65504); multiply the weight by a power of two first"
            )
        bits = self.scheme.bits
        zeros = None if self.scheme.symmetric else pack_codes(self.zero_point.to(torch.uint8), bits)
        return PackedTensor(pack_codes(self.codes, bits), scale, zeros, self.scheme, self.shape)


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedTensor:
    """A quantized weight as it lies in memory and in files.

    Attributes
    ----------
    data : (out, bytes per row) uint8 tensor
        The codes as a little-endian bit stream, each row padded to whole bytes.
    scale : (out, groups) float16 tensor
    zeros : (out, bytes) uint8 tensor, or None if symmetric
        The zero points, packed like the codes.
    scheme : Scheme
    shape : (out, in)
    """

    data: Tensor
    scale: Tensor
    zeros: Tensor | None
    scheme: Scheme
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        parts = [self.data, self.scale] + ([] if self.zeros is None else [self.zeros])
        return sum(part.numel() * part.element_size() for part in parts)

    def unpack(self, dtype: torch.dtype = torch.float32) -> QuantizedTensor:
        """Return codes, scales and zero points as separate tensors, scales in ``dtype``."""
        bits, groups = self.scheme.bits, self.scale.shape[-1]
        scale = self.scale.to(dtype)
        if self.zeros is None:
            zero_point = torch.full_like(scale, self.scheme.middle)
        else:
            zero_point = unpack_codes(self.zeros, bits, groups).to(dtype)
        return QuantizedTensor(
            unpack_codes(self.data, bits, self.shape[1]), scale, zero_point, self.scheme
        )

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``."""
        return self.unpack(dtype).dequantize()


def output_error(weight: Tensor, quantized: Tensor, second_moment: Tensor) -> float:
    """Return E |(Q - W) x|^2 = tr(D M D^T), the mean squared error of a layer's output.

    Computed in float64: a measure must be finer than what it measures.

    Parameters
    ----------
    weight, quantized : (out, in) tensors
        W and Q.
    second_moment : (in, in) tensor
        M = E[x x^T] of the layer's inputs.

    Examples
    --------
    >>> output_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 2.0]]), torch.eye(2))
    0.25
    """
    D = quantized.double() - weight.double()
    return ((D @ second_moment.double()) * D).sum().item()


def sqnr(signal: Tensor, quantized: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum w^2 / sum (q - w)^2), in dB.

    Computed in float64; infinite if the two are equal.

    Examples
    --------
    >>> round(sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])), 2)
    20.0
    """
    signal, quantized = signal.double(), quantized.double()
    noise = (quantized - signal).square().sum()
    return (10 * torch.log10(signal.square().sum() / noise)).item()


def check_weight(weight: Tensor, name: str = "weight") -> None:
    """Raise a ValueError unless ``weight`` is a finite, floating (out, in) matrix."""
    if not weight.is_floating_point():
        raise ValueError(f"{name} has dtype {weight.dtype}; pass a float tensor")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; pass a matrix (out, in)")
    bad = ~torch.isfinite(weight)
    if bad.any():
        first = bad.nonzero()[0].tolist()
        kind = "NaN" if torch.isnan(weight[tuple(first)]) else "Inf"
        raise ValueError(
            f"{name} holds {int(bad.sum())} non-finite values, first {kind} at {first}; "
            "repair the checkpoint"
        )
