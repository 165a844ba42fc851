"""OmniQuant: learn how far each group's range is clipped (LWC), and move outliers (LET).

LWC. The grid spans [sigmoid(b) min, sigmoid(g) max] of its group, rounding itself stays plain:

    s = (sigmoid(g) max - sigmoid(b) min) / N      z = round(-sigmoid(b) min / s)
    Q = s (clip(round(W / s) + z, 0, N) - z)

b and g start at 4, so that training starts at sigmoid(4) = 0.982 of the range; a factor below 1 can
only shrink it. A symmetric grid has one factor, on its signed extreme.

LET. Input channels are divided by exp(t) in the norm or linear before and the columns multiplied by
it, as AWQ does, but t is learned together with the clipping. Shifts, which need biases, and the
transformation between queries and keys are left out. What stays are codes, grids and folded norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from quantlab.block import Block, Scaling
from quantlab.folding import foldable
from quantlab.scheme import Scheme, usable
from quantlab.tensor import QuantizedTensor, check_weight
from quantlab.training import LearnedWeight, straight_through, train

START = 4.0  # sigmoid(4) = 0.982: the authors' initial value


class OmniQuantWeight(LearnedWeight):
    """A weight whose range is clipped by learned factors, and whose channels may be scaled.

    Parameters
    ----------
    weight : (out, in) float tensor
    scheme : Scheme
        Bits 1..8.
    rate : learning rate of the clipping
    columns : (in,) parameter, optional
        Logarithms t of LET: columns are multiplied by exp(t). Owned by the norm before.

    Attributes
    ----------
    g, b : (out, groups) parameters
        Of the upper and the lower end; b is None on a symmetric grid.
    """

    W: Tensor

    def __init__(
        self,
        weight: Tensor,
        scheme: Scheme,
        *,
        rate: float = 0.05,
        columns: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        check_weight(weight)
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).clone()
        self.scheme, self.rate, self.dtype = scheme, rate, weight.dtype
        self.columns = columns
        self.register_buffer("W", W)
        start = torch.full_like(scheme.group(W)[..., 0], START)
        self.g = nn.Parameter(start)
        self.b = None if scheme.symmetric else nn.Parameter(start.clone())

    def scaled(self) -> Tensor:
        """Return the weight after LET, (out, in)."""
        return self.W if self.columns is None else self.W * self.columns.exp()

    def grid(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return step and zero point of (out, groups, size) weights, differentiable."""
        low, high = groups.amin(-1), groups.amax(-1)
        top = self.scheme.levels - 1
        if self.b is None:
            extreme = torch.where(high.abs() > low.abs(), high, low)
            s = usable(torch.sigmoid(self.g) * extreme / -self.scheme.middle)
            return s, torch.full_like(s, self.scheme.middle)
        high = torch.sigmoid(self.g) * high.clamp(min=0)
        low = torch.sigmoid(self.b) * low.clamp(max=0)
        s = usable((high - low) / top)
        return s, straight_through(-low / s).clamp(0, top)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (out, groups, size), step and zero point."""
        groups = self.scheme.group(self.scaled())
        s, z = self.grid(groups)
        codes = straight_through(groups / s[..., None]) + z[..., None]
        return codes.clamp(0, self.scheme.levels - 1), s, z

    def forward(self) -> Tensor:
        """Return the rounded weight."""
        codes, s, z = self.parts()
        return ((codes - z[..., None]) * s[..., None]).flatten(-2).to(self.dtype)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """Return codes and grid."""
        codes, s, z = self.parts()
        return QuantizedTensor(codes.flatten(-2).to(torch.uint8), s, z, self.scheme)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the clipping factors; LET's parameters belong to their norm."""
        return [([self.g] if self.b is None else [self.g, self.b], self.rate)]


class ScaledGain(LearnedWeight):
    """A norm's gain, and its bias if it has one, divided by exp(t): LET's other half.

    Parameters
    ----------
    norm : module with a ``weight`` (channels,)
    rate : learning rate of t
    """

    def __init__(self, norm: nn.Module, rate: float) -> None:
        super().__init__()
        self.held = {
            name: getattr(norm, name).detach().clone()
            for name in ("weight", "bias")
            if isinstance(getattr(norm, name, None), Tensor)
        }
        gain = self.held["weight"]
        at_least = torch.promote_types(gain.dtype, torch.float32)
        self.t, self.rate = nn.Parameter(torch.zeros_like(gain, dtype=at_least)), rate

    def stand_ins(self, name: str) -> dict[str, Tensor]:
        """Return gain and bias, each divided by exp(t)."""
        return {
            f"{name}.{part}": (value * torch.exp(-self.t)).to(value.dtype)
            for part, value in self.held.items()
        }

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return t and its rate."""
        return [([self.t], self.rate)]


@dataclass(frozen=True)
class OmniQuant:
    """Learn the clipping of every linear of a block together, and input scales where they fold.

    Parameters
    ----------
    iterations : int
        Steps for each block, one window of calibration data a step.
    clip_rate, scale_rate : learning rates
        Of LWC and LET. The authors' 1e-2 and 5e-3 are for some thousand steps: from 4, a factor
        needs many small ones to get anywhere.
    scales : bool
        Learn LET as well, behind norms.
    input_mix, seed
        As for ``train``.

    References
    ----------
    Shao et al., OmniQuant, ICLR 2024, arXiv:2308.13137v3, Eq. (2) to (4).
    """

    iterations: int = 1000
    clip_rate: float = 0.05
    scale_rate: float = 5e-3
    scales: bool = True
    input_mix: float = 0.5
    seed: int = 0
    wants_targets: ClassVar[bool] = True
    folds: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Train the block's linears together; fold the scales into the block's norms."""
        gains = self.gains(block) if self.scales else {}
        weights = self.start(block, scheme, gains)
        train(
            block,
            weights | {place.previous: gain for place, gain in gains.items()},
            iterations=self.iterations,
            input_mix=self.input_mix,
            seed=self.seed,
        )
        fold_(block, weights, gains)
        return {name: weight.quantized() for name, weight in weights.items()}

    def start(
        self, block: Block, scheme: Scheme, gains: Mapping[Scaling, ScaledGain] | None = None
    ) -> dict[str, LearnedWeight]:
        """Return each linear's weight with its parameters, untrained, on the gains' scales."""
        t = {name: gain.t for place, gain in (gains or {}).items() for name in place.linears}
        return {
            name: OmniQuantWeight(linear.weight, scheme, rate=self.clip_rate, columns=t.get(name))
            for name, linear in block.linears.items()
        }

    def gains(self, block: Block) -> dict[Scaling, ScaledGain]:
        """Return a learnable gain for every norm whose readers are all linears of the block."""
        return {
            place: ScaledGain(block.module.get_submodule(place.previous), self.scale_rate)
            for place in block.scalings
            if place.previous not in block.linears and foldable(block, place)
        }


@torch.no_grad()
def fold_(
    block: Block, weights: Mapping[str, LearnedWeight], gains: Mapping[Scaling, ScaledGain]
) -> None:
    """Write the scaled gains and weights into the block: its float function stays the same."""
    for place, gain in gains.items():
        for path, value in gain.stand_ins(place.previous).items():
            block.module.get_parameter(path).copy_(value)
        for name in place.linears:
            weight = block.linears[name].weight
            weight.mul_(gain.t.exp().to(weight))
    block.forget()  # the linears' inputs are others now
