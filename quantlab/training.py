"""Learn how weights are rounded: one small loop, shared by every method that trains.

A method gives each weight of a block an object that knows its parameters, its forward pass and what
remains when training ends. The loop below moves the parameters so that the block with quantized
weights answers as the float block did. Blocks are trained one after the other and never together,
so memory is one block and its calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantlab.block import Block, Call
from quantlab.tensor import CalibrationError, QuantizedTensor

Loss = Callable[[Tensor, Tensor], Tensor]


class LearnedWeight(nn.Module):
    """A weight whose quantization has parameters: what a method hands to ``train``."""

    def forward(self) -> Tensor:
        """Return the weight as the block will see it, differentiable in the parameters."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def quantized(self) -> QuantizedTensor:
        """Return what stays when training ends: codes and grid, no parameters."""
        raise TypeError(f"{type(self).__name__} defines no quantized")

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the parameters in groups, each with its learning rate."""
        raise TypeError(f"{type(self).__name__} defines no rates")

    def penalty(self, done: float) -> Tensor | float:
        """Return what is added to the loss when the share ``done`` of all steps is behind."""
        return 0.0


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error summed over axis 1 and averaged over the others.

    For (batch, tokens, features) that is tokens times the mean squared error.

    Examples
    --------
    >>> squared_error(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)).item()
    3.0
    """
    return (output - target).square().sum(1).mean()


def train(
    block: Block,
    weights: Mapping[str, LearnedWeight],
    *,
    iterations: int,
    loss: Loss = squared_error,
    input_mix: float = 0.5,
    seed: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train the weights of one block together: Adam, cosine to zero, one batch a step.

    Parameters
    ----------
    block : Block
        With ``inputs``, ``float_inputs`` and ``targets``, the same number of batches each. Batches
        are taken in order and repeated. Its module is not modified.
    weights : layer name -> LearnedWeight
        Stand in for ``<name>.weight`` of the block's module.
    iterations : int
        Steps; the rate falls as a cosine from full to 0 over them.
    loss : function of (output, target)
    input_mix : probability
        Each element of a positional tensor is taken from the quantized-prefix inputs with this
        probability, else from the float ones, drawn anew at every step (QDrop, arXiv:2203.05740).
    seed : int
        Of the mixing. The same seed gives the same weights.
    after_step : function of the number of steps done, optional
        Called after every step, to read out what training would leave if it ended there.

    Returns
    -------
    list of float
        The loss of each step, before that step's update, penalties left out.

    Raises
    ------
    CalibrationError
        If the block has no inputs, or the loss is not finite.
    ValueError
        If ``iterations`` is not a positive integer or ``input_mix`` no probability.
    """
    check_training(block, weights, iterations, input_mix)
    generator = torch.Generator().manual_seed(seed)
    fixed = {name: tensor.detach() for name, tensor in block.module.named_parameters()}
    rates = [pair for weight in weights.values() for pair in weight.rates()]
    optimizer = torch.optim.Adam([{"params": p, "lr": rate} for p, rate in rates])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    with torch.enable_grad():
        for step in range(iterations):
            batch = step % len(block.inputs)
            args, kwargs = mixed(block, batch, input_mix, generator)
            learned = {f"{name}.weight": weight() for name, weight in weights.items()}
            output = first(functional_call(block.module, fixed | learned, args, kwargs))
            error = loss(output, block.targets[batch])
            total = error + sum(weight.penalty(step / iterations) for weight in weights.values())
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            schedule.step()
            losses.append(error.item())
            if not math.isfinite(losses[-1]):
                raise CalibrationError(
                    f"{block.name}: the loss is {losses[-1]} at step {step}; "
                    "lower the learning rate"
                )
            if after_step is not None:
                after_step(step + 1)
    return losses


def mixed(block: Block, batch: int, probability: float, generator: torch.Generator) -> Call:
    """Return one batch's call, its tensors mixed element by element from both streams."""
    args, kwargs = block.inputs[batch]
    floats = block.float_inputs[batch][0]
    if probability == 1 or all(a is b for a, b in zip(args, floats, strict=True)):
        return args, kwargs
    pairs = zip(args, floats, strict=True)
    return tuple(mix(a, b, probability, generator) for a, b in pairs), kwargs


def mix(quantized: Any, floating: Any, probability: float, generator: torch.Generator) -> Any:
    """Take each element from ``quantized`` with this probability, else from ``floating``."""
    if quantized is floating or not isinstance(quantized, Tensor):
        return quantized
    if not quantized.is_floating_point():
        return quantized
    drawn = torch.rand(quantized.shape, generator=generator) < probability
    return torch.where(drawn, quantized, floating)


def first(output: Any) -> Tensor:
    """Return a block's output tensor, also where it comes in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def check_training(
    block: Block, weights: Mapping[str, LearnedWeight], iterations: int, input_mix: float
) -> None:
    """Raise unless there is something to train, data to train on, and a number of steps."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations is {iterations!r}; choose a positive integer, such as 1500")
    if not 0 <= input_mix <= 1:
        raise ValueError(f"input_mix is {input_mix!r}; choose a probability from 0 to 1")
    if not weights:
        raise ValueError(f"{block.name} has no weight to train")
    counts = len(block.inputs), len(block.float_inputs), len(block.targets)
    if counts[0] == 0 or len(set(counts)) > 1:
        raise CalibrationError(
            f"{block.name}: training needs calibration data, one target a batch; it has "
            f"{counts[0]} batches, {counts[1]} float ones and {counts[2]} targets; "
            "pass quantize_(model, method, scheme, data)"
        )
    for number, target in enumerate(block.targets):
        tensors: Sequence[Any] = [target, *block.inputs[number][0]]
        if not all(
            torch.isfinite(t).all()
            for t in tensors
            if isinstance(t, Tensor) and t.is_floating_point()
        ):
            raise CalibrationError(
                f"{block.name}: batch {number} holds NaN or infinity; check the float model"
            )
