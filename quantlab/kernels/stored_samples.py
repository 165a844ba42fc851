"""Timing samples that were really taken, well and badly, kept so that a lesson can be repeated.

``labs/experiments/timing_samples.py`` measured them; the file beside this one says on what machine,
with which versions, and how.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.kernels.machine import Limits, Machine

FILE = Path(__file__).with_name("stored_samples.json")


@dataclass(frozen=True)
class StoredSamples:
    """Samples by name, and where they come from.

    Attributes
    ----------
    about : everything in the file but the samples
    samples : name -> seconds, in the order in which they were taken
    """

    about: dict[str, Any]
    samples: dict[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self.samples:
            raise KeyError(f"no samples {name!r}; there are {', '.join(self.samples)}")
        return self.samples[name].copy()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the 4-bit weight that each call reads."""
        return self.about["weight_bytes"]

    @property
    def machine(self) -> Machine:
        """The machine that the samples were taken on, with its measured limits."""
        told = dict(self.about["machine"])
        limits = tuple(Limits(**each) for each in told.pop("limits"))
        return Machine(**told, limits=limits)


@cache
def stored_samples() -> StoredSamples:
    """Return the samples of module 24.

    Examples
    --------
    >>> stored = stored_samples()
    >>> stored["A"].size, stored.weight_bytes
    (200, 9437184)
    """
    about = json.loads(FILE.read_text(encoding="utf-8"))
    samples = {name: np.array(times) / 1e6 for name, times in about.pop("samples").items()}
    return StoredSamples(about, samples)
