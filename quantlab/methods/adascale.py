"""AdaScale: learn how far each weight is divided before it is rounded, and how wide its grid is.

Two ideas in one: FlexRound divides every weight by its own learned number before rounding, so that
a weight may settle on the other of its two nearest levels; OmniQuant learns where the range is
clipped. Everything acts through exp and starts at 0, so training starts at plain rounding:

    s  = (e^gamma hi - e^beta lo) / (2^b - 1)       one step for a channel, always positive
    W' = W / e^s2 / e^s3 / e^s4                     an element, its channel, its input channel
    Q  = clamp(round(W' / s), qmin, qmax) * s       qmin = -2^(b-1), qmax = 2^(b-1) - 1

Rounding has no useful derivative, so the backward pass takes round(x) for x where the code is
inside the grid ("straight through") and for a constant where it is clamped:

    G = dL/dQ      r = round(W' / s)      m = qmin <= r <= qmax
    dL/dW' = G m                          dL/ds  = sum G (q - m W'/s)
    dL/dgamma = dL/ds e^gamma hi / N      dL/ds2 = -W' dL/dW'   (s3, s4: summed over their axes)

When training ends the weight is W' ("folded") and its grid is s: plain integers, nothing else. The
two travel together. A range that is derived anew from W' gives other codes, and plain ones.

No paper defines AdaScale; this is the algorithm of aimet-torch 2.42.0 (BSD-3), written anew from
its mathematics. Its parents: FlexRound, arXiv:2306.00317, and the learnable weight clipping of
OmniQuant, arXiv:2308.13137 (there a sigmoid, so the range can only shrink). Scales for groups
inside a row are our extension: every group counts as a channel.

Left out on purpose: levels at half steps for 2 bits, which need a zero point that is no integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlab.block import Block, Call
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight
from quantlab.training import AfterStep, LearnedWeight, check_steps, train


class Divide(torch.autograd.Function):
    """W' = W / e^s2 / e^s3 / ..., for divisors that broadcast to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *divisors: Tensor) -> Tensor:
        """Divide in the order given; W takes no gradient."""
        for divisor in divisors:
            weight = weight / divisor.exp()
        ctx.save_for_backward(weight)
        ctx.shapes = [divisor.shape for divisor in divisors]
        return weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return dL/ds = -W' dL/dW', summed over the axes that a divisor lacks."""
        (divided,) = ctx.saved_tensors
        whole = (divided * gradient).neg_()
        return None, *(whole.sum_to_size(shape) for shape in ctx.shapes)


class Round(torch.autograd.Function):
    """Q = clamp(round(W' / s), qmin, qmax) * s, straight through where nothing is clamped."""

    @staticmethod
    def forward(ctx: Any, divided: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
        """Round half to even."""
        x = divided / scale
        rounded = x.round()
        codes = rounded.clamp(lowest, highest)
        # The mask is taken on the rounded number: 3.3 passes its gradient where the grid ends at 3.
        # As 1.0 and 0.0, because torch multiplies by truth values five times more slowly.
        inside = rounded.eq_(codes)
        ctx.save_for_backward(inside, codes - x.mul_(inside))
        ctx.shape = scale.shape
        return codes * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return dL/dW' and dL/ds."""
        inside, slope = ctx.saved_tensors
        return gradient * inside, (gradient * slope).sum_to_size(ctx.shape), None, None


def start_range(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return lo and hi of the symmetric range that holds each row of (channels, weights).

    The negative side has one level more, and it is used: absmax / 7 would waste it. With 2 bits the
    rule is coarser: the largest weight lies two steps out and is clipped to one.

    Returns
    -------
    lo, hi : (channels,) tensors
        -2^(b-1) and 2^(b-1) - 1 steps. A row of zeros gets a step of 1.19e-07.

    Examples
    --------
    >>> lo, hi = start_range(torch.tensor([[-0.3, 0.1]]), bits=4)
    >>> round(lo.item(), 4), round(hi.item(), 4)
    (-0.3, 0.2625)
    """
    above, below = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    high, low = rows.amax(1).clamp(min=0), rows.amin(1).clamp(max=0)
    least = torch.finfo(torch.float32).eps
    widened = ((high - low) / (above + below) < least) * least
    high, low = high + above * widened, low - below * widened
    step = torch.maximum(high / (2 if bits == 2 else above), -low / below)
    return -below * step, above * step


class AdaScaleWeight(LearnedWeight):
    """A weight with a learnable range and learnable divisors, all of them 0 at the start.

    Parameters
    ----------
    weight : (out, in) or (out, in, kh, kw) float tensor
        Of a Linear or Conv2d. Not modified; half precision is computed in float32.
    scheme : Scheme
        Symmetric, bits 2..8. A group_size makes every group a channel of its own (our extension,
        matrices only).
    per_tensor : bool
        One range for the whole weight instead of one a channel.
    range_lr, divisor_lr : learning rates
        Of gamma and beta, and of s2, s3 and s4.

    Attributes
    ----------
    gamma, beta : (out, 1) parameters; (out, 1, 1, 1) of a Conv2d, () per tensor
        Move hi and lo. With groups (out * groups, 1).
    s2 : parameter of the weight's shape
    s3 : parameter of gamma's shape
    s4 : (1, in, 1, 1) parameter of a Conv2d, else None

    Raises
    ------
    ValueError
        If the scheme is not symmetric, has other bits, or groups that do not fit; or the weight is
        not finite.

    Examples
    --------
    >>> weight = AdaScaleWeight(torch.tensor([[0.30, -0.10]]), Scheme(bits=4))
    >>> weight.codes().tolist(), round(weight.scale().item(), 6)
    ([[7, -2]], 0.042857)
    """

    def __init__(
        self,
        weight: Tensor,
        scheme: Scheme,
        *,
        per_tensor: bool = False,
        range_lr: float = 1e-3,
        divisor_lr: float = 5e-4,
    ) -> None:
        super().__init__()
        check_grid(weight, scheme, per_tensor)
        self.scheme, self.dtype = scheme, weight.dtype
        self.range_lr, self.divisor_lr = range_lr, divisor_lr
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        channels = (W if scheme.group_size is None else scheme.group(W).flatten(0, 1)).contiguous()
        low, high = start_range(
            channels.reshape(1 if per_tensor else len(channels), -1), scheme.bits
        )
        shape = () if per_tensor else (len(channels), *[1] * (channels.ndim - 1))
        self.register_buffer("weight", channels.clone())
        self.register_buffer("low", low.reshape(shape))
        self.register_buffer("high", high.reshape(shape))
        self.gamma, self.beta, self.s3 = (nn.Parameter(W.new_zeros(shape)) for _ in range(3))
        self.s2 = nn.Parameter(torch.zeros_like(W, memory_format=torch.contiguous_format))
        self.s4 = nn.Parameter(W.new_zeros(1, W.shape[1], 1, 1)) if W.ndim == 4 else None

    def scale(self) -> Tensor:
        """Return the step s between levels, of gamma's shape, always positive."""
        low, high = cast(Tensor, self.low), cast(Tensor, self.high)
        return (self.gamma.exp() * high - self.beta.exp() * low) / (self.scheme.levels - 1)

    def divided(self) -> Tensor:
        """Return W' with one channel (or group) a row."""
        W = cast(Tensor, self.weight)
        extra = () if self.s4 is None else (self.s4,)
        return cast(Tensor, Divide.apply(W, self.s2.view_as(W), self.s3, *extra))

    def folded(self) -> Tensor:
        """Return W', of the weight's shape: what replaces W when training ends."""
        return self.divided().view_as(self.s2)

    def forward(self) -> Tensor:
        """Return Q, of the weight's shape and dtype."""
        middle = self.scheme.middle
        Q = cast(Tensor, Round.apply(self.divided(), self.scale(), -middle, middle - 1))
        return Q.view_as(self.s2).to(self.dtype)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the signed codes -2^(b-1) .. 2^(b-1) - 1 as int32, of the weight's shape."""
        middle = self.scheme.middle
        codes = (self.divided() / self.scale()).round().clamp(-middle, middle - 1)
        return codes.view_as(self.s2).int()

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """Return codes and steps; the kernel of a Conv2d as a matrix (out, in * kh * kw)."""
        codes = (self.codes() + self.scheme.middle).to(torch.uint8).flatten(1)
        scale = self.scale().flatten()
        scale = scale.expand(len(codes)) if scale.numel() == 1 else scale
        scale = scale.reshape(len(codes), -1).contiguous()
        middle = torch.full_like(scale, self.scheme.middle)
        return QuantizedTensor(codes, scale, middle, self.scheme)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return range and divisors, each with its rate."""
        divisors = [self.s2, self.s3] if self.s4 is None else [self.s2, self.s3, self.s4]
        return [([self.gamma, self.beta], self.range_lr), (divisors, self.divisor_lr)]


def check_grid(weight: Tensor, scheme: Scheme, per_tensor: bool) -> None:
    """Raise a ValueError unless AdaScale can put this weight on this grid."""
    if not scheme.symmetric:
        raise ValueError(
            f"AdaScale needs symmetric=True; the scheme is {scheme}: "
            "its one scale a channel is learned together with the weight"
        )
    if not 2 <= scheme.bits <= 8:
        raise ValueError(f"bits is {scheme.bits}; AdaScale takes 2..8")
    if weight.ndim not in (2, 4):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; pass (out, in) of a Linear or "
            "(out, in, kh, kw) of a Conv2d"
        )
    check_weight(weight.detach().flatten(1))
    if scheme.group_size is not None:
        if per_tensor or weight.ndim == 4:
            raise ValueError(
                f"group_size is {scheme.group_size}, but groups divide the rows of a matrix that "
                "has more than one range; choose group_size=None"
            )
        scheme.group(weight)


@dataclass(frozen=True)
class AdaScale:
    """Train each block's ranges and divisors on the float block's answers, then fold.

    Parameters
    ----------
    iterations : int
        Steps for each block, one batch of calibration data a step. The rates are made for 1500;
        below that compare with RTN(clip="mse"), which may win.
    range_lr, divisor_lr : learning rates
        Of gamma and beta, and of s2, s3, s4; each falls to 0 as a cosine.
    input_mix : probability
        With which an input element comes from the quantized blocks before, else from the float
        ones, drawn anew at every step.
    seed : int
        Of that draw. The same seed gives the same bytes.

    Raises
    ------
    ValueError
        If a number is out of range; on use, also if the scheme is not symmetric.
    """

    iterations: int = 1500
    range_lr: float = 1e-3
    divisor_lr: float = 5e-4
    input_mix: float = 0.5
    seed: int = 0

    wants_targets = True
    convolutions = True  # Conv2d are trained beside the Linear of their block
    batch_size = 1  # a window a step: more data seen in the same time helps more than calm steps

    def __post_init__(self) -> None:
        """Refuse what no training can use."""
        check_numbers(self)

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Train the block's linears together."""
        weights = learnable(block.linears, scheme, self, name=block.name)
        self.train(block, weights)
        return {name: weight.quantized() for name, weight in weights.items()}

    def train(
        self,
        block: Block,
        weights: Mapping[str, AdaScaleWeight],
        after_step: AfterStep | None = None,
    ) -> list[float]:
        """Train these weights of a block, in place, and return the losses."""
        return train(
            block,
            weights,
            iterations=self.iterations,
            input_mix=self.input_mix,
            seed=self.seed,
            after_step=after_step,
        )


def train_block(
    module: nn.Module,
    inputs: Sequence[Any],
    targets: Sequence[Tensor],
    scheme: Scheme,
    method: AdaScale,
    *,
    float_inputs: Sequence[Any] | None = None,
    per_tensor: bool = False,
    after_step: AfterStep | None = None,
) -> tuple[list[float], dict[str, QuantizedTensor]]:
    """Train every Linear and Conv2d of one module together; the module stays as it is.

    Parameters
    ----------
    module : nn.Module
        Returns a tensor, or a tuple that begins with one.
    inputs : batches
        Each a tensor, a tuple of positional arguments, or a pair (args, kwargs).
    targets : tensors
        What the module should answer, one a batch.
    scheme : Scheme
    method : AdaScale
    float_inputs : batches like ``inputs``, or None
        Those of the float model, to be mixed in; None: the same as ``inputs``.
    per_tensor : bool
        As in ``AdaScaleWeight``.
    after_step : function of (steps done, weights), optional
        As in ``train``.

    Returns
    -------
    losses : list of float
    quantized : layer name -> QuantizedTensor
        The kernel of a Conv2d as a matrix (out, in * kh * kw).

    Raises
    ------
    CalibrationError
        If there are no batches, or they hold NaN or infinity.
    ValueError
        If the module has no Linear or Conv2d, a weight is not finite, or the scheme does not fit.
    """
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}
    calls = [as_call(batch) for batch in inputs]
    floats = calls if float_inputs is None else [as_call(batch) for batch in float_inputs]
    name = type(module).__name__
    block = Block(module, {}, inputs=calls, float_inputs=floats, targets=targets, name=name)
    weights = learnable(layers, scheme, method, per_tensor=per_tensor, name=name)
    losses = method.train(block, weights, after_step)
    return losses, {name: weight.quantized() for name, weight in weights.items()}


def learnable(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    scheme: Scheme,
    method: AdaScale,
    *,
    per_tensor: bool = False,
    name: str = "block",
) -> dict[str, AdaScaleWeight]:
    """Return a learnable weight for each layer, with the method's rates."""
    weights = {}
    for layer_name, layer in layers.items():
        try:
            weights[layer_name] = AdaScaleWeight(
                layer.weight,
                scheme,
                per_tensor=per_tensor,
                range_lr=method.range_lr,
                divisor_lr=method.divisor_lr,
            )
        except ValueError as error:
            raise ValueError(f"{name}.{layer_name}: {error}") from None
    return weights


def as_call(batch: Any) -> Call:
    """Return one batch as (args, kwargs)."""
    if not isinstance(batch, tuple):
        return (batch,), {}
    if len(batch) == 2 and isinstance(batch[0], tuple) and isinstance(batch[1], dict):
        return batch
    return batch, {}


def check_numbers(method: AdaScale) -> None:
    """Raise a ValueError unless the hyperparameters are in range."""
    check_steps(method.iterations, method.input_mix)
    for name in ("range_lr", "divisor_lr"):
        rate = getattr(method, name)
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} is {rate!r}; choose a finite number >= 0, such as 1e-3")
