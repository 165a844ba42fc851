"""Draw the numbers of a question from a seed: the same seed, the same variant, on every machine.

Only PCG64's raw 64-bit stream and exact decimals are used, because NumPy promises that stream
for all versions but not what its higher functions make of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from quantlab.quiz.bank import COMPUTED, Question
from quantlab.quiz.expression import evaluate, fill

MOST_REDRAWS = 20
MARGIN = 1.05  # a typical wrong answer must miss the tolerance by 5 % of it


@dataclass(frozen=True)
class Solution:
    """A question with its numbers put in: what is asked and what is right.

    Attributes
    ----------
    values : dict
        Parameters, derived values and, for computed types, ``answer``.
    rivals : list
        Values of the distractors, in their order.
    options : list of dict
        Options with their text filled in and ``correct`` as a boolean.
    fault : str or None
        Why these numbers make no good question, if so.
    """

    values: dict[str, Any]
    rivals: list[Any]
    options: list[dict[str, Any]]
    fault: str | None


@dataclass(frozen=True)
class Variant:
    """One learner's version of a question.

    Attributes
    ----------
    question : dict
        The bank's fields.
    solution : Solution
    order : list of str
        Ids of options or items as shown; an answer is recorded by id, never by place.
    redraws : int
        How many degenerate draws came before this one.
    """

    question: Question
    solution: Solution
    order: list[str]
    redraws: int

    @property
    def stem(self) -> str:
        """The question's text with the numbers put in."""
        return fill(self.question["stem"], self.solution.values)

    @property
    def shown(self) -> list[dict[str, Any]]:
        """Options (or items to order) in the order shown."""
        values, items = self.solution.values, self.question.get("items", [])
        filled = [item | {"text": fill(item["text"], values)} for item in items]
        by_id = {entry["id"]: entry for entry in self.solution.options or filled}
        return [by_id[name] for name in self.order]


class Stream:
    """Whole numbers from a seed, without NumPy's version-dependent samplers."""

    def __init__(self, seed: bytes) -> None:
        self._bits = np.random.PCG64(int.from_bytes(seed, "big"))

    def below(self, count: int) -> int:
        """Return 0 .. count - 1, each equally likely."""
        limit = 2**64 - 2**64 % count
        while (raw := int(self._bits.random_raw())) >= limit:
            pass
        return raw % count

    def shuffled(self, items: list[Any]) -> list[Any]:
        """Return the items in random order (Fisher-Yates)."""
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            chosen = self.below(last + 1)
            items[last], items[chosen] = items[chosen], items[last]
        return items


def draw_integer(stream: Stream, low: int, high: int) -> int:
    """Draw a whole number from low to high, both included."""
    return low + stream.below(high - low + 1)


def draw_decimal(stream: Stream, low: float, high: float, step: float) -> float:
    """Draw low, low + step, ... up to high, as the float nearest to the exact decimal."""
    points = decimals(low, high, step)
    return points[stream.below(len(points))]


@lru_cache
def decimals(low: float, high: float, step: float) -> list[float]:
    """List low, low + step, ... up to high in exact decimals, so that 0.3 prints as 0.3."""
    first, last, width = (Fraction(str(number)) for number in (low, high, step))
    return [float(first + width * place) for place in range(int((last - first) / width) + 1)]


GENERATORS: dict[str, Callable[..., Any]] = {
    "integer": draw_integer,
    "decimal": draw_decimal,
    "choice": lambda stream, *items: items[stream.below(len(items))],
    "integers": lambda stream, count, *span: [draw_integer(stream, *span) for _ in range(count)],
    "decimals": lambda stream, count, *span: [draw_decimal(stream, *span) for _ in range(count)],
    "shuffle": lambda stream, *items: stream.shuffled(list(items)),
}


def practice_seed(quiz: str, question: str, counter: int, seed: int = 0) -> bytes:
    """Return the public seed of a practice variant: a hash that anybody can compute."""
    return hashlib.sha256(f"practice|v1|{quiz}|{question}|{seed}|{counter}".encode()).digest()


