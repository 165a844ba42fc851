"""Turn a float model into its fake-quantized twin, and find the ranges of its activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

from quantlab.fake_quant import SMALLEST_SCALE, Quantizer
from quantlab.integer.fake_layers import (
    Carried,
    FakeAdd,
    FakeLayer,
    FakePool,
    FakeStub,
    Rounded,
    WeightRange,
)
from quantlab.integer.fold import folded
from quantlab.integer.stubs import Add, QuantStub
from quantlab.methods.lsq import LearnedStep, lsq_start
from quantlab.methods.pact import LearnedClip
from quantlab.observers import ObservedRange
from quantlab.tensor import CalibrationError

CARRIED = nn.Flatten | nn.Identity | nn.Dropout | nn.ReLU


def prepare(
    model: nn.Module,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    keep_8_bits: Collection[str] = (),
    momentum: float | None = None,
) -> nn.Module:
    """Return a copy that rounds like integers and computes in float.

    Batch norms right after a layer of an ``nn.Sequential`` are folded into it, and a ReLU or ReLU6
    after that is fused. Every Conv2d and Linear then rounds its weight (symmetric, a scale a row),
    its bias (int32 at input scale times weight scale) and its output (asymmetric, one scale);
    ``QuantStub``, ``Add`` and ``AdaptiveAvgPool2d(1)`` round their outputs. What a ``forward``
    calls as a function is not seen.

    Parameters
    ----------
    model : nn.Module
        Trained. Not changed; the copy is in evaluation mode.
    weight_bits, activation_bits : 2..8
    keep_8_bits : names of modules
        Which take 8 bits whatever the others take: often the first and the last.
    momentum : float or None
        Of the ranges: see ``ObservedRange``.

    Returns
    -------
    nn.Module
        Ranges unknown: ``calibrate`` it.

    Raises
    ------
    ValueError
        If bits are out of range or a name in ``keep_8_bits`` is no quantized module.

    Examples
    --------
    >>> import quantlab as ql
    >>> net = nn.Sequential(ql.QuantStub(), nn.Linear(4, 2), nn.ReLU(), ql.DequantStub())
    >>> twin = ql.calibrate(ql.prepare(net), torch.linspace(-1, 1, 8).view(2, 4))
    >>> integers = ql.convert(twin)
    >>> torch.equal(integers(torch.ones(1, 4)), twin.double()(torch.ones(1, 4).double()).float())
    True
    """
    twin = folded(model).eval()
    unknown = set(keep_8_bits)
    for parent_path, parent in list(twin.named_modules()):
        for name, child in list(parent.named_children()):
            path = f"{parent_path}.{name}".lstrip(".")
            bits = (8, 8) if path in keep_8_bits else (weight_bits, activation_bits)
            after = next_activation(parent, name)
            fake = fake_module(child, bits, momentum, after)
            if fake is None or getattr(parent, name) is not child:  # fused already
                continue
            setattr(parent, name, fake)
            if isinstance(fake, Rounded):
                unknown.discard(path)
            if after is not None and isinstance(fake, FakeLayer):
                setattr(parent, after[0], Carried(nn.Identity()))
    if unknown:
        raise ValueError(f"keep_8_bits names {sorted(unknown)}; no quantized module has that name")
    return twin


def fake_module(
    module: nn.Module,
    bits: tuple[int, int],
    momentum: float | None,
    after: tuple[str, nn.ReLU | nn.ReLU6] | None,
) -> nn.Module | None:
    """Return what stands for a module in the twin, or None where it stays as it is."""
    weight_bits, activation_bits = bits

    def output() -> ObservedRange:
        return ObservedRange(activation_bits, momentum)

    if isinstance(module, nn.Conv2d | nn.Linear):
        activation = after[1] if after else None
        return FakeLayer(module, WeightRange(weight_bits), output(), activation)
    if isinstance(module, QuantStub):
        return FakeStub(output())
    if isinstance(module, Add):
        return FakeAdd(output())
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return FakePool(output())
    return Carried(module) if isinstance(module, CARRIED) else None


def next_activation(parent: nn.Module, name: str) -> tuple[str, nn.ReLU | nn.ReLU6] | None:
    """Return the ReLU or ReLU6 that follows a child of an nn.Sequential, folded norms skipped."""
    if not isinstance(parent, nn.Sequential):
        return None
    children = list(parent.named_children())
    here = [child for child, _ in children].index(name)
    for after, module in children[here + 1 :]:
        if isinstance(module, nn.ReLU | nn.ReLU6):
            return after, module
        if not isinstance(module, nn.Identity):
            return None
    return None


# ---------------------------------------------------------------- ranges


@torch.no_grad()
def calibrate(prepared: nn.Module, data: Tensor, *, batch_size: int = 64) -> nn.Module:
    """Run data through a prepared model in float, keep the ranges, and start to round.

    Parameters
    ----------
    prepared : nn.Module
        From ``prepare``; changed in place, and returned. Ranges it had are forgotten.
    data : (samples, ...) tensor
        Ordinary inputs; no labels.
    batch_size : int

    Raises
    ------
    CalibrationError
        If a quantizer saw nothing, or NaN.
    """
    ranges = list(observed(prepared))
    for one in ranges:
        one.observe()
    layers = [module for module in prepared.modules() if isinstance(module, FakeLayer)]
    for layer in layers:
        layer.weights_rounded = False
    try:
        for batch in data.split(batch_size):
            prepared(batch)
    finally:
        for layer in layers:
            layer.weights_rounded = True
    return freeze_ranges(prepared)


def observed(prepared: nn.Module) -> Iterator[ObservedRange]:
    """Yield a prepared model's ranges."""
    return (module for module in prepared.modules() if isinstance(module, ObservedRange))


