"""A practice quiz in a real JupyterLab, answered by keyboard alone."""

import nbformat
import pytest
from browser.probes import trapped

from quantlab.quiz import practice

QUIZ = "02_number_formats"
EXTRA = """
from quantlab.quiz.bank import Bank
from quantlab.quiz.runner import Practice
def entries(*names, **fields):
    return [{"id": n, "text": f"the `{n}`", "feedback": f"look at {n}", **fields} for n in names]
base = {"hints": ["an idea"], "explanation": "That is it.", "objective": "o1"}
choices = entries("scale", correct=True) + entries("code", "name")
items = entries("gguf", match="box") + entries("gptq", "awq", match="way")
kinds = [
    {"type": "single", "options": choices},
    {"type": "multi", "options": entries("zero", correct=True) + choices},
    {"type": "matching", "items": items, "categories": entries("box", "way")},
]
questions = [{**base, "id": f"q{k}", "stem": f"Stem {k}", **kinds[k - 1]} for k in (1, 2, 3)]
bank = Bank("00_kinds", "Kinds", {"o1": "any"}, {q["id"]: q for q in questions})
Practice(bank)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with one notebook of two quizzes between headings."""
    folder = tmp_path / "course"
    folder.mkdir()
    cells = [nbformat.v4.new_markdown_cell("# Quiz")]
    for source in ("from quantlab.quiz import practice", f'practice("{QUIZ}")', EXTRA):
        cells.append(nbformat.v4.new_code_cell(source.strip()))
    cells.append(nbformat.v4.new_markdown_cell("## The end"))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "q.ipynb")
    return folder


def opened(lab, folder, title, dark=False):
    here = lab(folder, dark)
    here.open("q.ipynb")
    here.run_all()
    assert here.failures() == []
    selector = f'.ql-quiz[aria-label="{title}"]'
    here.show(selector)
    return here, here.page.locator(selector)


def says(form, text):
    """Wait until a question's status holds a text."""
    form.locator("[role=status]").filter(has_text=text).wait_for(timeout=10_000)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_quiz_is_answered_with_keys_alone(lab, folder, tmp_path, dark):
    here, root = opened(lab, folder, "Practice: Number formats and the affine map", dark)
    keys, quiz = here.page.keyboard, practice(QUIZ)
    first = root.locator('form[data-question="q1"]')
    says(first, "\u25cb not attempted")
    first.locator("input").focus()
    keys.type("12345")
    keys.press("Enter")
    says(first, "\u2717 incorrect, not yet: read as 12345.")
    keys.press("Control+A")
    keys.type(repr(quiz.progress["q1"].variant.solution.values["answer"]))
    keys.press("Tab")  # Check
    keys.press("Tab")  # Hint
    keys.press("Space")
    first.locator("li").filter(has_text="hint 1 of 3").wait_for()
    keys.press("Shift+Tab")
    keys.press("Enter")
    says(first, "\u2713 correct")
    assert root.locator(".quiz-summary").inner_text() == f"1 of {len(quiz.progress)} correct"

    why = root.locator('form[data-question="q5"]')
    why.locator('input[value="true"]').focus()
    keys.press("ArrowDown")
    assert why.locator('input[value="false"]').is_checked()
    why.locator('input[value="any_list"]').focus()
    keys.press("Space")
    keys.press("Enter")
    says(why, "\u2713 correct")
    root.screenshot(path=tmp_path / f"quiz_{'dark' if dark else 'light'}.png")

    first.locator('[data-action="New numbers"]').focus()
    keys.press("Enter")
    again = root.locator('form[data-question="q1"][data-counter="1"]')
    says(again, "\u25cb not attempted")
    assert again.locator('[data-action="New numbers"]').evaluate(
        "node => node === document.activeElement"
    )
    assert here.errors == []
    print(tmp_path)


def test_trap_keys_in_a_quiz_leave_the_notebook_alone(lab, folder):
    here, root = opened(lab, folder, "Practice: Kinds")
    assert trapped(here, root) == []
    assert here.errors == []


def test_choices_and_pairs_reach_python(lab, folder, tmp_path):
    here, root = opened(lab, folder, "Practice: Kinds")
    single, multi, pairs = (root.locator(f'form[data-question="q{k}"]') for k in (1, 2, 3))
    single.locator('input[value="code"]').check()
    single.locator("button[type=submit]").click()
    says(single, "look at code")
    for name in ("zero", "scale"):
        multi.locator(f'input[value="{name}"]').check()
    multi.locator('input[value="zero"]').press("Enter")
    says(multi, "\u2713 correct")
    for name, category in (("gguf", "box"), ("gptq", "way"), ("awq", "box")):
        pairs.locator(f'select[data-key="{name}"]').select_option(category)
    pairs.locator("select").first.press("Enter")
    says(pairs, "2 of 3 are right")
    root.screenshot(path=tmp_path / "kinds.png")
    print(tmp_path)
    assert here.errors == []
