"""QuaRot: turn the coordinates in which a model computes, so that no channel stands out.

An RMSNorm without a gain divides by a length, and a rotation keeps lengths: norm(x R) = norm(x) R.
So all vectors of the residual stream can be turned by one R, if everything that reads the stream
turns back and everything that writes to it turns along (x a row, y = x W^T):

    reads   y = x W^T = (x R) (W R)^T            W <- W R     after the norm's gain went into W
    writes  y R = x W^T R = x (R^T W)^T          W <- R^T W   and a bias b <- b R

Values are turned head by head on their way from v to o, which costs nothing either. What passes a
nonlinearity cannot be turned beforehand: ``OnlineHadamard`` turns it as it arrives.

References
----------
Ashkboos et al., QuaRot, arXiv:2404.00456, stages 1a to 1c. Ashkboos et al., SliceGPT,
arXiv:2401.15024, for the invariance of RMSNorm.
"""

from __future__ import annotations

from torch import Tensor, nn

from quantlab.hadamard import hadamard_transform, split


def reading(weight: Tensor, R: Tensor) -> Tensor:
    """Return the weight (out, in) that reads a stream turned by ``R`` (in, in)."""
    return weight @ R


def writing(weight: Tensor, R: Tensor) -> Tensor:
    """Return the weight (out, in) whose outputs are turned by ``R`` (out, out).

    A bias (out,) is turned in the same way.
    """
    return weight @ R if weight.ndim == 1 else R.T @ weight


def writing_heads(weight: Tensor, R: Tensor) -> Tensor:
    """Return the weight (heads * size, in) whose heads are each turned by ``R`` (size, size).

    A bias (heads * size,) is turned in the same way.
    """
    if weight.ndim == 1:
        return (weight.unflatten(0, (-1, len(R))) @ R).flatten()
    return (R.T @ weight.unflatten(0, (-1, len(R)))).flatten(0, 1)


def reading_heads(weight: Tensor, R: Tensor) -> Tensor:
    """Return the weight (out, heads * size) that reads heads turned by ``R`` (size, size)."""
    return (weight.unflatten(1, (-1, len(R))) @ R).flatten(1)


def mix(x: Tensor, width: int = 1) -> Tensor:
    """Hadamard-transform the last axis of ``x`` in pieces of ``width``, orthonormal.

    With width 1 all numbers mix with one another; with a head's width, equal places of all heads.
    The weight that reads ``mix(x)`` in place of x is ``mix(weight)``.

    Examples
    --------
    >>> import torch
    >>> mix(torch.tensor([2.0, 4.0, 0.0, 0.0]), 2).tolist()  # as the pieces (2, 4) and (0, 0)
    [1.4142135381698608, 2.8284270763397217, 1.4142135381698608, 2.8284270763397217]
    """
    pieces = x.unflatten(-1, (-1, width))
    return hadamard_transform(pieces.transpose(-1, -2)).transpose(-1, -2).flatten(-2)


class OnlineHadamard(nn.Module):
    """A linear layer behind a Hadamard transform that runs each time the model runs.

    Parameters
    ----------
    linear : nn.Linear
        Its weight is that of ``mix(weight)``; whoever builds this has seen to it.
    width : int
        As for ``mix``.

    Raises
    ------
    ValueError
        If no Hadamard matrix has the order of the inputs / width.
    """

    def __init__(self, linear: nn.Linear, width: int = 1) -> None:
        super().__init__()
        split(linear.in_features // width)
        self.linear, self.width = linear, width

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.linear(mix(x, self.width))

    def extra_repr(self) -> str:
        """Name the pieces in ``print(model)``."""
        return f"width={self.width}"
