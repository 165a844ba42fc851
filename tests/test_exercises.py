"""Every exercise of the course: blank, solved, and each typical error."""

import re

import pytest

from quantlab.quiz.check import exercise, exercise_modules, load_exercises

ALL = [entry for module in exercise_modules() for entry in load_exercises(module).values()]
every_exercise = pytest.mark.parametrize("task", ALL, ids=lambda task: f"{task.module}.{task.id}")
STATES = {"\u2713 correct", "\u2717 incorrect, not yet", "\u25cb not attempted"}


def blank_function(*arguments, **named):
    """What a learner's stub is before any work: its body is ``...``."""


@every_exercise
def test_a_blank_answer_is_not_attempted(task, capsys):
    for blank in (None, ..., ""):
        assert task.judge(blank)[0] == "not attempted"
    if callable(task.answer):
        assert task.judge(blank_function)[0] == "not attempted"
    task.check()
    assert capsys.readouterr().out.split(":")[0] in STATES


@every_exercise
def test_the_solution_is_correct(task):
    assert task.judge(task.answer) == ("correct", f"exercise {task.module}.{task.id}")


@every_exercise
def test_each_typical_error_is_incorrect_with_a_reason_in_one_line(task):
    assert len(task.wrong) >= 1
    for place, answer in enumerate(task.wrong):
        state, reason = task.judge(answer)
        assert state == "incorrect", f"wrong answer {place} passes as {state}: {reason}"
        assert len(reason) > 10
        assert "\n" not in reason
        assert "the check could not use" not in reason, reason


@every_exercise
def test_an_answer_of_another_kind_is_incorrect_and_never_raises(task):
    for strange in (object(), "\u00a7", 1e99, float("nan"), [1, "two"], {"three": 3}, print, len):
        assert task.judge(strange)[0] in ("incorrect", "not attempted")


@every_exercise
def test_a_card_is_complete(task, capsys):
    assert 1 <= task.difficulty <= 5
    assert 1 <= task.importance <= 5
    assert 1 <= task.minutes <= 60
    assert re.fullmatch(r"[a-z]", task.id)
    assert task.title.endswith(".")
    assert len(task.hints) >= 1
    task.solution()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("module", exercise_modules())
def test_exercises_are_lettered_in_order_and_found_by_name(module):
    letters = list(load_exercises(module))
    assert letters == list("abcdefgh"[: len(letters)])
    assert len(letters) >= 3
    assert exercise(f"{module}.a") is exercise(f"{int(module[:2])}.a")