def freeze_ranges(prepared: nn.Module) -> nn.Module:
    """Keep all ranges as they are, and round: the last epochs of training, and inference.

    Raises
    ------
    CalibrationError
        If a quantizer saw nothing, or NaN: with the name of its module.
    """
    for path, one in prepared.named_modules():
        if isinstance(one, ObservedRange):
            try:
                one.freeze()
            except CalibrationError as error:
                raise CalibrationError(f"{path.removesuffix('.quantizer')}: {error}") from None
    return prepared


def follow_ranges(prepared: nn.Module) -> nn.Module:
    """Let ranges move with the data while tensors are rounded: the first epochs of training."""
    for one in observed(prepared):
        one.range()
        one.follow()
    return prepared


# ---------------------------------------------------------------- grids that learn


def learn_steps(prepared: nn.Module, *, activations: bool = True) -> nn.Module:
    """Make the steps of all grids parameters (LSQ), in place; return the model.

    Weights start at 2 mean|w| / sqrt(Q_P) a row, activations at their calibrated scale.

    Raises
    ------
    CalibrationError
        If ranges are unknown.
    """
    for module in prepared.modules():
        if isinstance(module, FakeLayer):
            weight, bits = module.layer.weight.detach(), module.weight_quantizer.bits
            start = lsq_start(weight.flatten(1), bits).clamp(min=SMALLEST_SCALE)
            start = start.view(-1, *[1] * (weight.ndim - 1))
            middle = torch.full_like(start, 2 ** (bits - 1))
            module.weight_quantizer = LearnedStep(start, middle, bits)
    return exchange(prepared, learned_step) if activations else prepared


def learned_step(module: Rounded) -> Quantizer | None:
    """Return a grid with a learned step that starts where the observed one stands."""
    observed_range = module.quantizer
    if not isinstance(observed_range, ObservedRange):
        return None
    scale, zero_point = observed_range.grid(observed_range.low)
    dtype = observed_range.low.dtype
    return LearnedStep(scale.to(dtype), zero_point.to(dtype), observed_range.bits, batched=True)


def learn_clips(prepared: nn.Module) -> nn.Module:
    """Make the clip of every activation after a fused ReLU a parameter (PACT), in place.

    Raises
    ------
    CalibrationError
        If ranges are unknown.
    """
    return exchange(prepared, learned_clip)


def learned_clip(module: Rounded) -> Quantizer | None:
    """Return PACT's clip, starting at the calibrated maximum, where the output is never < 0."""
    quantizer = module.quantizer
    if not isinstance(quantizer, ObservedRange) or getattr(module, "activation", None) is None:
        return None
    _, high = quantizer.range()
    return LearnedClip(high, quantizer.bits).to(quantizer.low) if high > 0 else None


def exchange(prepared: nn.Module, learn: Callable[[Rounded], Quantizer | None]) -> nn.Module:
    """Replace quantizers of outputs by learned ones, also where a later layer remembers them."""
    modules = [module for module in prepared.modules() if isinstance(module, Rounded)]
    learned: dict[Quantizer | None, Quantizer] = {}
    for module in modules:
        new = learn(module)
        if new is not None:
            learned[module.quantizer] = new
            module.quantizer = new
    for module in modules:
        module.sources = tuple(learned.get(source, source) for source in module.sources)
    return prepared
