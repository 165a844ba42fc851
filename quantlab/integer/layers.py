"""The layers of a converted model: uint8 codes in, uint8 codes out, integers in between.

sums  = sum (code_x - zero_x) (code_w - zero_w) + bias            int32
code  = clip(round(sums * scale_x scale_w / scale_y) + zero_y)    one whole-number division
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.integer.codes import Codes, Grid, common, ratios, requantize
from quantlab.kernels.reference import integer_matmul
from quantlab.packing import unpack_codes
from quantlab.tensor import PackedTensor

INT32 = 2**31 - 1


class IntegerModule(nn.Module):
    """A module that takes codes on known grids and hands codes on."""

    def __init__(self, sources: tuple[Grid, ...], grid: Grid) -> None:
        super().__init__()
        self.sources, self.grid = sources, grid

    def check(self, *inputs: Any) -> None:
        """Raise unless the inputs are codes on the grids this module was converted for."""
        for x, grid in zip(inputs, self.sources, strict=True):
            if not isinstance(x, Codes):
                raise TypeError(
                    f"{type(self).__name__} got a {type(x).__name__}, not integer codes; "
                    "put a ql.QuantStub() where the model's integers begin"
                )
            if x.grid != grid:
                raise ValueError(f"codes lie on {x.grid}, converted for {grid}; convert again")


class IntegerInput(IntegerModule):
    """Rounds a float tensor to codes: the last floating-point operation."""

    def __init__(self, grid: Grid) -> None:
        super().__init__((), grid)

    def forward(self, x: Tensor) -> Codes:
        """Return codes of ``x``, rounded in float64."""
        codes = torch.round(x.double() / self.grid.scale) + self.grid.zero_point
        return Codes(codes.clamp(0, self.grid.top).to(torch.uint8), self.grid)


class IntegerOutput(nn.Module):
    """Turns codes into a float32 tensor."""

    def forward(self, x: Codes) -> Tensor:
        """Return what the codes stand for."""
        if not isinstance(x, Codes):
            raise TypeError("ql.DequantStub got a float tensor; nothing before it is quantized")
        return x.real()


class IntegerAdd(IntegerModule):
    """Adds codes of two grids."""

    def forward(self, left: Codes, right: Codes) -> Codes:
        """Bring both to one denominator, add, divide once."""
        self.check(left, right)
        shares = [Fraction(source.scale) / Fraction(self.grid.scale) for source in self.sources]
        (a, b), denominator = common(shares)
        sums = a * left.shifted() + b * right.shifted()
        one, denominators = ratios([Fraction(1, denominator)])
        return Codes(requantize(sums, one, denominators, self.grid), self.grid)


class IntegerPool(IntegerModule):
    """Averages over all positions of a channel."""

    def forward(self, x: Codes) -> Codes:
        """Map (samples, channels, height, width) to (samples, channels, 1, 1)."""
        self.check(x)
        area = x.shape[-2] * x.shape[-1]
        share = Fraction(self.sources[0].scale) / (Fraction(self.grid.scale) * area)
        sums = x.shifted().sum((-2, -1), keepdim=True)
        return Codes(requantize(sums, *ratios([share]), self.grid), self.grid)


class IntegerReLU(nn.Module):
    """Lifts codes below the zero point to it."""

    def forward(self, x: Codes) -> Codes:
        """Return codes on the same grid."""
        return Codes(x.codes.clamp(min=x.grid.zero_point), x.grid)


class IntegerLayer(IntegerModule):
    """What a converted Conv2d and Linear have in common.

    Parameters
    ----------
    packed : PackedTensor (out, in of a group * kernel)
        Symmetric, one scale a row.
    bias : (out,) int32 tensor
        In units of input scale * weight scale.
    source, grid : Grid
        Of input and output.
    limits : (least, greatest) code
        0 and the top, narrower where a ReLU is fused.
    """

    data: Tensor
    scale: Tensor
    bias: Tensor
    numerator: Tensor
    denominator: Tensor

    def __init__(
        self,
        packed: PackedTensor,
        bias: Tensor,
        source: Grid,
        grid: Grid,
        limits: tuple[int, int],
    ) -> None:
        super().__init__((source,), grid)
        self.scheme, self.columns, self.limits = packed.scheme, packed.shape[1], limits
        self.register_buffer("data", packed.data)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("bias", bias)
        unit = Fraction(source.scale) / Fraction(grid.scale)
        top, bottom = ratios([unit * Fraction(s) for s in packed.scale[:, 0].tolist()])
        # Follow from the scales: kept for speed, not counted and not saved.
        self.register_buffer("numerator", top, persistent=False)
        self.register_buffer("denominator", bottom, persistent=False)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, float16 scales and int32 biases."""
        return sum(b.numel() * b.element_size() for b in (self.data, self.scale, self.bias))

    @property
    def packed(self) -> PackedTensor:
        """The weight in storage form."""
        shape = torch.Size((len(self.data), self.columns))
        return PackedTensor(self.data, self.scale, None, self.scheme, shape)

    def codes(self) -> Tensor:
        """Return the weight's codes, (out, columns) uint8."""
        return unpack_codes(self.data, self.scheme.bits, self.columns)

    def finish(self, sums: Tensor) -> Codes:
        """Add the bias to (..., out) sums, divide, clamp."""
        sums = sums + self.bias
        assert not sums.numel() or int(sums.abs().max()) <= INT32  # int32 suffices on hardware
        codes = requantize(sums, self.numerator, self.denominator, self.grid)
        return Codes(codes.clamp(*self.limits), self.grid)

    def extra_repr(self) -> str:
        """Name shape, width and cost in ``print(model)``."""
        return f"{len(self.data)} x {self.columns}, int{self.scheme.bits}, {self.nbytes} bytes"


