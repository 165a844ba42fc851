"""The quiz engine: reading answers, marking, variants, hints, terminal, widget."""

import ast
import json
import math
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlab.quiz import Wrong, exercise, practice, practice_in_terminal
from quantlab.quiz import runner as runner_module
from quantlab.quiz.answers import normal, parse_hexadecimal, parse_number, parse_pairs
from quantlab.quiz.bank import find_bank
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import NotAttempted, call, compare_calls, expect
from quantlab.quiz.expression import evaluate, fill
from quantlab.quiz.marking import LABELS, longest_increasing, mark
from quantlab.quiz.variants import GENERATORS, Stream, draw, practice_seed, tolerance

ROOM = Path(runner_module.__file__).parent
SEED = practice_seed("00_test", "q1", 0)
BASE = {"id": "q1", "stem": "?", "hints": ["h"], "explanation": "because"}


def question(**fields):
    return {**BASE, **fields}


def numeric(answer="0.0157", **fields):
    rivals = [{"value": "1.0", "feedback": "you forgot to divide", "misconception": "G1"}]
    given_fields = {"tolerance": {"rel": 0.01}, "distractors": rivals, "feedback": "divide"}
    return question(type="numeric", answer=answer, **{**given_fields, **fields})


def options(*correct):
    names = ["alpha", "beta", "gamma", "delta"]
    return [
        {"id": name, "text": f"text {name}", "correct": name in correct, "feedback": f"on {name}"}
        for name in names
    ]


def state(fields, answer):
    return mark(draw(fields, SEED), answer).state


# ------------------------------------------------------------------- reading answers


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_every_decimal_is_read_exactly(number):
    assert parse_number(str(number)) == Fraction(number)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_a_fraction_bar_divides_exactly(top, bottom):
    assert parse_number(f"{top}/{bottom}") == Fraction(top, bottom)


@given(st.integers(0, 2**64 - 1))
def test_hexadecimal_is_read_with_and_without_prefix(number):
    assert parse_hexadecimal(f"0x{number:X}") == parse_hexadecimal(f"{number:x}") == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1+1",
        "2**3",
        "__import__('os')",
        "1e",
        "1,5",
        "--1",
        "nan",
        "inf",
        "1/2/3",
        "1e9999",
    ],
)
def test_anything_but_a_number_is_refused_with_the_way_out(text):
    with pytest.raises(ValueError, match=r"write 0.0157, 1.57e-2, 4/255 or 0x3f"):
        parse_number(text)


def test_a_zero_below_the_bar_and_a_comma_are_explained():
    with pytest.raises(ValueError, match="divides by zero"):
        parse_number("1/0")
    with pytest.raises(ValueError, match="a point, not a comma"):
        parse_number("1,5")


def test_units_spaces_and_the_typographic_minus_are_accepted():
    assert parse_number("3.94 gb", unit="GB") == Fraction(394, 100)
    assert parse_number("\u2212 64") == -64
    assert parse_pairs("1 = b, 2: c; gptq=algorithm") == [
        ("1", "b"),
        ("2", "c"),
        ("gptq", "algorithm"),
    ]
    assert normal(" Zero-Point! ") == "zero point"


@given(st.text(max_size=300))
def test_no_text_that_can_be_typed_raises(text):
    for fields in (
        numeric(),
        question(type="hex", answer="56", digits=2, distractors=[], feedback="f"),
        question(type="single", options=options("beta")),
        question(type="multi", options=options("beta", "gamma")),
        question(type="true_false", answer=False, feedback="f", options=options("beta")),
        question(type="short", accepted=["scale"], feedback="f"),
        question(type="ordering", items=options(), feedback="f"),
        matching(),
    ):
        assert mark(draw(fields, SEED), text).state in LABELS


# ------------------------------------------------------------------- marking


def test_the_three_states_are_symbol_and_word():
    assert LABELS == {
        "correct": "\u2713 correct",
        "incorrect": "\u2717 incorrect, not yet",
        "not attempted": "\u25cb not attempted",
    }


@pytest.mark.parametrize("kind", ["0.0157", "1.57e-2", "157/10000", 0.0157, "0.01585"])
def test_numbers_within_the_tolerance_are_correct(kind):
    assert state(numeric(), kind) == "correct"


