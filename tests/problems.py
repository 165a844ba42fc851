"""Two small training problems whose course is known: six weights, and a block with outliers."""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from quantlab.methods.adascale import AdaScaleWeight


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spread_(weight: AdaScaleWeight, size: float = 0.3) -> AdaScaleWeight:
    """Move all parameters away from 0, the same way for the same seed."""
    for parameter in weight.parameters():
        parameter.data.normal_(0, size)
    return weight


TOY = [[0.90, -0.35, 0.20], [-0.55, 0.15, 0.40]]
TOY_BATCHES = [
    [[1, 0.5, -1], [0, 2, 1], [-1.5, 0.5, 0.5], [2, -1, 0]],
    [[0.5, -0.5, 2], [1, 1, 1], [-1, 0, -2], [0.5, 1.5, -0.5]],
]


def toy() -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(tensor(TOY))
        inputs = [tensor([batch]) for batch in TOY_BATCHES]
        return layer, inputs, [layer(x) for x in inputs]


class GatedBlock(nn.Module):
    """The known problem: y = x + down(silu(gate x) * up x)."""

    def __init__(self, gate, up, down):
        super().__init__()
        for name, W in (("gate", gate), ("up", up), ("down", down)):
            layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
            layer.weight.data = torch.tensor(W, dtype=torch.float32)
            setattr(self, name, layer)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gated_problem():
    """Return the block, 16 calibration batches and 8 test batches, channels 3 and 17 outliers."""
    r = np.random.default_rng(7)
    shapes = ((64, 32), (64, 32), (32, 64))
    module = GatedBlock(*(r.standard_t(5, shape) / np.sqrt(shape[1]) for shape in shapes))
    streams = []
    for batches in (16, 8):
        x = r.standard_normal((batches, 2, 16, 32))
        x[..., [3, 17]] *= 6
        streams.append(torch.tensor(x, dtype=torch.float32))
    return module, list(streams[0]), streams[1]


def gated():
    module, inputs, _ = gated_problem()
    with torch.no_grad():
        return module, inputs, [module(x) for x in inputs]


def mean_error(module, weights, test) -> float:
    """Return the mean squared error of the block with these weights, on unseen inputs."""
    with torch.no_grad():
        named = {f"{name}.weight": weight for name, weight in weights.items()}
        return (functional_call(module, named, test) - module(test)).square().mean().item()
