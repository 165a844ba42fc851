"""Traffic tracer (module 23): a tiled product, load by load, and the bytes it has moved."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quantlab.kernels.traffic import Memory, gemv_bytes, tiled_gemv
from quantlab.plot import Picture
from quantlab.plot_traffic import traffic_panels
from quantlab.tensor import QuantizedTensor
from quantlab.widgets.base import Widget

STAGES = 40  # positions of the slider, whatever the number of loads
ARRAYS: tuple[str, ...] = ("codes", "scale", "x", "y")


class TrafficTracer(Widget):
    """Two sliders: how far the loop has come, and how many rows it computes at a time.

    Parameters
    ----------
    weight : QuantizedTensor
        Small, of 4 bits, symmetric, such as 8 by 32 in groups of 16.
    vector : (in,) float tensor
    tile : rows at a time at the start
    step : 0..40, the part of the loop that is done at the start

    Raises
    ------
    ValueError
        If the weight is not symmetric with 4 bits.
    """

    script = "traffic_tracer"

    def __init__(
        self, weight: QuantizedTensor, vector: Tensor, *, tile: int = 1, step: int = STAGES
    ) -> None:
        scheme, (rows, columns) = weight.scheme, weight.shape
        if scheme.bits != 4 or not scheme.symmetric:
            raise ValueError(f"the tracer takes symmetric 4-bit weights; this one is {scheme}")
        group = scheme.group_size or columns
        tiles = [size for size in (1, 2, 4, 8, 16) if rows % size == 0]
        runs = {str(size): stages_of(weight, vector, group, size) for size in tiles}
        memory = memory_of(weight, vector)
        least = gemv_bytes(rows, columns, group, tile=rows)
        table = {
            "choices": {"step": list(range(STAGES + 1)), "tile": tiles},
            "shapes": {name: list(getattr(memory, name).shape) for name in ARRAYS},
            "runs": runs,
            "once": sum(least.values()),
        }
        super().__init__(table, step=step, tile=tile)

    @property
    def state(self) -> dict[str, Any]:
        """What was touched and moved at the present position."""
        at = self.position
        return self.table["runs"][str(at["tile"])][at["step"]]

    @property
    def sentence(self) -> str:
        """How many bytes the loop has moved."""
        return self.state["sentence"]

    def picture(self) -> Picture:
        """Return how often each element was touched beside the bytes moved."""
        shapes = self.table["shapes"]
        touched = {name: np.reshape(self.state["touched"][name], shapes[name]) for name in ARRAYS}
        return traffic_panels(touched, self.state["moved"], self.table["once"])


def memory_of(weight: QuantizedTensor, vector: Tensor) -> Memory:
    """Return the arrays of a product."""
    packed = weight.pack()
    return Memory(
        codes=packed.data.numpy(),
        scale=packed.scale.numpy(),
        x=vector.float().numpy(),
        y=np.zeros(weight.shape[0], np.float32),
    )


def stages_of(
    weight: QuantizedTensor, vector: Tensor, group_size: int, tile: int
) -> list[dict[str, Any]]:
    """Run the loop once and return what had happened at each of the slider's positions."""
    memory = memory_of(weight, vector)
    tiled_gemv(memory, group_size, tile)
    touched = {name: np.zeros(getattr(memory, name).values.size, int) for name in ARRAYS}
    moved, stages, done = dict.fromkeys(ARRAYS, 0), [], 0
    for stage in range(STAGES + 1):
        target = len(memory.trace) * stage // STAGES
        latest: dict[str, list[int]] = {}
        for _, name, places in memory.trace[done:target]:
            touched[name][places] += 1
            moved[name] += places.size * getattr(memory, name).values.itemsize
            latest[name] = places.tolist()
        done = target
        stages.append(
            {
                "touched": {name: counts.tolist() for name, counts in touched.items()},
                "moved": dict(moved),
                "latest": latest,
                "sentence": describe(tile, done, len(memory.trace), moved, touched["x"]),
            }
        )
    return stages


def describe(
    tile: int, done: int, total: int, moved: dict[str, int], x_touched: NDArray[np.int64]
) -> str:
    """Say how far the loop is and what it has moved."""
    rows = "1 row" if tile == 1 else f"{tile} rows"
    parts = ", ".join(f"{name} {size:,}" for name, size in moved.items())
    times = int(x_touched.max())
    return (
        f"{rows} at a time, {done} of {total} loads and stores done: {sum(moved.values()):,} bytes "
        f"({parts}); each activation loaded up to {times} times."
    )
