"""Ask ggml what it writes for awkward rows in the lattice types, and commit a hash of each row.

With these the search is tested where the package ``xllamacpp`` (ggml) is not installed. The
first call of each type takes ggml up to a minute: it lists the neighbors of every point.

    PYTHONPATH=. python labs/experiments/gguf_lattice_vectors.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from quantlab.gguf import TYPES
from quantlab.gguf.lattice import Lattice
from tests import ggml
from tests.gguf.rows import awkward_rows, importance, importance_with_zeros

OUT = Path(__file__).parents[2] / "tests" / "gguf" / "lattice_vectors.json"
COLUMNS = 512


def hashes(data: np.ndarray) -> list[str]:
    """Return the first 16 digits of the SHA-256 of each row."""
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in data]


def main() -> None:
    """Quantize with ggml, write the file."""
    rows = awkward_rows(COLUMNS)
    rows.pop("zero blocks of 32")  # where ggml displaces bytes of IQ3_S
    x = np.stack(list(rows.values()))
    result: dict[str, object] = {
        "command": "python labs/experiments/gguf_lattice_vectors.py",
        "ggml": ggml.library().ggml_version().decode(),
        "columns": COLUMNS,
    }
    for name, cls in TYPES.items():
        if not issubclass(cls, Lattice):
            continue
        kinds = {"importance": importance(COLUMNS), "zeros": importance_with_zeros(COLUMNS)}
        result[name] = {kind: hashes(ggml.quantize(x, cls.id, q)) for kind, q in kinds.items()}
        if cls.imatrix != "required":
            result[name]["none"] = hashes(ggml.quantize(x, cls.id))
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
