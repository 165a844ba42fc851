"""Module 01 as a learner meets it: run it, turn the dial, answer the quiz, all by keyboard."""

import shutil

import pytest
from browser.conftest import ROOT
from browser.probes import key_times, percentile, trapped

NOTEBOOK = ROOT / "course" / "01_introduction.ipynb"
DIAL = '.ql-widget[aria-label="Memory dial"]'
QUIZ = ".ql-quiz"
FOCUSED = "document.activeElement"
BUDGET = 100  # ms from a key to the new picture, 95 of 100 presses, with a kernel running


@pytest.fixture
def course(tmp_path):
    """A copy of the notebook in a folder of its own: saving must not touch the repository."""
    if not NOTEBOOK.exists():
        pytest.skip(
            "course/01_introduction.ipynb is not built; run python course/build.py build 01"
        )
    folder = tmp_path / "course"
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    return folder


def answer(page, form):
    """Answer one question by keyboard alone, until it is right or the choices are used up."""
    kind = form.locator("input, select").first.get_attribute("type") or "select"
    form.locator("input, select").first.focus()
    single = form.locator("[role=radiogroup]").count() == 0 and kind == "radio"
    tries = form.locator("input[type=radio]").count() if single else 1
    for attempt in range(tries):
        # Space takes the focused radio button; an arrow takes the next.
        key = {"radio": "ArrowDown" if attempt else "Space", "checkbox": "Space"}.get(kind)
        page.keyboard.press(key or ("ArrowDown" if kind == "select" else "1"))
        page.keyboard.press("Enter")
        page.wait_for_function(
            """([form, before]) => {
              const now = form.querySelector('[role=status]').textContent;
              return now !== '' && (now !== before || form.dataset.state === 'correct');
            }""",
            arg=[form.element_handle(), ""],
        )
        page.wait_for_timeout(300)  # the kernel's answer to a second, equal mistake looks the same
        if form.get_attribute("data-state") == "correct":
            break
    assert form.locator("[role=status]").inner_text().strip()
    return form.get_attribute("data-state"), single


def test_the_first_module_works_by_keyboard(lab, course, tmp_path):
    here = lab(course)
    here.open(NOTEBOOK.name)
    here.run_all()
    assert here.failures() == []

    here.show(DIAL)
    dial = here.page.locator(DIAL)
    dial.screenshot(path=tmp_path / "memory_dial.png")
    first = dial.locator(".ql-readout").inner_text()
    times = key_times(here.page, dial, presses=44)
    middle, late = percentile(times, 0.5), percentile(times, 0.95)
    print(f"from key to picture: median {middle:.1f} ms, p95 {late:.1f} ms")
    assert late <= BUDGET
    here.page.keyboard.press("Home")
    lowest = dial.locator(".ql-readout").inner_text()
    here.page.keyboard.press("End")
    assert lowest != dial.locator(".ql-readout").inner_text()
    assert first.split(" ")[1] == "bits"
    assert dial.locator("svg").get_attribute("aria-label") == (
        dial.locator(".ql-readout").inner_text()
    )
    assert trapped(here, dial) == []

    here.show(QUIZ)
    quiz = here.page.locator(QUIZ)
    forms = quiz.locator("form")
    before = here.cells()
    results = [answer(here.page, forms.nth(k)) for k in range(forms.count())]
    assert len(results) >= 6
    assert all(state == "correct" for state, single in results if single)
    assert any(single for _, single in results)
    # From the first control, Tab alone reaches every form.
    forms.first.locator("input, select").first.focus()
    seen = set()
    for _ in range(quiz.locator("input, select, button").count()):
        seen.add(here.page.evaluate(f"{FOCUSED}.closest('form')?.dataset.question ?? ''"))
        here.page.keyboard.press("Tab")
    assert seen - {""} == set(
        forms.evaluate_all("forms => forms.map((form) => form.dataset.question)")
    )
    now = here.cells()
    assert {**now, "active": None} == {**before, "active": None}
    quiz.screenshot(path=tmp_path / "quiz.png")
    assert trapped(here, forms.first) == []
    here.page.screenshot(path=tmp_path / "lab.png")
    assert here.errors == []