def test_a_typical_wrong_number_gets_its_own_feedback_and_myth():
    variant = draw(numeric(), SEED)
    named, other = mark(variant, "1"), mark(variant, "2")
    assert (named.text, named.misconception) == ("read as 1. you forgot to divide", "G1")
    assert (other.text, other.misconception) == ("read as 2. divide", None)
    assert str(named) == "\u2717 incorrect, not yet: read as 1. you forgot to divide (myth G1)"


@pytest.mark.parametrize("answer", [None, ..., "", "  ", "..."])
def test_nothing_is_not_attempted(answer):
    assert state(numeric(), answer) == "not attempted"


def test_an_unreadable_answer_is_not_attempted_and_says_what_to_write():
    feedback = mark(draw(numeric(), SEED), "a lot")
    assert feedback.state == "not attempted"
    assert "write 0.0157" in feedback.text


def test_significant_digits_accept_what_rounds_to_the_answer():
    fields = numeric(tolerance={"sig": 3})
    assert [state(fields, text) for text in ("0.0157", "0.01574", "0.0158")] == [
        "correct", "correct", "incorrect",
    ]  # fmt: skip
    assert tolerance(fields, 0.0157) == pytest.approx(0.00005)


def test_options_are_taken_by_id_or_by_the_letter_shown():
    fields = question(type="single", options=options("beta"))
    for counter in range(10):
        variant = draw(fields, practice_seed("00_test", "q1", counter))
        letter = "abcd"[variant.order.index("beta")]
        assert mark(variant, "beta").state == mark(variant, letter.upper()).state == "correct"
        assert mark(variant, letter).recorded == "beta"
        assert mark(variant, "gamma").text == "on gamma"
        assert mark(variant, "a b").state == mark(variant, "z").state == "not attempted"


def test_multi_counts_right_minus_wrong_with_floor_zero():
    variant = draw(question(type="multi", options=options("alpha", "beta")), SEED)
    credit = {
        picks: mark(variant, picks).credit
        for picks in ("alpha beta", "alpha", "alpha gamma", "gamma delta", "alpha beta delta")
    }
    assert list(credit.values()) == [1, 0.5, 0, 0, 0.5]
    assert mark(variant, "alpha gamma").text == "on gamma"
    assert mark(variant, "alpha").text == "on beta"


def test_true_false_needs_both_and_gives_half_for_the_value_alone():
    fields = question(type="true_false", answer=False, feedback="no", options=options("beta"))
    variant = draw(fields, SEED)
    assert mark(variant, "false beta").credit == 1
    assert mark(variant, "false gamma").credit == 0.5
    assert mark(variant, "true beta").credit == 0
    assert mark(variant, "false").state == mark(variant, "maybe beta").state == "not attempted"


def test_ordering_credits_the_longest_right_run():
    items = options()
    named = [{"value": ["beta", "alpha", "gamma", "delta"], "feedback": "first two exchanged"}]
    fields = question(type="ordering", items=items, feedback="look", distractors=named)
    variant = draw(fields, SEED)
    assert variant.order != [item["id"] for item in items]
    assert mark(variant, "alpha beta gamma delta").state == "correct"
    swapped = mark(variant, "beta alpha gamma delta")
    assert (swapped.credit, swapped.text) == (0.75, "first two exchanged")
    assert mark(variant, "alpha beta").state == "not attempted"


def matching():
    categories = [{"id": "format", "text": "a format"}, {"id": "library", "text": "a library"}]
    matches = ["format", "library", "format", "library"]
    items = [{**item, "match": m} for item, m in zip(options(), matches, strict=True)]
    return question(type="matching", items=items, categories=categories)


def test_matching_credits_each_pair_and_explains_the_first_error():
    variant = draw(matching(), SEED)
    assert mark(variant, "1=a 2=b 3=a 4=b").state == "correct"
    feedback = mark(
        variant, {"alpha": "format", "beta": "format", "gamma": "format", "delta": "library"}
    )
    assert feedback.credit == 0.75
    assert "text beta" in feedback.text
    assert "3 of 4" in feedback.text
    assert mark(variant, "1=a").state == "not attempted"


def test_short_answers_ignore_case_and_punctuation():
    wrong = [{"value": "zero point", "feedback": "that one shifts"}]
    fields = question(type="short", accepted=["scale"], feedback="f", distractors=wrong)
    assert state(fields, " Scale. ") == "correct"
    assert mark(draw(fields, SEED), "Zero-Point").text == "that one shifts"


