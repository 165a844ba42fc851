"""How many products fit an accumulator, and what is left of those that do not."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.accumulators import safe_terms, saturated_pairs, wrapped

SMALL = [(low, high) for low in range(-4, 5) for high in range(low, 5)]


def brute_force(a, b, bits, most=40):
    """Try all codes: the longest sum of one worst product that stays inside."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    products = {x * y for x in range(a[0], a[1] + 1) for y in range(b[0], b[1] + 1)}
    for terms in range(1, most + 1):
        if any(not low <= terms * product <= high for product in products):
            return terms - 1
    return None


@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_safe_lengths_are_those_that_trying_all_codes_finds(bits):
    for a, b in itertools.product(SMALL, SMALL):
        found, tried = safe_terms(a, b, bits), brute_force(a, b, bits)
        assert found == tried or (tried is None and found >= 40), (a, b)


def test_the_lengths_that_kernels_live_by():
    assert safe_terms((-127, 127), (-127, 127), 32) == 133_144
    assert safe_terms((-128, 127), (-128, 127), 32) == 131_071
    assert safe_terms((0, 255), (-128, 127), 32) == 65_793
    assert safe_terms((0, 15), (-127, 127), 32) == 1_127_288
    assert safe_terms((-8, 7), (-8, 7), 16) == 511
    assert safe_terms((0, 255), (-128, 127), 16) == 1


def test_one_side_of_zero_is_one_number_longer():
    assert safe_terms((0, 1), (-128, 0), 16) == 256
    assert safe_terms((0, 1), (0, 128), 16) == 255


def test_products_that_are_all_zero_never_fill_anything():
    assert safe_terms((0, 0), (-8, 7), 16) is None


@pytest.mark.parametrize(("a", "bits"), [((3, 1), 16), ((-8, 7), 1)])
def test_a_range_that_ends_before_it_begins_is_refused(a, bits):
    with pytest.raises(ValueError, match="pass \\(lowest, highest\\) codes"):
        safe_terms(a, (-8, 7), bits)


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1), st.sampled_from([8, 16, 32]))
def test_wrapping_is_what_numpy_s_narrow_integers_do(totals, bits):
    narrow = {8: np.int8, 16: np.int16, 32: np.int32}[bits]
    assert wrapped(totals, bits).tolist() == np.array(totals).astype(narrow).tolist()


def test_pairs_stop_at_the_ends_of_int16_and_nowhere_else():
    codes = np.arange(256)
    for weight in (-128, -1, 0, 1, 64, 127):
        a = np.stack([codes, codes[::-1]], -1)
        pairs = saturated_pairs(a, np.full_like(a, weight))[:, 0]
        assert pairs.tolist() == [max(-32768, min(32767, 255 * weight))] * 256
    assert saturated_pairs([[255, 255], [255, 0]], [[127, 127], [127, 9]]).tolist() == [
        [32767],
        [32385],
    ]
    assert saturated_pairs([255, 255], [-128, -128]).tolist() == [-32768]


def test_nibbles_times_int8_never_saturate():
    codes = np.array([15, 15])
    for weights in ([127, 127], [-128, -128]):
        assert saturated_pairs(codes, weights)[0] == int((codes * weights).sum())
