"""AdaScale sliders (module 15): four parameters, and the codes, levels and error that they make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantlab.methods.adascale import start_range
from quantlab.plot_adascale import row_on_grid
from quantlab.plot_style import Picture, short
from quantlab.scheme import Scheme
from quantlab.widgets.base import Widget
from quantlab.widgets.column_sweep import plain_lists

VALUES = [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
NAMES = ("gamma", "beta", "s2", "s3")


class AdaScaleSliders(Widget):
    """Sliders for gamma, beta, s2 of one weight, and s3 of a row.

    Parameters
    ----------
    weights : (in,) float tensor
        A row of a linear layer, a few weights long.
    scheme : Scheme
        Symmetric.
    moment : (in, in) tensor, optional
        E[x x^T] of the inputs; by default the identity, so that the error is the weights' own.
    element : the weight that s2 acts on
    gamma, beta, s2, s3 : at the start
    """

    script = "adascale_sliders"

    def __init__(
        self,
        weights: Tensor,
        scheme: Scheme,
        moment: Tensor | None = None,
        *,
        element: int = 0,
        **start: float,
    ) -> None:
        W = weights.detach().double().flatten()
        M = torch.eye(len(W)).double() if moment is None else moment.double()
        steps, divided = every_step(W, scheme), every_division(W, element)
        # All positions at once: (gamma, beta, s2, s3, in).
        s = steps[:, :, None, None, None]
        codes = (divided / s).round().clamp(-scheme.middle, scheme.middle - 1)
        D = codes * s - W
        errors = ((D @ M) * D).sum(-1)
        table = {
            "choices": dict.fromkeys(NAMES, VALUES),
            "bits": scheme.bits,
            "element": element,
            "weights": plain_lists(W),
            "steps": plain_lists(steps),
            "divided": plain_lists(divided),
            "codes": codes.int().tolist(),
            "errors": [short(error) for error in errors.flatten().tolist()],
        }
        super().__init__(table, **{**dict.fromkeys(NAMES, 0.0), **start})

    def places(self) -> tuple[int, int, int, int]:
        """Return the position of each slider."""
        position = self.position
        gamma, beta, s2, s3 = (VALUES.index(position[name]) for name in NAMES)
        return gamma, beta, s2, s3

    @property
    def codes(self) -> list[int]:
        """The signed codes of the present position."""
        return pick(self.table["codes"], self.places())

    @property
    def sentence(self) -> str:
        """Step, codes and error at the present position, and the error of plain rounding."""
        gamma, beta, s2, s3 = self.places()
        size = len(VALUES)
        errors, zero = self.table["errors"], size // 2
        here = errors[((gamma * size + beta) * size + s2) * size + s3]
        plain = errors[((zero * size + zero) * size + zero) * size + zero]
        step = f"{self.table['steps'][gamma][beta]:.4f}"
        codes = " ".join(str(code) for code in self.codes)
        return f"Step {step}, codes {codes}, error {here}; plain rounding has {plain}."

    def picture(self) -> Picture:
        """Return the row on its grid."""
        gamma, beta, s2, s3 = self.places()
        table = self.table
        step = table["steps"][gamma][beta]
        return row_on_grid(
            table["weights"], table["divided"][s2][s3], step, self.codes, table["bits"]
        )


def every_step(weights: Tensor, scheme: Scheme) -> Tensor:
    """Return s for every gamma and beta, (7, 7)."""
    low, high = start_range(weights[None], scheme.bits)
    factors = torch.tensor(VALUES, dtype=torch.float64).exp()
    return (factors[:, None] * high - factors[None] * low) / (scheme.levels - 1)


def every_division(weights: Tensor, element: int) -> Tensor:
    """Return W' for every s2 of one weight and every s3 of the row, (7, 7, in)."""
    factors = torch.tensor(VALUES, dtype=torch.float64).exp()
    own = weights.repeat(len(VALUES), 1)
    own[:, element] /= factors
    return own[:, None] / factors[None, :, None]


def pick(nested: Any, places: tuple[int, ...]) -> Any:
    """Return the entry of nested lists at these places."""
    for place in places:
        nested = nested[place]
    return nested
