"""Our products straight from GGUF blocks as contestants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from quantlab.gguf import dequantize, quantize
from quantlab.kernels.contest import Calls, Contestant, Prepared, Product
from quantlab.kernels.gguf_blocks import gguf_matmul
from quantlab.kernels.own import EXACT_TOKENS


def own_block_contestants(
    product: Product, types: Sequence[str], activation_bits: Sequence[int] = (16, 8)
) -> list[Contestant]:
    """Return our kernels' products with each block type and kind of activations.

    Raises
    ------
    ValueError
        If there is no kernel for a type, or its blocks do not divide the columns.

    Examples
    --------
    >>> product = Product.random(32, 256)
    >>> [c.name for c in own_block_contestants(product, ["Q4_K"])]
    ['quantlab Q4_K A16', 'quantlab Q4_K A8']
    """
    found: list[Contestant] = []
    for name in types:
        blocks = torch.from_numpy(quantize(product.weight.numpy(), name))
        truth = product.truth(torch.from_numpy(dequantize(blocks.numpy(), name)))
        for bits in activation_bits:
            multiply = partial(gguf_matmul, type_name=name, activation_bits=bits)
            exact = None
            if bits == 8:
                tokens = product.x[:EXACT_TOKENS]
                exact = multiply(tokens, blocks, backend="reference").double().numpy()
            found.append(
                Contestant(
                    name=f"quantlab {name} A{bits}",
                    activations="float32" if bits == 16 else "int8 per 32",
                    weight_bytes=blocks.nbytes,
                    truth=truth,
                    prepare=preparer(multiply, product.x, blocks),
                    bits=8 * blocks.nbytes / product.weight.numel(),
                    ours=True,
                    exact=exact,
                )
            )
    return found


def preparer(
    multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, blocks: Tensor
) -> Callable[[int], Prepared]:
    """Return a ``prepare`` that multiplies ``x`` with copies of blocks."""

    def prepare(sets: int) -> Prepared:
        return Calls([partial(multiply, x, blocks.clone()) for _ in range(sets)])

    return prepare
