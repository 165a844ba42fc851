"""Rotations: how to draw one, how to walk among them, and how even they make a matrix.

Vectors are rows here, as activations are: y = x R. ``R R^T = I``, so lengths and products of
vectors stay what they were; what changes is how the length is shared out among the coordinates.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from quantlab.hadamard import hadamard_transform, split

KINDS = ("hadamard", "random", "identity")


def rotation_matrix(size: int, kind: str = "hadamard", *, seed: int = 0) -> Tensor:
    """Return a rotation of a kind, (size, size) float64.

    Parameters
    ----------
    size : int
    kind : "hadamard", "random" or "identity"
        "hadamard": random signs, then a Hadamard matrix; every entry is 1 / sqrt(size) in size.
        "random": uniform among all orthogonal matrices. "identity": nothing moves, as a control.
    seed : int
        Of the signs, or of the matrix.

    Raises
    ------
    ValueError
        If the kind is another, or no Hadamard matrix has this order.

    References
    ----------
    Random signs: Ashkboos et al., QuaRot, arXiv:2404.00456, section 3. Uniform matrices: Mezzadri,
    How to generate random matrices from the classical compact groups, arXiv:math-ph/0609050.

    Examples
    --------
    >>> R = rotation_matrix(12, seed=3)
    >>> torch.allclose(R @ R.T, torch.eye(12, dtype=torch.float64))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "hadamard":
        split(size)  # raises where there is none
        signs = 2.0 * torch.randint(2, (size,), generator=generator).double() - 1
        return hadamard_transform(torch.diag(signs))
    if kind == "random":
        G = torch.randn(size, size, generator=generator, dtype=torch.float64)
        Q, R = torch.linalg.qr(G)
        return Q * R.diagonal().sign()  # without the signs the matrix is not uniform
    if kind == "identity":
        return torch.eye(size, dtype=torch.float64)
    raise ValueError(f"kind is {kind!r}; choose {', '.join(map(repr, KINDS))}")


def incoherence(matrix: Tensor) -> float:
    """Return mu: the largest entry as a multiple of the root mean square of all entries.

    1 for entries of one size; sqrt(entries) if all but one are zero. A uniform grid must reach the
    largest entry, so a smaller mu is a finer step.

    Raises
    ------
    ValueError
        If all entries are zero, or there are none.

    References
    ----------
    Chee et al., QuIP, arXiv:2307.13304, Definition 1.

    Examples
    --------
    >>> incoherence(torch.tensor([3.0, 0.0, 0.0, 4.0])), incoherence(torch.ones(2, 2))
    (1.6, 1.0)
    """
    entries = matrix.detach().double()
    size = entries.norm().item()
    if size == 0:
        raise ValueError("incoherence of zeros is undefined; pass a matrix with a nonzero entry")
    return entries.abs().max().item() * sqrt(entries.numel()) / size


def cayley_step(R: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Move a rotation downhill and land on a rotation: no projection, no drift.

    With the skew matrix A = (G R^T - R G^T) / 2, the direction of steepest descent among rotations,

        R' = (I + rate/2 A)^-1 (I - rate/2 A) R

    is orthogonal for every rate, because the Cayley transform of a skew matrix is.

    Parameters
    ----------
    R : (n, n) orthogonal float tensor
    gradient : (n, n) tensor
        G_ij = dL / dR_ij, as autograd gives it.
    rate : float
        A small one lowers L by rate |A|^2.

    References
    ----------
    Li et al., Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform,
    arXiv:2002.01113, solved exactly where they iterate; Liu et al., SpinQuant, arXiv:2405.16406,
    section 3.2.

    Examples
    --------
    L = R_12 falls from 0, and both rows still have length 1:

    >>> cayley_step(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 2.0)
    tensor([[ 0.6000, -0.8000],
            [ 0.8000,  0.6000]])
    """
    S = gradient @ R.T
    half = rate / 4 * (S - S.T)
    I = torch.eye(len(R), dtype=R.dtype, device=R.device)  # noqa: E741 - the paper's letter
    return torch.linalg.solve(I + half, (I - half) @ R)
