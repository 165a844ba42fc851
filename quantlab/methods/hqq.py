"""HQQ: move the grid so that a few large errors count for less; looks at the weights only.

Half-quadratic quantization lowers sum |W - Q|^p, p < 1, over the grid's zero point z. Such a norm
forgives outliers, but has no useful gradient. So the error is split in two, W - Q = E + rest:
E may be large and is charged |E|^p, the rest is charged its square times beta. Each half is easy:

    codes = clip(round(W / s + z)),  Q = s (codes - z)
    E     = shrink(W - Q),           shrink(x) = sign(x) max(0, |x| - |x|^(p-1) / beta)
    z     = mean(codes - (W - E) / s)     the closed form of min over z of |W - E - Q|^2
    beta  = kappa beta

Beta has the weights' unit: with the published beta = 10 and p = 0.7 only errors above
10^(-1/1.3) = 0.17 outlive the shrinking. Language models have weights near 0.02, so E is zero in
all places there, and z is the zero point without bias: the mean error of each group becomes 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.block import Block
from quantlab.float_zero import FloatZeroTensor
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight


@dataclass(frozen=True, eq=False)  # == on tensors is a tensor: compare the fields
class Step:
    """The grids of one iteration, and what they make of the weights.

    Attributes
    ----------
    scale, zero_point : (out, groups) tensors
        The zero point is no whole number.
    codes : (out, groups, group_size) tensor
    kept : (out, groups, group_size) tensor
        E: the errors that are left alone as outliers.
    error : (out, groups) tensor
        Mean |W - Q|.
    """

    scale: Tensor
    zero_point: Tensor
    codes: Tensor
    kept: Tensor
    error: Tensor


def hqq(
    weight: Tensor,
    scheme: Scheme,
    *,
    iterations: int = 20,
    lp_norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    whole_zeros: bool = False,
) -> QuantizedTensor | FloatZeroTensor:
    """Fit each group's grid by half-quadratic splitting, then round to nearest.

    Each group keeps the grid with the least mean absolute error of all iterations, the plain
    min-max grid included. So no group's mean absolute error is above that of ``rtn``.

    Parameters
    ----------
    weight : (out, in) float tensor
        Not modified; half precision is computed in float32.
    scheme : Scheme
        Asymmetric: the zero point moves, as published. Symmetric: it cannot, so the scale does,
        by the same split: s = sum((W - E) k) / sum(k^2), k = codes - zero point.
    iterations : int
    lp_norm : p, above 0 and at most 1
    beta, kappa : floats
        Weight of the squares, and its factor from one iteration to the next.
    whole_zeros : bool
        Round the zero point of each grid before it is judged, for kernels and files that hold whole
        ones. It takes nearly all of the gain away: the zero point moves by less than a step.

    Returns
    -------
    FloatZeroTensor, or a QuantizedTensor if the scheme is symmetric or ``whole_zeros`` is set.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, ``scheme.group_size`` does not divide ``in``,
        bits is 16, or a parameter is out of range.

    References
    ----------
    Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, Mobius Labs 2023,
    and its code, github.com/mobiusml/hqq, ``optimize_weights_proximal_legacy``: all groups stop
    together there, and a range that lacks 0 is not stretched. Geman and Reynolds, 1992, for the
    split.

    Examples
    --------
    A grid with steps of 1 that contains 0 misses five weights in the same direction:

    >>> W = torch.tensor([[-1.0, 0.25, 0.25, 0.25, 0.25, 0.25, 2.0]])
    >>> q = hqq(W, Scheme(2, symmetric=False))
    >>> q.codes.tolist(), round(q.zero_point.item(), 3)
    ([[0, 1, 1, 1, 1, 1, 3]], 0.805)
    """
    check_weight(weight)
    check_parameters(scheme, iterations, lp_norm, beta, kappa)
    W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    groups = scheme.group(W)
    whole = whole_zeros or scheme.symmetric
    scale, zero_point = scheme.grid(groups)
    least = mean_error(groups, scale, zero_point, scheme)
    for step in half_quadratic(groups, scheme, iterations, lp_norm=lp_norm, beta=beta, kappa=kappa):
        zero = step.zero_point
        zero = torch.round(zero).clamp(0, scheme.levels - 1) if whole else zero
        error = mean_error(groups, step.scale, zero, scheme)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, step.scale, scale)
        zero_point = torch.where(better, zero, zero_point)
    codes = encode(groups, scale, zero_point, scheme).to(torch.uint8).flatten(-2)
    result = QuantizedTensor if whole else FloatZeroTensor
    return result(codes, scale, zero_point, scheme)


def half_quadratic(
    groups: Tensor,
    scheme: Scheme,
    iterations: int = 20,
    *,
    lp_norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
) -> Iterator[Step]:
    """Yield the grids of (out, groups, group_size) weights, iteration by iteration, as ``hqq``.

    Examples
    --------
    >>> W = torch.tensor([[[0.0, 1.1, 2.0, 9.0]]])
    >>> first, second = half_quadratic(W, Scheme(2, symmetric=False), 2)
    >>> first.scale.item(), round(second.zero_point.item(), 4)
    (3.0, 0.0002)
    """
    scale, zero_point = scheme.grid(groups)
    for _ in range(iterations):
        codes = encode(groups, scale, zero_point, scheme)
        distance = codes - zero_point[..., None]
        error = groups - scale[..., None] * distance
        kept = shrink(error, beta, lp_norm)
        yield Step(scale, zero_point, codes, kept, error.abs().mean(-1))
        target = groups - kept
        if scheme.symmetric:
            best = (target * distance).sum(-1) / distance.square().sum(-1)
            usable = torch.isfinite(best) & (best.abs() >= torch.finfo(best.dtype).tiny)
            scale = torch.where(usable, best, scale)
        else:
            zero_point = (codes - target / scale[..., None]).mean(-1)
        beta *= kappa


def shrink(x: Tensor, beta: float, lp_norm: float) -> Tensor:
    """Return sign(x) max(0, |x| - |x|^(p - 1) / beta), the step towards few large errors.

    Examples
    --------
    >>> shrink(torch.tensor([-0.1, 0.5, 2.0]), beta=10, lp_norm=0.5).tolist()
    [-0.0, 0.3585786521434784, 1.9292893409729004]
    """
    size = x.abs()
    return torch.sign(x) * (size - size.pow(lp_norm - 1) / beta).clamp(min=0)


def encode(groups: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Return clip(round(W / s + z)): unlike a Scheme's codes, also for z that are not whole."""
    codes = torch.round(groups / scale[..., None] + zero_point[..., None])
    return codes.clamp(0, scheme.levels - 1)