@given(st.lists(st.integers(0, 9), max_size=7))
def test_longest_increasing_agrees_with_trying_all_subsets(numbers):
    best = 0
    for chosen in range(2 ** len(numbers)):
        part = [number for bit, number in enumerate(numbers) if chosen >> bit & 1]
        if all(a < b for a, b in pairwise(part)):
            best = max(best, len(part))
    assert longest_increasing(numbers) == best


# ------------------------------------------------------------------- expressions and variants


@given(st.integers(-99, 99), st.integers(1, 9))
def test_expressions_agree_with_python(a, b):
    values = {"a": a, "b": b}
    assert evaluate("(a + b) * 2 - a // b % 3", values) == (a + b) * 2 - a // b % 3
    assert evaluate("max([x * x for x in range(b) if x != 2] + [a])", values) == max(
        [x * x for x in range(b) if x != 2] + [a]
    )
    assert evaluate("a if 0 < b <= 4 and a > 0 else -a", values) == (
        a if 0 < b <= 4 and a > 0 else -a
    )
    assert fill("{a} {a / b:.3f} {{x}}", values) == f"{a} {a / b:.3f} {{x}}"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "(1).__class__",
        "ql.__dict__",
        "lambda: 1",
        "x := 1",
        "open('f')",
        "a b",
        "eval('1')",
    ],
)
def test_an_expression_cannot_leave_its_small_language(text):
    with pytest.raises(ValueError, match=r"expression|public name"):
        evaluate(text, {})


def test_the_room_holds_no_evaluator_and_no_pickle():
    banned = {"eval", "exec", "compile", "pickle", "dill", "marshal", "shelve", "subprocess"}
    for file in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or ""
                names = {module, *(alias.name for alias in node.names)}
            assert not names & banned, (file.name, names)


def test_the_same_seed_draws_the_same_variant_for_ever():
    """Golden numbers: a change here changes every learner's quiz."""
    stream = Stream(practice_seed("02_number_formats", "q1", 0))
    assert [stream.below(1000) for _ in range(5)] == GOLDEN
    assert stream.shuffled(list("abcdef")) == GOLDEN_ORDER


GOLDEN = [738, 206, 598, 904, 511]
GOLDEN_ORDER = ["c", "e", "d", "b", "a", "f"]


def test_a_stream_draws_each_number_equally_often():
    stream = Stream(SEED)
    counts = torch.bincount(torch.tensor([stream.below(7) for _ in range(7000)]), minlength=7)
    assert ((counts - 1000).abs() < 5 * math.sqrt(1000)).all()


@pytest.mark.parametrize(
    ("kind", "arguments", "fits"),
    [
        ("integer", [-3, 4], lambda v: -3 <= v <= 4),
        (
            "decimal",
            [-0.3, 0.6, 0.1],
            lambda v: str(v) in "-0.3 -0.2 -0.1 0.0 0.1 0.2 0.3 0.4 0.5 0.6",
        ),
        ("choice", ["x", 2], lambda v: v in ("x", 2)),
        ("integers", [3, 0, 9], lambda v: len(v) == 3 and max(v) <= 9),
        ("decimals", [2, 0, 1, 0.25], lambda v: all(x in (0, 0.25, 0.5, 0.75, 1) for x in v)),
        ("shuffle", [1, 2, 3], lambda v: sorted(v) == [1, 2, 3]),
    ],
)
def test_generators_stay_in_their_ranges(kind, arguments, fits):
    stream = Stream(SEED)
    drawn = [GENERATORS[kind](stream, *arguments) for _ in range(200)]
    assert all(map(fits, drawn))
    assert len({repr(value) for value in drawn}) > 1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (numeric("1.0"), "would count as"),
        (numeric("0.0"), "answer is 0"),
        (numeric("math.inf"), "answer is inf"),
        (numeric(where="1 > 2"), "does not hold"),
        (question(type="single", options=options()), "0 options are right"),
        (question(type="single", options=options("alpha", "beta")), "2 options are right"),
        (
            question(type="single", options=[{**o, "text": "same"} for o in options("beta")]),
            "read the same",
        ),
    ],
)
def test_degenerate_numbers_are_redrawn_and_then_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        draw(fields, SEED)


def test_redraws_go_on_until_the_numbers_are_good():
    fields = numeric("k * 1.0", params={"k": {"integer": [0, 3]}})
    drawn = [draw(fields, practice_seed("t", "q1", counter)) for counter in range(100)]
    assert {variant.solution.values["k"] for variant in drawn} == {2, 3}  # 0 and 1 are degenerate
    assert max(variant.redraws for variant in drawn) > 0


