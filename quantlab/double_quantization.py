"""Scales that are quantized themselves: 8 bits instead of 32 for each block's absmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantlab.blockwise import DYNAMIC8, BlockCodes, blockwise8

BLOCK = 256  # scales that share a second-level absmax


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class DoubleScales:
    """The absmax of each block as an 8-bit code: offset + level(code) * absmax of 256 neighbors.

    Attributes
    ----------
    codes : (rows, groups) uint8 tensor
    absmax : (ceil(rows * groups / 256),) float32 tensor
        Of the scales, after their mean was taken away.
    offset : () float32 tensor
        Their mean: scales are positive, and the table's levels are spent on both signs.
    """

    codes: Tensor
    absmax: Tensor
    offset: Tensor

    def values(self) -> Tensor:
        """Return the scales that the codes stand for, (rows, groups) float32."""
        return BlockCodes(self.codes, self.absmax, DYNAMIC8, BLOCK).dequantize() + self.offset


def double_quantize(absmax: Tensor) -> DoubleScales:
    """Quantize the scales of blocks to 8 bits, in blocks of 256 scales.

    Parameters
    ----------
    absmax : (rows, groups) float tensor
        The first level's scales, row by row.

    Raises
    ------
    ValueError
        If there are none, or they are not finite.

    Notes
    -----
    A block of zeros has scale 0, which the second level meets only nearly; its codes say 0, so the
    block still decodes to zeros. Worse, all scales share one mean: beside a scale a thousand times
    as large, the others come back negative, and their blocks mirrored. Both are bitsandbytes' own
    behavior; ``nf4`` puts the second into its notes.

    References
    ----------
    Dettmers et al., QLoRA, arXiv:2305.14314, section 3, "Double Quantization".

    Examples
    --------
    >>> import torch
    >>> scales = double_quantize(torch.tensor([[1.0, 3.0]]))
    >>> scales.codes.tolist(), scales.offset.item()
    ([[0, 255]], 2.0)
    >>> [round(scale, 4) for scale in scales.values()[0].tolist()]
    [1.007, 3.0]
    """
    absmax = absmax.float()
    offset = absmax.mean()
    second = blockwise8(absmax - offset, block_size=BLOCK)
    return DoubleScales(second.codes, second.absmax, offset)


def stored_bits(bits: int, block_size: int, *, double: bool) -> float:
    """Return the bits per weight of a blockwise code, its share of the scales included.

    Examples
    --------
    >>> stored_bits(4, 64, double=False), round(stored_bits(4, 64, double=True), 3)
    (4.5, 4.127)
    """
    if not double:
        return bits + 32 / block_size
    return bits + 8 / block_size + 32 / (block_size * BLOCK)
