"""Round weights to small floats: FP8, FP6, FP4 under float scales, MX formats, and NVFP4.

A small float has its own exponent, so its levels are dense near zero and sparse far from it; the
scale only has to bring the largest weight near the format's largest number.

    format   code        scale                                      for       bits per weight
    FP8      E4M3, E5M2  float32, largest weight / format's max     a tile    8 + 32 / tile
    MXFP8    E4M3, E5M2  E8M0: a power of two                       32        8.25
    MXFP6    E2M3, E3M2  E8M0                                       32        6.25
    MXFP4    E2M1        E8M0                                       32        4.25
    NVFP4    E2M1        E4M3, times one float32 for the matrix     16        4.5

References
----------
Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433. OCP Microscaling Formats (MX)
Specification 1.0, section 6.3; Rouhani et al., arXiv:2310.10537. NVFP4: NVIDIA, Pretraining Large
Language Models with NVFP4, arXiv:2509.25149. Blocks of 128 x 128: DeepSeek-V3, arXiv:2412.19437.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from quantlab.block import Block
from quantlab.codebook_tensor import CodebookTensor, Scales, spread
from quantlab.floats import (
    E8M0,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FloatFormat,
    power_of_two,
)
from quantlab.tensor import check_weight

Granularity = Literal["tensor", "row", "block"]
Rule = Literal["floor", "even", "ceil"]
PLAIN = {f.name: f for f in (FP8_E4M3, FP8_E5M2, FP6_E2M3, FP6_E3M2, FP4_E2M1)}
MX = {
    "MXFP8_E4M3": FP8_E4M3,
    "MXFP8_E5M2": FP8_E5M2,
    "MXFP6_E2M3": FP6_E2M3,
    "MXFP6_E3M2": FP6_E3M2,
    "MXFP4": FP4_E2M1,
}
MX_BLOCK, NV_BLOCK, SQUARE = 32, 16, 128


def float_rtn(
    weight: Tensor, element: FloatFormat, *, granularity: Granularity = "block"
) -> CodebookTensor:
    """Round to a small float under a float32 scale, the largest weight on the largest number.

    Parameters
    ----------
    weight : (out, in) float tensor
    element : FloatFormat
        For instance ``FP8_E4M3``.
    granularity : "tensor", "row" or "block"
        What shares a scale; a block is 128 x 128 weights, cut off at the matrix's edge.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, or ``granularity`` is another word.

    Examples
    --------
    >>> q = float_rtn(torch.tensor([[448.0, -1.06, 0.3]]), FP8_E4M3, granularity="row")
    >>> q.dequantize()[0].tolist(), q.scale.item()
    ([448.0, -1.0, 0.3125], 1.0)
    """
    check_weight(weight)
    rows, columns = weight.shape
    tiles = {"tensor": (rows, columns), "row": (1, columns), "block": (SQUARE, SQUARE)}
    if granularity not in tiles:
        raise ValueError(f"granularity is {granularity!r}; choose 'tensor', 'row' or 'block'")
    tile = tiles[granularity]
    scale = (tile_maxima(weight, tile) / element.max).float()
    scales = Scales(torch.where(scale == 0, 1.0, scale))
    return encoded(weight, element, scales, tile, f"{element.name} {granularity}")


def mx(weight: Tensor, element: FloatFormat, *, rule: Rule = "floor") -> CodebookTensor:
    """Round to a microscaling (MX) format: blocks of 32 weights under a power of two.

    Parameters
    ----------
    weight : (out, in) float tensor
        32 divides ``in``.
    element : FloatFormat
        FP8_E4M3, FP8_E5M2, FP6_E2M3, FP6_E3M2 or FP4_E2M1.
    rule : "floor", "even" or "ceil"
        How the exponent follows from the largest weight a of a block; E is the exponent of the
        format's largest number. floor: floor(log2 a) - E, as the specification says: what lies
        above the largest number is clipped. ceil: the least exponent that clips nothing. even:
        floor, after a has been rounded to the format's mantissa: clips by less than half a step.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, 32 does not divide ``in``, or ``rule`` is
        another word.

    References
    ----------
    OCP MX Specification 1.0, sections 5.1 and 6.3.

    Examples
    --------
    >>> q = mx(torch.tensor([[7.9] + [0.5] * 31]), FP4_E2M1)
    >>> q.dequantize()[0, :2].tolist()
    [6.0, 0.5]
    """
    name = next((key for key, value in MX.items() if value == element), f"MX{element.name}")
    check_weight(weight)
    check_blocks(weight, MX_BLOCK, name)
    tile = (1, MX_BLOCK)
    exponent = shared_exponent(tile_maxima(weight, tile), element, rule)
    codes = (exponent + E8M0.bias).clamp(0, E8M0.max_code).to(torch.uint8)
    suffix = "" if rule == "floor" else f" {rule}"
    return encoded(weight, element, Scales(codes, E8M0), tile, name + suffix)


def shared_exponent(largest: Tensor, element: FloatFormat, rule: Rule = "floor") -> Tensor:
    """Return the exponent of an MX block's scale from its largest absolute weight, as ``mx`` says.

    Examples
    --------
    >>> shared_exponent(torch.tensor([4.0, 7.9, 8.0]), FP4_E2M1).tolist()
    [0, 0, 1]
    >>> shared_exponent(torch.tensor([4.0, 7.9, 8.0]), FP4_E2M1, "ceil").tolist()
    [0, 1, 1]
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; choose 'floor', 'even' or 'ceil'")
    a, mantissa_bits = largest.double(), element.mantissa_bits
    top = floor_log2(torch.tensor(element.max))
    if rule == "even":
        a = torch.ldexp(torch.round(torch.ldexp(a, mantissa_bits - floor_log2(a))), floor_log2(a))
        return floor_log2(a) - mantissa_bits - top
    exponent = floor_log2(a) - top
    if rule == "ceil":
        exponent += (a > element.max * power_of_two(exponent)).long()
    return exponent


