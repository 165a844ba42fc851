"""Make tests/gguf/vectors.npz: what the real ggml does with awkward rows, for every block type.

With these, the bytes are tested where the wheel ``xllamacpp`` is not installed. For each type that
ggml quantizes: the bytes without importances, with them, and with stretches of zeros in them, and
the SHA-256 of the floats that ggml reads back. For the types that we only read: random blocks and
the SHA-256 of their floats.

    PYTHONPATH=. python labs/experiments/gguf_vectors.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from quantlab.gguf import TYPES, BlockType
from tests import ggml
from tests.gguf.rows import awkward_rows, importance, importance_with_zeros, written_types

OUT = Path(__file__).parents[2] / "tests" / "gguf" / "vectors.npz"
COLUMNS = 512


def sha(floats: np.ndarray) -> str:
    """Return the SHA-256 of some float32 numbers."""
    return hashlib.sha256(np.ascontiguousarray(floats, "<f4").tobytes()).hexdigest()


def finite_blocks(cls: type[BlockType], seed: int) -> np.ndarray:
    """Return (64, bytes) random blocks without infinite or NaN scales."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (400, cls.row_bytes(COLUMNS)), np.uint8)
    finite = np.isfinite(ggml.dequantize(data, cls.id, COLUMNS)).all(axis=1)
    return data[finite][:64]


def main() -> None:
    """Ask ggml, write the file, say its size."""
    rows = np.stack(list(awkward_rows(COLUMNS).values()))
    importances = {
        "imatrix": importance(COLUMNS),
        "imatrix with zeros": importance_with_zeros(COLUMNS),
    }
    arrays: dict[str, np.ndarray] = {
        "ggml": np.array(ggml.library().ggml_version().decode()),
        "rows": rows,
        **importances,
    }
    written = written_types()
    for name, cls in TYPES.items():
        if name not in written:
            if cls.size == 1:  # a copy
                continue
            data = finite_blocks(cls, cls.id)
            arrays[f"{name} blocks"] = data
            arrays[f"{name} floats"] = np.array(sha(ggml.dequantize(data, cls.id, COLUMNS)))
            continue
        x = np.clip(rows, -np.float32(cls.limit), np.float32(cls.limit))
        data = arrays[f"{name} bytes"] = ggml.quantize(x, cls.id)
        arrays[f"{name} floats"] = np.array(sha(ggml.dequantize(data, cls.id, COLUMNS)))
        for kind, weights in importances.items():
            if cls.imatrix != "ignored":
                arrays[f"{name} {kind}"] = ggml.quantize(x, cls.id, weights)
    np.savez_compressed(OUT, **arrays)
    print(f"ggml {arrays['ggml']}: {len(arrays)} arrays, {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
