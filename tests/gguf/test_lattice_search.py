"""Quantizing to the lattices: against ggml, what it once wrote, and slow twins."""

import json
from pathlib import Path

import ggml
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labs.experiments.gguf_lattice_vectors import hashes
from quantlab import gguf
from quantlab.gguf import lattice_points, lattice_search, lattice_thirds
from quantlab.gguf.lattice_search import SEARCHES
from tests.gguf import reference_lattice
from tests.gguf.rows import awkward_rows, importance, importance_with_zeros, mixed_rows

VECTORS = json.loads(Path(__file__).with_name("lattice_vectors.json").read_text(encoding="utf-8"))
KINDS = {"none": None, "importance": importance, "zeros": importance_with_zeros}
THIRDS = ("IQ1_S", "IQ1_M")
SLOW = ("IQ2_XS", "IQ2_S", *THIRDS)  # ggml itself takes half a minute to list their neighbors
NAMES = (*SEARCHES, *THIRDS)
each = pytest.mark.parametrize("name", NAMES)
each_with_ggml = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)


def usable_rows(columns):
    rows = awkward_rows(columns)
    rows.pop("zero blocks of 32")  # see the test of IQ3_S below
    return rows


def kinds(name):
    """Return the imatrices to try: ggml insists on one for some types."""
    return [kind for kind in KINDS if kind in VECTORS[name]]


@each
def test_bytes_equal_what_ggml_wrote(name):
    columns = VECTORS["columns"]
    rows = usable_rows(columns)
    for kind in kinds(name):
        imatrix = KINDS[kind] and KINDS[kind](columns)
        ours = hashes(gguf.quantize(np.stack(list(rows.values())), name, imatrix))
        differing = [t for t, a, b in zip(rows, ours, VECTORS[name][kind], strict=True) if a != b]
        assert not differing, kind


@each_with_ggml
def test_bytes_equal_ggml(name):
    rows = mixed_rows(6, 768, 0)
    for kind in kinds(name):
        imatrix = KINDS[kind] and KINDS[kind](768)
        theirs = ggml.quantize(rows, gguf.TYPES[name].id, imatrix)
        np.testing.assert_array_equal(gguf.quantize(rows, name, imatrix), theirs)


@pytest.mark.slow
@each
def test_bytes_of_a_million_weights_equal_ggml(name):
    rows = mixed_rows(1024, 1024, 1)
    imatrix = importance(1024)
    theirs = ggml.quantize(rows, gguf.TYPES[name].id, imatrix)
    np.testing.assert_array_equal(gguf.quantize(rows, name, imatrix, threads=2), theirs)


values = st.sampled_from([0.0, -0.0, 1e-9, -1.0]) | st.floats(-16, 16, width=16)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_XXS", "IQ3_S"])
@settings(max_examples=40)
@given(row=arrays(np.float32, 256, elements=values), weights=st.booleans())
def test_bytes_equal_ggml_on_any_row(name, row, weights):
    row[::32] += 20  # no part of 32 is all zeros
    imatrix = importance(256) if weights or name == "IQ2_XXS" else None
    theirs = ggml.quantize(row[None], gguf.TYPES[name].id, imatrix)[0]
    assert gguf.quantize(row, name, imatrix).tolist() == theirs.tolist()


