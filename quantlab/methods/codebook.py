"""Codebooks: a table of levels for each row by k-means, and eight weights at once by lattice E8.

A grid has its levels at equal distances. A table can put them where weights are dense, or where an
error costs most (SqueezeLLM); and a table of vectors fills space better than any product of grids:

    2 bits a weight, Gaussian      four levels, Lloyd   65,536 points of E8   best possible
    signal to noise in dB          9.3                  10.4                  12.04
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quantlab.block import Block, imatrix
from quantlab.codebook_tensor import tensor_bytes
from quantlab.lattice_e8 import SIZE, decode_e8, encode_e8
from quantlab.packing import pack_codes, packed_bytes, unpack_codes
from quantlab.tensor import check_weight

SPREAD = 1.04  # standard deviation at which E8's 65,536 points meet a normal distribution best


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class RowCodebooks:
    """A weight matrix as codes into a table of its own for each row.

    Attributes
    ----------
    codes : (out, in) uint8 tensor
    levels : (out, 2^bits) float16 tensor, each row ascending
    bits : 1..8
    notes : tuple of str
    """

    codes: Tensor
    levels: Tensor
    bits: int
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        return self.codes.shape

    @property
    def scheme(self) -> str:
        """The name for reports."""
        return f"k-means {self.bits}"

    def dequantize(self) -> Tensor:
        """Return the (out, in) float32 weight that the codes stand for."""
        return self.levels.float().gather(1, self.codes.long())

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: codes and tables."""
        return len(self.codes) * packed_bytes(self.shape[1], self.bits) + 2 * self.levels.numel()

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return 8 * self.nbytes / self.codes.numel()

    def pack(self) -> PackedRowCodebooks:
        """Return the storage form."""
        data = pack_codes(self.codes, self.bits)
        return PackedRowCodebooks(data, self.levels, self.bits, self.shape)


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedRowCodebooks:
    """``RowCodebooks`` as they lie in memory and in files.

    Attributes
    ----------
    data : (out, bytes per row) uint8 tensor
    levels : (out, 2^bits) float16 tensor
    bits : 1..8
    shape : (out, in)
    """

    data: Tensor
    levels: Tensor
    bits: int
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return tensor_bytes(self)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``."""
        codes = unpack_codes(self.data, self.bits, self.shape[1])
        return RowCodebooks(codes, self.levels, self.bits).dequantize().to(dtype)


def kmeans(
    weight: Tensor, *, bits: int = 4, importance: Tensor | None = None, iterations: int = 30
) -> RowCodebooks:
    """Find 2^bits levels for each row by Lloyd's algorithm, and round each weight to the nearest.

    Lowers sum_j h_j (w_j - q_j)^2 of every row: levels become the weighted means of their weights,
    weights go to the nearest level, in turns. Levels start at evenly spaced quantiles of h.

    Parameters
    ----------
    weight : (out, in) float tensor
    bits : 1..8
    importance : (in,) or (out, in) tensor of numbers >= 0, or None for ones
        h: E[x_j^2] of the inputs (``imatrix``), or squared gradients as in the paper.
    iterations : int

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, bits is out of range, or the importance has a
        wrong shape, or holds NaN, infinity or a negative number.

    References
    ----------
    Kim et al., SqueezeLLM, arXiv:2306.07629v4, section 4.1; Lloyd, Least squares quantization in
    PCM, 1982. The paper's sparse part for outliers is left out.

    Examples
    --------
    >>> q = kmeans(torch.tensor([[0.0, 0.25, 4.0, 4.5, -1.0, -2.0]]), bits=2)
    >>> q.levels.tolist(), q.codes.tolist()
    ([[-1.5, 0.0, 0.25, 4.25]], [[1, 2, 3, 3, 0, 0]])
    """
    check_weight(weight)
    if type(bits) is not int or not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}; choose 1..8")
    W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    h = check_importance(importance, W)
    levels = start_levels(W, h, 2**bits)
    for _ in range(iterations):
        levels = means(W, h, nearest(W, levels), levels)
    if levels.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError("levels do not fit float16 (65504); multiply the weight by a power of two")
    stored = levels.half()
    return RowCodebooks(nearest(W, stored.to(W.dtype)).to(torch.uint8), stored, bits)


def start_levels(W: Tensor, h: Tensor, count: int) -> Tensor:
    """Return weights of each row at the middles of ``count`` equal shares of h, ascending."""
    ordered, order = W.sort(1)
    share = h.gather(1, order).cumsum(1)
    share = share / share[:, -1:]
    wanted = (torch.arange(count).to(W) + 0.5) / count
    at = torch.searchsorted(share, wanted.expand(len(W), -1).contiguous())
    return ordered.gather(1, at.clamp(max=W.shape[1] - 1))


def nearest(W: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest of each row's ascending levels, the lower at a midpoint."""
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), W.contiguous())


