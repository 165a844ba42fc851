"""What each product is, in the plainest words: the definitions that every kernel is tested against.

Slow, and obviously right. A weight is ``w = scale * (code - zero_point)``. Activations either stay
floats (A16: the kernel multiplies them with weights as floats) or are rounded to 8-bit integers, so
that the sums run over integers (A8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.gguf import dequantize
from quantlab.kernels import block_reference
from quantlab.tensor import PackedTensor

LARGEST = 127  # of an int8 activation: -128 is not used, so that the grid is symmetric


def quantize_activations(x: Tensor, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Round each group of each token's activations to int8.

    Parameters
    ----------
    x : (tokens, in) float tensor
    group_size : activations, or None
        How many share a scale: as many as weights do. None: a token's whole vector.

    Returns
    -------
    codes : (tokens, in) int8 tensor
        ``x / scale``, rounded half to even, -127 .. 127.
    scale : (tokens, groups) float32 tensor
        Largest size in the group, divided by 127; 0 if the group is all zeros.

    Examples
    --------
    >>> codes, scale = quantize_activations(torch.tensor([[-2.0, 1.0, 0.5, 0.0]]))
    >>> codes.tolist(), round(scale.item(), 5)
    ([[-127, 64, 32, 0]], 0.01575)
    """
    groups = x.float().unflatten(-1, (-1, group_size or x.shape[-1]))
    scale = groups.abs().amax(-1) / LARGEST
    divisor = torch.where(scale == 0, 1, scale)
    codes = torch.round(groups / divisor[..., None]).clamp(-LARGEST, LARGEST)
    return codes.to(torch.int8).flatten(-2), scale


def matmul(x: Tensor, weight: PackedTensor, activation_bits: int = 16) -> Tensor:
    """Multiply activations (..., in) with the transpose of a quantized weight (out, in).

    Parameters
    ----------
    x : (..., in) float tensor
    weight : PackedTensor, (out, in)
    activation_bits : 16 or 8
        16 leaves ``x`` as it is. 8 rounds it first: see ``quantize_activations``.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``
    """
    tokens = x.reshape(-1, x.shape[-1])
    y = float_product(tokens, weight) if activation_bits == 16 else int8_product(tokens, weight)
    return y.reshape(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def float_product(x: Tensor, weight: PackedTensor) -> Tensor:
    """Return x @ W.T of the dequantized weight, computed in float64."""
    return x.double() @ weight.dequantize(torch.float64).T


def int8_product(x: Tensor, weight: PackedTensor) -> Tensor:
    """Round ``x`` (tokens, in) to int8; add up integers within groups, and floats over groups.

    y = sum_g float(sum_k (code_w - zero)_k code_x_k) * (scale_w * scale_x): groups in order, the
    product and the sum each rounded to float32, so that every kernel can be equal in every bit.
    """
    q = weight.unpack(torch.float32)
    codes, scale = quantize_activations(x, weight.scheme.group_size)
    shape = (-1, weight.scheme.group_size or weight.shape[1])
    shifted = q.codes.int().unflatten(1, shape) - q.zero_point.int()[..., None]
    dots = torch.einsum("tgk,rgk->tgr", codes.double().unflatten(1, shape), shifted.double())
    y = torch.zeros(x.shape[0], weight.shape[0])
    for g in range(dots.shape[1]):  # float64 sums of integers below 2**53 are exact
        y = y + dots[:, g].float() * (q.scale[:, g] * scale[:, g, None])
    return y


def block_matmul(
    x: Tensor,
    blocks: NDArray[np.uint8],
    type_name: str,
    shape: Sequence[int],
    activation_bits: int = 16,
) -> Tensor:
    """Multiply activations (..., in) with the transpose of a weight stored as GGUF blocks.

    Parameters
    ----------
    x : (..., in) float tensor
    blocks : uint8 array of rows of blocks
    type_name : str
        Such as ``"Q4_K"``.
    shape : (out, in) of the weight
    activation_bits : 16 or 8
        16: weights are dequantized and multiplied in float64. 8: each 32 activations are rounded
        to int8; see ``block_reference.int8_product`` for the order of sums.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``

    Examples
    --------
    >>> import quantlab as ql
    >>> blocks = ql.gguf.quantize(np.eye(2, 32), "Q8_0")
    >>> block_matmul(torch.arange(32.0), blocks, "Q8_0", (2, 32)).round(decimals=3).tolist()
    [0.0, 1.0]
    """
    tokens = x.reshape(-1, x.shape[-1])
    if activation_bits == 16:
        y = tokens.double() @ torch.from_numpy(dequantize(blocks, type_name, shape)).double().T
    else:
        codes, scale = quantize_activations(tokens, block_reference.ACTIVATIONS)
        rows = blocks.reshape(shape[0], -1)
        y = block_reference.int8_product(codes.numpy(), scale.numpy(), rows, type_name)
        y = torch.from_numpy(y)
    return y.reshape(*x.shape[:-1], shape[0]).to(x.dtype)


def integer_matmul(a: Tensor, a_zero: Tensor | int, b: Tensor, b_zero: Tensor | int) -> Tensor:
    """Return sum_k (a - a_zero)(b - b_zero) by four sums, as integer hardware does it.

    sum ab - b_zero sum a - a_zero sum b + K a_zero b_zero: only the first sum runs over products.
    (1712.05877v1, equations 7 and 8.)

    Parameters
    ----------
    a : (tokens, in) integer tensor
    a_zero : int, or (tokens, 1) tensor
    b : (out, in) integer tensor
    b_zero : int, or (out,) tensor

    Returns
    -------
    (tokens, out) int64 tensor

    Examples
    --------
    >>> a, b = torch.tensor([[3, 5]]), torch.tensor([[10, 20]])
    >>> integer_matmul(a, 4, b, 8).tolist()  # (3 - 4)(10 - 8) + (5 - 4)(20 - 8)
    [[10]]
    """
    a, b = a.long(), b.long()
    products = a @ b.T
    return (
        products
        - b_zero * a.sum(1, keepdim=True)
        - a_zero * b.sum(1)
        + a.shape[1] * a_zero * b_zero
    )
