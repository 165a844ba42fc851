"""Three modules that mark where integers begin, meet and end; in a float model they do nothing."""

from __future__ import annotations

from torch import Tensor, nn


class QuantStub(nn.Module):
    """Mark where a float tensor becomes integers."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class DequantStub(nn.Module):
    """Mark where integers become a float tensor again."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class Add(nn.Module):
    """Add two tensors of one shape: a ``+`` that ``prepare`` can see."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return left + right."""
        return left + right
