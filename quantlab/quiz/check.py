"""Exercises: check an answer (correct, incorrect, not attempted), give hints, show the solution."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from quantlab.quiz.expect import NotAttempted, Wrong, describe, show
from quantlab.quiz.marking import LABELS


class Exercise:
    """One exercise of a module.

    Parameters
    ----------
    id : str
        Letter within the module, such as "a".
    title : str
        What to do, one sentence.
    difficulty, importance : 1..5
    minutes : int
        Honest time for a learner.
    check : function of the answer
        Returns None if right, raises Wrong with the reason if not.
    hints : sequence of str
        From the idea to the first step.
    solution : function or value
        A right answer; ``.solution()`` prints its source.
    wrong : sequence
        Answers that must be incorrect: the typical errors. The tests try each of them.

    Examples
    --------
    >>> from quantlab.quiz.expect import expect
    >>> def is_four(answer):
    ...     expect(answer, 4, "2 + 2")
    >>> task = Exercise("a", "Add 2 and 2.", difficulty=1, importance=1, minutes=1,
    ...                 check=is_four, hints=["count"], solution=4, wrong=[5])
    >>> task.check(5)
    \u2717 incorrect, not yet: 2 + 2: 5 is not right
    """

    def __init__(
        self,
        id: str,
        title: str,
        *,
        difficulty: int,
        importance: int,
        minutes: int,
        check: Callable[[Any], None],
        hints: Sequence[str],
        solution: Any,
        wrong: Sequence[Any],
    ) -> None:
        self.id, self.title = id, title
        self.difficulty, self.importance, self.minutes = difficulty, importance, minutes
        self.check_answer, self.hints, self.answer, self.wrong = check, hints, solution, wrong
        self.module = ""
        self.hints_shown = 0

    def judge(self, answer: Any) -> tuple[str, str]:
        """Return (state, text) for an answer; never raises for anything a learner wrote."""
        if is_blank(answer):
            return "not attempted", "put your answer in place of ..."
        try:
            self.check_answer(answer)
        except NotAttempted:
            return "not attempted", "your function returns None; put your code in place of ..."
        except Wrong as reason:
            return "incorrect", str(reason)
        except Exception as problem:  # a value of a shape that the check did not foresee
            return "incorrect", f"the check could not use {show(answer)}: {describe(problem)}"
        return "correct", f"exercise {self.module}.{self.id}" if self.module else ""

    def check(self, answer: Any = None) -> None:
        """Print whether the answer is correct, incorrect (and why), or not attempted."""
        state, text = self.judge(answer)
        print(f"{LABELS[state]}: {text}")

    def hint(self) -> None:
        """Print the next hint; after the last one, the last again."""
        self.hints_shown = min(self.hints_shown + 1, len(self.hints))
        print(f"hint {self.hints_shown} of {len(self.hints)}: {self.hints[self.hints_shown - 1]}")

    def solution(self) -> None:
        """Print the source of a right answer."""
        print(source_of(self.answer))

    def __repr__(self) -> str:
        stars, weight = "\u2605" * self.difficulty, "\u2605" * self.importance
        return (
            f"Exercise {self.module}.{self.id}: {self.title}\n"
            f"difficulty {stars}, importance {weight}, {self.minutes} min. "
            "Use .check(answer), .hint(), .solution()."
        )


def exercise(name: str) -> Exercise:
    """Find an exercise by module and letter.

    Parameters
    ----------
    name : str
        "04_gptq.a", or short "4.a".

    Raises
    ------
    ValueError
        If there is no such module or letter; the message lists those that exist.

    Examples
    --------
    >>> exercise("02_number_formats.c").check(None)
    \u25cb not attempted: put your answer in place of ...
    """
    module, _, letter = str(name).rpartition(".")
    modules = exercise_modules()
    number = module.zfill(2) if module.isdigit() else None
    found = [slug for slug in modules if slug == module or slug.split("_")[0] == number]
    if not found:
        known = ", ".join(modules)
        raise ValueError(f"no exercise is named {name!r}; write MODULE.LETTER with one of {known}")
    entries = load_exercises(found[0])
    if letter not in entries:
        raise ValueError(f"{found[0]} has no exercise {letter!r}; choose {', '.join(entries)}")
    return entries[letter]


def exercise_modules() -> list[str]:
    """Return the modules that have exercises, such as ["02_number_formats"]."""
    package = import_module("quantlab.quiz.exercises")
    names = [module.name for module in iter_modules(package.__path__)]
    return sorted(name[1:] for name in names if re.fullmatch(r"m\d\d_\w+", name))


def load_exercises(slug: str) -> dict[str, Exercise]:
    """Return a module's exercises by letter."""
    module = import_module(f"quantlab.quiz.exercises.m{slug}")
    for entry in module.EXERCISES:
        entry.module = slug
    return {entry.id: entry for entry in module.EXERCISES}


def is_blank(answer: Any) -> bool:
    """Tell whether an answer is None, ``...``, or a collection with nothing filled in."""
    if answer is None or answer is ... or (isinstance(answer, str) and not answer.strip()):
        return True
    parts = answer.values() if isinstance(answer, dict) else answer
    return isinstance(answer, dict | list | tuple) and all(
        part is None or part is ... for part in parts
    )


def source_of(answer: Any) -> str:
    """Return the source of a function, or the literal of a value."""
    if inspect.isfunction(answer):
        return textwrap.dedent(inspect.getsource(answer)).rstrip()
    return repr(answer)
