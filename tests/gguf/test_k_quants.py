"""The K types against ggml, and at their edges."""

import ggml
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab import gguf
from quantlab.gguf import k_packing, k_quants
from tests.gguf.rows import (
    awkward_rows,
    importance,
    importance_with_zeros,
    mixed_rows,
    subnormal_rows,
)

IDS = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15}
FILE_TYPES = [name for name in IDS if name != "Q8_K"]
each = pytest.mark.parametrize("name", IDS)
each_of_a_file = pytest.mark.parametrize("name", FILE_TYPES)
IMATRICES = {
    "none": None,
    "importance": importance(512),
    "zeros in it": importance_with_zeros(512),
    "all zero": np.zeros(512, np.float32),
}


def assert_equal_bytes(rows, name, imatrix=None):
    want = ggml.quantize(rows, IDS[name], imatrix)
    got = gguf.quantize(rows, name, imatrix, threads=1)
    different = np.flatnonzero((got != want).any(axis=1))
    assert not different.size, f"rows {different}"


@each
@pytest.mark.parametrize("imatrix", IMATRICES)
def test_awkward_rows_become_the_bytes_of_ggml(name, imatrix):
    rows = {**awkward_rows(512), **subnormal_rows(512)}
    assert_equal_bytes(np.stack(list(rows.values())), name, IMATRICES[imatrix])


@each
@pytest.mark.parametrize("imatrix", IMATRICES)
def test_rows_of_many_distributions_become_the_bytes_of_ggml(name, imatrix):
    assert_equal_bytes(mixed_rows(180, 512, seed=5), name, IMATRICES[imatrix])


@pytest.mark.slow
@each
def test_ten_million_weights_become_the_bytes_of_ggml(name):
    for seed in range(10):
        rows = mixed_rows(2**11, 512, seed)
        assert_equal_bytes(rows, name, importance(512) if seed % 2 else None)


@each
@given(
    arrays(np.float32, (1, 256), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from([None, importance(256), importance_with_zeros(256)]),
)
@settings(max_examples=12, deadline=None)
def test_any_row_becomes_the_bytes_of_ggml(name, row, imatrix):
    assert_equal_bytes(row, name, imatrix)


@each
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_bytes_become_the_floats_of_ggml(name, seed):
    cls = gguf.TYPES[name]
    data = np.random.default_rng(seed).integers(0, 256, (3, cls.row_bytes(512)), dtype=np.uint8)
    records = data.view(cls.layout)
    for field in {"d", "dmin"} & set(cls.layout.names):
        records[field] = np.linspace(-2, 3, 6).reshape(3, 2)
    want = ggml.dequantize(data, cls.id, 512)
    assert np.array_equal(gguf.dequantize(data, name, threads=1).view("i4"), want.view("i4"))


@each
def test_the_layout_has_the_size_of_the_struct(name):
    cls = gguf.TYPES[name]
    assert cls.id == IDS[name]
    assert cls.row_bytes(256) == ggml.row_bytes(cls.id, 256)


@each
def test_the_number_of_rows_and_threads_changes_no_byte(name):
    rows = mixed_rows(37, 256, seed=1)
    alone = np.concatenate([gguf.quantize(row[None], name) for row in rows])
    assert np.array_equal(gguf.quantize(rows, name, threads=1), alone)
    assert np.array_equal(gguf.quantize(rows, name, threads=2), alone)


@each_of_a_file
@pytest.mark.parametrize("size", [3e8, 1e11, 1e12, 2e12, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("imatrix", [None, importance(256)])
def test_a_weight_too_large_for_the_scale_is_refused(name, size, imatrix):
    rows = mixed_rows(1, 256, seed=2)
    rows[0, 40] = -size
    with pytest.raises(ValueError, match=rf"weight.*{name}.*use F32"):
        gguf.quantize(rows, name, imatrix)


@each_of_a_file
def test_the_largest_weights_that_fit_come_back(name):
    largest = {"Q2_K": 2.9e6, "Q3_K": 8.3e6, "Q4_K": 6e7, "Q5_K": 1.2e8, "Q6_K": 2.6e8}[name]
    rows = np.linspace(0, largest, 256, dtype=np.float32)[None]
    assert_equal_bytes(rows, name)
    assert np.isfinite(gguf.dequantize(gguf.quantize(rows, name), name)).all()


def test_q8_k_holds_the_largest_floats():
    rows = np.linspace(-3e38, 3e38, 256, dtype=np.float32)[None]
    assert_equal_bytes(rows, "Q8_K")


@given(arrays(np.uint8, (4, 2, 8), elements=st.integers(0, 63)))
@settings(max_examples=30)
def test_six_bit_pairs_come_back(numbers):
    ls, lm = numbers[:, 0], numbers[:, 1]
    back = k_packing.unpack_six_pairs(k_packing.pack_six_pairs(ls, lm))
    assert np.array_equal(back[0], ls)
    assert np.array_equal(back[1], lm)


@given(arrays(np.uint8, (4, 16), elements=st.integers(0, 63)))
@settings(max_examples=30)
def test_sixteen_six_bit_scales_come_back(ls):
    assert np.array_equal(k_packing.unpack_six(k_packing.pack_six(ls)), ls.astype(int) - 32)


def test_a_zero_block_is_zero_bytes():
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"):
        assert not gguf.quantize(np.zeros((1, 256)), name).any()
        assert getattr(k_quants, name) is gguf.TYPES[name]
