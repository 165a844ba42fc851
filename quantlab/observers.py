"""Watch the range of an activation, from batch to batch, and make a grid of it.

Two ways to remember: the extremes of all batches (min-max), or a moving average of each batch's
extremes, which forgets outliers and follows a model that is being trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlab.fake_quant import Quantizer, stored_scale
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError


class ObservedRange(Quantizer):
    """Round an activation on one asymmetric grid, whose range is observed and can be frozen.

    Parameters
    ----------
    bits : 2..8
    momentum : share of the old range that stays, or None
        None keeps the extremes of all batches. 0.9 is an exponential moving average:
        low = 0.9 low + 0.1 min(x), and high alike; the first batch sets both.

    Attributes
    ----------
    observing : bool
        Each tensor moves the range.
    rounding : bool
        Tensors are rounded; False lets them pass.

    References
    ----------
    Jacob et al., arXiv:1712.05877v1, section 3.1: moving averages, and activations left in float
    until ranges have settled.

    Examples
    --------
    >>> quantizer = ObservedRange(8, momentum=0.5)
    >>> for high in (1.0, 3.0):
    ...     _ = quantizer(torch.tensor([0.0, high]))
    >>> quantizer.freeze().range()
    (0.0, 2.0)
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, momentum: float | None = None) -> None:
        super().__init__(bits)
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; choose 0 <= momentum < 1, or None")
        self.momentum = momentum
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))
        self.observing, self.rounding = True, False
        self.kept: tuple[Tensor, Tensor] | None = None  # the grid of a frozen range

    def observe(self) -> ObservedRange:
        """Forget the range, and watch without rounding."""
        self.low.fill_(float("inf"))
        self.high.fill_(float("-inf"))
        self.observing, self.rounding, self.kept = True, False, None
        return self

    def follow(self) -> ObservedRange:
        """Let the range move on while tensors are rounded: training before the freeze."""
        self.observing, self.rounding, self.kept = True, True, None
        return self

    def freeze(self) -> ObservedRange:
        """Keep the range as it is, and round."""
        self.kept = None
        self.kept = self.grid(self.low)
        self.observing, self.rounding = False, True
        return self

    def range(self) -> tuple[float, float]:
        """Return the range, stretched to hold 0.

        Raises
        ------
        CalibrationError
            If nothing was seen, or NaN or infinity was.
        """
        low, high = self.low.item(), self.high.item()
        if low == float("inf") and high == -low:
            raise CalibrationError(
                "no tensor was seen; run calibrate(model, data), and call the module in forward"
            )
        if not float("-inf") < low <= high < float("inf"):
            raise CalibrationError(f"saw a range of {low} to {high}; check the float model")
        return min(low, 0.0), max(high, 0.0)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, computed in float64 whatever ``x`` is."""
        if self.kept is not None:
            return self.kept
        ends = torch.tensor([self.range()], dtype=torch.float64, device=x.device)
        scheme = Scheme(self.bits, symmetric=False)
        scale = stored_scale(scheme.grid(ends)[0][0])
        zero_point = torch.round(-ends[0, 0] / scale).clamp(0, scheme.levels - 1)
        return scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        """Observe, round, or both."""
        if self.observing:
            self.update(x.detach())
        return super().forward(x) if self.rounding else x

    def update(self, x: Tensor) -> None:
        """Take one tensor's extremes into the range."""
        for kept, new, more in zip(
            (self.low, self.high), x.aminmax(), (torch.minimum, torch.maximum), strict=True
        ):
            if self.momentum is None or torch.isinf(kept):
                kept.copy_(more(kept, new.to(kept)))
            else:
                kept.mul_(self.momentum).add_(new.to(kept), alpha=1 - self.momentum)
