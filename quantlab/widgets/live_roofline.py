"""Live roofline (module 24): format, batch and cache in; attainable speed and tokens/s out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.kernels.machine import Limits
from quantlab.plot import Picture
from quantlab.plot_roofline import attainable, roofline
from quantlab.widgets.base import Widget

# name -> stored bits of a weight, and the kind of multiplication
FORMATS: dict[str, tuple[float, str]] = {
    "float32": (32, "float32"),
    "bfloat16 weights": (16, "float32"),
    "W8A16, a scale a row": (8, "float32"),
    "W8A8, a scale a row": (8, "int8"),
    "W4A16 g32": (4.5, "float32"),
    "W4A8 g32": (4.5, "int8"),
}
BATCHES = tuple(2**k for k in range(10))
CACHES = {"cold": "memory", "hot": "L3"}
ACTIVATION = 4  # bytes: float32 in, float32 out


class LiveRoofline(Widget):
    """Choose format, batch and cache; see which limit counts, and the tokens a second it allows.

    Parameters
    ----------
    limits : Limits
        Of one number of threads, as measured.
    points : name -> (operations for each byte, operations a second)
        Measurements of yours, drawn as well.
    size : int
        Rows and columns of the layer whose bytes are counted.
    parameters : int
        Weights of the model whose tokens/s are predicted: all of them are read once a token.
    form, batch, cache : at the start

    Raises
    ------
    ValueError
        If a number is not positive and finite, or a position does not exist.
    """

    script = "live_roofline"

    def __init__(
        self,
        limits: Limits,
        points: Mapping[str, tuple[float, float]] | None = None,
        *,
        size: int = 4096,
        parameters: int = 1_000_000_000,
        form: str = "W4A16 g32",
        batch: int = 1,
        cache: str = "cold",
    ) -> None:
        points = dict(points or {})
        for name, point in points.items():
            if not all(0 < value < np.inf for value in point):
                raise ValueError(f"{name} lies at {point}; both numbers are positive and finite")
        if size < 1 or parameters < 1:
            raise ValueError(f"size is {size} and parameters {parameters}; both are above 0")
        self.limits, self.points = limits, points
        peaks = {"float32": limits.float32, "int8": limits.int8 or limits.float32}
        states = {
            f: {
                str(b): {c: predicted(limits, f, b, c, size, parameters) for c in CACHES}
                for b in BATCHES
            }
            for f in FORMATS
        }
        table = {
            "choices": {"form": list(FORMATS), "batch": list(BATCHES), "cache": list(CACHES)},
            "read": {cache: limits.read[level] for cache, level in CACHES.items()},
            "peak": peaks,
            "kind": {name: kind for name, (_, kind) in FORMATS.items()},
            "states": states,
            "points": [[name, *map(float, point)] for name, point in points.items()],
            "threads": limits.threads,
        }
        super().__init__(table, form=form, batch=batch, cache=cache)

    @property
    def state(self) -> dict[str, Any]:
        """Intensity, attainable operations a second, tokens a second, and their sentence."""
        here = self.position
        return self.table["states"][here["form"]][str(here["batch"])][here["cache"]]

    @property
    def sentence(self) -> str:
        """What limits the product here, and what that limit allows."""
        return self.state["sentence"]

    def picture(self) -> Picture:
        """Return the roof, the chosen product where it touches it, and the reader's points."""
        here, state = self.position, self.state
        name = f"{here['form']}, batch {here['batch']}, {here['cache']}: at most"
        points = {name: (state["intensity"], state["speed"]), **self.points}
        return Picture(roofline(self.limits, points).figure, self.sentence)


def predicted(
    limits: Limits, form: str, batch: int, cache: str, size: int, parameters: int
) -> dict[str, Any]:
    """Return what one layer may reach, and a model of such layers, from bytes and limits alone."""
    bits, kind = FORMATS[form]
    moved = bits / 8 * size**2 + ACTIVATION * batch * 2 * size
    intensity = 2 * batch * size**2 / moved
    bandwidth = limits.read[CACHES[cache]]
    peak = limits.int8 if kind == "int8" and limits.int8 else limits.float32
    speed = attainable(intensity, bandwidth, peak)
    tokens = speed / (2 * parameters)
    limit = "bytes" if intensity * bandwidth < peak else "operations"
    sentence = (
        f"{form}, batch {batch}, {cache}: {intensity:.3g} operations a byte. {limit.capitalize()} "
        f"are the limit: at most {speed / 1e9:.3g} billion operations a second, "
        f"{tokens:.3g} tokens/s for {parameters / 1e9:.3g} billion weights."
    )
    return {"intensity": intensity, "speed": speed, "tokens": tokens, "sentence": sentence}
