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
    columns, rows : (in,) and (out,) parameters, optional
        Logarithms t of LET: columns are multiplied by exp(t), rows divided. Owned by others.

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
        rate: float = 1e-2,
        columns: nn.Parameter | None = None,
        rows: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        check_weight(weight)
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).clone()
        self.scheme, self.rate, self.dtype = scheme, rate, weight.dtype
        self.columns, self.rows = columns, rows
        self.register_buffer("W", W)
        start = torch.full_like(scheme.group(W)[..., 0], START)
        self.g = nn.Parameter(start)
        self.b = None if scheme.symmetric else nn.Parameter(start.clone())

    def scaled(self) -> Tensor:
        """Return the weight after LET, (out, in)."""
        W = self.W if self.columns is None else self.W * self.columns.exp()
        return W if self.rows is None else W * torch.exp(-self.rows)[:, None]

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
    """A norm's gain divided by exp(t): LET's other half.

    Parameters
    ----------
    gain : (channels,) tensor
    rate : learning rate of t
    """

    gain: Tensor

    def __init__(self, gain: Tensor, rate: float) -> None:
        super().__init__()
        self.register_buffer("gain", gain.detach().clone())
        self.t, self.rate = nn.Parameter(torch.zeros_like(self.gain)), rate

    def forward(self) -> Tensor:
        """Return the gain."""
        return self.gain * torch.exp(-self.t)

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
        Of LWC and LET, the authors' 1e-2 and 5e-3.
    scales : bool
        Learn LET as well, behind norms.
    input_mix, seed
        As for ``train``.

    References
    ----------
    Shao et al., OmniQuant, ICLR 2024, arXiv:2308.13137v3, Eq. (2) to (4).
    """

    iterations: int = 1000
    clip_rate: float = 1e-2
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
        columns = {name: gain.t for place, gain in gains.items() for name in place.linears}
        weights = {
            name: OmniQuantWeight(
                linear.weight, scheme, rate=self.clip_rate, columns=columns.get(name)
            )
            for name, linear in block.linears.items()
        }
        train(
            block,
            weights | {place.previous: gain for place, gain in gains.items()},
            iterations=self.iterations,
            input_mix=self.input_mix,
            seed=self.seed,
        )
        fold_(block, weights, gains)
        return {name: weight.quantized() for name, weight in weights.items()}

    def gains(self, block: Block) -> dict[Scaling, ScaledGain]:
        """Return a learnable gain for every norm whose readers are all linears of the block."""
        modules = dict(block.module.named_modules())
        return {
            place: ScaledGain(modules[place.previous].weight, self.scale_rate)  # type: ignore[arg-type]
            for place in block.scalings
            if place.previous in modules
            and place.previous not in block.linears
            and set(place.linears) <= block.linears.keys()
        }


@torch.no_grad()
def fold_(
    block: Block, weights: Mapping[str, OmniQuantWeight], gains: Mapping[Scaling, ScaledGain]
) -> None:
    """Write the scaled gains and weights into the block: its float function stays the same."""
    for place, gain in gains.items():
        norm = block.module.get_submodule(place.previous)
        bias = getattr(norm, "bias", None)
        if isinstance(bias, Tensor):
            bias.mul_(torch.exp(-gain.t).to(bias))
        norm.weight.copy_(gain())  # type: ignore[operator]
        for name in place.linears:
            block.linears[name].weight.copy_(weights[name].scaled())
    block.forget()  # the linears' inputs are others now
