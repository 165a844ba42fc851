"""SpinQuant: choose the rotations by the loss of the quantized model, not by lot.

In float all rotations are equally good, in a quantized model they are not. The stream's R1 and the
heads' R2 are trained on the next-token loss of the model with rounded activations (and, if asked,
weights): straight-through gradients, and Cayley steps that never leave the orthogonal matrices.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from quantlab.orthogonal import cayley_step
from quantlab.rotate import Parts, Rotations
from quantlab.scheme import Scheme
from quantlab.sim.dynamic import DynamicSim, round_tokens
from quantlab.tensor import CalibrationError
from quantlab.walk import check_data


def learn_rotations(
    model: nn.Module,
    data: Tensor,
    *,
    activations: Scheme | None = Scheme(4),  # noqa: B008 - frozen
    weights: Scheme | None = None,
    distill: bool = False,
    start: str = "hadamard",
    steps: int = 100,
    rate: float = 1.5,
    batch_size: int = 2,
    online: bool = True,
    seed: int = 0,
) -> Rotations:
    """Train the rotations of a Llama on the loss of its quantized self; the model stays as it is.

    Parameters
    ----------
    model : nn.Module
        As for ``rotate_``, which applies the result.
    data : (samples, length) LongTensor
        Windows are taken in order and repeated.
    activations : Scheme, or None
        As for ``DynamicSim``.
    weights : Scheme, or None
        Also round the blocks' weights to nearest in the loss. None, as the authors advise where
        GPTQ follows: it repairs what rounding to nearest does, so the rotations need not.
    distill : bool
        Descend on the KL divergence from the float model in place of the next-token loss. The
        authors take the latter, which may fit the text more than the model; this is ours.
    start : kind of ``rotation_matrix``
    steps, rate, batch_size : Cayley steps, their rate, windows in each
        The rate falls linearly to 0; the authors take 100 steps at 1.5.
    online : bool
        As for ``rotate_``.
    seed : int
        Of the start.

    Returns
    -------
    Rotations
        With the loss of every step, before that step.

    Raises
    ------
    UnsupportedModelError, ValueError
        As ``rotate_`` does; or if ``steps`` or ``batch_size`` is no positive integer.
    CalibrationError
        If the loss becomes NaN or infinite.

    References
    ----------
    Liu et al., SpinQuant, arXiv:2405.16406, section 3.2 (R1 and R2; R3 and R4 stay Hadamard).
    """
    check_counts(steps=steps, batch_size=batch_size)
    check_data(model, data)
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    parts = Parts(twin, online=online)
    drawn = parts.draw(start, seed)
    parts.prepare_()
    rotations = [drawn.residual, *drawn.heads]
    sim, losses = DynamicSim(twin, activations=activations), []
    batches = data.split(batch_size)
    with torch.enable_grad():
        for step in range(steps):
            leaves = [R.detach().requires_grad_() for R in rotations]
            batch = batches[step % len(batches)]
            output = quantized_output(sim, parts, leaves, weights, batch)
            loss = divergence(model, output, batch) if distill else next_token(output, batch)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise CalibrationError(f"the loss is {losses[-1]} at step {step + 1}; lower rate")
            gradients = torch.autograd.grad(loss, leaves)
            now = rate * (1 - step / steps)
            rotations = [
                cayley_step(R.detach(), G, now) for R, G in zip(leaves, gradients, strict=True)
            ]
    return Rotations(
        rotations[0], tuple(rotations[1:]), online, f"spin from {start}", tuple(losses)
    )


def quantized_output(
    sim: DynamicSim, parts: Parts, rotations: list[Tensor], weights: Scheme | None, tokens: Tensor
) -> Tensor:
    """Return the logits of the model, turned by the rotations and rounded, at least float32."""
    dtype = next(sim.model.parameters()).dtype
    residual, *heads = (R.to(dtype) for R in rotations)
    new = {
        f"model.{name}": round_tokens(weight, weights)
        if weights is not None and is_block_weight(name, weight)
        else weight
        for name, weight in parts.rotated(residual, heads)
    }
    return logits_of(functional_call(sim, new, (tokens,)))


def logits_of(output: Any) -> Tensor:
    """Return a model's logits, also from transformers' wrapping, at least float32."""
    logits = output if isinstance(output, Tensor) else output.logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean next-token loss."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def divergence(model: nn.Module, logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean KL divergence from the float model over all positions."""
    with torch.no_grad():
        target = F.log_softmax(logits_of(model(tokens)), -1).flatten(0, 1)
    mine = F.log_softmax(logits, -1).flatten(0, 1)
    return F.kl_div(mine, target, reduction="batchmean", log_target=True)


def is_block_weight(name: str, weight: Tensor) -> bool:
    """Tell whether a new parameter is the matrix of a linear inside a block."""
    return ".layers." in name and weight.ndim == 2


def check_counts(**counts: int) -> None:
    """Raise a ValueError unless each count is a positive integer."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; choose a positive integer")
