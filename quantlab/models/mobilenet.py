"""MobileNetV2: inverted residuals with depthwise convolutions; one size for ImageNet, one for 8x8.

Written as a network that can be quantized: modules where a ``+`` would do, and stubs at both ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quantlab.integer.stubs import Add, DequantStub, QuantStub

Stage = tuple[int, int, int, int]  # expansion, channels, repeats, stride of the first
IMAGENET: tuple[Stage, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
DIGITS: tuple[Stage, ...] = ((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 1, 1))


def unit(
    inputs: int,
    outputs: int,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> list[tuple[str, nn.Module]]:
    """Return a convolution, its batch norm and, if asked for, a ReLU6, as named children."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts = [("conv", conv), ("norm", nn.BatchNorm2d(outputs)), ("relu", nn.ReLU6())]
    return parts if activation else parts[:2]


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow; add the input where shapes agree.

    References
    ----------
    Sandler et al., MobileNetV2, arXiv:1801.04381v4, section 3.4 and table 1.
    """

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = unit(inputs, hidden) if expansion > 1 else []
        depthwise = unit(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        narrow = unit(hidden, outputs, activation=False)
        named = (("widen", widen), ("depthwise", depthwise), ("narrow", narrow))
        self.body = nn.Sequential(
            OrderedDict((name, nn.Sequential(OrderedDict(parts))) for name, parts in named if parts)
        )
        self.add = Add() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, in, height, width) to (samples, out, height / stride, width / stride)."""
        y = self.body(x)
        return y if self.add is None else self.add(x, y)


class MobileNet(nn.Module):
    """A MobileNetV2 of any size.

    Parameters
    ----------
    stages : (expansion, channels, repeats, stride) each
    colors, stem, head, classes : int
        Channels of the image, of the first and the last convolution, and outputs.
    stem_stride : int

    Examples
    --------
    >>> net = MobileNet()
    >>> net(torch.zeros(2, 1, 8, 8)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 10]), 9562)
    """

    def __init__(
        self,
        stages: Sequence[Stage] = DIGITS,
        *,
        colors: int = 1,
        stem: int = 8,
        head: int = 48,
        classes: int = 10,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.quant = QuantStub()
        self.stem = nn.Sequential(OrderedDict(unit(colors, stem, kernel=3, stride=stem_stride)))
        blocks, width = [], stem
        for expansion, channels, repeats, stride in stages:
            for number in range(repeats):
                step = stride if number == 0 else 1
                blocks.append(InvertedResidual(width, channels, expansion=expansion, stride=step))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(OrderedDict(unit(width, head)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(head, classes)
        self.dequant = DequantStub()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (samples, colors, height, width) to logits (samples, classes)."""
        x = self.head(self.blocks(self.stem(self.quant(x))))
        return self.dequant(self.classifier(self.flatten(self.pool(x))))


def digits_net(seed: int = 0) -> MobileNet:
    """Return the small network for 8x8 images, with the random weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MobileNet()


def mobilenet_v2() -> MobileNet:
    """Return MobileNetV2 for ImageNet on the meta device: shapes without weights, for counting.

    Examples
    --------
    >>> sum(p.numel() for p in mobilenet_v2().parameters())
    3504872
    """
    with torch.device("meta"):
        return MobileNet(IMAGENET, colors=3, stem=32, head=1280, classes=1000, stem_stride=2)
