"""Learn how weights are rounded: one small loop, shared by every method that trains.

A method gives each weight of a block an object that knows its parameters, its forward pass and what
remains when training ends. The loop below moves the parameters so that the block with quantized
weights answers as the float block did. Blocks are trained one after the other and never together,
so memory is one block and its calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn, zeros_like
from torch.func import functional_call
from torch.optim.adam import adam

from quantlab.block import Block, Call
from quantlab.tensor import CalibrationError, QuantizedTensor

Loss = Callable[[Tensor, Tensor], Tensor]
AfterStep = Callable[[int, Mapping[str, "LearnedWeight"]], None]


class LearnedWeight(nn.Module):
    """A weight whose quantization has parameters: what a method hands to ``train``."""

    def forward(self) -> Tensor:
        """Return the weight as the block will see it, differentiable in the parameters."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def quantized(self) -> QuantizedTensor:
        """Return what stays when training ends: codes and grid, no parameters."""
        raise TypeError(f"{type(self).__name__} defines no quantized")

    def stand_ins(self, name: str) -> dict[str, Tensor]:
        """Return what the block sees in place of the parameters of its layer of this name."""
        return {f"{name}.weight": self()}

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the parameters in groups, each with its learning rate."""
        raise TypeError(f"{type(self).__name__} defines no rates")

    def penalty(self, done: float) -> Tensor | float:
        """Return what is added to the loss when the share ``done`` of all steps is behind."""
        return 0.0


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error summed over axis 1 and averaged over the others.

    For (batch, tokens, features) that is tokens times the mean squared error. Half precision is
    computed in float32.

    Examples
    --------
    >>> squared_error(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)).item()
    3.0
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    return (output.to(dtype) - target.to(dtype)).square().sum(1).mean()


def train(
    block: Block,
    weights: Mapping[str, LearnedWeight],
    *,
    iterations: int,
    loss: Loss = squared_error,
    input_mix: float = 0.5,
    seed: int = 0,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Train the weights of one block together: Adam, cosine to zero, one batch a step.

    Parameters
    ----------
    block : Block
        With ``inputs``, ``float_inputs`` and ``targets``, the same number of batches each. Batches
        are taken in order and repeated. Its module is not modified, and runs in evaluation mode.
    weights : layer name -> LearnedWeight
        Stand in for ``<name>.weight`` of the block's module. Trained in place.
    iterations : int
        Steps; the rate falls as a cosine from full to 0 over them.
    loss : function of (output, target)
    input_mix : probability
        Each element of a positional tensor is taken from the quantized-prefix inputs with this
        probability, else from the float ones, drawn anew at every step (QDrop, arXiv:2203.05740).
        Keyword arguments come from the quantized prefix.
    seed : int
        Of the mixing. The same seed gives the same weights.
    after_step : function of (steps done, weights), optional
        Called after every step: ``weights[name].quantized()`` is what would stay if training ended
        there. A training loss does not say it: it is taken on one batch, before the step, and of
        mixed inputs.

    Returns
    -------
    list of float
        The loss of each step, before that step's update, penalties left out.

    Raises
    ------
    CalibrationError
        If the block has no inputs, they or the targets are not finite, or the loss is not.
    ValueError
        If ``iterations`` is not a positive integer, ``input_mix`` no probability, or there is no
        weight.
    """
    check_steps(iterations, input_mix)
    check_training(block, weights)
    generator = torch.Generator().manual_seed(seed)
    fixed = {name: tensor.detach() for name, tensor in block.module.named_parameters()}
    optimizer = Adam(weights)
    losses = []
    with torch.enable_grad(), evaluating(block.module):
        for step in range(iterations):
            batch = step % len(block.inputs)
            args, kwargs = mixed(block, batch, input_mix, generator)
            learned = {}
            for name, weight in weights.items():
                learned |= weight.stand_ins(name)
            output = first(functional_call(block.module, fixed | learned, args, kwargs))
            error = loss(output, block.targets[batch])
            losses.append(error.item())
            check_loss(losses, block.name)
            total = error + sum(weight.penalty(step / iterations) for weight in weights.values())
            total.backward()
            optimizer.step(cosine(step / iterations))
            if after_step is not None:
                after_step(step + 1, weights)
    return losses


