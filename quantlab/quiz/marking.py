"""Compare an answer with a variant: correct, incorrect with a named reason, or not attempted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from quantlab.quiz.answers import (
    as_text,
    normal,
    parse_hexadecimal,
    parse_number,
    parse_pairs,
    parse_words,
    show_number,
)
from quantlab.quiz.bank import COMPUTED
from quantlab.quiz.expression import fill
from quantlab.quiz.variants import Variant, tolerance

LABELS = {
    "correct": "\u2713 correct",
    "incorrect": "\u2717 incorrect, not yet",
    "not attempted": "\u25cb not attempted",
}
TRUTHS = {"true": True, "t": True, "yes": True, "false": False, "f": False, "no": False}


@dataclass(frozen=True)
class Feedback:
    """What a learner reads after an answer.

    Attributes
    ----------
    state : "correct", "incorrect" or "not attempted"
    text : str
        Why, and the next step.
    recorded : str
        The answer as understood: option ids, or the number that was read.
    misconception : str or None
        Myth id of a recognized wrong answer.
    credit : 0..1
        Share of the points.
    """

    state: str
    text: str = ""
    recorded: str = ""
    misconception: str | None = None
    credit: float = 0.0

    def __str__(self) -> str:
        myth = f" (myth {self.misconception})" if self.misconception else ""
        return f"{LABELS[self.state]}: {self.text}{myth}" if self.text else LABELS[self.state]


def mark(variant: Variant, answer: Any) -> Feedback:
    """Mark an answer given as text, number, list or dict.

    An answer that cannot be read counts as not attempted and the feedback says what to write;
    nothing here raises for anything a learner can type.

    Parameters
    ----------
    variant : Variant
    answer : None, str, number, list of ids, or dict of pairs
        Options may be named by id or by the letter shown.
    """
    text = as_text(answer)
    if not text or text == "...":
        return Feedback("not attempted", "write an answer first")
    kind = variant.question["type"]
    try:
        return MARKERS["computed" if kind in COMPUTED else kind](variant, text)
    except ValueError as problem:
        return Feedback("not attempted", str(problem))


def right(variant: Variant, recorded: str) -> Feedback:
    """Return full marks with the question's explanation."""
    text = fill(variant.question.get("explanation", ""), variant.solution.values)
    return Feedback("correct", text, recorded, None, 1.0)


def wrong(variant: Variant, source: dict[str, Any], recorded: str, credit: float = 0.0) -> Feedback:
    """Return the feedback of an option, a distractor or the question itself."""
    text = fill(source.get("feedback", ""), variant.solution.values)
    return Feedback("incorrect", text, recorded, source.get("misconception"), max(credit, 0.0))


def mark_computed(variant: Variant, text: str) -> Feedback:
    """Mark a number within the tolerance; recognize the values of the distractors."""
    question, solution = variant.question, variant.solution
    if question["type"] == "hex":
        value = Fraction(parse_hexadecimal(text))
        recorded = f"0x{int(value):0{question.get('digits', 1)}x}"
    else:
        value = parse_number(text, question.get("unit", ""))
        recorded = show_number(value)

    def matches(target: float) -> bool:
        if not math.isfinite(target):  # a distractor that these numbers do not have
            return False
        return abs(value - Fraction(target)) <= Fraction(tolerance(question, target))

    if matches(solution.values["answer"]):
        return echoed(right(variant, recorded))
    for rival, source in zip(solution.rivals, question.get("distractors", []), strict=True):
        if matches(rival):
            return echoed(wrong(variant, source, recorded))
    return echoed(wrong(variant, question, recorded))


def echoed(feedback: Feedback) -> Feedback:
    """Put the number that was read in front of the feedback."""
    return Feedback(
        feedback.state,
        f"read as {feedback.recorded}. {feedback.text}".strip(),
        feedback.recorded,
        feedback.misconception,
        feedback.credit,
    )


def resolve(word: str, entries: list[dict[str, Any]]) -> str:
    """Return the id meant by a shown letter, a shown number or an id."""
    ids = [entry["id"] for entry in entries]
    if word in ids:
        return word
    place = int(word) - 1 if word.isdecimal() else ord(word) - ord("a") if len(word) == 1 else -1
    if 0 <= place < len(ids):
        return ids[place]
    raise ValueError(f"{word!r} is none of the {len(ids)} choices; write a letter from a")


def chosen(variant: Variant, words: list[str]) -> list[str]:
    """Return the option ids meant by some words, without repeats."""
    return list(dict.fromkeys(resolve(word, variant.shown) for word in words))


