"""Read the question banks that ship with the package, one JSON file per module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

Question = dict[str, Any]
COMPUTED = ("numeric", "integer", "hex")  # types whose answer is an expression
CHOICES = ("single", "multi", "true_false")  # types with options


@dataclass(frozen=True)
class Bank:
    """The questions of one module.

    Attributes
    ----------
    quiz : str
        Name of the file, such as ``02_number_formats``.
    title : str
    objectives : dict
        Objective id to sentence.
    questions : dict
        Question id to its fields; quizzes/README.md explains them.
    """

    quiz: str
    title: str
    objectives: dict[str, str]
    questions: dict[str, Question]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Bank:
        """Make a bank of the parsed file."""
        questions = {question["id"]: question for question in data["questions"]}
        return cls(data["quiz"], data["title"], data["objectives"], questions)


def bank_names() -> list[str]:
    """Return the names of the banks in this installation, sorted."""
    folder = resources.files("quantlab.quiz") / "banks"
    if not folder.is_dir():
        return []
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".json"))


def find_bank(name: str | int) -> str:
    """Return the full name of a bank given as ``04_gptq``, ``04``, ``4`` or 4.

    Raises
    ------
    ValueError
        If there is no such bank; the message lists those that exist.
    """
    wanted, names = str(name), bank_names()
    number = wanted.zfill(2) if wanted.isdigit() else None
    for candidate in names:
        if candidate == wanted or candidate.split("_")[0] == number:
            return candidate
    raise ValueError(f"no quiz is named {name!r}; choose {', '.join(names) or 'none: no banks'}")


def load_bank(name: str | int) -> Bank:
    """Load a bank by name or module number.

    Raises
    ------
    ValueError
        If there is no such bank.
    """
    file = resources.files("quantlab.quiz") / "banks" / f"{find_bank(name)}.json"
    return Bank.from_dict(json.loads(file.read_text(encoding="utf-8")))
