"""A layer that holds packed codes of any kind: floats, codebooks, lattices."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.codebook_tensor import Packed, tensors, with_tensors


class CodebookLinear(nn.Module):
    """A linear layer whose weight lies in memory as packed codes, scales and, if any, tables.

    Parameters
    ----------
    packed : PackedCodebook, or any other dataclass of tensors with ``dequantize(dtype)``
        Its tensors become the layer's buffers.
    bias : (out,) float tensor, or None

    Notes
    -----
    The weight is decoded for each call and then dropped: memory is saved, time is not.

    Examples
    --------
    >>> import torch
    >>> from quantlab.methods.float_formats import FloatRTN
    >>> layer = CodebookLinear(FloatRTN("MXFP4").quantize(torch.eye(32)).pack())
    >>> layer(torch.ones(1, 32))[0, :4].tolist()
    [1.0, 1.0, 1.0, 1.0]
    >>> layer.nbytes  # 32 rows of 16 bytes of codes and one scale byte
    544
    """

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        parts = tensors(packed)
        self.names = tuple(parts)
        # What is left without its tensors: the buffers hold them, wherever they are moved.
        self.form = with_tensors(packed, {name: part[:0] for name, part in flat(parts).items()})
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def packed(self) -> Packed:
        """The weight in storage form, sharing this layer's memory."""
        return with_tensors(self.form, {n: cast(Tensor, getattr(self, n)) for n in self.names})

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, tables and bias."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.packed.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        """Name sizes, format and cost in ``print(model)``."""
        scheme = getattr(self.form, "scheme", type(self.form).__name__)
        return f"{self.in_features}, {self.out_features}, {scheme}, {self.nbytes} bytes"


def flat(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """View scalars as vectors, so that all of them can be cut to nothing."""
    return {name: part.reshape(-1) for name, part in parts.items()}
