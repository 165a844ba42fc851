"""Move a scale from the inputs of linears into the norm or linear before them.

    y = W x = (W diag(s)) (x / s)        and x / s costs nothing: x = norm(h) * gain, gain / s

The float function stays what it was, up to rounding; with powers of two, to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlab.block import Block, Scaling


def foldable(block: Block, place: Scaling) -> bool:
    """Tell whether a block has all modules of a place, and s has somewhere to go."""
    modules = dict(block.module.named_modules())
    if place.previous not in modules or not set(place.linears) <= block.linears.keys():
        return False
    inputs, outputs = widths(block, place)
    if outputs == inputs:
        return True
    size = head_size(block, place)
    return size is not None and inputs % outputs == 0 and outputs % size == 0


def widths(block: Block, place: Scaling) -> tuple[int, int]:
    """Return the inputs of the linears and the outputs of the module before them."""
    weight = block.module.get_submodule(place.previous).weight
    assert isinstance(weight, Tensor)  # for the type checker
    return block.linears[place.linears[0]].in_features, len(weight)


def head_size(block: Block, place: Scaling) -> int | None:
    """Return the width of an attention head, where grouped queries share a value head."""
    parent = block.module.get_submodule(place.previous.rpartition(".")[0])
    size = getattr(parent, "head_dim", None)
    return size if isinstance(size, int) and size > 0 else None


def by_head(values: Tensor, block: Block, place: Scaling) -> Tensor:
    """View values of the linears' inputs as (value heads, queries that share one, head size).

    Where every output of ``previous`` is one input that is (1, 1, inputs).
    """
    inputs, outputs = widths(block, place)
    size = outputs if outputs == inputs else head_size(block, place)
    assert size is not None  # ``foldable`` has seen to it
    return values.unflatten(0, (outputs // size, inputs // outputs, size))


def gather(values: Tensor, block: Block, place: Scaling) -> Tensor:
    """Average (inputs,) over the query heads that share a value head: (outputs of previous,)."""
    return by_head(values, block, place).mean(1).flatten()


def spread(scale: Tensor, block: Block, place: Scaling) -> Tensor:
    """Repeat (outputs of previous,) for every query head that reads a value head: (inputs,)."""
    inputs, outputs = widths(block, place)
    shape = by_head(torch.empty(inputs), block, place).shape
    return scale.view(shape[0], 1, shape[2]).expand(shape).flatten() if outputs < inputs else scale


@torch.no_grad()
def fold_(block: Block, place: Scaling, scale: Tensor) -> None:
    """Divide what comes before by s and multiply the linears' columns by it, in place.

    With powers of two as scales the float block's outputs do not change by one bit.

    Parameters
    ----------
    block : Block
        Its statistics are of the unscaled inputs: call ``block.forget()`` after the last fold.
    place : Scaling
        ``foldable``.
    scale : (outputs of ``place.previous``,) tensor, positive and finite

    Raises
    ------
    ValueError
        If a scale is not positive and finite, or there are too few or too many.
    """
    _, outputs = widths(block, place)
    if scale.shape != (outputs,) or not (torch.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            f"{block.name}.{place.previous}: scale has shape {tuple(scale.shape)} and least value "
            f"{scale.min().item():.3g}; pass ({outputs},) positive, finite numbers"
        )
    previous: nn.Module = block.module.get_submodule(place.previous)
    for parameter in (previous.weight, getattr(previous, "bias", None)):
        if isinstance(parameter, Tensor):
            s = scale.to(parameter)
            parameter.div_(s if parameter.ndim == 1 else s[:, None])
    columns = spread(scale, block, place)
    for name in place.linears:
        weight = block.linears[name].weight
        weight.mul_(columns.to(weight))
