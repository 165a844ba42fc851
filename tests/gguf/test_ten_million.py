"""Ten million random weights of each type, with and without an imatrix, against the real ggml."""

from functools import cache

import ggml
import numpy as np
import pytest

from quantlab.gguf import TYPES, quantize
from tests.gguf.rows import importance, importance_with_zeros, mixed_rows, written_types

SHAPES = ((8192, 512), (1024, 4096), (800, 2304))  # 10.2 million weights
WRITTEN = written_types()


@cache
def weights(shape: tuple[int, int]) -> np.ndarray:
    return mixed_rows(*shape, seed=shape[1])


def assert_equal_bytes(name: str, make_importance=None) -> None:
    cls = TYPES[name]
    for shape in SHAPES:
        x = np.clip(weights(shape), -np.float32(cls.limit), np.float32(cls.limit))
        imatrix = None if make_importance is None else make_importance(shape[1])
        different = (quantize(x, name, imatrix) != ggml.quantize(x, cls.id, imatrix)).any(axis=1)
        assert not different.any(), f"rows {np.flatnonzero(different)[:5]} of {shape}"


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_ten_million_weights_become_the_bytes_of_ggml(name):
    assert_equal_bytes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WRITTEN if TYPES[name].imatrix != "ignored"])
def test_so_they_do_with_an_imatrix(name):
    assert_equal_bytes(name, importance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_so_they_do_with_an_imatrix_that_has_zeros(name):
    assert_equal_bytes(name, importance_with_zeros)
