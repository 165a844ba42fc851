"""FlexRound: learn a divisor for each weight, so that large weights may travel further.

    Q = s1 (clip(round(W / (s1 S2 s3)) + z, 0, N) - z),      S2 (out, in), s3 (out, 1), both 1 first

The weight is divided by its own factor before rounding and never multiplied back: S2 and s3 move
the weight across thresholds, only s1 moves the levels. Since d(W / S2) / dS2 = -W / S2^2, one step
of the divisor moves a weight in proportion to its size: the paper's reciprocal rule. Factors are
kept positive as exponentials, as in the authors' code. Rounding passes its gradient straight
through where the code is not clipped. What stays are s1 and the integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quantlab.block import Block
from quantlab.grid_search import search
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight
from quantlab.training import LearnedWeight, straight_through, train


class FlexRoundWeight(LearnedWeight):
    """A weight with learnable divisors and step, all factors 1 at the start.

    Parameters
    ----------
    weight : (out, in) float tensor
    scheme : Scheme
        Bits 1..8. s1 starts at the grid of least squared error; its zero point stays.
    rate : learning rate of all logarithms

    Attributes
    ----------
    log_s1 : (out, groups) parameter
    log_S2 : (out, in) parameter
    log_s3 : (out, 1) parameter
    """

    W: Tensor
    s: Tensor
    z: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme, *, rate: float = 3e-3) -> None:
        super().__init__()
        check_weight(weight)
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).clone()
        groups = scheme.group(W)
        scale, zero_point = search(groups, torch.ones_like(groups[0]), scheme)
        self.scheme, self.rate, self.dtype = scheme, rate, weight.dtype
        for name, tensor in (("W", W), ("s", scale), ("z", zero_point)):
            self.register_buffer(name, tensor)
        self.log_s1 = nn.Parameter(torch.zeros_like(scale))
        self.log_S2 = nn.Parameter(torch.zeros_like(W))
        self.log_s3 = nn.Parameter(torch.zeros_like(W[:, :1]))

    def s1(self) -> Tensor:
        """Return the step (out, groups)."""
        return self.s * self.log_s1.exp()

    def codes(self) -> Tensor:
        """Return codes (out, groups, size) as floats, straight through to the divisors."""
        divided = self.W * torch.exp(-(self.log_S2 + self.log_s3))
        x = self.scheme.group(divided) / self.s1()[..., None]
        return (straight_through(x) + self.z[..., None]).clamp(0, self.scheme.levels - 1)

    def forward(self) -> Tensor:
        """Return the rounded weight."""
        Q = (self.codes() - self.z[..., None]) * self.s1()[..., None]
        return Q.flatten(-2).to(self.dtype)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """Return integers and step; the divisors are gone."""
        codes = self.codes().flatten(-2).to(torch.uint8)
        return QuantizedTensor(codes, self.s1(), self.z, self.scheme)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return all factors with one rate."""
        return [([self.log_s1, self.log_S2, self.log_s3], self.rate)]


@dataclass(frozen=True)
class FlexRound:
    """Learn divisors and steps of every linear of a block together.

    Parameters
    ----------
    iterations : int
        Steps for each block, one window of calibration data a step.
    rate : learning rate
    input_mix, seed
        As for ``train``.

    References
    ----------
    Lee et al., FlexRound, ICML 2023, arXiv:2306.00317v2, Eq. (2).
    """

    iterations: int = 1000
    rate: float = 3e-3
    input_mix: float = 0.5
    seed: int = 0
    wants_targets: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Train the block's linears together."""
        weights = self.start(block, scheme)
        train(
            block,
            weights,
            iterations=self.iterations,
            input_mix=self.input_mix,
            seed=self.seed,
        )
        return {name: weight.quantized() for name, weight in weights.items()}

    def start(self, block: Block, scheme: Scheme) -> dict[str, LearnedWeight]:
        """Return each linear's weight with its parameters, untrained."""
        return {
            name: FlexRoundWeight(linear.weight, scheme, rate=self.rate)
            for name, linear in block.linears.items()
        }