def mark_single(variant: Variant, text: str) -> Feedback:
    """Mark one option."""
    picks = chosen(variant, parse_words(text))
    if len(picks) != 1:
        raise ValueError(f"choose one option, not {len(picks)}")
    option = option_of(variant, picks[0])
    if not option["correct"]:
        return wrong(variant, option, picks[0])
    full = right(variant, picks[0])
    own = fill(option.get("feedback", ""), variant.solution.values)
    return Feedback("correct", f"{own} {full.text}".strip(), picks[0], None, 1.0)


def option_of(variant: Variant, name: str) -> dict[str, Any]:
    """Return an option by id."""
    return next(option for option in variant.solution.options if option["id"] == name)


def mark_multi(variant: Variant, text: str) -> Feedback:
    """Mark a set of options: right minus wrong, floor 0; explain the first error."""
    picks = chosen(variant, parse_words(text))
    recorded = " ".join(sorted(picks))
    truth = [option["id"] for option in variant.solution.options if option["correct"]]
    false_picks = [name for name in picks if name not in truth]
    missed = [name for name in truth if name not in picks]
    if not false_picks and not missed:
        return right(variant, recorded)
    hits = len(picks) - len(false_picks)
    credit = (hits - len(false_picks)) / len(truth)
    return wrong(variant, option_of(variant, (false_picks + missed)[0]), recorded, credit)


def mark_true_false(variant: Variant, text: str) -> Feedback:
    """Mark a truth value and its reason, half each; the reason counts only with the value."""
    words = parse_words(text)
    if not words or words[0] not in TRUTHS:
        raise ValueError(f"{text!r} is neither true nor false; write 'false b'")
    truth = TRUTHS[words[0]]
    reasons = chosen(variant, words[1:])
    if len(reasons) != 1:
        raise ValueError("write the truth value and one reason, such as 'false b'")
    recorded = f"{str(truth).lower()} {reasons[0]}"
    if truth != variant.question["answer"]:
        return wrong(variant, variant.question, recorded)
    option = option_of(variant, reasons[0])
    return right(variant, recorded) if option["correct"] else wrong(variant, option, recorded, 0.5)


def mark_ordering(variant: Variant, text: str) -> Feedback:
    """Mark a permutation; credit is the longest run of items in the right relative order."""
    picks = [resolve(word, variant.shown) for word in parse_words(text)]
    truth = [item["id"] for item in variant.question["items"]]
    if sorted(picks) != sorted(truth):
        raise ValueError(f"name each of the {len(truth)} items once, such as 'b a c'")
    recorded = " ".join(picks)
    if picks == truth:
        return right(variant, recorded)
    credit = longest_increasing([truth.index(name) for name in picks]) / len(truth)
    for source in variant.question.get("distractors", []):
        if source["value"] == picks:
            return wrong(variant, source, recorded, credit)
    return wrong(variant, variant.question, recorded, credit)


def longest_increasing(numbers: list[int]) -> int:
    """Return the length of the longest increasing subsequence.

    Examples
    --------
    >>> longest_increasing([2, 0, 1, 3])
    3
    """
    lengths: list[int] = []
    for place, number in enumerate(numbers):
        before = [lengths[j] for j in range(place) if numbers[j] < number]
        lengths.append(1 + max(before, default=0))
    return max(lengths, default=0)


def mark_matching(variant: Variant, text: str) -> Feedback:
    """Mark pairs of item and category, credit by the pair; explain the first wrong one."""
    items, categories = variant.question["items"], variant.question["categories"]
    pairs = {
        resolve(left, items): resolve(right_side, categories)
        for left, right_side in parse_pairs(text)
    }
    recorded = " ".join(f"{name}={pairs[name]}" for name in sorted(pairs))
    if len(pairs) < len(items):
        raise ValueError(f"{len(pairs)} of {len(items)} lines are matched; match each of them")
    misses = [item for item in items if pairs[item["id"]] != item["match"]]
    if not misses:
        return right(variant, recorded)
    feedback = wrong(variant, misses[0], recorded, 1 - len(misses) / len(items))
    count = f"{len(items) - len(misses)} of {len(items)} are right. "
    text = f"{count}Look again at \u201c{misses[0]['text']}\u201d: {feedback.text}"
    return Feedback("incorrect", text, recorded, feedback.misconception, feedback.credit)


def mark_short(variant: Variant, text: str) -> Feedback:
    """Mark a normalized word or phrase against the accepted list."""
    recorded, question = normal(text), variant.question
    if recorded in map(normal, question["accepted"]):
        return right(variant, recorded)
    for source in question.get("distractors", []):
        if recorded == normal(source["value"]):
            return wrong(variant, source, recorded)
    return wrong(variant, question, recorded)


MARKERS: dict[str, Callable[[Variant, str], Feedback]] = {
    "computed": mark_computed,
    "single": mark_single,
    "multi": mark_multi,
    "true_false": mark_true_false,
    "ordering": mark_ordering,
    "matching": mark_matching,
    "short": mark_short,
}
