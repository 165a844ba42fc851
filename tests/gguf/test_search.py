"""The searches for a scale, many blocks side by side, against one block at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.gguf import search
from quantlab.gguf.lanes import nearest
from tests.gguf import reference_k as slow
from tests.gguf.rows import awkward_rows

usual = settings(max_examples=6, deadline=None)


def blocks(n, low=-8.0):
    """Generate (1 to 40, n) float32: blocks that fill lanes and leave lanes empty."""
    number = st.floats(low, 8.0, width=32).map(lambda v: v if abs(v) > 1e-6 else 0.0)
    return st.integers(1, 40).flatmap(lambda count: arrays(np.float32, (count, n), elements=number))


def awkward(n):
    """Return two blocks of n of every awkward row."""
    return np.concatenate([row.reshape(-1, n)[:2] for row in awkward_rows(256).values()])


def importances(x):
    """Return float32 >= 0 of the shape of x, a tenth of them zero."""
    rng = np.random.default_rng(3)
    return (rng.exponential(size=x.shape) * (rng.random(x.shape) > 0.1)).astype(np.float32)


def assert_symmetric(x, w, half):
    scale, inverse = search.symmetric(x, w, half)
    codes = search.symmetric_codes(x, inverse, half)
    for b in range(len(x)):
        want, stored = slow.symmetric(x[b], w[b], half)
        assert scale[b] == want
        assert codes[b].tolist() == stored


def assert_coordinate(x):
    scale, codes = search.coordinate(x)
    for b in range(len(x)):
        want, stored = slow.coordinate(x[b])
        assert scale[b] == want
        assert codes[b].tolist() == stored


def assert_affine(x, w, *rest):
    top, *tries, absolute = rest
    scale, minimum, inverse, base = search.affine(x, w, top, tuple(tries), absolute)
    codes = search.affine_codes(x, inverse, base, rest[0])
    for b in range(len(x)):
        want, low, stored = slow.affine(x[b], w[b], *rest)
        assert (scale[b], minimum[b]) == (want, low)
        assert codes[b].tolist() == stored


def assert_positive(x, w, top):
    scale, codes = search.positive(x, w, top)
    for b in range(len(x)):
        want, stored = slow.positive(x[b], w[b], top)
        assert scale[b] == want
        assert codes[b].tolist() == stored


@pytest.mark.parametrize("half", [32, 4])
def test_symmetric_search_of_awkward_blocks_equals_the_slow_twin(half):
    assert_symmetric(awkward(16), importances(awkward(16)), half)
    assert_symmetric(awkward(16), awkward(16) ** 2, half)


@given(blocks(16))
@usual
def test_symmetric_search_of_random_blocks_equals_the_slow_twin(x):
    assert_symmetric(x, x * x, 32)


def test_coordinate_search_of_awkward_blocks_equals_the_slow_twin():
    assert_coordinate(awkward(16))


@given(blocks(16))
@usual
def test_coordinate_search_of_random_blocks_equals_the_slow_twin(x):
    assert_coordinate(x)


GRIDS = [(32, 15, -1.0, 0.1, 20, False), (16, 3, -0.5, 0.1, 15, True)]


@pytest.mark.parametrize("grid", [*GRIDS, (32, 31, -0.9, 0.05, 36, False)])
@pytest.mark.filterwarnings("ignore:overflow|invalid|divide:RuntimeWarning")
def test_affine_search_of_awkward_blocks_equals_the_slow_twin(grid):
    x = awkward(grid[0])
    assert_affine(x, importances(x), *grid[1:])


@given(blocks(16))
@usual
def test_affine_search_of_random_blocks_equals_the_slow_twin(x):
    assert_affine(x, np.abs(x), 3, -0.5, 0.1, 15, True)


@pytest.mark.parametrize(("n", "top"), [(8, 63), (16, 15)])
def test_positive_search_of_awkward_blocks_equals_the_slow_twin(n, top):
    x = np.abs(awkward(n))
    assert_positive(x, importances(x), top)


@given(blocks(8, low=0.0))
@usual
def test_positive_search_of_random_blocks_equals_the_slow_twin(x):
    assert_positive(x, importances(x), 63)


def test_a_block_finds_the_same_scale_in_every_lane():
    block = np.random.default_rng(0).standard_normal(16, dtype=np.float32)
    x = np.tile(block, (70, 1))
    assert len(np.unique(search.symmetric(x, x * x, 32)[0])) == 1


@given(st.floats(-4194303, 4194303, width=32))
def test_nearest_rounds_half_to_even(v):
    assert nearest(np.float32(v)) == np.rint(np.float32(v))