def draw(question: Question, seed: bytes, cache: dict[str, Solution] | None = None) -> Variant:
    """Draw a variant, again as long as its numbers are degenerate.

    Parameters
    ----------
    question : dict
        Fields of a bank's question.
    seed : bytes
        Decides everything; ``practice_seed`` makes one.
    cache : dict, optional
        Solutions by their parameters, for callers that draw often.

    Raises
    ------
    ValueError
        If 20 redraws gave nothing usable: the bank's ranges are too narrow.
    """
    cache = {} if cache is None else cache
    fault = None
    for redraws in range(MOST_REDRAWS + 1):
        stream = Stream(hashlib.sha256(seed + bytes([redraws])).digest())
        params = draw_params(question, stream)
        key = repr(params)
        if key not in cache:
            cache[key] = solve(question, params)
        solution = cache[key]
        fault = solution.fault
        if fault is None:
            order = shown_order(question, stream)
            return Variant(question, solution, order, redraws)
    raise ValueError(f"{question['id']}: {MOST_REDRAWS} redraws failed, last because {fault}")


def draw_params(question: Question, stream: Stream) -> dict[str, Any]:
    """Draw each parameter with its generator, in the file's order."""
    return {
        name: GENERATORS[kind](stream, *arguments)
        for name, spec in question.get("params", {}).items()
        for kind, arguments in spec.items()
    }


def shown_order(question: Question, stream: Stream) -> list[str]:
    """Return the ids of options or items in the order to show."""
    entries = question.get("options") or question.get("items", [])
    ids = [entry["id"] for entry in entries]
    if question["type"] == "matching" or question.get("fixed_order"):
        return ids
    order = stream.shuffled(ids)
    if question["type"] == "ordering" and order == ids:
        return order[1:] + order[:1]  # never show the answer itself
    return order


def solve(question: Question, params: dict[str, Any]) -> Solution:
    """Evaluate answer, distractors and options for given parameters."""
    values = dict(params)
    for name, text in question.get("let", {}).items():
        values[name] = evaluate(text, values)
    rivals: list[Any] = []
    if "where" in question and not evaluate(question["where"], values):
        return Solution(values, rivals, [], f"{question['where']} does not hold")
    if question["type"] in COMPUTED:
        values["answer"] = evaluate(question["answer"], values)
        rivals = [evaluate(rival["value"], values) for rival in question.get("distractors", [])]
    options = [
        option | {"text": fill(option["text"], values), "correct": is_correct(option, values)}
        for option in question.get("options", [])
    ]
    return Solution(values, rivals, options, find_fault(question, values, rivals, options))


def is_correct(option: dict[str, Any], values: dict[str, Any]) -> bool:
    """Tell whether an option is right: a plain flag, or an expression over the numbers."""
    flag = option.get("correct", False)
    return bool(evaluate(flag, values)) if isinstance(flag, str) else flag


def find_fault(
    question: Question, values: dict[str, Any], rivals: list[Any], options: list[dict[str, Any]]
) -> str | None:
    """Return why these numbers make no question, or None if they do."""
    if question["type"] in COMPUTED:
        return find_number_fault(question, values["answer"], rivals)
    texts = [option["text"] for option in options]
    if len(set(texts)) < len(texts):
        return "two options read the same"
    right = sum(option["correct"] for option in options)
    if options and (right == 0 or (right > 1 and question["type"] != "multi")):
        return f"{right} options are right"
    return None


def find_number_fault(question: Question, answer: float, rivals: list[Any]) -> str | None:
    """Return why an answer cannot be told from a wrong one, or None if it can."""
    if not math.isfinite(answer):
        return f"the answer is {answer}"
    width = tolerance(question, answer)
    if question["type"] == "numeric" and width == 0:
        return "the answer is 0 and the tolerance relative"
    for rival in rivals:
        if math.isfinite(rival) and abs(rival - answer) <= MARGIN * width:
            return f"the distractor {rival} would count as {answer}"
    return None


def tolerance(question: Question, answer: float) -> float:
    """Return how far a number may be from the answer: the widest of rel, abs and sig.

    ``sig: 3`` accepts what rounds to the answer at three significant digits.
    """
    if question["type"] != "numeric":
        return 0.0
    given = question["tolerance"]
    widths = [given.get("abs", 0.0), given.get("rel", 0.0) * abs(answer)]
    if "sig" in given and answer:
        widths.append(0.5 * 10.0 ** (math.floor(math.log10(abs(answer))) - given["sig"] + 1))
    return max(widths) + 1e-12 * abs(answer)  # room for float error
