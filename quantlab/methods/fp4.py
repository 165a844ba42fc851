"""bitsandbytes' 4-bit float: sign, two bits of exponent, one of mantissa, and a tiny subnormal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantlab.block import Block
from quantlab.blockwise_matrix import ShuffledCodebook, quantize_matrix
from quantlab.codebook_tensor import CodebookTensor

# Twelfths, in the order of their codes: 0, a subnormal, then 8 12 4 6 2 3; the upper eight negated
# (0 - 0 is +0: code 8 is no negative zero).
TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)

FP4_BNB = ShuffledCodebook(
    "FP4_BNB", tuple((torch.tensor([*TWELFTHS, *(0 - x for x in TWELFTHS)]) / 12).tolist())
)


def fp4(weight: Tensor, *, block_size: int = 64, double_quantize: bool = False) -> CodebookTensor:
    """Quantize a weight matrix to bitsandbytes' FP4, bit for bit.

    Not the FP4 of the MX formats (E2M1: 0 .5 1 1.5 2 3 4 6): its levels are 0, 1/192, 1/6, 1/4,
    1/3, 1/2, 2/3 and 1, so a third of the range below 1/6 holds only two of them. A code is a bit
    pattern, and the patterns do not ascend with the numbers that they stand for.

    Parameters
    ----------
    weight : (out, in) float tensor
        Not modified; computed in float32.
    block_size : weights that share a scale
        Divides ``in``.
    double_quantize : bool
        Store the scales in 8 bits.

    Raises
    ------
    ValueError
        If the weight is no finite float matrix, or the block size does not divide ``in``.

    References
    ----------
    bitsandbytes 0.50, ``get_4bit_type("fp4")``.

    Examples
    --------
    >>> q = fp4(torch.tensor([[-2.0, 0.1, 1.0, 2.0]]), block_size=4)
    >>> q.codes.tolist(), [round(v, 4) for v in q.dequantize()[0].tolist()]
    ([[11, 1, 5, 3]], [-2.0, 0.0104, 1.0, 2.0])
    """
    return quantize_matrix(weight, FP4_BNB, block_size, double_quantize=double_quantize)


@dataclass(frozen=True)
class Float4:
    """bitsandbytes' FP4 with one scale for each block of weights; brings its own grid.

    Parameters
    ----------
    block_size : weights that share a scale
    double_quantize : bool
        Store the scales in 8 bits instead of 32.
    """

    block_size: int = 64
    double_quantize: bool = False
    own_grid: ClassVar[bool] = True

    def quantize_block(self, block: Block, scheme: None = None) -> Mapping[str, CodebookTensor]:
        """Quantize each linear of the block; no calibration data is asked for."""
        return {
            name: fp4(
                linear.weight, block_size=self.block_size, double_quantize=self.double_quantize
            )
            for name, linear in block.linears.items()
        }
