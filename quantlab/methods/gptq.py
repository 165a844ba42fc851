"""GPTQ: round column by column, and let the columns still to come repair each error.

With D = W - Q and H the damped second moment of the inputs, the loss tr(D H D^T) splits along the
triangular factor of H: let R be upper triangular with H = R R^T, then the loss is |D R|^2.
Suppose the columns before a panel are rounded (index P), those of the panel (G) and after it not:

    columns of D   0 ...... P ...... | ... G ... | ........... in
                   W - Q             | in work   | still W

The best weights for the panel are then W_G + D_P R_PG (R_GG)^-1, and inside the panel the error of
one column goes to its right along a row of U = (R_GG)^-1. This is the paper's algorithm: its
U = cholesky(H^-1) is R^-1, and the diagonal blocks of R^-1 are the inverses of R's. So one Cholesky
factorization, of H with rows and columns reversed, replaces the chain Cholesky, inverse, Cholesky.

Left out on purpose: groups of permuted columns, which need an index per column at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from quantlab.block import Block, second_moment
from quantlab.factor import Factor, factorize, inverse
from quantlab.native import compiled, share_rows
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight

TILE = 64  # rows that the inner loop carries along: 128 columns of them fill a 32 KiB cache
SMALL = 2**16  # a panel of fewer weights is not worth a second thread


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    *,
    damp: float = 0.01,
    act_order: bool = False,
    block_size: int = 128,
    original_groups: bool = False,
) -> QuantizedTensor:
    """Round a weight matrix column by column, letting later columns repair the error.

    Lowers E |(Q - W) x|^2 greedily: the error of column j is spread over the columns not yet
    rounded, along row j of the upper triangular U with H^-1 = U^T U.

    Parameters
    ----------
    weight : (out, in) float tensor
        W of a linear layer y = W x. Not modified; half precision is computed in float32.
    hessian : (in, in) float tensor
        H = E[x x^T] up to any positive factor, symmetric. Factored in its own precision.
    scheme : Scheme
        Bits 1..8, group size, and where zero sits. A group's grid is fitted when its first column
        is reached, to the weights as all earlier columns have left them; the grid of a whole row
        (group_size None) to the original weight.
    damp : fraction of mean(diag(H)), 0..1
        Added to the diagonal so that H has an inverse; raised tenfold, up to 1, while it has none.
        Dead inputs (H_jj = 0) count in the mean; their columns are rounded to nearest, not zeroed,
        so an input that wakes up later meets its own weight. Both are told in ``notes``.
    act_order : bool
        Round the columns with the largest H_jj first; all grids then come from the original weight
        (static groups), so no column index is needed at run time.
    block_size : columns
        Updated together. Speed only: the answer does not depend on it.
    original_groups : bool
        Do as the authors' code: fit grids to weights that lack the updates from columns of the
        current block. The answer then depends on ``block_size``. Not with act_order.

    Returns
    -------
    QuantizedTensor
        Of the weight's shape, codes as uint8, scales in the weight's dtype (at least float32).

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, the shapes disagree, H is not symmetric,
        ``scheme.group_size`` does not divide ``in``, or a parameter is out of range.
    CalibrationError
        If H is all zero, not finite, or not positive definite even at damp 1.

    References
    ----------
    Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323v2, Algorithm 1. The factor R in place of the
    inverse: Chee et al., QuIP, arXiv:2307.13304 (its LDLQ equals GPTQ).

    Examples
    --------
    White inputs leave nothing to repair:

    >>> from quantlab.methods.rtn import rtn
    >>> W = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    >>> scheme = Scheme(bits=4, group_size=64)
    >>> gptq(W, torch.eye(256), scheme).codes.equal(rtn(W, scheme).codes)
    True
    """
    factor = factorize(hessian, damp=damp, act_order=act_order)
    return solve(weight, factor, scheme, block_size=block_size, original_groups=original_groups)[0]


def solve(
    weight: Tensor,
    factor: Factor,
    scheme: Scheme,
    *,
    block_size: int = 128,
    original_groups: bool = False,
) -> tuple[QuantizedTensor, Tensor]:
    """Round a weight (out, in) under a factored second moment, as ``gptq``; also tell the losses.

    Returns
    -------
    quantized : QuantizedTensor
    losses : (in,) tensor
        Of column j: 1/2 sum over rows of ((w - q) / U_jj)^2, w as it stood when it was rounded.
        Their sum is 1/2 tr(D H D^T), D = W - Q, H damped.
    """
    check_arguments(weight, factor, scheme, block_size, original_groups)
    W = weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float32))
    sweep = Sweep(W, factor, scheme, stale=original_groups)
    for start, stop in sweep.panels(block_size):
        sweep.round_panel(start, stop)
    return sweep.result(weight.device), sweep.losses


class Sweep:
    """One pass over the columns of a weight (out, in), in solving order, panel by panel.

    Matrices lie transposed, (in, out): a column of W is contiguous, so the inner loop runs along
    rows, which are independent of one another.
    """

    def __init__(self, W: Tensor, factor: Factor, scheme: Scheme, *, stale: bool) -> None:
        rows, columns = W.shape
        self.scheme, self.order, self.notes = scheme, factor.order, factor.notes
        self.stale = stale
        self.R = factor.upper.to(W.dtype)
        ordered = W[:, self.order] if factor.act_order else W  # spare the copy where nothing moves
        self.D = ordered.T.clone(memory_format=torch.contiguous_format)  # W; W - Q once rounded
        self.codes = torch.empty(columns, rows, dtype=torch.uint8)
        self.losses = torch.empty(columns, dtype=W.dtype)
        self.size = scheme.group_size or columns
        self.group_of = self.order // self.size
        self.scale = torch.empty(columns // self.size, rows, dtype=W.dtype)
        self.zero_point = torch.empty_like(self.scale)
        self.static = factor.act_order or scheme.group_size is None
        if self.static:
            scale, zero_point = scheme.grid(scheme.group(W))
            self.scale.copy_(scale.T)
            self.zero_point.copy_(zero_point.T)

    def panels(self, block_size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of columns that are updated together.

        Groups lie whole in a panel, so that every grid can see all columns before it; the original
        code cuts wherever its block ends.
        """
        whole = 1 if self.static or self.stale else self.size
        width = max(whole, block_size // whole * whole)
        for start in range(0, len(self.D), width):
            yield start, min(start + width, len(self.D))

    def round_panel(self, start: int, stop: int) -> None:
        """Bring the panel's weights up to date, then round its columns one after the other."""
        size, R = self.size, self.R
        begins = [] if self.static else [*range(-(-start // size) * size, stop, size)]
        reach = max(
            [stop, *(begin + size for begin in begins)]
        )  # a stale group may outlive a panel
        U = inverse(R[start:reach, start:reach])
        panel = self.D[start:reach] + U.T @ (R[:start, start:reach].T @ self.D[:start])
        if self.stale:
            for begin in begins:
                self.fit(panel[begin - start :], begin // size)
        for first, last in pairwise(sorted({start, *begins, stop})):
            if first in begins and not self.stale:
                self.fit(panel[first - start :], first // size)
            self.round_columns(panel, U, start, range(first, last))
        self.losses[start:stop] = panel[: stop - start].square().sum(1) / 2

    def fit(self, columns: Tensor, group: int) -> None:
        """Fit the grids of one group to the weights (size.., out) as they stand now."""
        scale, zero_point = self.scheme.grid(columns[: self.size].T)
        self.scale[group], self.zero_point[group] = scale, zero_point

    def round_columns(self, panel: Tensor, U: Tensor, start: int, columns: range) -> None:
        """Round some columns of a panel that begins at column ``start``."""
        stop = start + len(panel)
        dtype = panel.numpy().dtype.type
        grids = self.scale.numpy(), self.zero_point.numpy(), self.group_of[start:stop].numpy()
        arrays = panel.numpy(), self.D[start:stop].numpy(), self.codes[start:stop].numpy()
        limits = dtype(0), dtype(self.scheme.levels - 1)

        def work(low: int, high: int) -> None:
            where = columns.start - start, columns.stop - start, low, high
            sweep_columns(arrays, U.numpy(), grids, limits, where)

        share_rows(
            work, panel.shape[1], threads=1 if panel.numel() < SMALL else torch.get_num_threads()
        )

    def result(self, device: torch.device) -> QuantizedTensor:
        """Return codes and grids, columns in the weight's own order."""
        codes = torch.empty_like(self.codes)
        codes[self.order] = self.codes
        return QuantizedTensor(
            codes.T.contiguous().to(device),
            self.scale.T.contiguous().to(device),
            self.zero_point.T.contiguous().to(device),
            self.scheme,
            self.notes,
        )


@compiled
def sweep_columns(arrays, inverse, grids, limits, where):
    """Round columns first..last of a panel (columns, rows) for rows low..high, in place.

    Algorithm 1, lines 7 to 9. On return the rounded columns of ``panel`` hold the errors
    (w - q) / U_jj, those of ``D`` have lost q, and the later columns of ``panel`` are repaired.
    """
    panel, D, codes = arrays
    scale, zero_point, group_of = grids
    lowest, highest = limits
    first, last, low, high = where
    for tile in range(low, high, TILE):
        end = min(tile + TILE, high)
        for j in range(first, last):
            error, d, code = panel[j, tile:end], D[j, tile:end], codes[j, tile:end]
            s, z = scale[group_of[j], tile:end], zero_point[group_of[j], tile:end]
            for r in range(error.size):
                c = min(max(np.rint(error[r] / s[r]) + z[r], lowest), highest)
                q = (c - z[r]) * s[r]
                code[r] = np.uint8(c)
                d[r] -= q
                error[r] = (error[r] - q) / inverse[j, j]
            for i in range(j + 1, panel.shape[0]):
                later, u = panel[i, tile:end], inverse[j, i]
                for r in range(error.size):
                    later[r] -= error[r] * u


@dataclass(frozen=True)
class GPTQ:
    """GPTQ, layer by layer, on the inputs that the quantized blocks before produce.

    Parameters
    ----------
    damp, act_order, block_size
        As in ``gptq``.
    """

    damp: float = 0.01
    act_order: bool = False
    block_size: int = 128

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Solve each linear; neighbors that read the same inputs (q, k, v) share one factor."""
        moments = block.collect(second_moment)
        result: dict[str, QuantizedTensor] = {}
        shared: tuple[Tensor, Factor] | None = None
        for name, linear in block.linears.items():
            moment = moments[name]
            try:
                if shared is None or not torch.equal(shared[0], moment):
                    shared = moment, factorize(moment, damp=self.damp, act_order=self.act_order)
                result[name] = solve(linear.weight, shared[1], scheme, block_size=self.block_size)[
                    0
                ]
            except ValueError as error:
                raise type(error)(f"{block.name}.{name}: {error}") from None
        return result


def check_arguments(
    weight: Tensor, factor: Factor, scheme: Scheme, block_size: int, original_groups: bool
) -> None:
    """Raise a ValueError unless weight, factor and parameters fit together."""
    check_weight(weight)
    if scheme.bits > 8:
        raise ValueError(f"bits is {scheme.bits}; weights take 1..8 (16 is for activations)")
    scheme.group(weight)
    if len(factor.upper) != weight.shape[1]:
        size = len(factor.upper)
        raise ValueError(
            f"hessian is {size} x {size} but weight has in_features {weight.shape[1]}; "
            "pass the second moment of this layer's inputs"
        )
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size is {block_size!r}; choose a positive integer, as 128")
    if original_groups and factor.act_order:
        raise ValueError(
            "original_groups=True with act_order=True would scatter groups over the columns; "
            "choose one of the two"
        )
