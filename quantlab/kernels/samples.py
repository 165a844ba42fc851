"""What timing samples can tell: a summary, a ratio with its interval, and when they tell nothing.

A sample is the time of one call in seconds. Noise on a computer only adds time, and in bursts, so
nothing here assumes a bell curve: medians, percentiles, and resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 5  # samples below which a spread means nothing
JUMP = 1.5  # a first call this much slower than nine in ten of the others was no warm call
LEAST = 0.01  # a difference below 1 % is not worth a claim, even if it is there


class UnfairSamples(ValueError):
    """Samples from which no speed can be concluded."""


@dataclass(frozen=True)
class Summary:
    """The times of one call, in seconds.

    Attributes
    ----------
    minimum : what the machine can do when nothing disturbs it
    median : what it mostly does
    p10, p90 : the spread; one sample in ten lies below, and one above
    count : int
    """

    minimum: float
    p10: float
    median: float
    p90: float
    count: int

    @property
    def spread(self) -> float:
        """(p90 - p10) / median: 0.05 is a quiet machine, 1 is a busy one."""
        return (self.p90 - self.p10) / self.median


@dataclass(frozen=True)
class Comparison:
    """How many times as fast a is as b, and how sure that is.

    Attributes
    ----------
    ratio : median of b divided by median of a; above 1, a is faster
    low, high : ends of the interval that holds the true ratio with ``confidence``
    confidence : probability, such as 0.99
    least : a smaller difference than this fraction is not claimed
    """

    ratio: float
    low: float
    high: float
    confidence: float
    least: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``no difference``: what may be said of a against b."""
        if self.low > 1 + self.least:
            return "faster"
        return "slower" if self.high < 1 / (1 + self.least) else "no difference"

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.ratio:.3g} times as fast "
            f"({100 * self.confidence:g} % interval {self.low:.3g} to {self.high:.3g})"
        )


def summarize(samples: ArrayLike) -> Summary:
    """Return minimum, percentiles and count of samples (n,) in seconds.

    Raises
    ------
    UnfairSamples
        If there are fewer than 5, or one is no positive finite number.

    Examples
    --------
    >>> summarize([3.0, 1.0, 2.0, 5.0, 4.0])
    Summary(minimum=1.0, p10=1.4, median=3.0, p90=4.6, count=5)
    """
    times = seconds(samples)
    p10, median, p90 = map(float, np.quantile(times, (0.1, 0.5, 0.9)))
    return Summary(float(times.min()), p10, median, p90, times.size)


def compare(
    samples_a: ArrayLike,
    samples_b: ArrayLike,
    *,
    confidence: float = 0.99,
    least: float = LEAST,
    resamples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Return how many times as fast a is as b, with a bootstrap interval.

    Both sets of samples are drawn again, with replacement, thousands of times; each draw gives a
    ratio of medians, and the middle 99 % of these ratios are the interval. Samples should come from
    alternating turns of a and b: then a slow minute of the machine falls on both.

    Parameters
    ----------
    samples_a, samples_b : (n,) and (m,) seconds
    confidence : between 0 and 1
        How often the interval should hold the truth.
    least : fraction
        The smallest difference that counts as one: 0.01 is 1 %.
    resamples : int >= 100
    seed : int
        The same samples always give the same interval.

    Raises
    ------
    UnfairSamples
        If there are fewer than 5, or one is no positive finite number.
    ValueError
        If confidence, least or resamples is out of range.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).

    Examples
    --------
    >>> fast, slow = [1.0, 1.1, 1.0, 1.2, 1.1, 1.0], [2.0, 2.1, 2.2, 2.0, 2.1, 2.0]
    >>> compare(fast, slow).verdict, compare(slow, fast).verdict, compare(fast, fast).verdict
    ('faster', 'slower', 'no difference')
    """
    a, b = seconds(samples_a), seconds(samples_b)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; choose a probability such as 0.99")
    if not 0 <= least < 1:
        raise ValueError(f"least is {least}; choose a fraction such as 0.01, or 0")
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}; an interval needs at least 100")
    rng = np.random.default_rng(seed)
    ratios = medians_of_draws(b, resamples, rng) / medians_of_draws(a, resamples, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, (tail, 1 - tail))
    ratio = float(np.median(b) / np.median(a))
    return Comparison(ratio, float(low), float(high), confidence, least)


def medians_of_draws(
    times: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the medians of ``resamples`` draws, each as large as ``times``, with replacement."""
    return np.median(rng.choice(times, (resamples, times.size)), axis=1)


def complaints(samples: ArrayLike) -> list[str]:
    """Return what is wrong with samples in the order in which they were taken; [] if nothing is.

    Knows a cold start (the first call is the slowest, and far from the others), a drift (the first
    third and the last third hardly overlap: caches that fill, or a processor that throttles), and
    calls too short for the clock.

    Raises
    ------
    UnfairSamples
        If there are fewer than 5, or one is no positive finite number.

    Examples
    --------
    >>> complaints([0.9, 0.010, 0.011, 0.010, 0.011, 0.010])
    ['taken without warm-up: the first call took 90 times the median of the others']
    """
    times = seconds(samples)
    found = []
    first, others = times[0], times[1:]
    if first > others.max() and first > JUMP * np.quantile(others, 0.9):
        found.append(
            f"taken without warm-up: the first call took {first / np.median(others):.2g} times "
            "the median of the others"
        )
        times = others
    third = times.size // 3
    if third >= FEWEST:
        early, late = times[:third], times[-third:]
        if np.quantile(early, 0.1) > np.quantile(late, 0.9):
            found.append("not steady: the calls became faster; warm up for longer")
        elif np.quantile(late, 0.1) > np.quantile(early, 0.9):
            found.append("not steady: the calls became slower; the machine throttles or is shared")
    if np.unique(times).size * 4 < times.size:
        found.append("too short for the clock: few distinct times; time many calls together")
    return found


def check_samples(samples: ArrayLike) -> Summary:
    """Return the summary of fair samples (n,) in the order in which they were taken.

    Raises
    ------
    UnfairSamples
        If there is a complaint: see ``complaints``.

    Examples
    --------
    >>> check_samples([5.0, 1.0, 1.1, 1.2, 1.1, 1.0])
    Traceback (most recent call last):
    ...
    quantlab.kernels.samples.UnfairSamples: taken without warm-up: the first call took 4.5 times ...
    """
    found = complaints(samples)
    if found:
        raise UnfairSamples("; ".join(found))
    return summarize(samples)


def seconds(samples: ArrayLike) -> NDArray[np.float64]:
    """Return samples as float64; an UnfairSamples if they are too few or no times."""
    try:
        times = np.asarray(samples, np.float64)
    except (TypeError, ValueError) as error:
        raise UnfairSamples(f"samples are no numbers: {error}") from error
    if times.ndim != 1 or times.size < FEWEST:
        raise UnfairSamples(
            f"samples have shape {times.shape}; pass one list of at least {FEWEST} times"
        )
    bad = np.flatnonzero(~(np.isfinite(times) & (times > 0)))
    if bad.size:
        raise UnfairSamples(
            f"sample {bad[0]} is {times[bad[0]]}; a time is a positive finite number of seconds"
        )
    return times
