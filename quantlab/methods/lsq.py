"""LSQ: learn the step of a grid like a weight, with a gradient of the right size."""

from __future__ import annotations

from torch import Tensor, nn

from quantlab.fake_quant import Quantizer, stored_scale


def lsq_gradient_scale(count: int, bits: int, *, signed: bool = True) -> float:
    """Return g = 1 / sqrt(N Q_P), which brings a step's updates to the size of its weights'.

    Parameters
    ----------
    count : numbers that share the step
        N: weights, or features of one sample.
    bits : int
    signed : bool
        Q_P is 2^(bits - 1) - 1 for signed numbers and 2^bits - 1 for others.

    References
    ----------
    Esser et al., LSQ, arXiv:1902.08153v3, section 2.2.

    Examples
    --------
    >>> lsq_gradient_scale(100, 8, signed=False) == (100 * 255) ** -0.5
    True
    """
    return (count * greatest(bits, signed)) ** -0.5


def lsq_start(x: Tensor, bits: int, *, signed: bool = True) -> Tensor:
    """Return LSQ's first step, 2 mean|x| / sqrt(Q_P), for each row of (..., columns).

    References
    ----------
    Esser et al., LSQ, arXiv:1902.08153v3, section 2.1.

    Examples
    --------
    >>> import torch
    >>> lsq_start(torch.tensor([[1.0, -3.0]]), 3).tolist()  # 2 * 2 / sqrt(3)
    [2.309401035308838]
    """
    return 2 * x.abs().mean(-1) / greatest(bits, signed) ** 0.5


def greatest(bits: int, signed: bool) -> int:
    """Return Q_P, the greatest level."""
    return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


class LearnedStep(Quantizer):
    """A grid whose step is a parameter: LSQ.

    Parameters
    ----------
    scale : tensor that broadcasts to what is rounded
        Where the step starts: ``lsq_start`` for weights, a calibrated scale for activations.
    zero_point : tensor of the scale's shape
        Stays: 2^(bits - 1) for a signed grid, 0 for an unsigned one.
    bits : 2..8
    batched : bool
        True for activations, whose first axis counts samples, not features.

    Notes
    -----
    The step that rounds is the parameter rounded to float16's precision: what is trained is what
    is stored. It stays above 2^-14.

    References
    ----------
    Esser et al., LSQ, arXiv:1902.08153v3.

    Examples
    --------
    >>> import torch
    >>> quantizer = LearnedStep(torch.tensor(0.5), torch.tensor(4.0), 3)
    >>> quantizer(torch.tensor([[0.6, -9.0]])).tolist()
    [[0.5, -2.0]]
    """

    zero_point: Tensor

    def __init__(
        self, scale: Tensor, zero_point: Tensor, bits: int, *, batched: bool = False
    ) -> None:
        super().__init__(bits)
        if not (scale > 0).all():
            raise ValueError(f"scale is {scale.min().item():.3g}; LSQ needs a positive step")
        self.scale = nn.Parameter(scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.batched = batched

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step as stored, its gradient times g, and the zero point."""
        numbers = x[0].numel() if self.batched else x.numel()
        signed = bool((self.zero_point > 0).any())
        share = lsq_gradient_scale(numbers // self.scale.numel(), self.bits, signed=signed)
        return stored_scale(positive(self.scale), share), self.zero_point


def positive(scale: Tensor) -> Tensor:
    """Return the scale, 0 where it is negative, with a gradient that can bring it back."""
    return scale + (scale.detach().clamp(min=0) - scale.detach())