# ------------------------------------------------------------------- practice


def solved(quiz, name):
    """The right answer of a computed question, as a learner would type it."""
    variant = quiz.progress[name].variant
    return repr(variant.solution.values["answer"])


def test_text_answers_print_one_line(capsys):
    quiz = practice("02_number_formats")
    quiz.answer("q1", solved(quiz, "q1"))
    quiz.answer("q1", "12345")
    quiz.answer("q1")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["q1 \u2713", "q1 \u2717", "q1 \u25cb"]


def test_hints_come_in_order_and_the_last_one_stays(capsys):
    quiz = practice("02")
    for _ in range(5):
        quiz.hint("q1")
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"q1 hint (\d) of 3: ", line)[1] for line in lines] == list("12333")


def test_new_numbers_change_the_question_and_forget_the_answer(capsys):
    quiz = practice(2)
    before = quiz.question_text("q4")
    quiz.answer("q4", "0x00")
    quiz.new_numbers("q4")
    assert quiz.question_text("q4") != before
    assert quiz.progress["q4"].feedback.state == "not attempted"
    again = practice(2)
    again.new_numbers("q4")
    assert again.question_text("q4") == quiz.question_text("q4")


def test_seeds_give_other_numbers_and_the_same_seed_the_same():
    assert repr(practice(2, seed=0)) == repr(practice(2, seed=0))
    assert repr(practice(2, seed=0)) != repr(practice(2, seed=1))


def test_wrong_names_list_what_exists():
    with pytest.raises(ValueError, match="02_number_formats"):
        practice("99_nothing")
    with pytest.raises(ValueError, match="choose q1, q2"):
        practice(2).answer("q99", "1")
    with pytest.raises(ValueError, match="choose a, b"):
        exercise("02_number_formats.z")
    with pytest.raises(ValueError, match=r"MODULE\.LETTER"):
        exercise("nowhere")
    assert find_bank("2") == find_bank("02") == "02_number_formats"


def test_the_terminal_asks_hints_redraws_and_counts():
    quiz = practice(2)
    typed = iter(["?", "999", solved(quiz, "q1"), "new", "", "quit"])
    written = []
    count = practice_in_terminal(2, read=lambda _: next(typed), write=written.append)
    text = "\n".join(written)
    assert count == 1
    assert "hint 1 of 3" in text
    assert "incorrect, not yet: read as 999" in text
    assert text.endswith("1 of 8 correct.")


def test_the_terminal_ends_quietly_when_input_ends():
    def closed(_):
        raise EOFError

    assert practice_in_terminal(2, read=closed, write=lambda _: None) == 0


def test_the_text_holds_every_stem_for_readers_without_a_kernel():
    quiz = practice(2)
    text = repr(quiz)
    assert text.startswith("Practice quiz 02_number_formats: 8 questions. No front end?")
    for progress in quiz.progress.values():
        assert progress.variant.stem.strip() in text


# ------------------------------------------------------------------- widget


@pytest.fixture
def widget():
    pytest.importorskip("anywidget")
    return practice(2).widget


def test_the_bundle_is_one_view_with_the_questions_as_text(widget):
    data, _ = widget.quiz._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert data["text/plain"] == repr(widget.quiz)


def test_without_anywidget_there_is_text(monkeypatch):
    monkeypatch.setattr(runner_module, "find_spec", lambda name: None)
    quiz = practice(2)
    assert quiz._repr_mimebundle_() == {"text/plain": repr(quiz)}


def test_widget_and_text_api_record_the_same(widget, capsys):
    other = practice(2)
    for name, answer in (("q1", "0.5"), ("q5", "false b"), ("q4", "7e"), ("q7", "a b c d e")):
        widget.receive(widget, {"kind": "answer", "id": name, "value": answer})
        other.answer(name, answer)
        assert widget.quiz.progress[name].feedback == other.progress[name].feedback
        assert widget.state[name]["state"] == other.progress[name].feedback.state


