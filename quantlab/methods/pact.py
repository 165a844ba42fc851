"""PACT: learn where an activation after a ReLU is clipped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlab.fake_quant import Quantizer, stored_scale


class LearnedClip(Quantizer):
    """Clip to 0 .. alpha and round to 2^bits levels; alpha is a parameter.

    y = clip(x, 0, alpha), rounded to multiples of alpha / (2^bits - 1). Its gradients::

        d/dx      1 if 0 <= x <= alpha, else 0
        d/dalpha  1 if x > alpha, else 0

    Parameters
    ----------
    alpha : float
        Where the clip starts, for instance a calibrated maximum.
    bits : 2..8

    Notes
    -----
    LSQ's gradient for a step would also count the rounding error of every value inside; PACT leaves
    it out: alpha is pulled up by clipped values only, and down by its decay (``penalty``).

    References
    ----------
    Choi et al., PACT, arXiv:1805.06085v2, Eq. 1 to 3.

    Examples
    --------
    >>> import torch
    >>> clip = LearnedClip(1.5, bits=2)
    >>> clip(torch.tensor([-1.0, 0.7, 4.0])).tolist()
    [0.0, 0.5, 1.5]
    """

    def __init__(self, alpha: float, bits: int) -> None:
        super().__init__(bits)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha!r}; PACT needs a positive clip: a ReLU before it")
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha / (2^bits - 1) as stored, and zero point 0, without gradient."""
        scale = stored_scale(self.alpha.detach().double().clamp(min=0) / (2**self.bits - 1))
        return scale, torch.zeros_like(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Clip at alpha, so that alpha gets the gradient of what is clipped, and round."""
        alpha = self.alpha.to(x.dtype)
        return super().forward(torch.where(x > alpha, alpha, x))

    def penalty(self) -> Tensor:
        """Return alpha squared, to be added to a loss times a small weight."""
        return self.alpha.square()
