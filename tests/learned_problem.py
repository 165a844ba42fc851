"""Small problems on which methods that learn can be judged: one linear, correlated inputs."""

import torch
from torch import nn

from quantlab.block import Block


def matrix(rows: int = 6, columns: int = 16) -> torch.Tensor:
    """Draw a float64 weight from the global generator."""
    return torch.randn(rows, columns, dtype=torch.float64)


def correlated(tokens: int = 200, columns: int = 16) -> torch.Tensor:
    """Draw inputs (tokens, in) whose channels move together."""
    mix = torch.randn(columns, columns, dtype=torch.float64)
    return torch.randn(tokens, columns, dtype=torch.float64) @ mix


def linear_block(W: torch.Tensor, x: torch.Tensor) -> Block:
    """Make a block of one linear and one batch of inputs (tokens, in)."""
    module = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False).to(W.dtype))
    with torch.no_grad():
        module[0].weight.copy_(W)
    calls = [((x[None],), {})]
    return Block(
        module, {"0": module[0]}, inputs=calls, float_inputs=calls, targets=[x[None] @ W.T]
    )


def error(block: Block, kept) -> float:
    """Return the mean squared error of the block's first batch with this weight."""
    x, target = block.inputs[0][0][0], block.targets[0]
    return (x @ kept.dequantize().T - target).square().mean().item()


def slope(parameter: torch.Tensor, k: int, value, step: float = 1e-6) -> float:
    """Return how fast ``value()`` rises with entry k of a parameter: a central difference."""
    flat = parameter.data.view(-1)
    middle = flat[k].item()
    ends = []
    for moved in (middle + step, middle - step):
        flat[k] = moved
        ends.append(value().item())
    flat[k] = middle
    return (ends[0] - ends[1]) / (2 * step)
