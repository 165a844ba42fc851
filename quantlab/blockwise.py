"""Blocks of any tensor, each divided by its largest magnitude and looked up in a table.

    absmax = max |x| over the block          code = nearest level to x / absmax
    x is read back as                        table[code] * absmax

The rules are those of bitsandbytes 0.50 on a CPU, so that codes and statistics agree bit for bit:
the tensor is flattened row by row, cut into blocks that may cross from row to row, and the last
block may be shorter than the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from quantlab.floats import Codebook

LEAST = 1e-38  # bitsandbytes divides by no less: a block of zeros must not give 0 / 0
BINS = 65536


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class BlockCodes:
    """A tensor of any shape as codes into a table, one absmax for each block of its elements.

    Attributes
    ----------
    codes : uint8 tensor of the original's shape
    absmax : (blocks,) float32 tensor
    table : Codebook
    block_size : elements
    """

    codes: Tensor
    absmax: Tensor
    table: Codebook
    block_size: int

    def dequantize(self) -> Tensor:
        """Return table[code] * absmax, of the original's shape, in the dtype of ``absmax``."""
        level = self.table.decode(self.codes.flatten(), self.absmax.dtype)
        each = self.absmax.repeat_interleave(self.block_size)[: level.numel()]
        return (level * each).view(self.codes.shape)


def quantize_blocks(x: Tensor, table: Codebook, block_size: int) -> BlockCodes:
    """Give each block of a tensor the codes of the levels nearest to x / absmax.

    x is multiplied by the reciprocal of absmax, only a shorter last block is divided by it; a tie
    goes to the smaller level. These orders decide the last bit, and so they are kept.

    Parameters
    ----------
    x : float tensor of any shape
        Half precision is computed in float32.
    table : Codebook
        Levels from -1 to 1.
    block_size : elements that share an absmax

    Raises
    ------
    ValueError
        If x is empty, not a float tensor or not finite, or the block size is not positive.

    References
    ----------
    Dettmers et al., QLoRA, arXiv:2305.14314, section 2; bitsandbytes 0.50, ``quantize_4bit``.

    Examples
    --------
    >>> from quantlab.floats import NF4
    >>> q = quantize_blocks(torch.tensor([0.0, 0.5, -2.0, 1.1]), NF4, 4)
    >>> q.codes.tolist(), q.absmax.tolist()
    ([7, 10, 0, 13], [2.0])
    """
    flat = checked(x, block_size)
    absmax = block_absmax(flat, block_size)
    last = flat.numel() % block_size
    if last:
        absmax[-1].clamp_(min=LEAST)
    inverse = 1 / absmax.clamp(min=LEAST)
    scaled = flat * inverse.repeat_interleave(block_size)[: flat.numel()]
    if last:
        scaled[-last:] = flat[-last:] / absmax[-1]
    codes = table.encode(scaled.clamp(-1, 1))
    return BlockCodes(codes.view(x.shape), absmax, table, block_size)


def blockwise8(x: Tensor, table: Codebook | None = None, *, block_size: int = 256) -> BlockCodes:
    """Quantize a tensor to 8 bits with a table of 256 levels, as 8-bit optimizers keep their state.

    The nearest level is not searched for each element: x / absmax is first rounded to the nearest
    of 65,536 evenly spaced points of [-1, 1], whose levels are known. That costs up to 1.5e-5 of
    absmax; the levels nearest to zero are never chosen, and 0 itself, which lies between two of the
    points, comes back as 2.1e-5 of absmax.

    Parameters
    ----------
    x : float tensor of any shape
    table : Codebook of 256 levels, or None for ``DYNAMIC8``
    block_size : elements that share an absmax

    Raises
    ------
    ValueError
        As ``quantize_blocks``.

    References
    ----------
    Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2;
    the grid of 65,536 points: bitsandbytes 0.50 on x86.

    Examples
    --------
    >>> q = blockwise8(torch.tensor([0.0, 0.5, -2.0, 0.001]), block_size=4)
    >>> q.codes.tolist(), [round(v, 5) for v in q.dequantize().tolist()]
    ([131, 201, 0, 138], [4e-05, 0.49531, -1.98594, 0.00099])
    """
    table = DYNAMIC8 if table is None else table
    flat = checked(x, block_size)
    absmax = block_absmax(flat, block_size)
    inverse = (1 / absmax).repeat_interleave(block_size)[: flat.numel()]
    point = ((flat * inverse).clamp(-1, 1) + 1) * 0.5 * (BINS - 1) + 0.5
    # In a block of zeros 0 * (1 / 0) is NaN: code 0, and the absmax of 0 makes any code a zero.
    codes = level_of_point(table).to(x.device)[point.nan_to_num(nan=0.0).long()]
    return BlockCodes(codes.view(x.shape), absmax, table, block_size)


@lru_cache(maxsize=8)
def level_of_point(table: Codebook) -> Tensor:
    """Return the code of each of 65,536 points from -1 to 1, (65536,) uint8."""
    return table.encode(2 * torch.arange(BINS, dtype=torch.float32) / (BINS - 1) - 1)


def checked(x: Tensor, block_size: int) -> Tensor:
    """Return x flattened, in float32 or better, or say what is wrong with it."""
    if type(block_size) is not int or block_size < 1:
        raise ValueError(f"block_size is {block_size!r}; choose a positive integer, such as 64")
    if not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"x has dtype {x.dtype} and {x.numel()} elements; pass a float tensor that holds some"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinity; a block's largest magnitude must be finite")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).flatten()


def block_absmax(flat: Tensor, block_size: int) -> Tensor:
    """Return the largest magnitude of each block of (n,) elements, (blocks,)."""
    missing = -flat.numel() % block_size
    return pad(flat, (0, missing)).view(-1, block_size).abs().amax(1)


def dynamic_levels(*, signed: bool = True) -> Tensor:
    """Derive the 256 levels of dynamic 8-bit quantization, as float32.

    Seven decades below 1, each with twice as many levels as the one below it: the leading zeros of
    a code choose the decade, and what is left of its bits divides [0.1, 1] of it evenly. A level is
    the middle of its part. 0 and 1 are levels, -1 is none.

    Parameters
    ----------
    signed : bool
        False spends the sign bit on twice as many levels in each decade: for an optimizer's second
        moment, which is never negative.

    References
    ----------
    Dettmers, 8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561.

    Examples
    --------
    >>> [f"{level:.3g}" for level in dynamic_levels()[[0, 126, 127, 128, 129, 255]].tolist()]
    ['-0.993', '-5.5e-07', '0', '5.5e-07', '3.25e-06', '1']
    """
    levels = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        parts = 2 ** (decade + (0 if signed else 1))
        edges = torch.linspace(0.1, 1, parts + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        levels += [middles, -middles] if signed else [middles]
    return torch.cat(levels).sort().values


DYNAMIC8 = Codebook("dynamic8", tuple(dynamic_levels().tolist()))
DYNAMIC8_UNSIGNED = Codebook("dynamic8 unsigned", tuple(dynamic_levels(signed=False).tolist()))
