"""Slow twins: each fast algorithm again, in the shortest form that is obviously right.

Float64, plain loops, no tricks; tests compare with atol 1e-12. Append yours below the others.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from quantlab.scheme import Scheme


def obq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    *,
    damp: float = 0.01,
    act_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Textbook OBQ in float64: round a column, repair all others, eliminate it from the inverse.

    Frantar et al., Optimal Brain Compression, arXiv:2208.11580, in GPTQ's order of columns. With
    act_order the grids come from the original weight, else from the group as it stands when its
    first column is reached (a whole row's: the original weight, which is the same thing).

    Returns
    -------
    Q, losses : (out, in) tensors
    """
    W, H = weight.double().clone(), hessian.double().clone()
    columns = W.shape[1]
    size = scheme.group_size or columns
    H += damp * H.diagonal().mean() * torch.eye(columns, dtype=H.dtype)
    inverse = torch.linalg.inv(H)
    order = list(range(columns))
    if act_order:
        order.sort(key=lambda j: -hessian[j, j].item())  # Python's sort is stable
    scale, zero_point = scheme.grid(W.unflatten(1, (-1, size)))
    Q, losses = torch.zeros_like(W), torch.zeros_like(W)
    for position, j in enumerate(order):
        group = j // size
        if not act_order and j % size == 0:
            scale[:, group], zero_point[:, group] = scheme.grid(W[:, j : j + size])
        s, z = scale[:, group], zero_point[:, group]
        Q[:, j] = s * (torch.clamp(torch.round(W[:, j] / s) + z, 0, scheme.levels - 1) - z)
        losses[:, j] = (W[:, j] - Q[:, j]) ** 2 / inverse[j, j] / 2
        rest = order[position + 1 :]
        W[:, rest] -= torch.outer(W[:, j] - Q[:, j], inverse[j, rest] / inverse[j, j])
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return Q, losses


def gptq_original(
    weight: Tensor, hessian: Tensor, scheme: Scheme, *, damp: float = 0.01, block_size: int = 128
) -> Tensor:
    """GPTQ's Algorithm 1 in float64 with the authors' stale group grids.

    The updates of the current block sit in a copy, and grids are read from the matrix that does not
    have them yet. Written from the paper and the description of that behavior.
    """
    W, H = weight.double().clone(), hessian.double().clone()
    columns = W.shape[1]
    H += damp * H.diagonal().mean() * torch.eye(columns, dtype=H.dtype)
    U = torch.linalg.cholesky(torch.linalg.inv(H)).mT.contiguous()  # H^-1 = U^T U
    scale, zero_point = scheme.grid(W)
    Q = torch.zeros_like(W)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        block = W[:, start:stop].clone()
        errors = torch.zeros_like(block)
        for i in range(stop - start):
            j = start + i
            if scheme.group_size is not None and j % scheme.group_size == 0:
                scale, zero_point = scheme.grid(W[:, j : j + scheme.group_size])
            codes = torch.clamp(torch.round(block[:, i] / scale) + zero_point, 0, scheme.levels - 1)
            Q[:, j] = scale * (codes - zero_point)
            errors[:, i] = (block[:, i] - Q[:, j]) / U[j, j]
            block -= torch.outer(errors[:, i], U[j, start:stop])
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return Q


def bit_stream(codes: list[int], bits: int) -> bytes:
    """Pack codes as one big Python integer, in which code k starts at bit k * bits."""
    stream = sum(code << (k * bits) for k, code in enumerate(codes))
    return stream.to_bytes(-(-len(codes) * bits // 8), "little")


def nearest_float(values: list[float], x: float) -> float:
    """Search all of a format's finite values (code order, no sign) for x's, ties to even codes."""
    best = min(range(len(values)), key=lambda code: (exact_distance(values[code], x), code % 2))
    return math.copysign(values[best], x)


def exact_distance(value: float, x: float) -> Fraction:
    """Return ||x| - value| without any rounding."""
    return abs(Fraction(abs(x)) - Fraction(value))


def nearest_level(levels: list[float], x: float) -> int:
    """Search a codebook or a grid for the level nearest to x; the first of two equals."""
    return min(range(len(levels)), key=lambda code: abs(levels[code] - x))
