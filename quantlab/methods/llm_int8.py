"""LLM.int8(): rows as int8, and the few columns with outliers in float.

    y = X_ordinary W_ordinary^T  (int8 x int8 -> int32, times the two rows' scales)
      + X_outlier W_outlier^T    (float; W read back from int8)

An input channel is an outlier if any token's |x| reaches the threshold, 6 by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLD = 6.0


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class Int8Rows:
    """A matrix as int8 codes, one absmax a row: x = code * absmax / 127.

    Attributes
    ----------
    codes : (rows, columns) int8 tensor
        -127 .. 127.
    absmax : (rows,) float32 tensor
    outliers : (columns,) bool tensor
        Columns whose codes were set to 0 because they are multiplied in float.
    """

    codes: Tensor
    absmax: Tensor
    outliers: Tensor

    def dequantize(self) -> Tensor:
        """Return code * (absmax / 127), (rows, columns) float32."""
        return self.codes.float() * (self.absmax * (1.0 / 127.0))[:, None]


def int8_rows(x: Tensor, *, threshold: float = 0.0) -> Int8Rows:
    """Quantize each row of a matrix to int8 by its absmax, outliers left out.

    Computed from x rounded to float16, as the paper's model has it: code = round(x * (127 * 1 /
    absmax)), half to even. A row of zeros gets codes 0.

    Parameters
    ----------
    x : (rows, columns) float tensor
        Weights (out, in), or activations (tokens, in).
    threshold : float
        Entries with |x| >= threshold count for no row's absmax, and their columns get codes 0.
        0: there are no outliers.

    Raises
    ------
    ValueError
        If x is no matrix of floats, not finite, too large for float16, or the threshold negative.

    References
    ----------
    Dettmers et al., LLM.int8(), arXiv:2208.07339, section 3; the order of the operations is that
    of bitsandbytes 0.50, ``int8_vectorwise_quant``.

    Examples
    --------
    >>> q = int8_rows(torch.tensor([[1.0, -0.5, 8.0], [0.5, 0.25, 3.0]]), threshold=6)
    >>> q.codes.tolist(), q.absmax.tolist(), q.outliers.tolist()
    ([[127, -64, 0], [21, 11, 0]], [1.0, 3.0], [False, False, True])
    """
    check_rows(x, threshold)
    half = x.detach().half()
    large = half.abs() >= threshold if threshold else torch.zeros_like(half, dtype=torch.bool)
    rest = half.masked_fill(large, 0).float()
    absmax = rest.abs().amax(1)
    factor = torch.where(absmax > 0, (1 / absmax) * 127, 0)
    outliers = large.any(0)
    codes = torch.round(rest * factor[:, None]).masked_fill(outliers, 0)
    return Int8Rows(codes.to(torch.int8), absmax, outliers)


def check_rows(x: Tensor, threshold: float) -> None:
    """Raise a ValueError unless x is a finite matrix within float16 and threshold is >= 0."""
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold!r}; choose 0 (no outliers) or a positive number")
    if not x.is_floating_point() or x.ndim != 2 or x.numel() == 0:
        raise ValueError(
            f"x has dtype {x.dtype} and shape {tuple(x.shape)}; pass a float matrix (rows, columns)"
        )
    if not torch.isfinite(x.half()).all():
        raise ValueError("x holds NaN, infinity or numbers beyond float16's 65504; scale it first")


def llm_int8(
    x: Tensor, weight: Int8Rows, bias: Tensor | None = None, *, threshold: float = THRESHOLD
) -> Tensor:
    """Multiply activations by an int8 weight: ordinary columns in int8, outliers in float.

    Parameters
    ----------
    x : (tokens, in) float tensor
    weight : Int8Rows of (out, in)
        From ``int8_rows`` without a threshold.
    bias : (out,) float tensor, or None
    threshold : float
        0, or a number above all |x|: plain int8 x int8.

    Returns
    -------
    (tokens, out) tensor in x's dtype

    Raises
    ------
    ValueError
        If x is no finite (tokens, in) matrix, or the threshold is negative.

    References
    ----------
    Dettmers et al., LLM.int8(), arXiv:2208.07339, equation 8.

    Examples
    --------
    >>> W = int8_rows(torch.tensor([[1.0, -0.5, 0.25]]))
    >>> x = torch.tensor([[0.3, 0.4, 100.0]])
    >>> plain, mixed = (llm_int8(x, W, threshold=t).item() for t in (0, 6))
    >>> round(plain, 3), round(mixed, 3)  # exact: 25.1
    (24.8, 25.294)
    """
    if x.ndim != 2 or x.shape[1] != weight.codes.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; the weight takes (tokens, {weight.codes.shape[1]})"
        )
    rows = int8_rows(x, threshold=threshold)
    product = exact_product(rows.codes, weight.codes)
    y = product * (rows.absmax[:, None] * weight.absmax) * (1 / 127**2)
    y = (y if bias is None else y + bias.float()).to(x.dtype)
    if rows.outliers.any():
        y = y + x[:, rows.outliers] @ weight.dequantize()[:, rows.outliers].to(x.dtype).T
    return y


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T of int8 matrices as float32: the int32 sums, rounded once.

    Float64 holds every sum of up to 2^38 products exactly, and its product is fast everywhere.
    """
    return (a.double() @ b.double().T).float()