class IntegerLinear(IntegerLayer):
    """A linear layer on codes."""

    def forward(self, x: Codes) -> Codes:
        """Map (..., in) to (..., out)."""
        self.check(x)
        rows = x.codes.flatten(0, -2)
        zero = x.grid.zero_point
        sums = integer_matmul(rows, zero, self.codes(), self.scheme.middle)
        return self.finish(sums.view(*x.shape[:-1], -1))


class IntegerConv2d(IntegerLayer):
    """A convolution on codes: unfold, then an integer product for each group of channels."""

    def __init__(
        self,
        conv: nn.Conv2d,
        packed: PackedTensor,
        bias: Tensor,
        source: Grid,
        grid: Grid,
        limits: tuple[int, int],
    ) -> None:
        super().__init__(packed, bias, source, grid, limits)
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(
                f"padding is {conv.padding!r}, mode {conv.padding_mode!r}; "
                "integers take zero padding given as numbers"
            )
        if conv.dilation != (1, 1):
            raise ValueError(f"dilation is {conv.dilation}; integers take 1")
        self.kernel, self.stride, self.groups = conv.kernel_size, conv.stride, conv.groups
        self.padding = (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0])

    def forward(self, x: Codes) -> Codes:
        """Map (samples, in, height, width) to (samples, out, height, width)."""
        self.check(x)
        zero = x.grid.zero_point  # what stands for a real 0, also in the padding
        windows = self.windows(F.pad(x.codes.long(), self.padding, value=zero))
        samples, _, height, width = windows.shape[:4]
        weights = self.codes().chunk(self.groups)
        parts = windows.chunk(self.groups, dim=1)
        sums = [
            integer_matmul(self.rows(part), zero, weight, self.scheme.middle)
            for part, weight in zip(parts, weights, strict=True)
        ]
        done = self.finish(torch.cat(sums, dim=1))
        codes = done.codes.view(samples, height, width, -1).movedim(-1, 1).contiguous()
        return Codes(codes, self.grid)

    def windows(self, codes: Tensor) -> Tensor:
        """View (samples, in, H, W) as (samples, in, height, width, kernel, kernel)."""
        (kh, kw), (sh, sw) = self.kernel, self.stride
        return codes.unfold(2, kh, sh).unfold(3, kw, sw)

    def rows(self, windows: Tensor) -> Tensor:
        """Lay each window out as a row: (samples * height * width, in of a group * kernel)."""
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
