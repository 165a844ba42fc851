"""Our own products as contestants: packed weights times float or int8 activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.kernels import reference
from quantlab.kernels.contest import Calls, Contestant, Prepared, Product
from quantlab.kernels.product import int4_matmul, int8_matmul
from quantlab.kernels.tiles import Tiles
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme
from quantlab.tensor import PackedTensor

EXACT_TOKENS = 4  # that are compared with the slow definition


class Copies:
    """Copies of a weight, made when asked for, and shared by the contestants that read it."""

    def __init__(self, weight: Tiles) -> None:
        self.made = [weight]

    def first(self, count: int) -> list[Tiles]:
        """Return so many copies."""
        while len(self.made) < count:
            self.made.append(copied(self.made[0]))
        return self.made[:count]


def copied(tiles: Tiles) -> Tiles:
    """Return the same weight in memory of its own."""
    zeros = None if tiles.zeros is None else tiles.zeros.clone()
    return Tiles(tiles.words.clone(), tiles.scale.clone(), zeros, tiles.scheme, tiles.shape)


def own_contestants(
    product: Product, schemes: Sequence[Scheme], activation_bits: Sequence[int] = (16, 8)
) -> list[Contestant]:
    """Return our kernels' products for each scheme and kind of activations.

    Raises
    ------
    ValueError
        If no kernel takes a scheme, or its groups do not divide the columns.

    Examples
    --------
    >>> product = Product.random(32, 64)
    >>> [c.name for c in own_contestants(product, [Scheme(4, 32)])]
    ['quantlab W4A16 g32 sym', 'quantlab W4A8 g32 sym']
    """
    found: list[Contestant] = []
    for scheme in schemes:
        packed = rtn(product.weight, scheme).pack()
        copies, truth = Copies(Tiles.of(packed)), product.truth(packed.dequantize(torch.float64))
        for bits in activation_bits:
            found.append(
                Contestant(
                    name=f"quantlab W{scheme.bits}A{bits} {layout(scheme)}",
                    activations="float32"
                    if bits == 16
                    else f"int8 per {scheme.group_size or 'row'}",
                    weight_bytes=copies.made[0].nbytes,
                    truth=truth,
                    prepare=preparer(product.x, copies, bits),
                    bits=8 * packed.nbytes / product.weight.numel(),
                    ours=True,
                    exact=None if bits == 16 else exact(product.x, packed),
                )
            )
    return found


def layout(scheme: Scheme) -> str:
    """Return a scheme without its bits: ``g64 sym``, or ``row sym``."""
    group = "row" if scheme.group_size is None else f"g{scheme.group_size}"
    return f"{group} {'sym' if scheme.symmetric else 'asym'}"


def preparer(x: Tensor, copies: Copies, activation_bits: int) -> Callable[[int], Prepared]:
    """Return a ``prepare`` that multiplies ``x`` with copies of a weight."""
    multiply = int4_matmul if copies.made[0].scheme.bits == 4 else int8_matmul

    def prepare(sets: int) -> Prepared:
        return Calls(
            [
                partial(multiply, x, tiles, activation_bits=activation_bits)
                for tiles in copies.first(sets)
            ]
        )

    return prepare


def exact(x: Tensor, packed: PackedTensor) -> NDArray[np.float64]:
    """Return what the first tokens must give with activations in 8 bits."""
    return reference.matmul(x[:EXACT_TOKENS], packed, 8).double().numpy()