def means(W: Tensor, h: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """Return the weighted mean of each level's weights; a level without any stays."""
    total = torch.zeros_like(levels).scatter_add(1, codes, h)
    sums = torch.zeros_like(levels).scatter_add(1, codes, h * W)
    moved = torch.where(total > 0, sums / total, levels)
    return moved.sort(1).values  # rounding may swap two levels that are equal


def check_importance(importance: Tensor | None, W: Tensor) -> Tensor:
    """Return h as (out, in), each row scaled to a mean of 1, or raise a ValueError."""
    if importance is None:
        return torch.ones_like(W)
    if importance.shape not in (W.shape, W.shape[1:]):
        raise ValueError(
            f"importance has shape {tuple(importance.shape)}; pass {tuple(W.shape)} or "
            f"({W.shape[1]},) numbers"
        )
    if not (torch.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("importance holds NaN, infinity or a negative number; collect it again")
    h = importance.to(W).expand_as(W)
    mean = h.mean(1, keepdim=True)
    return torch.where(mean > 0, h / mean, 1.0)


@dataclass(frozen=True)
class KMeans:
    """A table of levels for each row, by k-means.

    It brings its own grid: pass None where other methods take a scheme.

    Parameters
    ----------
    bits : 1..8
    weighted : bool
        Weigh errors by E[x_j^2] of the inputs; needs calibration data.
    iterations : int

    Raises
    ------
    ValueError
        If bits is out of range.
    """

    bits: int = 4
    weighted: bool = True
    iterations: int = 30
    own_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse widths without a table."""
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; choose 1..8")

    def quantize_block(self, block: Block, scheme: None = None) -> dict[str, RowCodebooks]:
        """Fit and round each linear of the block."""
        power = block.collect(imatrix) if self.weighted else {}
        return {
            name: kmeans(
                linear.weight,
                bits=self.bits,
                importance=power.get(name),
                iterations=self.iterations,
            )
            for name, linear in block.linears.items()
        }


# ---------------------------------------------------------------- eight weights at once


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class LatticeTensor:
    """A weight matrix as points of E8, 16 bits for eight weights, and a scale a row.

    Attributes
    ----------
    codes : (out, in / 8) int32 tensor
        As ``encode_e8`` writes them.
    scale : (out, 1) float16 tensor
    notes : tuple of str
    """

    codes: Tensor
    scale: Tensor
    notes: tuple[str, ...] = ()
    scheme: ClassVar[str] = "E8 2"

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the weight."""
        return torch.Size((len(self.codes), SIZE * self.codes.shape[1]))

    def dequantize(self) -> Tensor:
        """Return the (out, in) float32 weight that the codes stand for."""
        return decode_e8(self.codes).flatten(1) * self.scale.float()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        return 2 * self.codes.numel() + 2 * self.scale.numel()

    @property
    def bits_per_weight(self) -> float:
        """Stored bits divided by weights."""
        return 8 * self.nbytes / (SIZE * self.codes.numel())

    def pack(self) -> PackedLattice:
        """Return the storage form: each code as two bytes, low byte first."""
        data = torch.stack([self.codes & 255, self.codes >> 8], -1).flatten(1).to(torch.uint8)
        return PackedLattice(data, self.scale, self.shape)


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class PackedLattice:
    """A ``LatticeTensor`` as it lies in memory and in files.

    Attributes
    ----------
    data : (out, in / 4) uint8 tensor
    scale : (out, 1) float16 tensor
    shape : (out, in)
    """

    data: Tensor
    scale: Tensor
    shape: torch.Size

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return tensor_bytes(self)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the (out, in) weight in ``dtype``."""
        low, high = self.data.int().unflatten(1, (-1, 2)).unbind(-1)
        return LatticeTensor(low | high << 8, self.scale).dequantize().to(dtype)


def lattice(weight: Tensor) -> LatticeTensor:
    """Round eight neighboring weights at once to the nearest of 65,536 points of E8.

    Each row is brought to the standard deviation that the points are made for; then the scale that
    suits the chosen points best, <w, v> / <v, v>, is stored.

    Parameters
    ----------
    weight : (out, in) float tensor
        8 divides ``in``. Computed in float32.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, or 8 does not divide ``in``.

    References
    ----------
    Tseng et al., QuIP#, arXiv:2402.04396v2. There a random Hadamard rotation makes weights normal
    first, and rounding repairs earlier errors as in GPTQ; both are left out here.

    Examples
    --------
    >>> lattice(torch.randn(4, 64)).bits_per_weight
    2.25
    """
    check_weight(weight)
    if weight.shape[1] % SIZE:
        raise ValueError(f"in_features {weight.shape[1]} is not a multiple of 8, the size of E8")
    W = weight.detach().float()
    deviation = W.square().mean(1, keepdim=True).sqrt()
    scale = torch.where(deviation == 0, 1.0, deviation) / SPREAD
    codes = encode_e8((W / scale).reshape(-1, SIZE)).view(len(W), -1)
    points = decode_e8(codes).flatten(1)
    scale = (W * points).sum(1, keepdim=True) / points.square().sum(1, keepdim=True)
    if scale.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError("scales do not fit float16 (65504); multiply the weight by a power of two")
    return LatticeTensor(codes, scale.half())


@dataclass(frozen=True)
class Lattice:
    """Eight weights at once on the lattice E8, 2 bits a weight.

    It brings its own grid: pass None where other methods take a scheme.
    """

    own_grid: ClassVar[bool] = True

    def quantize_block(self, block: Block, scheme: None = None) -> dict[str, LatticeTensor]:
        """Round each linear of the block; no calibration data is asked for."""
        return {name: lattice(linear.weight) for name, linear in block.linears.items()}
