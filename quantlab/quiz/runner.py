"""Practice quizzes: any seed, hints free, feedback at once; the text API and the terminal loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from quantlab.quiz.bank import Bank, load_bank
from quantlab.quiz.expression import fill
from quantlab.quiz.marking import Feedback, mark
from quantlab.quiz.variants import Variant, draw, practice_seed

HOW_TO_ANSWER = {
    "single": "one letter",
    "multi": "all letters that apply, such as 'a c'",
    "true_false": "true or false and the letter of the reason, such as 'false b'",
    "numeric": "a number: 0.0157, 1.57e-2 or 4/255",
    "integer": "a whole number",
    "hex": "hexadecimal digits, such as 0x3f",
    "ordering": "the letters in order, such as 'b a c'",
    "matching": "pairs of line and letter, such as '1=b 2=a'",
    "short": "a word or two",
}

NOT_YET = Feedback("not attempted")


@dataclass
class Progress:
    """Where a learner stands with one question."""

    variant: Variant
    counter: int = 0
    hints_shown: int = 0
    feedback: Feedback = NOT_YET


class Practice:
    """A quiz for practice: a widget in a notebook, text everywhere else.

    Parameters
    ----------
    bank : Bank
    seed : int
        Decides the first numbers of every question.

    Examples
    --------
    >>> from quantlab.quiz import practice
    >>> quiz = practice("02_number_formats")
    >>> quiz.answer("q2", "")
    q2 \u25cb not attempted: write an answer first
    """

    def __init__(self, bank: Bank, seed: int = 0) -> None:
        self.bank = bank
        self.seed = seed
        self.progress = {name: Progress(self._draw(name, 0)) for name in bank.questions}
        self._widget: Any = None

    def _draw(self, name: str, counter: int) -> Variant:
        seed = practice_seed(self.bank.quiz, name, counter, self.seed)
        return draw(self.bank.questions[name], seed)

    def _find(self, name: str) -> Progress:
        if name not in self.progress:
            raise ValueError(f"no question is named {name!r}; choose {', '.join(self.progress)}")
        return self.progress[name]

    def grade(self, name: str, answer: Any) -> Feedback:
        """Mark an answer, remember the result and return it.

        Raises
        ------
        ValueError
            If there is no such question.
        """
        progress = self._find(name)
        progress.feedback = mark(progress.variant, answer)
        return progress.feedback

    def answer(self, name: str, answer: Any = None) -> None:
        """Mark an answer and print the feedback.

        Parameters
        ----------
        name : str
            Question id, such as "q3".
        answer : str, number, list or dict
            "0.0157", "4/255", "0x3f", "b", "a c", "false b", "1=b 2=a": see the question's text.

        Raises
        ------
        ValueError
            If there is no such question.
        """
        print(name, self.grade(name, answer))
        self._refresh()

    def next_hint(self, name: str) -> str:
        """Return the next hint; after the last one, the last again."""
        progress = self._find(name)
        hints = progress.variant.question["hints"]
        progress.hints_shown = min(progress.hints_shown + 1, len(hints))
        return self.hints(name)[-1]

    def hints(self, name: str) -> list[str]:
        """Return the hints asked for so far, numbered."""
        progress = self._find(name)
        values, hints = progress.variant.solution.values, progress.variant.question["hints"]
        return [
            f"hint {place} of {len(hints)}: {fill(hint, values)}"
            for place, hint in enumerate(hints[: progress.hints_shown], 1)
        ]

    def hint(self, name: str) -> None:
        """Print the next hint: first the idea, then the formula, then the first step."""
        print(name, self.next_hint(name))
        self._refresh()

    def draw_again(self, name: str) -> None:
        """Draw new numbers for a question and forget its answer."""
        counter = self._find(name).counter + 1
        self.progress[name] = Progress(self._draw(name, counter), counter)

    def new_numbers(self, name: str) -> None:
        """Draw new numbers for a question and print it."""
        self.draw_again(name)
        print(self.question_text(name))
        self._refresh()

    @property
    def headline(self) -> str:
        """One fixed line that names the quiz and the way to answer without a front end."""
        first = next(iter(self.progress))
        return (
            f"Practice quiz {self.bank.quiz}: {len(self.progress)} questions. "
            f'No front end? Use .answer("{first}", "...").'
        )

    def question_text(self, name: str) -> str:
        """Return a question as plain text, with its choices and how to answer."""
        variant = self._find(name).variant
        question = variant.question
        lines = [f"{name}. {variant.stem.strip()}"]
        lines += [f"   {letter(i)}) {entry['text']}" for i, entry in enumerate(variant.shown)]
        if question["type"] == "matching":
            lines[1:] = [f"   {i}. {item['text']}" for i, item in enumerate(question["items"], 1)]
            categories = enumerate(question["categories"])
            lines += [f"   {letter(i)}) {category['text']}" for i, category in categories]
        unit = f", in {question['unit']}" if question.get("unit") else ""
        return "\n".join([*lines, f"   Answer: {HOW_TO_ANSWER[question['type']]}{unit}."])

    def __repr__(self) -> str:
        return "\n\n".join([self.headline, *map(self.question_text, self.progress)])

    def _repr_mimebundle_(self, **_: Any) -> Any:
        """Show the widget where one can run, and the questions as text in any case."""
        if find_spec("anywidget") is None:
            return {"text/plain": repr(self)}
        from quantlab.quiz.widget import mimebundle

        return mimebundle(self.widget, repr(self))

    @property
    def widget(self) -> Any:
        """The anywidget of this quiz, made on first use.

        Raises
        ------
        ModuleNotFoundError
            If anywidget is not installed.
        """
        if self._widget is None:
            from quantlab.quiz.widget import PracticeWidget

            self._widget = PracticeWidget(self)
        return self._widget

    def _refresh(self) -> None:
        """Bring the widget up to date after a call of the text API."""
        if self._widget is not None:
            self._widget.refresh()


def letter(place: int) -> str:
    """Return a, b, c ... for 0, 1, 2 ..."""
    return chr(ord("a") + place)


def practice(name: str | int, seed: int = 0) -> Practice:
    """Open a module's quiz for practice.

    Parameters
    ----------
    name : str or int
        "04_gptq", "04" or 4.
    seed : int
        Other seeds give other numbers.

    Raises
    ------
    ValueError
        If there is no such quiz; the message lists those that exist.

    Examples
    --------
    >>> print(practice("02_number_formats").headline)
    Practice quiz 02_number_formats: 8 questions. No front end? Use .answer("q1", "...").
    """
    return Practice(load_bank(name), seed)


def practice_in_terminal(
    name: str | int,
    seed: int = 0,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> int:
    """Ask the questions one by one on a terminal and return how many were right.

    Empty input skips, ``?`` shows a hint, ``new`` draws new numbers, ``quit`` ends.

    Raises
    ------
    ValueError
        If there is no such quiz.
    """
    quiz = practice(name, seed)
    write(f"Practice quiz {quiz.bank.quiz}: {quiz.bank.title}")
    write("Enter skips, ? gives a hint, new draws new numbers, quit ends.")
    for question in quiz.bank.questions:
        write("\n" + quiz.question_text(question))
        if not ask(quiz, question, read, write):
            break
    solved = sum(progress.feedback.state == "correct" for progress in quiz.progress.values())
    write(f"\n{solved} of {len(quiz.progress)} correct.")
    return solved


def ask(
    quiz: Practice, question: str, read: Callable[[str], str], write: Callable[[str], None]
) -> bool:
    """Repeat one question until it is solved or skipped; False means that the learner quits."""
    while True:
        try:
            line = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return False
        if line.lower() in ("quit", "exit"):
            return False
        if not line:
            return True
        if line == "?":
            write(quiz.next_hint(question))
        elif line.lower() == "new":
            quiz.draw_again(question)
            write(quiz.question_text(question))
        else:
            feedback = quiz.grade(question, line)
            write(str(feedback))
            if feedback.state == "correct":
                return True
