"""Fake quantization: round in the forward pass, and let gradients through as if nothing happened.

Scales are float16 numbers with all eleven significant bits, in training already. What is trained is
then exactly what is stored, and a product of two scales and an int32 sum fits float64: in float64
the fake-quantized model computes without any rounding of its own, as integers do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_SCALE = 2.0**-14  # below it a float16 loses significant bits
LARGEST_SCALE = 65504.0
SIGNIFICANT = 2048  # 2^11: a float16 has eleven significant bits


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Round to the nearest level of a grid: scale * (code - zero_point), half to even.

    Its gradients are those of LSQ, with v = x / scale and n, p the least and greatest
    code - zero_point::

        d/dx      1             if n <= v <= p, else 0     (straight through, with its mask)
        d/dscale  round(v) - v  if n <= v <= p, else n or p

    Parameters
    ----------
    x : (...) float tensor
    scale, zero_point : tensors that broadcast to x
    bits : int
        Codes are 0 .. 2^bits - 1.

    References
    ----------
    Bengio et al., arXiv:1308.3432; Esser et al., LSQ, arXiv:1902.08153v3, Eq. 1 to 5. LSQ counts a
    value exactly on the edge as outside; here it is inside, so that the extreme weight of a min-max
    grid still learns.

    Examples
    --------
    >>> x = torch.tensor([0.14, 0.26, 9.0], requires_grad=True)
    >>> scale = torch.tensor(0.125, requires_grad=True)
    >>> y = fake_quantize(x, scale, torch.tensor(0.0), bits=4)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist(), round(scale.grad.item(), 4)
    ([0.125, 0.25, 1.875], [1.0, 1.0, 0.0], 14.8)
    """
    return FakeQuantize.apply(x, scale, zero_point, bits)  # type: ignore[no-any-return]


class FakeQuantize(torch.autograd.Function):
    """The two passes of ``fake_quantize``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
        """Clip, round, and keep what the gradients need."""
        v = x / scale
        low, high = 0.0 - zero_point, 2**bits - 1 - zero_point
        level = v.clamp(low, high).round()
        ctx.save_for_backward(v, level, scale, (low <= v) & (v <= high))
        return level * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient where nothing was clipped; give the scale Eq. 3."""
        (gradient,) = gradients
        v, level, scale, inside = ctx.saved_tensors
        to_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, level - v, level)
            to_scale = (gradient * slope).sum_to_size(scale.shape)
        return gradient * inside, to_scale, None, None


def stored_scale(scale: Tensor, gradient_share: float = 1.0) -> Tensor:
    """Round scales away from zero to float16's eleven significant bits, at least 2^-14 in size.

    Away from zero, so that a grid still reaches the extreme value it was made for. The gradient
    passes unchanged, times ``gradient_share``.

    Raises
    ------
    ValueError
        If a scale is not finite or does not fit float16 (above 65,504).

    Examples
    --------
    >>> stored_scale(torch.tensor([0.1, -1e-9])).tolist()
    [0.10003662109375, -6.103515625e-05]
    """
    return StoredScale.apply(scale, gradient_share)  # type: ignore[no-any-return]


class StoredScale(torch.autograd.Function):
    """The two passes of ``stored_scale``."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, gradient_share: float) -> Tensor:
        """Round the significand up."""
        ctx.gradient_share = gradient_share
        if not (scale.abs() <= LARGEST_SCALE).all():  # also NaN
            raise ValueError(
                f"scale {scale.abs().max().item():.3g} does not fit float16 (65504); look for a "
                "diverged weight, or lower the learning rate"
            )
        significand, exponent = torch.frexp(scale.abs().clamp(min=SMALLEST_SCALE))
        size = torch.ldexp(torch.ceil(significand * SIGNIFICANT), exponent - 11)
        return torch.copysign(size, scale).clamp(-LARGEST_SCALE, LARGEST_SCALE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient on."""
        return gradients[0] * ctx.gradient_share, None


class Quantizer(nn.Module):
    """A grid, fixed or learned, between a layer and the numbers that it sees."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if type(bits) is not int or not 2 <= bits <= 8:
            raise ValueError(f"bits is {bits!r}; choose 2..8")
        self.bits = bits

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for ``x``, scales as they are stored."""
        raise TypeError(f"{type(self).__name__} defines no grid")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, differentiable."""
        scale, zero_point = self.grid(x)
        return fake_quantize(x, scale.to(x.dtype), zero_point.to(x.dtype), self.bits)

    def penalty(self) -> Tensor:
        """Return what training adds to its loss, times a small number: nothing, unless learned."""
        return torch.zeros(())
