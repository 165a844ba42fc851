"""Small floating-point formats and codebooks: list every value, encode to it, decode from it.

A code of a float is its bit pattern, read as an integer: sign, then exponent, then mantissa.

    1 0 0 1 1 0    code 38 of FP6_E3M2 (bias 3): s = 1, e = 1, m = 2, so -2^-2 * 1.5 = -0.375
    s e e e m m    value = (-1)^s * 2^(e - bias) * (1 + m / 4)   if e > 0
                         = (-1)^s * 2^(1 - bias) * m / 4         if e = 0: zero, the subnormals

Without the sign bit, codes rise with the values they stand for, also from one exponent to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

Code = TypeVar("Code", int, Tensor)


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of at most 16 bits.

    Parameters
    ----------
    name : str
    exponent_bits, mantissa_bits : int
    bias : int
        Subtracted from the exponent field.
    special : "none", "nan" or "ieee"
        none: every code is a finite number (FP6, FP4).
        nan: only the code with all bits 1, under either sign, is not a number (FP8 E4M3, E8M0).
        ieee: the largest exponent means infinity (mantissa 0) or NaN.
    signed : bool
        False is for a scale such as E8M0: no sign, no zero and no subnormals.

    Raises
    ------
    ValueError
        If the format has no exponent, or takes more than 16 bits.

    References
    ----------
    OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats (MX) Specification 1.0,
    summarized in Rouhani et al., arXiv:2310.10537.

    Examples
    --------
    >>> FP4_E2M1.values()[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> FP8_E4M3.max, FP8_E4M3.smallest
    (448.0, 0.001953125)
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: Literal["none", "nan", "ieee"] = "none"
    signed: bool = True

    def __post_init__(self) -> None:
        """Refuse formats that this file's rules do not describe."""
        fewest = 1 if self.special == "ieee" else 0  # infinity and NaN need two mantissas
        if self.exponent_bits < 1 or self.mantissa_bits < fewest or self.bits > 16:
            raise ValueError(
                f"{self.name} has {self.exponent_bits} exponent and {self.mantissa_bits} mantissa "
                f"bits; choose at least 1 and {fewest}, and at most 16 bits with the sign"
            )

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def max_code(self) -> int:
        """Code of the largest finite value. The next code is infinity (ieee) or NaN (nan)."""
        if self.special == "ieee":
            return (2**self.exponent_bits - 1) * 2**self.mantissa_bits - 1
        return self.nan_code - (self.special == "nan")

    @property
    def nan_code(self) -> int:
        """The code with all bits 1 but the sign: NaN, unless ``special`` is "none"."""
        return 2 ** (self.exponent_bits + self.mantissa_bits) - 1

    @property
    def max(self) -> float:
        """The largest finite value."""
        return self.values()[self.max_code].item()

    @property
    def smallest(self) -> float:
        """The smallest positive value, subnormal where there are subnormals."""
        return self.values()[int(self.signed)].item()

    def fields(self, code: Code) -> tuple[Code, Code, Code]:
        """Return the (sign, exponent, mantissa) fields of a code, or of a tensor of codes.

        Examples
        --------
        >>> FP8_E4M3.fields(0b1_0111_100)
        (1, 7, 4)
        """
        mantissa = code & (2**self.mantissa_bits - 1)
        exponent = (code >> self.mantissa_bits) & (2**self.exponent_bits - 1)
        return code >> (self.exponent_bits + self.mantissa_bits), exponent, mantissa

    def values(self) -> Tensor:
        """Return what each code stands for, as (2**bits,) float64, from the fields of its bits."""
        sign, exponent, mantissa = self.fields(torch.arange(2**self.bits))
        fraction = mantissa.double() / 2**self.mantissa_bits
        normal = (exponent > 0) | (not self.signed)
        value = torch.where(
            normal,
            power_of_two(exponent - self.bias) * (1 + fraction),
            2.0 ** (1 - self.bias) * fraction,
        )
        if self.special == "ieee":
            top = exponent == 2**self.exponent_bits - 1
            value[top] = torch.where(mantissa[top] == 0, torch.inf, torch.nan).double()
        elif self.special == "nan":
            value[self.nan_code :: self.nan_code + 1] = torch.nan
        return torch.where(sign == 1, -value, value)

    def encode(self, x: Tensor, saturate: bool = True) -> Tensor:
        """Round to the nearest value, a tie to the even significand (even code), as IEEE 754 does.

        Parameters
        ----------
        x : float tensor
            Each value is taken exactly; negative zero keeps its sign.
        saturate : bool
            True: what rounds beyond ``max``, infinity too, becomes ``max``.
            False: it becomes infinity (ieee) or NaN (nan). torch casts so, but since 2.12 its
            float8_e4m3fn saturates (pytorch/pytorch#178817).

        Returns
        -------
        uint8 tensor of x's shape, int32 above 8 bits.
            NaN becomes NaN. Without a sign (E8M0), 0 becomes ``smallest``.

        Raises
        ------
        ValueError
            If x holds what the format cannot say: NaN, a negative number, or without
            ``saturate`` an overflow.

        Examples
        --------
        >>> x = torch.tensor([0.3, 2.5, -9.0])
        >>> FP4_E2M1.decode(FP4_E2M1.encode(x)).tolist()
        [0.5, 2.0, -6.0]
        """
        unknown = torch.isnan(x)
        if self.special == "none":
            refuse(x, unknown, f"{self.name} has no NaN")
        if not self.signed:
            refuse(x, x < 0, f"{self.name} has no sign")
        code = self._encode_magnitude(x.double().abs())
        over = code > self.max_code
        if self.special == "none" and not saturate:
            refuse(x, over, f"{self.name} has no infinity; pass saturate=True for {self.max:g}")
        code[over] = self.max_code if saturate else self.max_code + 1
        code[unknown] = self.nan_code
        if self.signed:
            code += torch.signbit(x) * 2 ** (self.bits - 1)
        return code.to(torch.uint8 if self.bits <= 8 else torch.int32)

    def _encode_magnitude(self, magnitude: Tensor) -> Tensor:
        """Return codes without sign, as if exponents had no upper end; 0 for NaN."""
        beyond = 2 * self.max  # certain to overflow, and finite
        magnitude = magnitude.nan_to_num(nan=0.0, posinf=beyond).clamp(max=beyond)
        if not self.signed:
            magnitude = magnitude.clamp(min=self.smallest)
        lowest = (1 if self.signed else 0) - self.bias  # exponent of zero and the subnormals
        exponent = torch.frexp(magnitude.clamp(min=2.0**lowest)).exponent.long() - 1
        # Division by a power of two is exact, and torch.round takes halves to even.
        steps = torch.round(magnitude / power_of_two(exponent - self.mantissa_bits)).long()
        # steps holds the leading 1 of normal numbers, which adds 1 to the exponent field;
        # steps rounded up to 2**(mantissa_bits + 1) carry into the field by the same sum.
        return (exponent + self.bias - 1) * 2**self.mantissa_bits + steps

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of codes in ``dtype``; exact in float32 for every format here.

        Raises
        ------
        ValueError
            If a code is negative, or has more bits than the format.
        """
        return look_up(self.values(), codes, self.name).to(dtype)


@dataclass(frozen=True)
class Codebook:
    """Levels in a table, whatever they are; a code is an index into it.

    Parameters
    ----------
    name : str
    levels : 2..256 finite numbers, ascending

    Raises
    ------
    ValueError
        If there are too few or too many levels, or they do not ascend.

    Examples
    --------
    >>> thirds = Codebook("thirds", (-1.0, 0.0, 1.0))
    >>> thirds.encode(torch.tensor([-0.7, 0.5, 0.6])).tolist()
    [0, 1, 2]
    """

    name: str
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse tables that a search cannot use."""
        if not 2 <= len(self.levels) <= 256:
            raise ValueError(f"{self.name} has {len(self.levels)} levels; pass 2 to 256")
        steps = self.values().diff()
        if not (steps > 0).all() or not torch.isfinite(steps).all():
            raise ValueError(f"the levels of {self.name} do not ascend; pass sorted finite numbers")

    def values(self) -> Tensor:
        """Return the levels as a float64 tensor."""
        return torch.tensor(self.levels, dtype=torch.float64)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of the nearest level, the lower one if x meets a midpoint.

        Midpoints are rounded to x's precision (at least float32), as bitsandbytes does: its codes
        are met exactly. Numbers beyond the table take its first or last level.

        Parameters
        ----------
        x : float tensor

        Returns
        -------
        uint8 tensor of x's shape.

        Raises
        ------
        ValueError
            If x holds NaN.
        """
        refuse(x, torch.isnan(x), f"{self.name} has no NaN")
        levels = self.values()
        dtype = torch.promote_types(x.dtype, torch.float32)
        midpoints = ((levels[1:] + levels[:-1]) / 2).to(x.device, dtype)
        return torch.searchsorted(midpoints, x.to(dtype).contiguous()).to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the levels of codes in ``dtype``.

        Raises
        ------
        ValueError
            If a code is negative or beyond the table.
        """
        return look_up(self.values(), codes, self.name).to(dtype)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent as float64, written bit by bit: exact from -1022 to 1023."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def look_up(values: Tensor, codes: Tensor, name: str) -> Tensor:
    """Return values[codes], or say which code is not in the table."""
    outside = (codes < 0) | (codes > len(values) - 1)
    if outside.any():
        raise ValueError(
            f"code {int(codes[outside][0])} is not in {name}; its codes are 0 .. {len(values) - 1}"
        )
    return values.to(codes.device)[codes.long()]


