"""Layers that hold packed integers instead of float weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.nn_codebook import CodebookLinear
from quantlab.scheme import Scheme
from quantlab.tensor import PackedTensor


class QuantizedLinear(nn.Module):
    """A linear layer whose weight lies in memory as packed codes and float16 scales.

    Parameters
    ----------
    packed : PackedTensor, (out, in)
    bias : (out,) float tensor, or None

    Notes
    -----
    The weight is unpacked for each call and then dropped: memory is saved, time is not.
    A product that reads the codes directly is a kernel's business.

    Examples
    --------
    >>> import torch, quantlab as ql
    >>> q = ql.rtn(torch.eye(8), ql.Scheme(bits=4))
    >>> layer = QuantizedLinear(q.pack())
    >>> layer(torch.ones(1, 8)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    >>> layer.nbytes  # 8 rows of 4 bytes of codes and one scale of 2 bytes
    48
    """

    data: Tensor
    scale: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: PackedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.scheme: Scheme = packed.scheme
        self.out_features, self.in_features = packed.shape
        self.register_buffer("data", packed.data)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("zeros", packed.zeros)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def packed(self) -> PackedTensor:
        """The weight in storage form, sharing this layer's memory."""
        shape = torch.Size((self.out_features, self.in_features))
        return PackedTensor(self.data, self.scale, self.zeros, self.scheme, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, zero points and bias."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out) in the dtype of ``x``."""
        return F.linear(x, self.packed.dequantize(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """Name sizes, scheme and cost in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.scheme}, {self.nbytes} bytes"


def is_quantized(module: nn.Module) -> bool:
    """Tell whether any linear inside ``module`` stores its weight as integers.

    Looks at storage, not at names: a float tensor with few distinct values is not quantized. Knows
    this library's layers, torch's dynamically quantized ones and bitsandbytes' int8 and 4-bit ones.

    Examples
    --------
    >>> is_quantized(nn.Linear(8, 8))
    False
    """
    return any(stores_integers(leaf) for leaf in module.modules())


def stores_integers(leaf: nn.Module) -> bool:
    """Tell whether one layer's own weight is an integer tensor."""
    if isinstance(leaf, QuantizedLinear | CodebookLinear):
        return True
    weight = getattr(leaf, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):  # torch.ao: weight() returns qint8
        weight = weight()
    if not isinstance(weight, Tensor):
        return False
    return weight.is_quantized or weight.dtype in (torch.uint8, torch.int8)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's distinct parameters and buffers."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())