def mean_error(groups: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """Return the mean absolute error of each group on the given grids."""
    distance = encode(groups, scale, zero_point, scheme) - zero_point[..., None]
    return (groups - scale[..., None] * distance).abs().mean(-1)


def check_parameters(
    scheme: Scheme, iterations: int, lp_norm: float, beta: float, kappa: float
) -> None:
    """Raise a ValueError for parameters out of range."""
    if scheme.bits > 8:
        raise ValueError(f"bits is {scheme.bits}; weights take 1..8 (16 is for activations)")
    if type(iterations) is not int or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}; choose 0 or more")
    if not 0 < lp_norm <= 1:
        raise ValueError(f"lp_norm is {lp_norm}; choose above 0, at most 1")
    if not (beta > 0 and kappa >= 1):
        raise ValueError(f"beta is {beta}, kappa {kappa}; choose beta above 0 and kappa >= 1")


@dataclass(frozen=True)
class HQQ:
    """Half-quadratic quantization, layer by layer, without data.

    Parameters
    ----------
    iterations, lp_norm, beta, kappa, whole_zeros
        As in ``hqq``.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """

    iterations: int = 20
    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    whole_zeros: bool = False

    def __post_init__(self) -> None:
        """Refuse parameters that the solver cannot use."""
        check_parameters(Scheme(), self.iterations, self.lp_norm, self.beta, self.kappa)

    def quantize_block(
        self, block: Block, scheme: Scheme
    ) -> dict[str, QuantizedTensor | FloatZeroTensor]:
        """Fit and round each linear of the block; no calibration data is asked for."""
        return {
            name: hqq(
                linear.weight,
                scheme,
                iterations=self.iterations,
                lp_norm=self.lp_norm,
                beta=self.beta,
                kappa=self.kappa,
                whole_zeros=self.whole_zeros,
            )
            for name, linear in block.linears.items()
        }
