"""Every block type against what the real ggml wrote: labs/experiments/gguf_vectors.py."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from quantlab.gguf import TYPES, dequantize, quantize
from tests.gguf.rows import written_types

with np.load(Path(__file__).with_name("vectors.npz")) as archive:
    VECTORS = dict(archive)

WRITTEN = [name for name in TYPES if f"{name} bytes" in VECTORS]
READ = [name for name in TYPES if f"{name} blocks" in VECTORS]
IMPORTANCES = [
    (name, kind)
    for name in WRITTEN
    for kind in ("imatrix", "imatrix with zeros")
    if f"{name} {kind}" in VECTORS
]


def rows_within(name: str) -> np.ndarray:
    limit = np.float32(TYPES[name].limit)
    return np.clip(VECTORS["rows"], -limit, limit)


def assert_sha(floats: np.ndarray, name: str) -> None:
    digest = hashlib.sha256(floats.astype("<f4").tobytes()).hexdigest()
    assert digest == str(VECTORS[f"{name} floats"])


@pytest.mark.parametrize("name", WRITTEN)
def test_bytes_equal_ggml(name):
    np.testing.assert_array_equal(quantize(rows_within(name), name), VECTORS[f"{name} bytes"])


@pytest.mark.parametrize(("name", "kind"), IMPORTANCES)
def test_bytes_with_importances_equal_ggml(name, kind):
    ours = quantize(rows_within(name), name, VECTORS[kind])
    np.testing.assert_array_equal(ours, VECTORS[f"{name} {kind}"])


@pytest.mark.parametrize("name", WRITTEN)
def test_floats_equal_ggml(name):
    assert_sha(dequantize(VECTORS[f"{name} bytes"], name), name)


@pytest.mark.parametrize("name", READ)
def test_floats_of_types_that_are_only_read_equal_ggml(name):
    assert_sha(dequantize(VECTORS[f"{name} blocks"], name), name)


def test_every_type_has_vectors():
    assert written_types() == WRITTEN
    assert [name for name, cls in TYPES.items() if cls.size > 1 and name not in WRITTEN] == READ
    used = [(name, "imatrix") for name in WRITTEN if TYPES[name].imatrix != "ignored"]
    assert set(used) <= set(IMPORTANCES)
