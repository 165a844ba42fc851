"""Module 24: tokens/s from bytes, a plateau explained, an interval, a verdict that rejects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantlab.kernels.samples import compare, complaints
from quantlab.kernels.stored_samples import stored_samples
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, as_float, call, expect, show

Times = NDArray[np.float64]
KINDS = ("float32", "bfloat16", "int8")
SLOW = 0.008  # seconds above the median: such a call was stopped


def tokens_per_second(parameters: float, bits: float, bandwidth: float) -> float:
    """Divide the bytes a second by the bytes of a token: each weight once."""
    return bandwidth / (parameters * bits / 8)


def check_tokens(answer: Any) -> None:
    """Compare on models of several sizes; recognize bits for bytes, and operations for bytes."""
    for parameters, bits, bandwidth in (
        (1e9, 4.5, 40e9),
        (8e9, 16, 100e9),
        (3.7e6, 32, 30e9),
        (70e9, 2.625, 3.35e12),
    ):
        value = as_float(call(answer, parameters, bits, bandwidth), "tokens a second")
        right = tokens_per_second(parameters, bits, bandwidth)
        what = f"{parameters:.3g} weights of {bits} bits at {bandwidth / 1e9:g} GB/s"
        if np.isclose(value, right / 8):
            raise Wrong(f"{what}: bandwidth is in bytes, your weights still are in bits")
        if np.isclose(value, 1 / right):
            raise Wrong(f"{what}: these are seconds a token; the question is tokens a second")
        if np.isclose(value, right / 2):
            raise Wrong(f"{what}: two *operations* a weight, but its bytes are read once")
        expect(value, right, what, rel=1e-6, reveal=True)


def explain(samples: Times) -> tuple[float, float]:
    """Return how long a stop lasts, and which part of all time the program really ran."""
    normal = np.median(samples)
    extra = samples[samples > normal + SLOW] - normal
    return float(np.median(extra)), float(1 - extra.sum() / samples.sum())


def check_explain(answer: Any) -> None:
    """Hand out calls under a quota; recognize the plateau itself and shares of calls."""
    stored = stored_samples()
    for kind in KINDS:
        samples = stored[f"quota, {kind}, 2 threads"]
        stop, running = pair(call(answer, samples.copy()), "(stop, running)")
        right_stop, right_running = explain(samples)
        slow = samples > np.median(samples) + SLOW
        if 1 < stop < 100:
            raise Wrong(f"{kind}: stop in seconds, as the samples are; yours is {stop:g}")
        if np.isclose(stop, np.median(samples[slow])) and not np.isclose(stop, right_stop):
            raise Wrong(f"{kind}: a stopped call also computes; take the normal time off")
        expect(stop, right_stop, f"{kind}: seconds of a stop", rel=0.03)
        if np.isclose(running, 1 - slow.mean(), atol=1e-3):
            raise Wrong(f"{kind}: this is the part of the *calls* that ran freely, not of the time")
        if np.isclose(running, 1 - right_running, atol=1e-3):
            raise Wrong(f"{kind}: this is the part of the time in which it stood still")
        expect(running, right_running, f"{kind}: part of the time in which it ran", abs_=0.02)


def pair(value: Any, what: str) -> tuple[float, float]:
    """Return a learner's two numbers."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise Wrong(f"expected two numbers {what}, yours is {show(value)}") from None
    return as_float(first, what), as_float(second, what)


def interval(a: Times, b: Times) -> tuple[float, float]:
    """Draw both again and again; keep the middle 95 % of the ratios of medians."""
    rng = np.random.default_rng(0)
    ratios = [
        np.median(rng.choice(b, b.size)) / np.median(rng.choice(a, a.size)) for _ in range(2000)
    ]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def check_interval(answer: Any) -> None:
    """Compare with the library's interval, generously; recognize spreads and the wrong side up."""
    stored = stored_samples()
    cases = [("W4A8", "W4A16"), ("hot, 1 threads", "cold, 1 threads"), ("A", "A again")]
    for first, second in cases:
        a, b = stored[first], stored[second]
        low, high = pair(call(answer, a.copy(), b.copy()), "(low, high)")
        right = compare(a, b, confidence=0.95)
        what = f"{second} against {first}"
        if low > high:
            raise Wrong(f"{what}: low is {low:.4g} and high {high:.4g}; exchange them")
        room = 0.4 * (right.high - right.low)
        if abs(low - right.low) <= room and abs(high - right.high) <= room:
            continue
        if high < 1 < right.low:
            raise Wrong(f"{what}: a ratio above 1 means that a is faster: median b / median a")
        if high - low > 2 * (right.high - right.low):
            raise Wrong(
                f"{what}: far too wide; the spread of single calls is not the doubt about their "
                "median: draw as many calls as there are, and take the median of each draw"
            )
        if high - low < (right.high - right.low) / 2:
            raise Wrong(f"{what}: too narrow; draw both samples again, and keep the middle 95 %")
        expect((low, high), (right.low, right.high), what, abs_=room, reveal=True)


def verdict(a: Times, b: Times) -> str:
    """Reject unfair samples first; then let the interval speak."""
    if complaints(a) or complaints(b):
        return "rejected"
    return compare(a, b).verdict


