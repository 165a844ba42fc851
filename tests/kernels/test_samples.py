"""Statistics of timings: against closed forms, on hostile input, and on samples that lie."""

from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantlab.kernels.samples import (
    Comparison,
    UnfairSamples,
    check_samples,
    compare,
    complaints,
    summarize,
)

TIMES = st.floats(1e-7, 1e3)


def noisy(count: int, seed: int, typical: float = 1e-3) -> np.ndarray:
    """Draw times as computers give them: a floor, and a tail that only adds."""
    rng = np.random.default_rng(seed)
    return typical * (1 + 0.02 * rng.exponential(size=count))


def test_percentiles_of_an_even_ramp_are_the_ramp():
    summary = summarize(np.arange(1, 12, dtype=float))
    assert (summary.minimum, summary.p10, summary.median, summary.p90) == (1, 2, 6, 10)
    assert summary.count == 11
    assert summary.spread == pytest.approx(8 / 6)


@given(arrays(float, st.integers(5, 40), elements=TIMES))
def test_a_summary_is_ordered_and_does_not_depend_on_the_order(times):
    summary = summarize(times)
    parts = (summary.minimum, summary.p10, summary.median, summary.p90)
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(parts))
    assert summary == summarize(times[::-1])


@pytest.mark.parametrize("seed", range(20))
def test_the_same_thing_against_itself_shows_no_difference(seed):
    result = compare(noisy(60, seed), noisy(60, seed + 1000))
    assert result.verdict == "no difference", result
    assert result.low < 1 < result.high


def test_a_difference_that_is_there_is_found_and_held_by_the_interval():
    for seed in range(20):
        result = compare(noisy(60, seed), noisy(60, seed + 1000, typical=1.5e-3))
        assert result.verdict == "faster"
        assert result.low < 1.5 < result.high


def test_a_difference_below_the_least_is_not_claimed():
    a, b = np.full(20, 1.0), np.full(20, 1.005)
    assert compare(a, b).verdict == "no difference"
    assert compare(a, b, least=0).verdict == "faster"
    assert compare(b, a, least=0).verdict == "slower"


def test_the_interval_has_the_percentiles_of_the_exact_bootstrap():
    # Of 9 draws from 9 times, the median is at most the k-th smallest if 5 or more are: a binomial.
    times, others = np.arange(1.0, 10.0), np.ones(9)
    at_most = [
        sum(comb(9, j) * (k / 9) ** j * (1 - k / 9) ** (9 - j) for j in range(5, 10))
        for k in range(1, 10)
    ]
    result = compare(others, times, confidence=0.9, resamples=20_000)
    assert result.low == times[np.searchsorted(at_most, 0.05)]
    assert result.high == times[np.searchsorted(at_most, 0.95)]
    assert result.ratio == 5


@settings(max_examples=20, deadline=None)
@given(
    arrays(float, st.integers(5, 20), elements=TIMES),
    arrays(float, st.integers(5, 20), elements=TIMES),
    st.integers(-10, 10),
)
def test_units_do_not_matter_and_swapping_inverts(a, b, power):
    options = {"resamples": 200}
    result = compare(a, b, **options)
    scaled = compare(a * 2.0**power, b * 2.0**power, **options)
    assert scaled == result
    assert compare(b, a, **options).ratio == pytest.approx(1 / result.ratio)
    assert result.low <= result.high


def test_the_same_samples_give_the_same_interval():
    a, b = noisy(30, 1), noisy(30, 2)
    assert compare(a, b) == compare(a, b)
    assert compare(a, b, seed=1) != compare(a, b)


def test_a_comparison_reads_as_a_sentence():
    text = str(Comparison(1.923, 1.881, 1.966, 0.99, 0.01))
    assert text == "faster: 1.92 times as fast (99 % interval 1.88 to 1.97)"
    assert str(Comparison(1.0, 0.98, 1.02, 0.95, 0.01)).startswith("no difference: 1 times")


# ---------------------------------------------------------------- samples that lie


@pytest.mark.parametrize("seed", range(20))
def test_samples_without_warm_up_are_refused(seed):
    times = noisy(30, seed)
    assert complaints(times) == []
    check_samples(times)
    with pytest.raises(UnfairSamples, match="without warm-up"):
        check_samples([0.5, *times])


def test_one_slow_call_in_the_middle_is_no_cold_start():
    times = noisy(30, 0)
    times[15] = 1.0
    assert complaints(times) == []


@pytest.mark.parametrize(("factor", "word"), [(2.0, "slower"), (0.5, "faster")])
def test_samples_that_drift_are_refused(factor, word):
    times = noisy(30, 3) * np.linspace(1, factor, 30)
    with pytest.raises(UnfairSamples, match=f"became {word}"):
        check_samples(times)


def test_times_of_a_coarse_clock_are_refused():
    with pytest.raises(UnfairSamples, match="too short for the clock"):
        check_samples([1e-3] * 20 + [2e-3] * 20)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        ([], "at least 5"),
        ([1.0] * 4, "at least 5"),
        (1.0, "at least 5"),
        ([[1.0] * 5] * 5, "at least 5"),
        ([1.0, 0.0, 1.0, 1.0, 1.0], "sample 1 is 0.0"),
        ([1.0, 1.0, -1.0, 1.0, 1.0], "sample 2 is -1.0"),
        ([1.0, 1.0, 1.0, 1.0, float("nan")], "sample 4 is nan"),
        ([float("inf")] * 5, "sample 0 is inf"),
        (["slow"] * 5, "no numbers"),
        (None, "at least 5"),
    ],
)
def test_what_is_no_time_is_refused(samples, match):
    for function in (summarize, complaints, check_samples):
        with pytest.raises(UnfairSamples, match=match):
            function(samples)
    with pytest.raises(UnfairSamples, match=match):
        compare([1.0] * 5, samples)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"confidence": 0}, "confidence is 0"),
        ({"confidence": 1}, "confidence is 1"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"least": -0.1}, "least is -0.1"),
        ({"least": 1}, "least is 1"),
        ({"resamples": 10}, "resamples is 10"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        compare([1.0] * 5, [1.0] * 5, **options)
