"""Rows of weights that find mistakes: every shape that a block's search has a branch for."""

import numpy as np

from quantlab.gguf import TYPES, quantize
from quantlab.gguf.lattice import Lattice

Rows = dict[str, np.ndarray]


def awkward_rows(columns: int, seed: int = 0) -> Rows:
    """Return (columns,) float32 rows by name; ``columns`` is a multiple of 256.

    All are finite, no size is above 1e4 and none below 1e-20 but zero: see ``subnormal_rows``.
    """
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=columns)
    halves = rng.integers(-16, 17, columns) / 2
    rows = {
        "normal": normal,
        "normal .02": rng.normal(size=columns) * 0.02,
        "Student t3": rng.standard_t(3, columns),
        "Laplace": rng.laplace(size=columns),
        "log-normal": np.exp(2 * rng.normal(size=columns)) * rng.choice([-1, 1], columns),
        "uniform": rng.uniform(-1, 1, columns),
        "zeros": np.zeros(columns),
        "minus zeros": -np.zeros(columns),
        "zeros of both signs": np.where(rng.random(columns) < 0.5, 0.0, -0.0),
        "constant": np.full(columns, 0.37),
        "minus constant": np.full(columns, -0.37),
        "positive": np.abs(normal) + 0.01,
        "negative": -np.abs(normal) - 0.01,
        "outlier": np.where(np.arange(columns) % 256 == 77, -100, normal),
        "one non-zero": np.where(np.arange(columns) == 19, -1.5, 0.0),
        "zero sub-blocks": np.where(np.arange(columns) // 16 % 3 == 1, 0.0, normal),
        "zero blocks of 32": np.where(np.arange(columns) // 32 % 2 == 1, 0.0, normal),
        "ternary": rng.integers(-1, 2, columns) * 0.7,
        "two equal extremes": np.where(np.arange(columns) % 16 == 3, 4, halves / 3),
        "half-integer ties": halves,
        "exact grid": np.where(np.arange(columns) % 32 == 5, -8, rng.integers(-8, 8, columns)),
        "ramp": np.linspace(-1, 1, columns),
        "float16-subnormal scales": normal * 1e-6,
        "scales below float16": normal * 1e-9,
        "1e-15": normal * 1e-15,  # where the searches call a block zero
        "1e-20": np.clip(normal, 1, 3) * 1e-20,
        "1e4": np.clip(normal / 4, -1, 1) * 1e4,
        "many sizes": np.exp(rng.uniform(-30, 8, columns)) * rng.choice([-1, 1], columns),
        "powers of two": 2.0 ** rng.integers(-12, 6, columns) * rng.choice([-1, 1], columns),
        "just below powers of two": np.nextafter(
            np.float32(2) ** rng.integers(-12, 6, columns).astype(np.float32), np.float32(0)
        ),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


def subnormal_rows(columns: int, seed: int = 0) -> Rows:
    """Return rows whose scales vanish in float32: C's codes are undefined, the floats zero."""
    normal = np.random.default_rng(seed).normal(size=columns)
    return {
        "least float32": np.full(columns, 1e-45, np.float32),
        "subnormal": (normal * 1e-40).astype(np.float32),
        "one subnormal": np.where(np.arange(columns) == 3, 1e-42, 0).astype(np.float32),
    }


def importance(columns: int, seed: int = 1) -> np.ndarray:
    """Return an imatrix: exp(normal), (columns,) float32."""
    return np.exp(np.random.default_rng(seed).normal(size=columns)).astype(np.float32)


def importance_with_zeros(columns: int, seed: int = 2) -> np.ndarray:
    """Return an imatrix in which stretches of columns, some of them whole blocks, are zero."""
    result = importance(columns, seed)
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, columns, max(2, columns // 100)).tolist():
        result[start : start + int(rng.integers(1, 80))] = 0
    result[:32] = 0
    return result


def mixed_rows(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return (rows, columns) float32 of many distributions, quickly, all below 6e4."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    kind = np.arange(rows) % 6
    x[kind == 1] *= np.float32(0.02)
    x[kind == 2] **= 3  # heavy tails
    x[kind == 3] = np.abs(x[kind == 3])
    x[kind == 4] = np.round(4 * x[kind == 4]) / 4  # ties
    x[kind == 5] *= np.exp2(rng.integers(-30, 6, (np.count_nonzero(kind == 5), 1), np.int8))
    x[:, 5::509] *= 30  # outliers
    return x


def written_types() -> list[str]:
    """Return the names of the types that can be quantized to, but for F32, which is a copy.

    Not the lattice types either: their search is slow, and has tests of its own.
    """

    def writes(name: str) -> bool:
        if name == "F32" or issubclass(TYPES[name], Lattice):
            return False
        size = TYPES[name].size
        try:
            quantize(np.zeros(size, np.float32), name, np.ones(size, np.float32))
        except ValueError:
            return False
        return True

    return [name for name in TYPES if writes(name)]
