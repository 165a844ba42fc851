"""Round to nearest: the method that looks at the weights only, and the bar for all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from quantlab.block import Block
from quantlab.block import imatrix as input_power
from quantlab.grid_search import search
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight

Clip = Literal["absmax", "mse"]


def rtn(
    weight: Tensor, scheme: Scheme, *, clip: Clip = "absmax", imatrix: Tensor | None = None
) -> QuantizedTensor:
    """Round every weight to the nearest level of its group's grid.

    Parameters
    ----------
    weight : (out, in) float tensor
        W of a linear layer y = W x. Not modified; half precision is computed in float32.
    scheme : Scheme
        Bits 1..8, group size, and where zero sits.
    clip : "absmax" or "mse"
        "absmax" lets the grid reach the group's extreme weight. "mse" shrinks the grid's range by
        factors 1.00, 0.98 .. 0.30 (and, if symmetric, also tries the scale's other sign) and keeps
        the grid of least squared error; ties go to the earlier candidate, so it is never worse
        than "absmax".
    imatrix : (in,) float tensor, optional
        E[x_j^2] of each input. The error of column j is then weighted by it; giving it asks for
        the search, whatever ``clip`` says.

    Returns
    -------
    QuantizedTensor
        Of the weight's shape, codes as uint8.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, ``scheme.group_size`` does not divide ``in``,
        bits is 16, ``clip`` is another word, or the imatrix has a wrong length, NaN, infinity
        or a negative number.

    Examples
    --------
    >>> q = rtn(torch.tensor([[-0.8, 0.3, 0.05, 0.52]]), Scheme(bits=4))
    >>> q.codes.tolist(), round(q.scale.item(), 6)
    ([[0, 11, 8, 13]], 0.1)
    """
    check_weight(weight)
    if scheme.bits > 8:
        raise ValueError(f"bits is {scheme.bits}; weights take 1..8 (16 is for activations)")
    if clip not in get_args(Clip):
        raise ValueError(f"clip is {clip!r}; choose 'absmax' or 'mse'")
    W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if imatrix is not None:
        check_imatrix(imatrix, W.shape[1])
        imatrix = imatrix.to(W)
    groups = scheme.group(W)  # (out, groups, group_size)
    if clip == "absmax" and imatrix is None:
        scale, zero_point = scheme.grid(groups)
    else:
        importance = torch.ones_like(W[0]) if imatrix is None else imatrix
        scale, zero_point = search(groups, scheme.group(importance), scheme)
    return QuantizedTensor(scheme.encode(W, scale, zero_point), scale, zero_point, scheme)


def check_imatrix(imatrix: Tensor, columns: int) -> None:
    """Raise a ValueError unless ``imatrix`` is ``columns`` finite numbers >= 0."""
    if imatrix.shape != (columns,) or not imatrix.is_floating_point():
        raise ValueError(
            f"imatrix has shape {tuple(imatrix.shape)} and dtype {imatrix.dtype}; "
            f"pass {columns} floats, E[x_j^2] of each input"
        )
    bad = ~(torch.isfinite(imatrix) & (imatrix >= 0))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"imatrix holds {imatrix[first].item()} at input {first}; "
            "a mean square is finite and >= 0: collect it again"
        )


@dataclass(frozen=True)
class RTN:
    """Round to nearest, layer by layer.

    Parameters
    ----------
    clip : "absmax", "mse" or "imatrix"
        As in ``rtn``; "imatrix" collects E[x_j^2] from calibration data for the weighted search.

    Raises
    ------
    ValueError
        If ``clip`` is another word.
    """

    clip: Literal["absmax", "mse", "imatrix"] = "absmax"

    def __post_init__(self) -> None:
        """Refuse a word that names no search."""
        if self.clip not in ("absmax", "mse", "imatrix"):
            raise ValueError(f"clip is {self.clip!r}; choose 'absmax', 'mse' or 'imatrix'")

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Round each linear of the block; only clip="imatrix" asks for calibration data."""
        if self.clip == "imatrix":
            power = block.collect(input_power)
            return {
                name: rtn(linear.weight, scheme, imatrix=power[name])
                for name, linear in block.linears.items()
            }
        clip = self.clip
        return {name: rtn(x.weight, scheme, clip=clip) for name, x in block.linears.items()}
