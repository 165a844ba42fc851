"""A weight matrix in blocks along its rows, as a ``CodebookTensor``; and codes in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.blockwise import quantize_blocks
from quantlab.codebook_tensor import CodebookTensor, Scales
from quantlab.double_quantization import double_quantize as quantize_scales
from quantlab.floats import Codebook
from quantlab.scheme import choices
from quantlab.tensor import check_weight


def quantize_matrix(
    weight: Tensor, table: Codebook, block_size: int, *, double_quantize: bool
) -> CodebookTensor:
    """Quantize a matrix in blocks of a row, each with its absmax as the scale.

    Parameters
    ----------
    weight : (out, in) float tensor
    table : Codebook
    block_size : weights that share a scale
    double_quantize : bool
        Store the scales in 8 bits.

    Raises
    ------
    ValueError
        If the weight is no finite float matrix, or the block size does not divide ``in``.
    """
    check_weight(weight)
    rows, columns = weight.shape
    if type(block_size) is not int or block_size < 1 or columns % block_size:
        raise ValueError(
            f"block_size is {block_size!r}, in_features {columns}; "
            f"choose a block size that divides it, such as {choices(columns)} or {columns}"
        )
    blocks = quantize_blocks(weight.float(), table, block_size)
    absmax = blocks.absmax.view(rows, columns // block_size)
    scales = quantize_scales(absmax) if double_quantize else Scales(absmax)
    name = f"{table.name}g{block_size}{'dq' if double_quantize else ''}"
    notes = mirrored(absmax, scales.values())
    return CodebookTensor(blocks.codes, scales, table, (1, block_size), name, notes)


def mirrored(absmax: Tensor, stored: Tensor) -> tuple[str, ...]:
    """Return a note if scales that were positive are stored as zero or negative numbers.

    One block a thousand times as large as the others is enough: all scales share one mean.
    """
    lost = int(((stored <= 0) & (absmax > 0)).sum())
    if not lost:
        return ()
    return (f"{lost} of {absmax.numel()} scales lost their sign; pass double_quantize=False",)


@dataclass(frozen=True)
class ShuffledCodebook(Codebook):
    """A table whose levels stand in the order of their codes, which need not ascend.

    Two codes may mean the same number, as +0 and -0 of a float do.

    Examples
    --------
    >>> table = ShuffledCodebook("steps", (0.0, 1.0, -1.0))
    >>> table.encode(torch.tensor([-0.7, 0.4, 0.6])).tolist()
    [2, 0, 1]
    """

    def __post_init__(self) -> None:
        """Refuse tables that are too short, too long or not finite."""
        if not 2 <= len(self.levels) <= 256 or not torch.isfinite(self.values()).all():
            raise ValueError(
                f"{self.name} has {len(self.levels)} levels; pass 2 to 256 finite ones"
            )

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest level; a tie goes to the smaller level.

        Raises
        ------
        ValueError
            If x holds NaN.
        """
        levels, order = self.values().sort(stable=True)
        place = nearest(x, levels, self.name)
        return order.to(torch.uint8).to(x.device)[place.long()]


def nearest(x: Tensor, levels: Tensor, name: str) -> Tensor:
    """Return the place of the nearest of ascending levels, by midpoints rounded to x's precision.

    Raises
    ------
    ValueError
        If x holds NaN.
    """
    if torch.isnan(x).any():
        raise ValueError(f"{name} has no NaN; x holds {int(torch.isnan(x).sum())}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    midpoints = ((levels[1:] + levels[:-1]) / 2).to(x.device, dtype)
    return torch.searchsorted(midpoints, x.to(dtype).contiguous())
