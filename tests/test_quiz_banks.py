"""Every bank in quizzes/: its form, its keys, its variants, and the myths it answers."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import yaml

from quantlab.quiz.bank import COMPUTED, Bank
from quantlab.quiz.expression import evaluate, fill
from quantlab.quiz.marking import mark
from quantlab.quiz.variants import MOST_REDRAWS, draw, practice_seed, tolerance

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "quizzes").glob("[0-9][0-9]_*.yaml"))
MYTHS = json.loads((ROOT / "quizzes" / "myths.json").read_text(encoding="utf-8"))
NOTEBOOK_MODULES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 23, 24)
MYTH_ID = re.compile(r"\b(?:00[0-4]-\d{1,2}|G\d{1,2})\b")
DRAWS = 10_000

spec = importlib.util.spec_from_file_location("build_banks", ROOT / "quizzes" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def bank_of(source):
    return Bank.from_dict(yaml.safe_load(source.read_text(encoding="utf-8")))


BANKS = [bank_of(source) for source in SOURCES]
QUESTIONS = [(bank, question) for bank in BANKS for question in bank.questions.values()]


def label(value):
    return value.quiz if isinstance(value, Bank) else value["id"]


every_bank = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
every_question = pytest.mark.parametrize(("bank", "question"), QUESTIONS, ids=label)


def variants(bank, question, count):
    cache = {}
    for counter in range(count):
        yield draw(question, practice_seed(bank.quiz, question["id"], counter), cache)


def texts(question):
    """Every text of a question that is filled with numbers."""
    own = [question.get(name, "") for name in ("stem", "feedback", "explanation")]
    parts = [*question.get("options", []), *question.get("distractors", [])]
    parts += [*question.get("items", []), *question.get("categories", [])]
    return [*own, *question["hints"], *(p.get("feedback", "") for p in parts)]


def misconceptions(bank):
    found = set()
    for question in bank.questions.values():
        parts = [question, *question.get("options", []), *question.get("distractors", [])]
        found |= {p.get("misconception") for p in [*parts, *question.get("items", [])]}
    return found - {None}


@every_bank
def test_a_bank_follows_the_schema_and_its_json_is_up_to_date(source):
    compiled = ROOT / "quantlab" / "quiz" / "banks" / f"{source.stem}.json"
    text = compiled.read_text(encoding="utf-8") if compiled.exists() else ""
    assert text == build.render(build.read_bank(source)), "run: python quizzes/build.py"


def test_no_compiled_bank_is_without_source():
    compiled = {file.stem for file in (ROOT / "quantlab" / "quiz" / "banks").glob("*.json")}
    assert compiled == {source.stem for source in SOURCES}


@every_bank
def test_question_ids_count_up_and_every_objective_is_asked(source):
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    ids = [question["id"] for question in data["questions"]]
    assert ids == [f"q{place}" for place in range(1, len(ids) + 1)]
    assert {question["objective"] for question in data["questions"]} == set(data["objectives"])


@every_question
def test_entries_have_distinct_ids_and_every_reference_exists(bank, question):
    for name in ("options", "items", "categories"):
        ids = [entry["id"] for entry in question.get(name, [])]
        assert len(set(ids)) == len(ids)
    categories = {category["id"] for category in question.get("categories", [])}
    if categories:
        assert {item["match"] for item in question["items"]} <= categories
    if question["type"] == "ordering":
        ids = [item["id"] for item in question["items"]]
        for source in question.get("distractors", []):
            assert sorted(source["value"]) == sorted(ids)
            assert source["value"] != ids


@every_question
def test_ten_thousand_draws_give_no_degenerate_variant(bank, question):
    if not question.get("params"):
        draw(question, practice_seed(bank.quiz, question["id"], 0))
        return
    most, answers, places = 0, set(), {}
    for variant in variants(bank, question, DRAWS):
        most = max(most, variant.redraws)
        values, width = variant.solution.values, 0.0
        assert variant.solution.fault is None
        if question["type"] in COMPUTED:
            answers.add(values["answer"])
            width = tolerance(question, values["answer"])
            for rival in variant.solution.rivals:
                assert not abs(rival - values["answer"]) <= width
        if question["type"] == "single" and not question.get("fixed_order"):
            right = next(o["id"] for o in variant.solution.options if o["correct"])
            place = variant.order.index(right)
            places[place] = places.get(place, 0) + 1
    assert most <= MOST_REDRAWS
    if question["type"] in COMPUTED:
        assert len(answers) >= 4, "a quiz that asks the same again teaches nothing"
    if places:  # about five standard deviations
        share = DRAWS / len(question["options"])
        assert all(abs(count - share) < 5 * math.sqrt(share) for count in places.values())


@every_question
def test_each_key_is_the_librarys_and_agrees_with_plain_math(bank, question):
    if question["type"] not in COMPUTED:
        return
    checked = set()
    for variant in variants(bank, question, 300):
        values = {k: v for k, v in variant.solution.values.items() if k != "answer"}
        if repr(values) in checked:
            continue
        checked.add(repr(values))
        key = evaluate(question["answer"], values)
        again = evaluate(question["check"], values)
        if question["type"] == "numeric":
            assert math.isclose(key, again, rel_tol=1e-9, abs_tol=1e-12), values
        else:
            assert (type(key), key) == (int, again), values


@every_question
def test_the_right_answer_is_correct_and_each_wrong_one_has_its_feedback(bank, question):
    for variant in variants(bank, question, 25):
        for answer in right_answers(variant):
            assert mark(variant, answer).state == "correct", answer
        for answer, source in wrong_answers(variant):
            feedback = mark(variant, answer)
            assert feedback.state == "incorrect", answer
            assert len(feedback.text) > 15, answer
            if source is not None and "misconception" in source:
                assert feedback.misconception


def right_answers(variant):
    question, options = variant.question, variant.solution.options
    kind, right = question["type"], [o["id"] for o in options if o["correct"]]
    if kind in COMPUTED:
        value = variant.solution.values["answer"]
        return [hex(value)] if kind == "hex" else [repr(value)]
    if kind == "true_false":
        return [f"{question['answer']} {right[0]}"]
    if kind == "ordering":
        return [[item["id"] for item in question["items"]]]
    if kind == "matching":
        return [{item["id"]: item["match"] for item in question["items"]}]
    return question["accepted"] if kind == "short" else [right]


def wrong_answers(variant):
    """Yield (answer, source of its feedback) for each wrong answer that the bank names."""
    question, options = variant.question, variant.solution.options
    kind, right = question["type"], [o["id"] for o in options if o["correct"]]
    if kind in COMPUTED:
        for value, source in zip(variant.solution.rivals, question["distractors"], strict=True):
            if math.isfinite(value) and not (kind == "hex" and value < 0):
                yield hex(value) if kind == "hex" else repr(value), source
    elif kind == "matching":
        pairs = {item["id"]: item["match"] for item in question["items"]}
        for item in question["items"]:
            for category in question["categories"]:
                if category["id"] != item["match"]:
                    yield pairs | {item["id"]: category["id"]}, item
    elif kind == "true_false":
        yield f"{not question['answer']} {right[0]}", question
        wrong = [option for option in options if not option["correct"]]
        yield from ((f"{question['answer']} {option['id']}", option) for option in wrong)
    elif kind == "multi":
        for option in options:
            picks = set(right) ^ {option["id"]}
            if picks:
                yield picks, option
    elif kind == "single":
        yield from ((option["id"], option) for option in options if not option["correct"])
    else:
        for source in question.get("distractors", []):
            yield source["value"], source


@every_question
def test_every_text_fills_in_and_feedback_keeps_the_answer_to_itself(bank, question):
    for variant in variants(bank, question, 10):
        values = variant.solution.values
        for text in texts(question):
            filled = fill(text, values)
            assert "{" not in filled.replace("{{", ""), filled
        assert "answer" not in question["stem"].replace("the answer", "")
    wrong_texts = [question.get("feedback", "")]
    wrong_texts += [source["feedback"] for source in question.get("distractors", [])]
    assert not any(re.search(r"\{[^}]*\banswer\b", text) for text in wrong_texts)


@every_bank
def test_every_misconception_is_a_known_myth(source):
    assert misconceptions(bank_of(source)) <= set(MYTHS)


@every_bank
def test_every_myth_of_a_module_is_an_idea_behind_a_wrong_answer(source):
    module = int(source.stem[:2])
    wanted = {name for name, myth in MYTHS.items() if module in myth["quiz"]}
    assert wanted <= misconceptions(bank_of(source)), "tag a distractor with each"


def notebook_ids(module):
    """Myth ids in a module's notebook source, or None if there is no notebook yet."""
    sources = list((ROOT / "course" / "src").glob(f"{module:02d}_*.py"))
    if not sources:
        return None
    return set(MYTH_ID.findall("".join(file.read_text(encoding="utf-8") for file in sources)))