def floor_log2(x: Tensor) -> Tensor:
    """Return floor(log2 x) of x >= 0, exactly; that of 0 is taken as -1000, below every scale."""
    return torch.where(x > 0, torch.frexp(x).exponent.long() - 1, -1000)


def nvfp4(weight: Tensor, *, two_levels: bool = True) -> CodebookTensor:
    """Round to NVFP4: blocks of 16 weights under an E4M3 scale, under a float32 for the matrix.

    The second level puts the largest block's scale on E4M3's largest number, 448:
    factor = max |W| / (6 * 448), s = E4M3(max of block / (6 factor)), w = s * factor * value.

    Parameters
    ----------
    weight : (out, in) float tensor
        16 divides ``in``.
    two_levels : bool
        False leaves the factor out, as in GGUF's NVFP4 blocks: then weights beyond 6 * 448 are
        clipped, and blocks below 6 * 2^-10 become zero.

    Raises
    ------
    ValueError
        If the weight is not a finite float matrix, or 16 does not divide ``in``.

    References
    ----------
    NVIDIA, arXiv:2509.25149v1, appendix on NVFP4 quantization.

    Examples
    --------
    >>> q = nvfp4(torch.tensor([[6.0] * 16 + [1.5] * 16]))
    >>> q.dequantize()[0, ::16].tolist(), round(q.bits_per_weight, 2)
    ([6.0, 1.5], 5.5)
    """
    check_weight(weight)
    check_blocks(weight, NV_BLOCK, "NVFP4")
    tile = (1, NV_BLOCK)
    largest = tile_maxima(weight, tile)
    factor = None
    if two_levels:
        factor = (largest.max() / (FP4_E2M1.max * FP8_E4M3.max)).float()
        factor = torch.where(factor == 0, 1.0, factor)
    wanted = largest / FP4_E2M1.max
    codes = FP8_E4M3.encode(wanted if factor is None else wanted / factor.double())
    return encoded(weight, FP4_E2M1, Scales(codes, FP8_E4M3, factor), tile, "NVFP4")


def encoded(
    weight: Tensor, element: FloatFormat, scales: Scales, tile: tuple[int, int], name: str
) -> CodebookTensor:
    """Round weight / scale to the nearest code; a block whose scale is 0 gets zeros."""
    scale = spread(scales.values().double(), tile, weight.shape)
    ratio = torch.where(scale == 0, 0.0, weight.detach().double() / scale)
    return CodebookTensor(element.encode(ratio), scales, element, tile, name)


def tile_maxima(weight: Tensor, tile: tuple[int, int]) -> Tensor:
    """Return the largest absolute weight of each tile, (tile rows, tile columns) float64."""
    sizes = weight.detach().double().abs()
    rows = torch.stack([part.amax(0) for part in sizes.split(tile[0])])
    return torch.stack([part.amax(1) for part in rows.split(tile[1], 1)], 1)


def check_blocks(weight: Tensor, size: int, name: str) -> None:
    """Raise a ValueError unless whole blocks fill the rows."""
    if weight.shape[1] % size:
        raise ValueError(
            f"in_features {weight.shape[1]} is not a multiple of {size}, the block of {name}; "
            "choose a format with one scale a row, such as FP8_E4M3"
        )


@dataclass(frozen=True)
class FloatRTN:
    """Round to nearest on a floating-point format, layer by layer.

    It brings its own grid: pass None where other methods take a scheme.

    Parameters
    ----------
    format : str
        FP8_E4M3, FP8_E5M2, FP6_E2M3, FP6_E3M2 or FP4_E2M1 under float32 scales; MXFP8_E4M3,
        MXFP8_E5M2, MXFP6_E2M3, MXFP6_E3M2 or MXFP4; NVFP4.
    granularity : "tensor", "row" or "block", or None
        Of float32 scales; None is "block", 128 x 128 weights. The other formats fix theirs.
    rule : "floor", "even" or "ceil"
        Of the power of two of MX formats, as in ``mx``.

    Raises
    ------
    ValueError
        If the format is unknown, or does not have the given option.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> ql.quantize_(model, FloatRTN("MXFP4"), None).bits_per_weight
    4.25
    """

    format: str = "MXFP4"
    granularity: Granularity | None = None
    rule: Rule = "floor"
    own_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse unknown formats, and options that would be ignored."""
        if self.format not in (*PLAIN, *MX, "NVFP4"):
            raise ValueError(
                f"format is {self.format!r}; choose {', '.join([*PLAIN, *MX])} or NVFP4"
            )
        if self.granularity is not None and self.format not in PLAIN:
            raise ValueError(f"{self.format} fixes its blocks; leave granularity out")
        if self.rule != "floor" and self.format not in MX:
            raise ValueError(f"{self.format} has no power of two to choose; leave rule out")

    def quantize(self, weight: Tensor) -> CodebookTensor:
        """Round one matrix (out, in)."""
        if self.format == "NVFP4":
            return nvfp4(weight)
        if self.format in MX:
            return mx(weight, MX[self.format], rule=self.rule)
        return float_rtn(weight, PLAIN[self.format], granularity=self.granularity or "block")

    def quantize_block(self, block: Block, scheme: None = None) -> dict[str, CodebookTensor]:
        """Round each linear of the block; no calibration data is asked for."""
        return {name: self.quantize(linear.weight) for name, linear in block.linears.items()}
