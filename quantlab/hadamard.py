"""Hadamard matrices, and the transform that multiplies by one without writing it down.

A Hadamard matrix H of order n holds only 1 and -1 and has orthogonal rows: H H^T = n I. Divided by
sqrt(n) it is a rotation (or a reflection) that spreads every coordinate evenly over all others.

    H_2n = [[H, H], [H, -H]]        Sylvester: orders 1, 2, 4, 8, 16 ...
    H_12, H_20, H_28, H_36 ...      Paley: from the squares modulo a prime
    H_mn = H_m (x) H_n              Kronecker: 768 = 12 * 64

The transform splits n the same way: an (m, 2^k) table is multiplied by H_m along one axis and goes
through k stages of sums and differences along the other, n (m + k) additions in place of n^2.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def hadamard_transform(x: Tensor, *, inverse: bool = False) -> Tensor:
    """Multiply the last axis of ``x`` by the orthonormal Hadamard matrix of its length.

    Parameters
    ----------
    x : (..., n) float tensor
        n as in ``hadamard_matrix``. Not modified; its dtype and gradient pass through.
    inverse : bool
        Multiply by the transpose. The same thing where n is a power of two: there H = H^T.

    Returns
    -------
    (..., n) tensor
        Of the same Euclidean length as ``x``, row by row.

    Raises
    ------
    ValueError
        If no Hadamard matrix of order n is known here.

    References
    ----------
    Fino and Algazi, Unified matrix treatment of the fast Walsh-Hadamard transform, 1976.

    Examples
    --------
    >>> hadamard_transform(torch.tensor([8.0, 0.0, 0.0, 0.0])).tolist()
    [4.0, 4.0, 4.0, 4.0]
    """
    size = x.shape[-1]
    seed = split(size)
    table = x.unflatten(-1, (seed, size // seed))
    if seed > 1:
        H = base(seed).to(x)
        table = (H.T if inverse else H) @ table
    return butterflies(table).flatten(-2) * size**-0.5


def butterflies(x: Tensor) -> Tensor:
    """Multiply the last axis, of length 2^k, by Sylvester's matrix: k stages of sums, differences.

    Examples
    --------
    >>> butterflies(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [10.0, -2.0, -4.0, 0.0]
    """
    reach = 1
    while reach < x.shape[-1]:
        pairs = x.unflatten(-1, (-1, 2, reach))
        low, high = pairs.unbind(-2)
        x = torch.stack([low + high, low - high], -2).flatten(-3)
        reach *= 2
    return x


def hadamard_matrix(size: int) -> Tensor:
    """Return a Hadamard matrix of 1 and -1, (size, size) float64, rows orthogonal.

    Parameters
    ----------
    size : int
        A power of two, or a power of two times an order that Paley's constructions give for a
        prime: 12, 20, 28, 36, 44, 60, 68 ... Not every multiple of four is there.

    Raises
    ------
    ValueError
        If no construction here reaches the order; it names orders near it.

    References
    ----------
    Paley, On orthogonal matrices, 1933: constructions I and II.

    Examples
    --------
    >>> hadamard_matrix(4).int().tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    >>> H = hadamard_matrix(12)
    >>> torch.equal(H @ H.T, 12 * torch.eye(12))
    True
    """
    seed = split(size)
    return torch.kron(base(seed), butterflies(torch.eye(size // seed, dtype=torch.float64)))


def split(size: int) -> int:
    """Return the least m with size = m 2^k whose Hadamard matrix is built directly: 1, 12, 20 ...

    Examples
    --------
    >>> split(256), split(768), split(14336)
    (1, 12, 28)
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"order is {size!r}; an order is a positive integer")
    seed = seed_of(size)
    if seed is None:
        least = 4 * (size // 4)
        below = next((n for n in range(least, 0, -4) if seed_of(n)), 2)
        above = next(n for n in range(least + 4, 16 * least + 8, 4) if seed_of(n))
        raise ValueError(
            f"no Hadamard matrix of order {size} is known here; the nearest are {below}, {above}"
        )
    return seed


def seed_of(size: int) -> int | None:
    """Return what ``split`` returns, or None where it raises."""
    odd = size // (size & -size)
    seeds = (odd << k for k in range(size.bit_length()) if size % (odd << k) == 0)
    return next((m for m in seeds if m == 1 or paley_prime(m)), None)


# ---------------------------------------------------------------- Paley


@cache
def base(size: int) -> Tensor:
    """Return the matrix that Paley's construction gives for an order; [[1]] for 1."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    prime, construction = paley_prime(size) or (0, 0)
    return paley_one(prime) if construction == 1 else paley_two(prime)


def paley_prime(size: int) -> tuple[int, int] | None:
    """Return the prime q and the construction, 1 or 2, of an order; None if there is none.

    Examples
    --------
    >>> paley_prime(12), paley_prime(28), paley_prime(40)
    ((11, 1), (13, 2), None)
    """
    if size % 4:
        return None
    if is_prime(size - 1):  # q + 1, and q = 3 modulo 4
        return size - 1, 1
    half = size // 2 - 1
    return (half, 2) if half % 4 == 1 and is_prime(half) else None  # 2 (q + 1), q = 1 modulo 4


def is_prime(number: int) -> bool:
    """Tell whether a number is prime."""
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def residues(prime: int) -> Tensor:
    """Return Jacobsthal's matrix Q_ij = chi(i - j): 1 for squares modulo q, -1 for others, 0 for 0.

    Examples
    --------
    >>> residues(3).int().tolist()
    [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    """
    chi = torch.full((prime,), -1.0, dtype=torch.float64)
    chi[[i * i % prime for i in range(1, prime)]] = 1
    chi[0] = 0
    index = torch.arange(prime)
    return chi[(index[:, None] - index) % prime]


def paley_one(prime: int) -> Tensor:
    """Return H = I + S of order q + 1, S = [[0, 1], [-1, Q]] skew, for a prime q = 3 modulo 4."""
    S = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    S[0, 1:], S[1:, 0], S[1:, 1:] = 1, -1, residues(prime)
    return S + torch.eye(prime + 1, dtype=torch.float64)


def paley_two(prime: int) -> Tensor:
    """Return H of order 2 (q + 1), q = 1 modulo 4: each entry of a symmetric S becomes 2 by 2."""
    S = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    S[0, 1:], S[1:, 0], S[1:, 1:] = 1, 1, residues(prime)
    sign = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(S, sign) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), diagonal)
