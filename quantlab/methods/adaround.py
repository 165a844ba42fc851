"""AdaRound: learn for each weight whether it is rounded down or up.

Between two levels a weight has two neighbors. Nearest is best for the weight and often not for the
output, because errors of weights that meet correlated inputs can cancel. The choice is made soft,

    Q = s (clip(floor(W / s) + h(V) + z, 0, N) - z),    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

so that V can follow the gradient, and then pushed to an end: f(V) = sum 1 - |2 h(V) - 1|^beta is
0 only where every h is 0 or 1, and beta falls from 20 to 2 after a start without it. h is linear in
the middle and reaches 0 and 1 at finite V, where its gradient ends. What stays is the integer
floor(W / s) + [h >= 1/2]: the grid itself never moves.

The paper trains one layer after another; here the layers of a block are trained together on the
block's output, as BRECQ (arXiv:2102.05426) does. Loss and f(V) are taken relative to the size of
the target and to the number of weights, so that one strength fits layers of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quantlab.block import Block
from quantlab.grid_search import search
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight
from quantlab.training import LearnedWeight, relative_error, train

ZETA, GAMMA = 1.1, -0.1  # Eq. (23): the sigmoid stretched beyond [0, 1]
WARM = 0.2  # share of the steps without f(V)
FIRST_BETA, LAST_BETA = 20.0, 2.0


def rectified_sigmoid(V: Tensor) -> Tensor:
    """Return h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), elementwise.

    Examples
    --------
    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(V) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def rounding_penalty(V: Tensor, beta: float) -> Tensor:
    """Return the mean of 1 - |2 h(V) - 1|^beta: 0 where every weight has chosen a side.

    Examples
    --------
    >>> rounding_penalty(torch.tensor([0.0, 9.0]), 2.0).item()
    0.5
    """
    return 1 - (2 * rectified_sigmoid(V) - 1).abs().pow(beta).mean()


class AdaRoundWeight(LearnedWeight):
    """A weight whose rounding direction is learned, on a fixed grid.

    Parameters
    ----------
    weight : (out, in) float tensor
    scheme : Scheme
        Bits 1..8; the grid of least squared error is taken.
    rate : learning rate of V
    strength : float
        Of the penalty.

    Attributes
    ----------
    V : (out, in) parameter
        Starts where h(V) is the weight's own fraction, so that Q starts as W, clipped. -inf in a
        group of zeros, which stays 0.
    """

    low: Tensor
    s: Tensor
    z: Tensor

    def __init__(
        self, weight: Tensor, scheme: Scheme, *, rate: float = 0.1, strength: float = 5.0
    ) -> None:
        super().__init__()
        check_weight(weight)
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        groups = scheme.group(W)
        scale, zero_point = search(groups, torch.ones_like(groups[0]), scheme)
        self.scheme, self.rate, self.strength, self.dtype = scheme, rate, strength, weight.dtype
        steps = groups / scale[..., None]
        # A grid that is in use has its extreme at half a step or more. Groups of zeros have an
        # arbitrary step, and a zero rounded up would be a whole one: V = -inf keeps their h at 0.
        silent = (steps.abs().amax(-1, keepdim=True) < 0.25).expand_as(steps)
        steps = steps.masked_fill(silent, 0)
        for name, tensor in (("low", steps.floor()), ("s", scale), ("z", zero_point)):
            self.register_buffer(name, tensor)
        fraction = (steps - steps.floor()).flatten(-2)
        V = torch.logit((fraction - GAMMA) / (ZETA - GAMMA))
        self.V = nn.Parameter(V.masked_fill(silent.flatten(-2), -torch.inf))

    def chosen(self, h: Tensor) -> Tensor:
        """Return codes (out, groups, size) for a share h of a step upwards."""
        codes = self.low + self.scheme.group(h) + self.z[..., None]
        return codes.clamp(0, self.scheme.levels - 1)

    def forward(self) -> Tensor:
        """Return the weight with its soft rounding."""
        codes = self.chosen(rectified_sigmoid(self.V))
        return ((codes - self.z[..., None]) * self.s[..., None]).flatten(-2).to(self.dtype)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """Return the weight rounded to the side that each h leans to."""
        up = (rectified_sigmoid(self.V) >= 0.5).to(self.V)
        codes = self.chosen(up).flatten(-2).to(torch.uint8)
        return QuantizedTensor(codes, self.s, self.z, self.scheme)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return V and its rate."""
        return [([self.V], self.rate)]

    def penalty(self, done: float) -> Tensor | float:
        """Return the rounding penalty, its exponent falling as a cosine from 20 to 2."""
        if done < WARM:
            return 0.0
        fallen = (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2
        beta = LAST_BETA + (FIRST_BETA - LAST_BETA) * fallen
        return self.strength * rounding_penalty(self.V, beta)


@dataclass(frozen=True)
class AdaRound:
    """Learn the rounding direction of every weight of a block together.

    Parameters
    ----------
    iterations : int
        Steps for each block, one window of calibration data a step.
    rate : learning rate of V
    strength : float
        Of the penalty that makes each weight choose a side.
    input_mix, seed
        As for ``train``.

    References
    ----------
    Nagel et al., Up or Down?, ICML 2020, arXiv:2004.10568v2, Eq. (21) to (24).
    """

    iterations: int = 1000
    rate: float = 0.1
    strength: float = 5.0
    input_mix: float = 0.5
    seed: int = 0
    wants_targets: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Train the block's linears together and round them as they chose."""
        weights = self.start(block, scheme)
        train(
            block,
            weights,
            iterations=self.iterations,
            loss=relative_error,
            input_mix=self.input_mix,
            seed=self.seed,
        )
        return {name: weight.quantized() for name, weight in weights.items()}

    def start(self, block: Block, scheme: Scheme) -> dict[str, LearnedWeight]:
        """Return each linear's weight with its parameters, untrained."""
        return {
            name: AdaRoundWeight(linear.weight, scheme, rate=self.rate, strength=self.strength)
            for name, linear in block.linears.items()
        }
