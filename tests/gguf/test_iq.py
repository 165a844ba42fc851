"""IQ4_NL and IQ4_XS against ggml, against a slow twin, and at their edges."""

import re

import ggml
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab import gguf
from quantlab.gguf import iq
from tests.gguf import reference_iq
from tests.gguf.rows import (
    awkward_rows,
    importance,
    importance_with_zeros,
    mixed_rows,
    subnormal_rows,
)

IDS = {"IQ4_NL": 20, "IQ4_XS": 23}
both = pytest.mark.parametrize("name", IDS)


def finite_float16():
    """Return all 63,488 finite float16 numbers, subnormal ones included."""
    d = np.arange(2**16, dtype=np.uint16).view(np.float16)
    return d[np.isfinite(d)]


@both
@pytest.mark.parametrize("kind", [None, importance, importance_with_zeros])
def test_bytes_equal_ggml_on_awkward_rows(name, kind):
    rows = awkward_rows(768)
    imatrix = None if kind is None else kind(768)
    expected = ggml.quantize(np.stack(list(rows.values())), IDS[name], imatrix)
    for (title, row), want in zip(rows.items(), expected, strict=True):
        assert gguf.quantize(row, name, imatrix).tolist() == want.tolist(), title


@both
@pytest.mark.parametrize("kind", [None, importance_with_zeros])
def test_bytes_equal_the_slow_twin(name, kind):
    imatrix = None if kind is None else kind(256)
    for title, row in awkward_rows(256).items():
        want = reference_iq.quantize(row, name, imatrix)
        assert gguf.quantize(row, name, imatrix).tolist() == want.tolist(), title


floats = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 113.0, -127.0, 7.0, -4.5, 1e-16, 1e-15])


@both
@settings(max_examples=60)
@given(row=st.one_of(arrays(np.float32, 512, elements=e) for e in (floats, few)), data=st.data())
def test_bytes_equal_ggml_on_any_row(name, row, data):
    weights = st.floats(0, 2.0**40, width=32, allow_subnormal=False)
    imatrix = data.draw(st.none() | arrays(np.float32, 512, elements=weights))
    want = ggml.quantize(row[None], IDS[name], imatrix)[0]
    assert gguf.quantize(row, name, imatrix).tolist() == want.tolist()


@pytest.mark.slow
@both
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_equal_ggml_on_ten_million_weights(name, weighted):
    for seed in range(5):
        rows = mixed_rows(1024, 2048, seed)
        imatrix = importance_with_zeros(2048, seed) if weighted else None
        np.testing.assert_array_equal(
            gguf.quantize(rows, name, imatrix, threads=2), ggml.quantize(rows, IDS[name], imatrix)
        )


def test_iq4_nl_reads_every_code_at_every_scale_as_ggml_does():
    d = finite_float16()
    blocks = np.zeros(len(d), gguf.TYPES["IQ4_NL"].layout)
    blocks["d"] = d
    blocks["qs"] = np.arange(16) | np.arange(16)[::-1] << 4
    data = blocks.view(np.uint8).reshape(len(d), -1)
    ours = gguf.dequantize(data, "IQ4_NL")
    levels = np.array(reference_iq.LEVELS, np.float32)
    exact = d.astype(np.float32)[:, None] * np.concatenate([levels, levels[::-1]])
    np.testing.assert_array_equal(ours.view(np.uint32), exact.view(np.uint32))
    theirs = ggml.dequantize(data, 20, 32)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@both
def test_random_bytes_read_as_ggml_reads_them(name):
    layout = gguf.TYPES[name].layout
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2000, layout.itemsize), np.uint8).view(layout)
    blocks["d"] = rng.choice(finite_float16(), blocks.shape)
    data = blocks.view(np.uint8).reshape(500, -1)
    ours = gguf.dequantize(data, name)
    theirs = ggml.dequantize(data, IDS[name], ours.shape[1])
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_a_weight_midway_between_two_levels_takes_the_upper_one():
    up = np.nextafter(iq.MIDDLES, np.float32(-np.inf))
    x = np.zeros((1, 32), np.float32)
    x[0, :15], x[0, 15:30] = iq.MIDDLES, up
    bytes_ = iq.nearest_codes(x, np.ones(1, np.float32))[0]
    codes = np.concatenate([bytes_ & 15, bytes_ >> 4])
    assert codes[:30].tolist() == [*range(1, 16), *range(15)]
    assert codes.tolist() == [reference_iq.nearest(v) for v in x[0]]