def test_the_page_follows_the_text_api_hints_and_new_numbers(widget, capsys):
    widget.quiz.answer("q1", solved(widget.quiz, "q1"))
    assert widget.state["q1"]["state"] == "correct"
    widget.receive(widget, {"kind": "hint", "id": "q1"})
    assert len(widget.state["q1"]["hints"]) == 1
    before = widget.questions[0]["stem"]
    widget.receive(widget, {"kind": "new", "id": "q1"})
    assert widget.questions[0]["counter"] == 1
    assert widget.questions[0]["stem"] != before
    assert widget.state["q1"]["state"] == "not attempted"


def test_the_page_gets_no_key_before_an_answer(widget):
    sent = json.dumps([widget.questions, widget.state])
    assert not {"correct", "misconception", "feedback", "answer"} & set(
        re.findall(r'"(\w+)":', sent)
    )
    assert "explanation" not in sent


def test_stems_are_escaped_before_they_reach_the_page():
    from quantlab.quiz.widget import to_html

    assert to_html("<img src=x> `<b>` **x** *y*") == (
        "<p>&lt;img src=x&gt; <code>&lt;b&gt;</code> <strong>x</strong> <em>y</em></p>"
    )
    assert to_html("a\n\n```python\nx * y * z\n```") == "<p>a</p><pre><code>x * y * z</code></pre>"


def test_the_script_is_short_and_guards_every_control():
    script = (ROOM / "practice.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 200
    assert "http" not in script
    for tag in ("input", "select", "button"):
        made = re.findall(rf'make\("{tag}", \{{[^}}]*\}}', script)
        assert made
        assert all("...guard" in control for control in made)


# ------------------------------------------------------------------- exercises


def task(check, solution=1, wrong=(2,)):
    return Exercise(
        "a", "Do it.", difficulty=1, importance=1, minutes=1, check=check, hints=["one", "two"],
        solution=solution, wrong=wrong,
    )  # fmt: skip


def failing(x):
    return x / 0


def test_a_learners_exception_becomes_one_line_with_its_line_number():
    with pytest.raises(Wrong, match=r"raised on \(1\): ZeroDivisionError.*\(line \d+ of failing\)"):
        call(failing, 1)
    with pytest.raises(Wrong, match="expected a function, yours is 3"):
        call(3)
    with pytest.raises(NotAttempted):
        call(lambda: None)


@pytest.mark.parametrize(
    ("value", "target", "message"),
    [
        (2, 1, "thing: 2 is not right"),
        ("two", 2, "expected a number, yours is 'two'"),
        (math.nan, 2, "NaN"),
        ([1, 2], [1, 3], "thing, value 2: 2 is not right"),
        ([1], [1, 3], "expected 2 values"),
        ({"a": 1}, {"a": 1, "b": 2}, "'b' is missing"),
        (torch.zeros(2), torch.zeros(3), r"expected shape \(3,\), yours is \(2,\)"),
        (torch.tensor([0.0, 5.0]), torch.zeros(2), r"at \[1\]: 5 is not right"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2), r"at \[1\]: nan is not right"),
        (1, True, "1 is not right"),
    ],
)
def test_differences_are_named_without_giving_the_answer_away(value, target, message):
    with pytest.raises(Wrong, match=message):
        expect(value, target, "thing")


def test_infinities_and_tolerances_compare_as_expected():
    expect(torch.tensor([math.inf, 1.0]), torch.tensor([math.inf, 1.0]), "t")
    expect(1.005, 1.0, "t", rel=0.01)
    expect(torch.tensor([1.005]), torch.tensor([1.0]), "t", abs_=0.01)


def test_a_function_that_changes_its_input_is_compared_on_copies():
    def spoils(x):
        return x.mul_(2)

    compare_calls(spoils, lambda x: x * 2, [(torch.ones(2),), (torch.ones(2),)])
    with pytest.raises(Wrong, match="expected 2, yours is 3"):
        compare_calls(lambda x: x + 2, lambda x: x + 1, [(1,)])


def test_an_unforeseen_answer_is_incorrect_not_a_traceback(capsys):
    broken = task(lambda answer: answer.missing)
    broken.check(4)
    assert capsys.readouterr().out.startswith(
        "\u2717 incorrect, not yet: the check could not use 4"
    )


def test_solution_prints_the_source_and_hints_count(capsys):
    shown = task(lambda answer: None, solution=failing)
    shown.solution()
    shown.hint()
    shown.hint()
    shown.hint()
    out = capsys.readouterr().out
    assert out.startswith("def failing(x):\n    return x / 0\n")
    assert out.count("hint 2 of 2: two") == 2
