"""Weights of -1, 0 and 1 under one scale: BitNet b1.58, for training and for packing.

    gamma = mean |W|            code = clip(round(W / gamma), -1, 1)            Q = gamma code

log2 3 = 1.58 bits a weight. Models must be trained this way: each step computes with Q, and the
gradient passes to W as if nothing had been rounded. A trained float model does not survive it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab import gguf
from quantlab.block import Block
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight
from quantlab.training import straight_through

SCHEME = Scheme(bits=2, group_size=None, symmetric=False)  # codes 0, 1, 2 around zero point 1


def ternary(weight: Tensor) -> QuantizedTensor:
    """Round a matrix to -1, 0, 1 times its mean absolute weight.

    Parameters
    ----------
    weight : (out, in) float tensor

    Returns
    -------
    QuantizedTensor
        Codes 0, 1, 2 of two bits each, zero point 1, the same scale in every row.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix.

    References
    ----------
    Ma et al., The Era of 1-bit LLMs, arXiv:2402.17764v1, equations 1 to 3.

    Examples
    --------
    >>> q = ternary(torch.tensor([[0.9, -0.1, 0.3, -1.1]]))  # gamma = 0.6
    >>> (q.codes.int() - 1).tolist()
    [[1, 0, 0, -1]]
    """
    check_weight(weight)
    W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    gamma = mean_size(W)
    codes = torch.round(W / gamma).clamp(-1, 1)
    scale = gamma.expand(len(W), 1).contiguous()
    return QuantizedTensor((codes + 1).to(torch.uint8), scale, torch.ones_like(scale), SCHEME)


def mean_size(W: Tensor) -> Tensor:
    """Return gamma, the mean absolute weight, or 1 for a matrix of zeros."""
    gamma = W.abs().mean()
    return torch.where(gamma < torch.finfo(W.dtype).tiny, torch.ones_like(gamma), gamma)


def pack_ternary(quantized: QuantizedTensor, type_name: str = "TQ1_0") -> Tensor:
    """Write ternary codes as GGUF blocks of 256 weights.

    Parameters
    ----------
    quantized : QuantizedTensor
        As ``ternary`` returns it; 256 divides ``in``.
    type_name : "TQ1_0" (1.6875 bits a weight, five codes a byte) or "TQ2_0" (2.0625)

    Returns
    -------
    (out, bytes) uint8 tensor
        Codes are kept; the scale becomes a float16. A block of zeros has scale 0.

    Raises
    ------
    ValueError
        If another type is named, a code is none of 0, 1, 2 about zero point 1, or 256 does not
        divide ``in``.

    Examples
    --------
    >>> q = ternary(torch.randn(4, 256))
    >>> pack_ternary(q).shape, pack_ternary(q, "TQ2_0").shape
    (torch.Size([4, 54]), torch.Size([4, 66]))
    """
    if type_name not in ("TQ1_0", "TQ2_0"):
        raise ValueError(f"type_name is {type_name!r}; choose 'TQ1_0' or 'TQ2_0'")
    if quantized.codes.max() > 2 or (quantized.zero_point != 1).any():
        raise ValueError("codes must be 0, 1 or 2 about zero point 1, as ternary() makes them")
    return torch.from_numpy(gguf.quantize(quantized.dequantize().float().numpy(), type_name))


@dataclass(frozen=True)
class Ternary:
    """Ternary weights after training, layer by layer: what a float model does not survive.

    It brings its own grid: pass None where other methods take a scheme.
    """

    own_grid: ClassVar[bool] = True

    def quantize_block(self, block: Block, scheme: None = None) -> dict[str, QuantizedTensor]:
        """Round each linear of the block; no calibration data is asked for."""
        return {name: ternary(linear.weight) for name, linear in block.linears.items()}


# ---------------------------------------------------------------- training


class BitLinear(nn.Linear):
    """A linear layer that computes with ternary weights and 8-bit activations while it trains.

    Its weight stays a float parameter: only the optimizer sees it. The published layer begins with
    an RMSNorm; here the model brings its own.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    activation_bits : 2..8, or None for float activations

    References
    ----------
    Wang et al., BitNet, arXiv:2310.11453; Ma et al., arXiv:2402.17764, section 2.

    Examples
    --------
    >>> layer = BitLinear(64, 8)
    >>> len((layer.ternary_weight() / layer.weight.abs().mean()).unique())
    3
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        activation_bits: int | None = 8,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        if activation_bits is not None and activation_bits not in range(2, 9):
            raise ValueError(f"activation_bits is {activation_bits!r}; choose 2..8 or None")
        self.activation_bits = activation_bits

    def ternary_weight(self) -> Tensor:
        """Return gamma times -1, 0, 1; the gradient reaches the weight where it is not clipped."""
        gamma = mean_size(self.weight.detach())
        return gamma * straight_through(self.weight / gamma).clamp(-1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        bits = self.activation_bits
        x = input if bits is None else round_tokens(input, bits)
        return F.linear(x, self.ternary_weight(), self.bias)


def round_tokens(x: Tensor, bits: int = 8) -> Tensor:
    """Round each token's activations to integers times absmax / (2^(bits - 1) - 1).

    Parameters
    ----------
    x : (..., channels) float tensor
    bits : 2..8

    Returns
    -------
    Tensor of x's shape; the gradient passes unchanged.

    Examples
    --------
    >>> round_tokens(torch.tensor([[127.0, -64.4, 0.6], [0.0, 0.0, 0.0]])).tolist()
    [[127.0, -64.0, 1.0], [0.0, 0.0, 0.0]]
    """
    scale = x.detach().abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale = torch.where(scale < torch.finfo(x.dtype).tiny, torch.ones_like(scale), scale)
    return straight_through(x / scale) * scale
