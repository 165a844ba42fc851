"""GGUF blocks as integers and scales, in NumPy: what the products of blocks are defined by.

Slow, and each formula as in the type's description: ``quantlab.gguf.blocks`` and ``k_quants``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.kernels.block_layouts import ACTIVATIONS, LAYOUTS
from quantlab.kernels.tiles import LANES

Array = NDArray[Any]


def parts_of(blocks: Array, name: str) -> tuple[Array, Array, Array | None]:
    """Return what rows of blocks hold.

    Parameters
    ----------
    blocks : (rows, bytes) uint8 array
    name : str
        A type of ``LAYOUTS``.

    Returns
    -------
    codes : (rows, sub-blocks, weights) int64 array
        Less the offset: 0 stands for zero.
    scale : (rows, sub-blocks) float32 array
    shift : (rows, sub-blocks) float32 array, or None
        Weights are codes * scale + shift.
    """
    layout = LAYOUTS[name]
    raw = blocks.reshape(len(blocks), -1, layout.block_bytes)
    codes, scale, shift = PARTS[name](raw)
    rows, weights = len(blocks), layout.weights
    codes = codes.astype(np.int64).reshape(rows, -1, weights) - layout.offset
    return codes, scale.reshape(rows, -1), None if shift is None else shift.reshape(rows, -1)


def half(raw: Array, at: int) -> Array:
    """Return the float16 at a byte of each block, as float32 (rows, blocks, 1)."""
    return np.ascontiguousarray(raw[..., at : at + 2]).view("<f2").astype(np.float32)


def nibbles(raw: Array, apart: int) -> Array:
    """Return the codes in bytes: of each ``apart`` bytes the low nibbles, then the high ones."""
    groups = raw.reshape(*raw.shape[:-1], -1, apart)
    return np.stack([groups & 15, groups >> 4], -2).reshape(*raw.shape[:-1], -1)


def bit(raw: Array, count: int) -> Array:
    """Return ``count`` bits of each byte: all lowest ones first, then all second ones."""
    return (raw[..., None, :] >> np.arange(count, dtype=np.uint8)[:, None] & 1).reshape(
        *raw.shape[:-1], -1
    )


def blocks_of_32(raw: Array, first: int, fifth: int | None, minimum: bool) -> Any:
    """Read d, perhaps m, perhaps fifth bits, and nibbles."""
    codes = nibbles(raw[..., first : first + 16], 16)
    if fifth is not None:
        bits = np.unpackbits(raw[..., fifth : fifth + 4], axis=-1, bitorder="little")
        codes = codes | bits << 4
    return codes, half(raw, 0), half(raw, 2) if minimum else None


def bytes_of_32(raw: Array) -> Any:
    """Read d and signed bytes."""
    return raw[..., 2:].view(np.int8), half(raw, 0), None


def pairs_of_256(raw: Array, first: int, fifth: int | None) -> Any:
    """Read d, dmin, eight scales and minimums of six bits, perhaps fifth bits, and nibbles."""
    codes = nibbles(raw[..., first:], 32)
    if fifth is not None:
        codes = codes | bit(raw[..., fifth : fifth + 32], 8) << 4
    a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], -1).astype(np.float32)
    minimum = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], -1).astype(np.float32)
    return codes, half(raw, 0) * scale, -(half(raw, 2) * minimum)


def sixes_of_256(raw: Array) -> Any:
    """Read nibbles, upper quarters, sixteen signed scales, and d."""
    low = nibbles(raw[..., :128], 64)
    halves = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32)
    high = halves >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scale = raw[..., 192:208].view(np.int8).astype(np.float32)
    return low | high.reshape(low.shape) << 4, half(raw, 208) * scale, None


PARTS = {
    "Q4_0": lambda raw: blocks_of_32(raw, 2, None, False),
    "Q4_1": lambda raw: blocks_of_32(raw, 4, None, True),
    "Q5_0": lambda raw: blocks_of_32(raw, 6, 2, False),
    "Q5_1": lambda raw: blocks_of_32(raw, 8, 4, True),
    "Q8_0": bytes_of_32,
    "Q4_K": lambda raw: pairs_of_256(raw, 16, None),
    "Q5_K": lambda raw: pairs_of_256(raw, 48, 16),
    "Q6_K": sixes_of_256,
}


def int8_product(x_codes: Array, x_scale: Array, blocks: Array, name: str) -> Array:
    """Multiply int8 activations (tokens, in), a scale for each 32, with rows of blocks.

    Each sub-block's dot product is an exact integer. Its share, float(dot) * (scale * x_scale),
    and then shift * (sum(x) * x_scale), go into one of sixteen sums: that of its number modulo 16.
    At the end the sixteen are folded in halves. Each step is rounded to float32.
    """
    codes, scale, shift = parts_of(blocks, name)
    tokens, weights = len(x_codes), codes.shape[2]
    x = x_codes.astype(np.int64).reshape(tokens, -1, weights)
    steps = np.repeat(x_scale, ACTIVATIONS // weights, axis=1)
    sums = x.sum(2).astype(np.float32) * steps
    total = np.zeros((LANES, tokens, len(blocks)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # scales may be as large as floats go
        for s in range(codes.shape[1]):
            dot = (x[:, s] @ codes[:, s].T).astype(np.float32)
            total[s % LANES] += dot * (scale[:, s] * steps[:, s, None])
            if shift is not None:
                total[s % LANES] += shift[:, s] * sums[:, s, None]
        while len(total) > 1:
            total = total[: len(total) // 2] + total[len(total) // 2 :]
    return total[0]
