"""The public products: x @ W.T for a packed W, on the CPU, on a GPU, or by definition."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.kernels import cpu, reference
from quantlab.kernels.tiles import Tiles
from quantlab.tensor import PackedTensor

BACKENDS = (None, "cpu", "gpu", "reference")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def int4_matmul(
    x: Tensor,
    weight: PackedTensor | Tiles,
    *,
    activation_bits: int = 16,
    backend: str | None = None,
) -> Tensor:
    """Multiply activations with a weight of packed 4-bit codes: y = x @ W.T.

    Parameters
    ----------
    x : (..., in) float32, bfloat16 or float16 tensor
    weight : PackedTensor or Tiles, (out, in)
        A PackedTensor is rearranged at each call; pass ``Tiles.of(packed)`` to do it once.
    activation_bits : 16 or 8
        16 multiplies floats (W4A16). 8 rounds each group of each token to int8 and multiplies
        integers (W4A8): about three times faster, with an error of its own.
    backend : None, "cpu", "gpu" or "reference"
        None takes the device of ``x``. "reference" is the definition, in float64.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``

    Raises
    ------
    ValueError
        If shapes, dtypes or bits do not fit.

    Examples
    --------
    >>> import quantlab as ql
    >>> q = ql.rtn(torch.eye(2, 8), ql.Scheme(bits=4))
    >>> ql.int4_matmul(torch.arange(8.0), q.pack()).tolist()
    [0.0, 1.0]
    """
    return matmul(x, weight, 4, activation_bits=activation_bits, backend=backend)


def int8_matmul(
    x: Tensor,
    weight: PackedTensor | Tiles,
    *,
    activation_bits: int = 16,
    backend: str | None = None,
) -> Tensor:
    """Multiply activations with a weight of 8-bit codes: y = x @ W.T.

    Parameters, result and errors are those of ``int4_matmul``; activation_bits=8 is W8A8.

    Examples
    --------
    >>> import quantlab as ql
    >>> q = ql.rtn(torch.eye(2, 8), ql.Scheme(bits=8))
    >>> ql.int8_matmul(torch.arange(8.0), q.pack(), activation_bits=8).tolist()
    [0.0, 0.992...]
    """
    return matmul(x, weight, 8, activation_bits=activation_bits, backend=backend)


def matmul(
    x: Tensor,
    weight: PackedTensor | Tiles,
    bits: int,
    *,
    activation_bits: int,
    backend: str | None,
) -> Tensor:
    """Check what is multiplied, and call the backend's product."""
    check(x, weight, bits, activation_bits, backend)
    if backend == "reference":
        packed = weight.packed() if isinstance(weight, Tiles) else weight
        return reference.matmul(x, packed, activation_bits)
    tiles = weight if isinstance(weight, Tiles) else Tiles.of(weight)
    if backend == "gpu" or (backend is None and x.is_cuda):
        from quantlab.kernels import gpu  # Triton is an optional package

        return gpu.matmul(x, tiles, activation_bits)
    return cpu.matmul(x, tiles, activation_bits)


def check(
    x: Tensor, weight: PackedTensor | Tiles, bits: int, activation_bits: int, backend: str | None
) -> None:
    """Raise a ValueError unless the product is defined."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose 'cpu', 'gpu', 'reference' or None")
    if activation_bits not in (8, 16):
        raise ValueError(f"activation_bits is {activation_bits!r}; choose 16 (floats) or 8 (int8)")
    if weight.scheme.bits != bits:
        raise ValueError(
            f"the weight has {weight.scheme.bits}-bit codes; this product takes {bits} bits"
        )
    if x.dtype not in FLOATS and backend != "reference":
        raise ValueError(f"x has dtype {x.dtype}; pass float32, bfloat16 or float16")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weight {tuple(weight.shape)} (out, in); "
            f"the last axis of x must be {weight.shape[1]}"
        )
    if backend == "cpu" and x.is_cuda:
        raise ValueError("x lies on a GPU; pass x.cpu(), or backend='gpu'")