@both
def test_ties_inside_the_search_go_up_too(name):
    rng = np.random.default_rng(0)
    rows = rng.choice(iq.LEVELS, (40, 256))
    ties = rng.random(rows.shape) < 0.1
    rows[ties] = rng.choice(iq.MIDDLES, ties.sum())
    rows[:, ::32] = -127  # the inverse scale 1 is tried and is nearly perfect
    np.testing.assert_array_equal(gguf.quantize(rows, name), ggml.quantize(rows, IDS[name]))
    twin = [reference_iq.quantize(row, name) for row in rows[:4]]
    np.testing.assert_array_equal(gguf.quantize(rows[:4], name), twin)


@both
def test_a_power_of_two_moves_only_the_scale(name):
    row = awkward_rows(256)["Student t3"]
    before = gguf.quantize(row, name).view(gguf.TYPES[name].layout)
    after = gguf.quantize(row * 8, name).view(gguf.TYPES[name].layout)
    assert (after["d"] == before["d"] * 8).all()
    for field in set(before.dtype.names) - {"d"}:
        assert (after[field] == before[field]).all()


@both
def test_levels_survive_unchanged(name):
    row = np.tile(np.array(reference_iq.LEVELS, np.float32) / 4, 16)
    np.testing.assert_array_equal(gguf.dequantize(gguf.quantize(row, name), name), row)


@both
def test_rows_do_not_depend_on_their_neighbors_or_threads(name):
    rows = mixed_rows(7, 768, 3)  # 24 sub-blocks a row: rows share the search's sixteen lanes
    whole = gguf.quantize(rows, name, threads=2)
    for row, data in zip(rows, whole, strict=True):
        np.testing.assert_array_equal(gguf.quantize(row, name, threads=1), data)


@both
def test_subnormal_rows_become_zeros(name):
    for row in subnormal_rows(256).values():
        assert not gguf.dequantize(gguf.quantize(row, name), name).any()


def test_zeros_are_the_documented_bytes():
    zeros = np.zeros(256, np.float32)
    assert gguf.quantize(zeros[:32], "IQ4_NL").tobytes() == bytes(2) + b"\x88" * 16
    head = bytes.fromhex("0080aaaa00000000")
    assert gguf.quantize(zeros, "IQ4_XS").tobytes() == head + b"\x88" * 128


@both
def test_the_largest_scale_of_float16_is_the_edge(name):
    row = np.zeros(256, np.float32)
    row[5] = 1
    edge = 65520 * (113 if name == "IQ4_NL" else 113 * 32)  # where float16 rounds to infinity
    below, above = np.float32(edge * 0.9999), np.float32(edge * 1.0001)
    got = gguf.dequantize(gguf.quantize(row * below, name), name)
    np.testing.assert_allclose(got[5], below, rtol=2e-4)  # half a step of float16
    with pytest.raises(
        ValueError, match=f"row 0, block 0 .*{re.escape(format(above, '.6g'))}.* use F32"
    ):
        gguf.quantize(row * above, name)


@both
def test_no_weight_is_so_large_that_it_vanishes(name):
    row = np.zeros((2, 256), np.float32)
    row[1, 40] = 1e11
    with pytest.raises(ValueError, match=r"row 1, block .* does not fit float16"):
        gguf.quantize(row, name)
    row[1, 40] = 1.001e11
    with pytest.raises(ValueError, match=rf"\[1, 40\] is 1.001e\+11, and {name} holds sizes"):
        gguf.quantize(row, name)


@both
def test_sums_that_overflow_are_refused_not_written_as_zeros(name):
    row, imatrix = np.ones(256, np.float32), np.full(256, 1e38, np.float32)
    with pytest.raises(ValueError, match="does not fit float16"):
        gguf.quantize(row, name, imatrix)