@pytest.mark.parametrize("name", [n for n in SEARCHES if n != "IQ2_XXS"])
def test_the_search_equals_the_slow_twin(name):
    how = SEARCHES[name]
    levels = np.searchsorted(
        np.array(lattice_points.LEVELS[name]), lattice_points.lattice(how.lattice)
    )
    for title in ("normal", "Student t3", "half-integer ties", "minus zeros", "many sizes"):
        x = awkward_rows(256)[title][: 2 * how.size]
        w = (importance(256)[: 2 * how.size] * (0.1 + x * x)).astype(np.float32)
        x, w = x.reshape(2, -1), w.reshape(2, -1)
        table = lattice_points.neighbors(how.lattice, how.distances)
        scales = np.zeros(2, np.float32)
        points = np.zeros((2, how.size // levels.shape[1]), np.int32)
        signs = np.zeros((2, how.size // 8), np.uint8)
        lattice_search.climb(x, w, table, how.ladder, (scales, points, signs))
        for b in range(2):
            twin = reference_lattice.search(x[b], w[b], levels, how)
            assert (scales[b], points[b].tolist(), signs[b].tolist()) == twin, title


def gain(x, w, codes, shifts):
    """Return by how much the codes lower the weighted error, A A / B."""
    q = codes - 1 + shifts
    return (w * q * x).sum() ** 2 / (w * q * q).sum()


@pytest.mark.parametrize("size", [16, 32])
def test_no_other_split_into_thirds_is_better(size):
    rng = np.random.default_rng(size)
    for _ in range(5):
        x, w = rng.normal(size=size).astype(np.float32), rng.random(size).astype(np.float32)
        order = np.empty(size, np.int64)
        lattice_thirds.sort(x, order)
        assert order.tolist() == np.argsort(x, kind="stable").tolist()
        search = lattice_thirds.split_whole if size == 32 else lattice_thirds.split_halves
        scale, low, high, shift = search(x, w, order)
        place = np.argsort(order)
        halves = np.arange(size) >= size // 2
        options = [(0, 0), (0, 1), (1, 0), (1, 1)] if size == 16 else [(0, 0), (1, 1)]
        moved = {2 * a + b: 0.125 - 0.25 * np.where(halves, b, a) for a, b in options}
        x, w = x.astype(float), w.astype(float)
        found = gain(x, w, 1.0 * (place >= low) + (place >= high), moved[shift])
        best = max(
            gain(x, w, 1.0 * (place >= i) + (place >= k), shifts)
            for i in range(size + 1)
            for k in range(i, size + 1)
            for shifts in moved.values()
        )
        assert found == pytest.approx(best, rel=1e-5)  # float32 sums
        assert scale != 0


@each
def test_neighbors_are_the_nearest_points(name):
    lattice, distances = ("IQ1_S", 3) if name in THIRDS else SEARCHES[name][:2]
    table = lattice_points.neighbors(lattice, distances)
    levels = ((table.points - 1) / 2).astype(int)
    width = levels.shape[1]
    rng = np.random.default_rng(0)
    for code in rng.integers(0, len(table.at), 100).tolist():
        place = [code // table.base**i % table.base for i in range(width)]
        squares = ((levels - place) ** 2).sum(1)
        near = table.near[table.starts[code] : table.starts[code + 1]].tolist()
        if squares.min() == 0:
            assert squares[table.at[code]] == 0
            assert near == []
        else:
            allowed = np.unique(squares)[:distances]
            assert near == [i for d in allowed for i in np.flatnonzero(squares == d).tolist()]


def test_parts_of_zeros_do_not_displace_the_others_in_iq3_s():
    row = awkward_rows(256)["normal"]
    row[32:64] = 0
    data = gguf.quantize(row, "IQ3_S")
    error = gguf.dequantize(data, "IQ3_S") - row
    assert np.square(error).mean() < 0.05
    theirs = ggml.dequantize(ggml.quantize(row[None], 21), 21, 256)[0]
    assert np.square(theirs - row).mean() > 0.5  # ggml 0.26 writes later parts 32 weights early


@each
def test_zeros_come_back_as_zeros(name):
    data = gguf.quantize(np.zeros((2, 512), np.float32), name, np.ones(512, np.float32))
    assert not gguf.dequantize(data, name).any()
    assert not data.any()


@each
def test_the_quantized_row_is_near(name):
    row, ones = awkward_rows(1024)["normal"], np.ones(1024, np.float32)
    back = gguf.dequantize(gguf.quantize(row, name, ones), name)
    # an even grid of as many bits leaves .12 (two bits) and .035 (three) of a normal's variance
    bound = {"IQ1": 0.36, "IQ2": 0.12, "IQ3": 0.045}[name[:3]]  # one bit leaves .36
    assert np.square(back - row).mean() < bound


@each
def test_rows_do_not_depend_on_threads(name):
    rows, imatrix = mixed_rows(6, 512, 2), importance(512)
    one, two = (gguf.quantize(rows, name, imatrix, threads=t) for t in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_an_imatrix_is_asked_for_where_ggml_asks(name):
    with pytest.raises(ValueError, match=f"{name} needs an imatrix"):
        gguf.quantize(np.ones(256, np.float32), name)


@each
def test_large_weights_are_refused_before_float16_overflows(name):
    row, ones = awkward_rows(256)["normal"], np.ones(256, np.float32)
    row = row / np.abs(row).max()
    top = {"IQ1": 65504 * 8, "IQ2": 65504 * 31 * 5, "IQ3": 65504 * 31 * 15}[name[:3]]
    assert np.isfinite(gguf.dequantize(gguf.quantize(row * 0.5 * top, name, ones), name)).all()
    with pytest.raises(ValueError, match="does not fit float16"):
        gguf.quantize(row * (20 if name in THIRDS else 2) * top, name, ones)
    with pytest.raises(ValueError, match=f"{name} holds sizes up to 1e"):
        gguf.quantize(row * 2e8, name, ones)


@each
def test_an_imatrix_that_would_overflow_is_refused(name):
    with pytest.raises(ValueError, match=r"imatrix reaches 1e\+30.*only ratios count"):
        gguf.quantize(np.ones(256, np.float32), name, np.full(256, 1e30, np.float32))
