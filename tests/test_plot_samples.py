"""The picture of timing samples, and the samples that the course ships."""

import numpy as np
import pytest

from quantlab.kernels.samples import compare, complaints, summarize
from quantlab.kernels.stored_samples import stored_samples
from quantlab.plot_samples import timing_dots


def test_each_call_is_drawn_in_order_and_sorted():
    picture = timing_dots({"a": [0.003, 0.001, 0.002], "b": [0.01] * 5})
    left, right = picture.figure.axes
    assert np.allclose(left.lines[0].get_ydata(), [3, 1, 2])
    assert np.allclose(right.lines[0].get_ydata(), [1, 2, 3])
    assert "a: median 2 ms" in picture.sentence


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [1.0, 0.0]}, {"a": [1.0, float("nan")]}])
def test_what_is_no_time_is_refused(bad):
    with pytest.raises(ValueError, match=r"no samples to draw|not positive and finite"):
        timing_dots(bad)


def test_the_stored_samples_say_where_they_come_from():
    stored = stored_samples()
    assert stored.about["format"] == "quantlab timing samples 1"
    assert stored.about["command"].endswith("timing_samples.py")
    assert {"quota", "seed", "product"} <= set(stored.about)
    assert stored.machine.limit(2).read["memory"] > 0
    assert stored.machine.versions["torch"]
    with pytest.raises(KeyError, match="no samples 'other'"):
        stored["other"]


def test_a_reader_cannot_change_what_is_stored():
    taken = stored_samples()["A"]
    taken[:] = 1
    assert stored_samples()["A"][0] < 1


def test_only_the_cold_start_is_refused_and_the_kernel_equals_itself():
    stored = stored_samples()
    assert complaints(stored["no warm-up"])[0].startswith("taken without warm-up")
    for name in ("A", "A again", "W4A8", "W4A16", "hot, 1 threads", "cold, 1 threads"):
        assert complaints(stored[name]) == [], name
    assert compare(stored["A"], stored["A again"]).verdict == "no difference"
    assert compare(stored["W4A8"], stored["W4A16"]).verdict == "faster"


def test_the_quota_hides_from_the_median_and_not_from_the_sum():
    stored = stored_samples()
    one, two = (stored[f"quota, bfloat16, {n} threads"] for n in (1, 2))
    assert compare(two, one).verdict == "faster"
    assert two.sum() > one.sum()
    extra = two[two > summarize(two).median + 0.008] - summarize(two).median
    assert np.median(extra) == pytest.approx(0.016, abs=0.001)