def rows() -> list[tuple[Times, Times, str, str]]:
    """Return pairs of samples, what must be said of them, and why."""
    stored = stored_samples()
    a, again, cold_start = stored["A"], stored["A again"], stored["no warm-up"]
    w4a8, w4a16 = stored["W4A8"], stored["W4A16"]
    return [
        (a, again, "no difference", "the same kernel twice"),
        (again, a, "no difference", "the same kernel twice, exchanged"),
        (cold_start, again, "rejected", "a without warm-up"),
        (again, cold_start, "rejected", "b without warm-up"),
        (w4a8, w4a16, "faster", "W4A8 against W4A16, hot"),
        (w4a16, w4a8, "slower", "W4A16 against W4A8, hot"),
    ]


def check_verdict(answer: Any) -> None:
    """Ask for a word on each pair of stored samples."""
    words = ("faster", "slower", "no difference", "rejected")
    for a, b, right, why in rows():
        word = call(answer, a.copy(), b.copy())
        if word not in words:
            raise Wrong(f"expected one of {', '.join(words)}; yours is {show(word)}")
        if word != right:
            raise Wrong(f"{why}: yours says {word!r}")


def by_median(a: Times, b: Times) -> str:
    """Compare two numbers as if they were certain."""
    return "faster" if np.median(a) < np.median(b) else "slower"


def only(*words: str) -> Callable[[Times, Times], str]:
    """Return a verdict that turns some words into "no difference"."""
    return lambda a, b: "no difference" if verdict(a, b) in words else verdict(a, b)


EXERCISES = [
    Exercise(
        "a",
        "Write tokens_per_second(parameters, bits, bandwidth): the most that memory allows.",
        difficulty=1,
        importance=5,
        minutes=6,
        check=check_tokens,
        hints=[
            "at batch 1 each token reads each weight once",
            "bytes of a token = parameters * bits / 8",
            "return bandwidth / (parameters * bits / 8)",
        ],
        solution=tokens_per_second,
        wrong=[
            lambda parameters, bits, bandwidth: bandwidth / (parameters * bits),
            lambda parameters, bits, bandwidth: parameters * bits / 8 / bandwidth,
            lambda parameters, bits, bandwidth: bandwidth / (2 * parameters * bits / 8),
            lambda parameters, bits, bandwidth: bandwidth / (parameters * bits / 8) / 1.073741824,
            lambda parameters, bits, bandwidth: f"{bandwidth / parameters} tokens/s",
        ],
    ),
    Exercise(
        "b",
        "Write explain(samples): how long a stop lasts, and the part of the time it ran.",
        difficulty=2,
        importance=4,
        minutes=12,
        check=check_explain,
        hints=[
            "the median is a call that was not stopped; sort the others out: above median + 8 ms",
            "what such a call took beyond the median is what the stop took",
            "extra = samples[samples > m + 0.008] - m; np.median(extra), 1 - extra.sum() / total",
        ],
        solution=explain,
        wrong=[
            lambda s: (np.quantile(s, 0.9), explain(s)[1]),
            lambda s: (np.median(s[s > np.median(s) + SLOW]), explain(s)[1]),
            lambda s: (1000 * explain(s)[0], explain(s)[1]),
            lambda s: (explain(s)[0], 1 - explain(s)[1]),
            lambda s: (explain(s)[0], (s < np.median(s) + SLOW).mean()),
            lambda s: explain(s)[0],
        ],
    ),
    Exercise(
        "c",
        "Write interval(a, b): the 95 % bootstrap interval of median(b) / median(a).",
        difficulty=2,
        importance=5,
        minutes=15,
        check=check_interval,
        hints=[
            "draw b.size calls from b with replacement, and a.size from a",
            "each pair of draws gives one ratio of medians; collect 2000 of them",
            "np.quantile(ratios, [0.025, 0.975]); rng.choice(b, b.size) draws",
        ],
        solution=interval,
        wrong=[
            lambda a, b: interval(b, a),
            lambda a, b: tuple(np.quantile(b / a, [0.025, 0.975])),
            lambda a, b: interval(a, b)[::-1],
            lambda a, b: (np.median(b) / np.median(a),) * 2,
            lambda a, b: (b.min() / a.min(), b.max() / a.max()),
            lambda a, b: np.median(b) / np.median(a),
        ],
    ),
    Exercise(
        "d",
        'Write verdict(a, b): "faster", "slower", "no difference", or "rejected" for unfair '
        "samples.",
        difficulty=3,
        importance=5,
        minutes=12,
        check=check_verdict,
        hints=[
            "reject first: a comparison of unfair samples has no answer",
            "samples.complaints(times) lists what is wrong; samples.compare(a, b) has a verdict",
            'if complaints(a) or complaints(b): return "rejected"; else compare(a, b).verdict',
        ],
        solution=verdict,
        wrong=[
            by_median,
            lambda a, b: compare(a, b).verdict,
            only("rejected"),
            only("faster", "slower"),
            lambda a, b: verdict(b, a),
            lambda a, b: "rejected" if complaints(a) else compare(a, b).verdict,
            lambda a, b: True,
        ],
    ),
]