def refuse(x: Tensor, bad: Tensor, reason: str) -> None:
    """Raise a ValueError that gives the reason and the first bad value of x, if there is one."""
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{reason}; x holds {x[first].item():g} at {list(first)}")


def nf4_levels() -> Tensor:
    """Derive the 16 levels of NF4 from the quantiles of the normal distribution, as float64.

    Evenly spaced probabilities give each level about the same share of Gaussian weights. Zero must
    be a level, so the two sides are made apart: 8 levels above it and 7 below, from the outermost
    probability p down to 1/2, divided by the largest. The quantile of 1 is infinite; p is the mean
    of two ways to stop half a step short of it, 1 - 1/32 (16 levels) and 1 - 1/30 (15 levels):
    p = 929/960 = 0.9677083, the constant ``offset`` of bitsandbytes.

    References
    ----------
    Dettmers et al., QLoRA, arXiv:2305.14314v1, section 3 and appendix E.

    Examples
    --------
    >>> nf4_levels()[[0, 1, 7, 14, 15]].round(decimals=4).tolist()
    [-1.0, -0.6962, 0.0, 0.723, 1.0]
    """
    p = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    above = torch.special.ndtri(torch.linspace(p, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(p, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return levels / levels.max()


FP8_E4M3 = FloatFormat("FP8_E4M3", 4, 3, bias=7, special="nan")
FP8_E5M2 = FloatFormat("FP8_E5M2", 5, 2, bias=15, special="ieee")
FP6_E2M3 = FloatFormat("FP6_E2M3", 2, 3, bias=1)
FP6_E3M2 = FloatFormat("FP6_E3M2", 3, 2, bias=3)
FP4_E2M1 = FloatFormat("FP4_E2M1", 2, 1, bias=1)
E8M0 = FloatFormat("E8M0", 8, 0, bias=127, special="nan", signed=False)
BF16 = FloatFormat("BF16", 8, 7, bias=127, special="ieee")
FP16 = FloatFormat("FP16", 5, 10, bias=15, special="ieee")

# bitsandbytes' table, QLoRA appendix E: float32 numbers, so the derivation above meets them
# only to float32 precision and these are the ones that files mean.
NF4 = Codebook(
    "NF4",
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
