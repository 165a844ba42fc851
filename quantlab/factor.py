"""Factor a damped second moment, H + damp mean(diag H) I = R R^T with R upper triangular.

GPTQ needs the upper triangular U of H^-1 = U^T U, or only its diagonal blocks. That U is R^-1, so
one Cholesky factorization, of H with rows and columns reversed, replaces three large steps:
Cholesky, inverse, Cholesky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.tensor import CalibrationError


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs to know of a layer's inputs, shared by all layers that read them.

    Attributes
    ----------
    upper : (in, in) tensor
        R, upper triangular with H + damp mean(diag H) I = R R^T, columns in solving order.
    order : (in,) LongTensor
        ``order[k]`` is the column rounded k-th.
    act_order : bool
        Whether the order is another than left to right.
    notes : tuple of str
        Dead inputs, raised damping.
    """

    upper: Tensor
    order: Tensor
    act_order: bool
    notes: tuple[str, ...]


def factorize(hessian: Tensor, *, damp: float = 0.01, act_order: bool = False) -> Factor:
    """Damp a second moment (in, in) and factor it as R R^T, R upper triangular.

    Parameters
    ----------
    hessian : (in, in) float tensor
        Symmetric, up to any positive factor. Factored in its own precision, at least float32.
    damp : fraction of mean(diag(H)), 0..1
        Raised tenfold, up to 1, while there is no factor; ``notes`` tells.
    act_order : bool
        Take the columns by falling diagonal; equal ones keep their order.

    Raises
    ------
    ValueError, CalibrationError
        If the matrix is not square, float, finite and symmetric, is all zero, or is not positive
        definite even at damp 1; if damp is not in 0..1.

    Examples
    --------
    >>> factorize(torch.tensor([[4.0, 2.0], [2.0, 4.0]]), damp=0.0).upper[1, 1].item()
    2.0
    """
    check_hessian(hessian)
    if not 0 <= damp <= 1:
        raise ValueError(f"damp is {damp}; choose a fraction of the mean diagonal, 0..1")
    H = hessian.detach().to("cpu", torch.promote_types(hessian.dtype, torch.float32))
    diagonal = H.diagonal()
    order = torch.arange(len(H))
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        H = H[order][:, order]
    notes = []
    if dead := int((diagonal == 0).sum()):
        notes.append(
            f"{dead} of {len(H)} inputs are always 0: their columns are rounded to nearest"
        )
    R, used = damped_cholesky(H, damp)
    if used != damp:
        notes.append(f"damping raised from {damp:g} to {used:g}: H was not positive definite")
    return Factor(R, order, act_order, tuple(notes))


def damped_cholesky(H: Tensor, damp: float) -> tuple[Tensor, float]:
    """Return R and the first of damp, 10 damp, .. 1 at which H + damp mean(diag H) I = R R^T.

    Raises
    ------
    CalibrationError
        If there is no such R even at damp 1.
    """
    reversed_H = H.flip(0, 1)  # J H J = L L^T gives H = (J L J)(J L J)^T, and J L J is upper
    diagonal = reversed_H.diagonal().clone()
    used = damp
    while True:
        reversed_H.diagonal().copy_(diagonal + used * diagonal.mean())
        L, failed_at = torch.linalg.cholesky_ex(reversed_H)
        if failed_at.item() == 0:
            return L.flip(0, 1), used
        if used == 1:
            raise CalibrationError(
                f"hessian ({len(H)} x {len(H)}) is not positive definite even with damp 1; "
                "a second moment x^T x always is: check how it was collected"
            )
        used = min(1.0, max(10 * used, 1e-6))


def inverse_cholesky(hessian: Tensor, damp: float = 0.01) -> Tensor:
    """Return U (in, in), upper triangular with U^T U = (H + damp mean(diag H) I)^-1.

    The matrix of GPTQ's Algorithm 1 (arXiv:2210.17323v2): column j is rounded with the error
    e = (w_j - q_j) / U_jj, and every later column i becomes w_i - e U_ji.

    Examples
    --------
    >>> inverse_cholesky(torch.diag(torch.tensor([4.0, 0.25])), damp=0.0).diagonal().tolist()
    [0.5, 2.0]
    """
    return inverse(factorize(hessian, damp=damp).upper)


def inverse(upper: Tensor) -> Tensor:
    """Invert an upper triangular matrix."""
    identity = torch.eye(len(upper), dtype=upper.dtype)
    return torch.linalg.solve_triangular(upper, identity, upper=True).contiguous()


def skewness(matrix: Tensor, strip: int = 256) -> float:
    """Return max |A - A^T|, strip by strip: a whole transposed copy would miss the cache."""
    return max(
        (matrix[k:, k : k + strip] - matrix[k : k + strip, k:].T).abs().max().item()
        for k in range(0, len(matrix), strip)
    )


def check_hessian(hessian: Tensor) -> None:
    """Raise unless ``hessian`` is square, finite, symmetric and not all zero."""
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.is_floating_point():
        raise ValueError(
            f"hessian has shape {tuple(hessian.shape)} and dtype {hessian.dtype}; "
            "pass a float matrix (in, in), E[x x^T] of the layer's inputs"
        )
    low, high = (bound.item() for bound in torch.aminmax(hessian))  # NaN if there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~torch.isfinite(hessian)
        raise CalibrationError(
            f"hessian holds {int(bad.sum())} non-finite values, first at "
            f"{bad.nonzero()[0].tolist()}; check the model in float and the calibration data"
        )
    largest, skew = max(-low, high), skewness(hessian)
    if skew > 1e-3 * largest:  # the rounding of a product x^T x stays far below
        raise ValueError(
            f"hessian is not symmetric: H and H^T differ by {skew:.3g} where its largest entry is "
            f"{largest:.3g}; pass E[x x^T]"
        )
    lowest = hessian.diagonal().min().item()
    if lowest < 0:
        raise ValueError(f"hessian's diagonal holds {lowest:.3g}; a mean square is never negative")
    if largest == 0:
        raise CalibrationError(
            f"all {len(hessian)} inputs are 0 in the calibration data, so nothing can be weighed; "
            "calibrate on text that reaches this layer, or use RTN"
        )
