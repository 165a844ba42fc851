"""Small networks that are no language models, for simulations."""

import torch
from torch import nn

from quantlab.models.llama import Llama, LlamaConfig
from quantlab.scheme import Scheme
from quantlab.sim import QuantSim


class Stem(nn.Module):
    """A convolution with its norm, a bottleneck in two groups, and a residual sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1, groups=2, bias=False)

    def forward(self, x):
        """Map (batch, 1, height, width) to (batch, channels, height, width)."""
        y = torch.relu(self.norm(self.conv(x)))
        return y + self.mix(y)


class Pictures(nn.Module):
    """A convolutional classifier whose blocks are no list: Conv2d, BatchNorm, ReLU, Linear."""

    def __init__(self, channels: int = 6):
        super().__init__()
        self.stem = Stem(channels)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 16, 12), nn.ReLU(), nn.Linear(12, 4)
        )

    def forward(self, x):
        """Map (batch, 1, 8, 8) to (batch, 4)."""
        return self.head(nn.functional.max_pool2d(self.stem(x), 2))


BLOCKS = ["stem", "head"]


def pictures() -> tuple[Pictures, torch.Tensor]:
    """Return the network with running statistics of its own, and 8 images."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8, 1, 8, 8, generator=generator)
    torch.manual_seed(5)
    model = Pictures()
    model(images * 1.5 + 0.25)
    return model.eval(), images


W4, A8, A16 = Scheme(4), Scheme(8, symmetric=False), Scheme(16, symmetric=False)


def llama() -> tuple[Llama, torch.Tensor]:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(32, 3, 2, 1, 48, 50)).eval()
    return model, torch.randint(50, (6, 12), generator=torch.Generator().manual_seed(1))


def bits_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def state(sim: QuantSim) -> dict[str, torch.Tensor]:
    return bits_of(sim.weights_only())