@pytest.mark.parametrize("module", NOTEBOOK_MODULES)
def test_every_myth_of_a_module_is_met_in_its_notebook_or_quiz(module):
    ids = notebook_ids(module)
    banks = [bank for bank in BANKS if int(bank.quiz[:2]) == module]
    if ids is None or not banks:
        return  # not written yet; the bank's own myths are tested above
    wanted = {name for name, myth in MYTHS.items() if myth["module"] == module}
    assert wanted <= ids | misconceptions(banks[0])


@pytest.mark.parametrize("module", NOTEBOOK_MODULES)
def test_a_notebook_names_no_unknown_myth(module):
    known = set(MYTHS) | {"G22"}  # retired tools, named in the boxes on today's tools
    assert (notebook_ids(module) or set()) <= known


def test_each_myth_has_a_claim_and_a_truth_in_one_sentence_each():
    for name, myth in MYTHS.items():
        assert MYTH_ID.fullmatch(name)
        assert set(myth) == {"claim", "truth", "module", "quiz"}
        assert myth["claim"].endswith(".")
        assert myth["truth"].endswith(".")


@every_question
def test_every_choice_that_a_learner_sees_has_its_numbers(bank, question):
    for variant in variants(bank, question, 10):
        assert not any("{" in entry["text"] for entry in variant.shown)
