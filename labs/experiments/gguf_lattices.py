"""Read the lattices of the IQ1, IQ2 and IQ3 types out of ggml, and commit them packed.

The lists are facts of the format, and ggml has no function that prints them. But a block with
scale 1 and no signs, whose indices are 0, 1, 2, ..., dequantizes to the list itself.

    python labs/experiments/gguf_lattices.py

Needs the package ``xllamacpp`` (ggml); writes ``quantlab/gguf/lattices.npz``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from quantlab.gguf import lattice, lattice_points

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import ggml

POINTS = {
    "IQ2_XXS": 256,
    "IQ2_XS": 512,
    "IQ2_S": 1024,
    "IQ3_XXS": 256,
    "IQ3_S": 512,
    "IQ1_S": 2048,
}


def counting_blocks(name: str) -> np.ndarray:
    """Return blocks of the type whose indices count up from 0."""
    cls = getattr(lattice, name)
    width = 4 if name.startswith("IQ3") else 8
    index = np.arange(POINTS[name]).reshape(-1, 256 // width)
    blocks = np.zeros(len(index), cls.layout)
    blocks["d"] = 1
    if name == "IQ2_XXS":
        blocks["groups"]["index"] = index.reshape(-1, 8, 4)
    elif name == "IQ2_XS":
        blocks["codes"] = index
    elif name == "IQ3_XXS":
        blocks["index"] = index
    else:
        blocks["low"] = index & 255
        bits, count = {"IQ2_S": (2, 4), "IQ3_S": (1, 8), "IQ1_S": (3, 4)}[name]
        high = (index >> 8).reshape(len(index), -1, count) << bits * np.arange(count)
        blocks["high"] = high.sum(-1)
    return blocks


def read_lattice(name: str) -> np.ndarray:
    """Return the points (n, 8 or 4) of a type as the numbers of their levels."""
    blocks = counting_blocks(name)
    number = getattr(lattice, name).id
    data = blocks.view(np.uint8).reshape(len(blocks), -1)
    floats = ggml.dequantize(data, number, 256).reshape(POINTS[name], -1)
    factor = {"IQ2": 8, "IQ3_XXS": 4}.get(name if name == "IQ3_XXS" else name[:3], 1)
    values = floats * factor - (0.125 if name == "IQ1_S" else 0)
    levels = np.array(lattice_points.LEVELS[name])
    codes = np.searchsorted(levels, values)
    assert (levels[codes] == values).all(), name
    return codes


def main() -> None:
    """Read the six lattices and write the file."""
    packed = {}
    for name in POINTS:
        bits = 2 if len(lattice_points.LEVELS[name]) == 3 else 3
        flags = read_lattice(name)[..., None] >> np.arange(bits) & 1
        packed[name] = np.packbits(flags.astype(np.uint8), bitorder="little")
        print(f"{name}: {POINTS[name]} points, {packed[name].size} bytes")
    np.savez(lattice_points.FILE, **packed)


if __name__ == "__main__":
    main()
