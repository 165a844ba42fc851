"""Slow twins of rotations: entry by entry, float64, no transform and no solver."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.scheme import Scheme


def sylvester(size: int) -> Tensor:
    """Return H_ij = (-1)^(number of ones that i and j share in binary)."""
    rows = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return torch.tensor(rows, dtype=torch.float64)


def legendre(a: int, prime: int) -> int:
    """Return 1 if a is a square modulo the prime, -1 if not, 0 for 0: Euler's criterion."""
    power = pow(a, (prime - 1) // 2, prime)
    return -1 if power == prime - 1 else power


def paley_twelve() -> Tensor:
    """Return Paley's matrix of order 12 entry by entry: I + S, from the squares modulo 11."""
    H = torch.empty(12, 12, dtype=torch.float64)
    for i in range(12):
        for j in range(12):
            if i == j:
                H[i, j] = 1
            elif i == 0 or j == 0:
                H[i, j] = 1 if i == 0 else -1
            else:
                H[i, j] = legendre(i - j, 11)
    return H


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """Return A (x) B by its definition: entry (i n + k, j n + l) is A_ij B_kl."""
    n = len(B)
    C = torch.empty(len(A) * n, len(A) * n, dtype=torch.float64)
    for i in range(len(A)):
        for j in range(len(A)):
            C[i * n : i * n + n, j * n : j * n + n] = A[i, j] * B
    return C


def transform(x: Tensor, H: Tensor) -> Tensor:
    """Return H x / sqrt(n) of every row, as n sums of n products."""
    size = len(H)
    rows = [[float((H[i] * row).sum()) / size**0.5 for i in range(size)] for row in x.double()]
    return torch.tensor(rows, dtype=torch.float64)


def cayley_iterated(R: Tensor, gradient: Tensor, rate: float, rounds: int = 200) -> Tensor:
    """Return the Cayley step as a fixed point of Y = R - rate/2 A (R + Y): no linear solver."""
    S = gradient @ R.T
    A = (S - S.T) / 2
    Y = R
    for _ in range(rounds):
        Y = R - rate / 2 * A @ (R + Y)
    return Y


def round_tokens_slowly(x: Tensor, scheme: Scheme) -> Tensor:
    """Round each group of numbers of each token by itself, number by number."""
    size, top = scheme.group_size or x.shape[-1], 2**scheme.bits - 1
    groups = x.double().reshape(-1, size).tolist()
    out = []
    for group in groups:
        if scheme.symmetric:
            extreme = max(group, key=abs)
            step, zero = extreme / -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1)
        else:
            low, high = min(*group, 0.0), max(*group, 0.0)
            step = (high - low) / top
            zero = min(max(round(-low / step), 0), top) if step else 0
        step = step or 1.0
        out.append([step * (min(max(round(w / step) + zero, 0), top) - zero) for w in group])
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)
