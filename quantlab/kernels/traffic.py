"""Count the bytes that a loop moves: arrays that notice every load and every store.

A product with one vector does two operations a weight and then never needs that weight again, so
its time is the time of its bytes. They can be counted without a clock, and the count is the same on
every machine. Here whatever stands in an array of a ``Memory`` lies in memory, and whatever stands
in a variable of the loop lies in a register: reading an array costs its bytes each time, using a
variable costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Memory:
    """Some arrays, and how many bytes were loaded from and stored to each.

    Examples
    --------
    >>> memory = Memory(x=np.ones(4, np.float32), y=np.zeros(1, np.float32))
    >>> total = np.float32(0)
    >>> for i in range(4):
    ...     total += memory.x[i]
    >>> memory.y[0] = total
    >>> memory.loaded, memory.stored, memory.moved
    ({'x': 16, 'y': 0}, {'x': 0, 'y': 4}, 20)
    """

    def __init__(self, **arrays: ArrayLike) -> None:
        self.loaded = dict.fromkeys(arrays, 0)
        self.stored = dict.fromkeys(arrays, 0)
        self.trace: list[tuple[str, str, NDArray[np.int64]]] = []
        for name, values in arrays.items():
            setattr(self, name, Counted(self, name, np.array(values)))

    def __getattr__(self, name: str) -> Counted:
        """Only asked for names that are no arrays."""
        raise AttributeError(f"there is no array {name!r} in this memory")

    def allocate(self, name: str, shape: int | tuple[int, ...], dtype: Any = np.float32) -> Counted:
        """Return a new array of zeros whose loads and stores are counted as well."""
        self.loaded[name] = self.stored[name] = 0
        array = Counted(self, name, np.zeros(shape, dtype))
        setattr(self, name, array)
        return array

    @property
    def moved(self) -> int:
        """Bytes loaded and stored, all arrays together."""
        return sum(self.loaded.values()) + sum(self.stored.values())


class Counted:
    """An array of a ``Memory``: indexing it counts."""

    def __init__(self, memory: Memory, name: str, values: NDArray[Any]) -> None:
        self.memory, self.name, self.values = memory, name, values
        self.places = np.arange(values.size).reshape(values.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes; they cost nothing."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        """Load an element or a part."""
        self.note("load", index, self.memory.loaded)
        part = self.values[index]
        return part.copy() if isinstance(part, np.ndarray) else part

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        """Store an element or a part."""
        self.note("store", index, self.memory.stored)
        self.values[index] = value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Load the whole array: what NumPy does when it is handed one."""
        return np.array(self[...], dtype=dtype)

    def note(self, kind: str, index: Any, counts: dict[str, int]) -> None:
        """Count what an index touches, and remember it for a tracer."""
        places = np.atleast_1d(self.places[index]).reshape(-1)
        counts[self.name] += places.size * self.values.itemsize
        self.memory.trace.append((kind, self.name, places))


def gemv_bytes(rows: int, columns: int, group_size: int, *, tile: int) -> dict[str, int]:
    """Return the bytes that a 4-bit product with one vector loads and stores, by array.

    ``tile`` rows are computed at a time, so that each activation is loaded once for all of them.

    Parameters
    ----------
    rows, columns : of the weight
    group_size : weights that share a float16 scale
    tile : rows at a time; divides ``rows``

    Examples
    --------
    >>> gemv_bytes(4096, 4096, 32, tile=16)
    {'codes': 8388608, 'scale': 1048576, 'x': 4194304, 'y': 16384}
    """
    return {
        "codes": rows * columns // 2,
        "scale": rows * (columns // group_size) * 2,
        "x": rows // tile * columns * 4,
        "y": rows * 4,
    }


def tiled_gemv(memory: Memory, group_size: int, tile: int) -> None:
    """Multiply 4-bit codes with a vector, ``tile`` rows at a time; every touch is counted.

    Parameters
    ----------
    memory : Memory
        With codes (rows, columns / 2) uint8, scale (rows, groups) float16, x (columns,) float32 and
        y (rows,) float32, which is written.
    group_size, tile : as in ``gemv_bytes``
    """
    rows, groups = memory.scale.shape
    for first in range(0, rows, tile):
        block = slice(first, first + tile)
        total = np.zeros(tile, np.float32)
        for g in range(groups):
            part = np.zeros(tile, np.float32)
            for byte in range(g * group_size // 2, (g + 1) * group_size // 2):
                pair, codes = memory.x[2 * byte : 2 * byte + 2], memory.codes[block, byte]
                part += (codes & 15).astype(np.float32) * pair[0] - 8 * pair[0]
                part += (codes >> 4).astype(np.float32) * pair[1] - 8 * pair[1]
            total += memory.scale[block, g].astype(np.float32) * part
        memory.y[block] = total
