"""Vector rotator (module 13): turn a vector, and watch its largest number fall and rise again."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, radians, sin

import torch
from torch import Tensor

from quantlab.orthogonal import incoherence
from quantlab.plot import Picture, rotator_panels
from quantlab.plot_style import short
from quantlab.scheme import Scheme
from quantlab.widgets.base import Widget
from quantlab.widgets.column_sweep import plain_lists

ANGLES = tuple(range(0, 91, 3))


class VectorRotator(Widget):
    """A slider that turns vectors of 2^k numbers from themselves through a Hadamard transform.

    Parameters
    ----------
    vectors : name -> (2^k,) tensor, not zero
        At most four.
    scheme : Scheme
        What each turned vector is rounded with.
    vector, angle : at the start

    Raises
    ------
    ValueError
        If a length is no power of two.
    """

    script = "vector_rotator"

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        scheme: Scheme = Scheme(4),  # noqa: B008 - frozen
        *,
        vector: str | None = None,
        angle: int = 45,
    ) -> None:
        names = list(vectors)
        turns = {
            name: torch.stack([turned(x.detach().double(), angle) for angle in ANGLES])
            for name, x in vectors.items()
        }
        figures = {name: [measures(y, scheme) for y in turn] for name, turn in turns.items()}
        table = {
            "choices": {"vector": names, "angle": list(ANGLES)},
            "values": {name: plain_lists(turn) for name, turn in turns.items()},
            "measures": figures,
            "sentences": {
                name: [describe(*row) for row in zip(ANGLES, figures[name], strict=True)]
                for name in names
            },
        }
        super().__init__(table, vector=names[0] if vector is None else vector, angle=angle)

    @property
    def sentence(self) -> str:
        """What the present angle does to the present vector."""
        return f"{self.position['vector']}: {self.row('sentences')}"

    def row(self, name: str) -> object:
        """Return an entry of the table at the present position."""
        return self.table[name][self.position["vector"]][ANGLES.index(self.position["angle"])]

    def picture(self) -> Picture:
        """Return the turned vector beside the rounding error at each angle."""
        errors = [row[2] for row in self.table["measures"][self.position["vector"]]]
        return rotator_panels(
            self.row("values"), dict(zip(ANGLES, errors, strict=True)), self.position["angle"]
        )


def turned(x: Tensor, angle: float) -> Tensor:
    """Return (2^k,) numbers after k stages of [[cos, sin], [sin, -cos]] on pairs.

    At 0 degrees signs change, at 45 it is the Hadamard transform, at 90 the order is reversed.

    Examples
    --------
    >>> turned(torch.tensor([3.0, 4.0]), 90).round(decimals=6).tolist()
    [4.0, 3.0]
    """
    if x.numel() & (x.numel() - 1):
        raise ValueError(f"a vector of {x.numel()} numbers; pass 2, 4, 8 ... of them")
    c, s = cos(radians(angle)), sin(radians(angle))
    reach = 1
    while reach < x.numel():
        low, high = x.unflatten(0, (-1, 2, reach)).unbind(1)
        x = torch.stack([c * low + s * high, s * low - c * high], 1).flatten()
        reach *= 2
    return x


def measures(y: Tensor, scheme: Scheme) -> list[float]:
    """Return largest / root mean square, kurtosis, and rounding error in percent of the energy."""
    scale, zero_point = scheme.grid(scheme.group(y))
    rounded = scheme.decode(scheme.encode(y, scale, zero_point), scale, zero_point)
    kurtosis = (y**4).mean() / y.square().mean().square()
    error = 100 * (rounded - y).square().sum() / y.square().sum()
    return [float(f"{v:.4g}") for v in (incoherence(y), kurtosis.item(), error.item())]


def describe(angle: float, figures: list[float]) -> str:
    """Say what one angle does."""
    largest, kurtosis, error = figures
    return (
        f"at {angle} degrees the largest number is {short(largest)} times the root mean square, "
        f"the kurtosis {short(kurtosis)} (Gaussian: 3), and rounding costs {short(error)} % of "
        "the energy."
    )
