"""NF4: 4-bit codes whose levels are quantiles of the normal distribution, with a scale a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from quantlab.block import Block
from quantlab.blockwise_matrix import quantize_matrix
from quantlab.codebook_tensor import CodebookTensor
from quantlab.floats import NF4


def nf4(weight: Tensor, *, block_size: int = 64, double_quantize: bool = False) -> CodebookTensor:
    """Quantize a weight matrix to NF4, as bitsandbytes and QLoRA do, bit for bit.

    Parameters
    ----------
    weight : (out, in) float tensor
        Not modified; computed in float32.
    block_size : weights that share a scale
        Divides ``in``, so that no block crosses from one row to the next.
    double_quantize : bool
        Store the scales in 8 bits (4.127 instead of 4.5 bits per weight at block 64).

    Raises
    ------
    ValueError
        If the weight is no finite float matrix, or the block size does not divide ``in``.

    References
    ----------
    Dettmers et al., QLoRA, arXiv:2305.14314, sections 2 and 3.

    Examples
    --------
    >>> import torch
    >>> q = nf4(torch.tensor([[-2.0, 0.1, 1.0, 2.0]]), block_size=4)
    >>> q.codes.tolist(), [round(v, 4) for v in q.dequantize()[0].tolist()]
    ([[0, 8, 12, 15]], [-2.0, 0.1592, 0.8814, 2.0])
    """
    return quantize_matrix(weight, NF4, block_size, double_quantize=double_quantize)


@dataclass(frozen=True)
class NormalFloat:
    """NF4 with one scale for each block of weights; brings its own grid, so no scheme is given.

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
            name: nf4(
                linear.weight, block_size=self.block_size, double_quantize=self.double_quantize
            )
            for name, linear in block.linears.items()
        }