class Adam:
    """Adam for the parameters of some weights: betas 0.9 and 0.999, eps 1e-8, no decay.

    Calls PyTorch's functional form, because the first step of ``torch.optim.Adam`` itself loads a
    compiler, which takes two seconds.
    """

    def __init__(self, weights: Mapping[str, LearnedWeight]) -> None:
        self.groups: dict[float, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        for weight in weights.values():
            for parameters, rate in weight.rates():
                state = [
                    (p, zeros_like(p), zeros_like(p), torch.zeros((), device=p.device))
                    for p in parameters
                ]
                self.groups.setdefault(rate, []).extend(state)

    @torch.no_grad()
    def step(self, share: float = 1.0) -> None:
        """Move every parameter that has a gradient, at this share of its rate, and drop those."""
        for rate, group in self.groups.items():
            moved = [state for state in group if state[0].grad is not None]
            parameters, means, squares, steps = ([state[k] for state in moved] for k in range(4))
            adam(
                parameters,
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                means,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate * share,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
            for parameter in parameters:
                parameter.grad = None


def cosine(done: float) -> float:
    """Return the share of the full rate when the share ``done`` of all steps is behind.

    Examples
    --------
    >>> [round(cosine(done), 3) for done in (0, 0.25, 0.5, 0.75)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return (1 + math.cos(math.pi * done)) / 2


def mixed(block: Block, batch: int, probability: float, generator: torch.Generator) -> Call:
    """Return one batch's call, its tensors mixed element by element from both streams."""
    args, kwargs = block.inputs[batch]
    floats = block.float_inputs[batch][0]
    pairs = zip(args, floats, strict=True)
    return tuple(mix(a, b, probability, generator) for a, b in pairs), kwargs


def mix(quantized: Any, floating: Any, probability: float, generator: torch.Generator) -> Any:
    """Take each element from ``quantized`` with this probability, else from ``floating``.

    What is no floating tensor (positions, a tuple of rotary angles) comes from ``quantized``. Where
    both are one tensor, as in the first block, nothing is drawn.
    """
    if probability == 1 or quantized is floating or not isinstance(quantized, Tensor):
        return quantized
    if not quantized.is_floating_point():
        return quantized
    drawn = torch.rand(quantized.shape, generator=generator) < probability
    return torch.where(drawn.to(quantized.device), quantized, floating)


def first(output: Any) -> Tensor:
    """Return a block's output tensor, also where it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and running statistics off, and each submodule back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def check_steps(iterations: int, input_mix: float) -> None:
    """Raise a ValueError unless there is a number of steps and a probability."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations is {iterations!r}; choose a positive integer, such as 1500")
    if not 0 <= input_mix <= 1:
        raise ValueError(f"input_mix is {input_mix!r}; choose a probability from 0 to 1")


def check_loss(losses: list[float], name: str) -> None:
    """Raise a CalibrationError if the latest loss is NaN or infinite."""
    if not math.isfinite(losses[-1]):
        raise CalibrationError(
            f"{name}: the loss is {losses[-1]} at step {len(losses)}; lower the learning rate"
        )


def check_training(block: Block, weights: Mapping[str, LearnedWeight]) -> None:
    """Raise unless there is something to train, and finite data to train on."""
    if not weights:
        raise ValueError(
            f"{block.name} has no weight to train; pass a block that holds a linear layer"
        )
    counts = len(block.inputs), len(block.float_inputs), len(block.targets)
    if counts[0] == 0 or len(set(counts)) > 1:
        raise CalibrationError(
            f"{block.name}: training needs calibration data, one target a batch; it has "
            f"{counts[0]} batches, {counts[1]} float ones and {counts[2]} targets; "
            "pass quantize_(model, method, scheme, data)"
        )
    streams = zip(block.inputs, block.float_inputs, block.targets, strict=True)
    for number, (call, floats, target) in enumerate(streams):
        if not all(map(finite, (*call[0], *floats[0], target))):
            raise CalibrationError(
                f"{block.name}: batch {number} holds NaN or infinity; check the float model"
            )


def finite(value: Any) -> bool:
    """Tell whether a value holds no NaN and no infinity; what is no floating tensor cannot."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return not floating or bool(torch.isfinite(value).all())


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error as a share of the target's squared size.

    Examples
    --------
    >>> relative_error(torch.zeros(2, 3), torch.ones(2, 3)).item()
    1.0
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, target = output.to(dtype), target.to(dtype)
    size = target.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return (output - target).square().mean() / size


def straight_through(x: Tensor) -> Tensor:
    """Round half to even, and let the gradient pass as if nothing were rounded.

    Examples
    --------
    >>> x = torch.tensor([0.4, 2.5], requires_grad=True)
    >>> straight_through(x).tolist()
    [0.0, 2.0]
    """
    return x + (x.round() - x).detach()
