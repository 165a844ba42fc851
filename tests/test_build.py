"""The notebook builder: generated cells, one canonical file, and everything it must refuse."""

import json
from pathlib import Path

import nbformat
import pytest
from course_builder import anatomy, build, catalog, execute, rules
from course_builder import assemble as assembly
from demo_module import DEMO
from nbformat.v4 import new_code_cell, new_output

BuildError = catalog.BuildError
assemble = assembly.assemble
findings = anatomy.findings
FIRST = catalog.find("1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a course folder with the source of module 1 alone."""
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").write_text("map\n<!-- modules -->\n<!-- end -->\n", encoding="utf-8")
    FIRST.source(tmp_path).write_text(DEMO, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """Give the same folder after one build."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "src").mkdir()
    (folder / "README.md").write_text("map\n<!-- modules -->\n<!-- end -->\n", encoding="utf-8")
    FIRST.source(folder).write_text(DEMO, encoding="utf-8")
    build.build(FIRST, folder)
    build.write_map(folder)
    return folder


def rewrite(root: Path, old: str, new: str) -> None:
    """Change the source of module 1 in one place."""
    source = FIRST.source(root)
    text = source.read_text("utf-8")
    assert old in text
    source.write_text(text.replace(old, new), encoding="utf-8")


def lacking(root: Path) -> str:
    """Return the anatomy findings of module 1, unexecuted."""
    return "\n".join(findings(FIRST, assemble(FIRST, root), root))


# ---------------------------------------------------------------- catalog


def test_the_catalog_lists_25_modules_in_order():
    assert [module.number for module in catalog.MODULES] == list(range(1, 26))
    assert len({module.slug for module in catalog.MODULES}) == 25
    assert catalog.find("04").name == "04_gptq"


def test_the_syllabus_needs_bitsandbytes_in_two_modules_only():
    assert [module.number for module in catalog.MODULES if "bnb" in module.extras] == [8, 19]


@pytest.mark.parametrize("label", ["0", "26", "gptq", "-1"])
def test_an_unknown_module_is_refused(label):
    with pytest.raises(BuildError, match="choose 1 to 25"):
        catalog.find(label)


def test_a_source_outside_the_catalog_is_refused(root):
    (root / "src" / "26_more.py").write_text("", encoding="utf-8")
    with pytest.raises(BuildError, match=r"26_more\.py is not in modules\.json"):
        catalog.written(root)


# ---------------------------------------------------------------- assembly


def test_the_generated_cells_stand_in_their_places(root):
    cells = assemble(FIRST, root).cells
    assert "colab-badge.svg" in cells[0].source
    assert "Module 01 of 25 · Quantization Engineering · Advanced" in cells[0].source
    assert cells[1].source.startswith("# Introduction")
    assert cells[2].source == "[Course map](README.md) · 02 Number Formats and the Affine Map →"
    setup = next(cell for cell in cells if cell.cell_type == "code")
    assert setup.metadata.tags == ["setup"]
    assert f"quantlab[notebook] @ {catalog.INSTALL}" in setup.source
    assert setup.source.split("\n")[-1].startswith("ql.notebook(1)  ")
    assert cells[-1].source.startswith("---\n\n[Course map]")


def test_only_written_neighbors_are_linked(root):
    catalog.find("2").source(root).write_text(DEMO, encoding="utf-8")
    first, second = assemble(FIRST, root), assemble(catalog.find("2"), root)
    assert "(02_number_formats.ipynb)" in first.cells[2].source
    assert "(01_introduction.ipynb)" in second.cells[2].source
    assert "03 Error Theory: SQNR, Clipping, Granularity →" in second.cells[2].source
    assert "03_error_theory" not in second.cells[2].source
    assert second.cells[-1].source.endswith(f"In Colab: [01]({FIRST.colab})")


def test_cell_ids_are_stable_and_differ_for_equal_cells(root):
    rewrite(root, "## Quiz", "## Quiz\n\n# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %% [markdown]")
    before = {cell["id"]: cell.source for cell in assemble(FIRST, root).cells}
    assert len(before) == len(assemble(FIRST, root).cells)
    rewrite(root, "Count bytes", "Count many bytes")
    after = {cell["id"] for cell in assemble(FIRST, root).cells}
    assert len(set(before) - after) == 1


def test_a_source_without_prerequisites_has_no_place_for_the_setup_cell(root):
    rewrite(root, "## Prerequisites", "## Needs")
    with pytest.raises(BuildError, match="no markdown cell '## Prerequisites'"):
        assemble(FIRST, root)


def test_the_recall_twin_keeps_headings_and_code_only(root):
    cells = assembly.recall(FIRST, root).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "## What does rounding cost?" in prose
    assert "Predict" not in prose
    assert "Nagel" not in prose
    assert not any(cell.get("outputs") for cell in cells)
    assert any("error = 0.3 - 0.25" in cell.source for cell in cells)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("interact(f, x=1)", "interact"),
        ("import ipywidgets as w\nwith w.Output():\n    print(1)", "Output"),
        ("clear_output()", "clear_output"),
        ("display(x, display_id='a')", "display_id"),
        ("handle.update_display(1)", "update_display"),
        ("%matplotlib ipympl", "magics"),
        ("!ls", "magics"),
        ("# !pip install torch", "setup cell installs"),
        ("import os\nos.system('ls')", "shell"),
        ("1 + 1;", "semicolon"),
        ("1 + 1;  # hidden", "semicolon"),
        ("# NBVAL_SKIP\n1", "nbval comments"),
        ("def f():\n    raise NotImplementedError", "stub"),
        ("def f():\n    raise NotImplementedError('later')", "stub"),
        ("f(", "not plain Python"),
        ("\n".join(f"x{i} = {i}" for i in range(21)), "21 code lines"),
    ],
)
def test_the_builder_refuses(source, complaint):
    assert complaint in "\n".join(rules.code_problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "x = 5 % 3\nprint(x)",
        "text = 'clear_output() is banned; so is interact(f)'",
        "f = lambda: None; print(f())",
        "if not x != y:\n    pass",
        "\n".join(f"x{i} = {i}  # why" for i in range(20)) + "\n\n# a comment\n\n# another",
    ],
)
def test_the_builder_accepts(source):
    assert list(rules.code_problems(source)) == []


def test_blank_lines_and_comments_are_not_counted():
    assert rules.count_lines("a = 1\n\n# why\n  # too\nb = 2  # here") == 2


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('tags=["predict"]', 'tags=["guess"]', "unknown tag 'guess'"),
        ('tags=["predict"]', 'tags=["raises-exception"]', "unknown tag"),
        ('tags=["predict"]', 'tags=["setup"]', "unknown tag"),
        ('tags=["predict"]', 'collapsed="yes"', "metadata 'collapsed'"),
        ("# %%\nerror", "# %% [raw]\nerror", "raw cells"),
    ],
)
def test_a_source_with_other_tags_or_cells_is_refused(root, old, new, complaint):
    rewrite(root, old, new)
    with pytest.raises(BuildError, match=complaint):
        assemble(FIRST, root)


def test_two_cells_may_hide_their_output_and_three_may_not(root):
    rewrite(root, "## Quiz", '## Q\n\n# %% tags=["nbval-ignore-output"]\n1\n' * 2)
    assemble(FIRST, root)
    rewrite(root, "## Summary", '## S\n\n# %% tags=["nbval-ignore-output"]\n1\n')
    with pytest.raises(BuildError, match="3 ignored outputs; 2 are allowed"):
        assemble(FIRST, root)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (new_output("stream", name="stderr", text="Warning: x"), "stderr"),
        (new_output("stream", text="loss 0.123~ after 3 steps"), "rounding boundary"),
        (new_output("stream", text="<object at 0x7f3a12345678>"), "memory address"),
        (new_output("stream", text="saved to /usr/me/x"), "absolute path"),
        (new_output("execute_result", {"text/plain": "'/var/a1'"}), "absolute path"),
        (new_output("display_data", {"image/svg+xml": "<svg/>"}), "SVG"),
    ],
)
def test_an_output_that_another_machine_would_not_reproduce_is_refused(output, complaint):
    assert complaint in "\n".join(rules.output_problems(output, []))


def test_ordinary_outputs_are_accepted():
    text = "about ~5 dB, 4/255, code 0x3f, w4/g64, and/or 0.12"
    assert list(rules.output_problems(new_output("stream", text=text), [])) == []
    ignored = new_output("stream", text="0.5~ /var/x")
    assert list(rules.output_problems(ignored, ["nbval-ignore-output"])) == []


def test_a_notebook_over_one_megabyte_is_refused(root):
    with pytest.raises(BuildError, match="1,000,001 bytes"):
        rules.refuse_outputs(FIRST, assemble(FIRST, root), 1_000_001)


# ---------------------------------------------------------------- normal form


def with_output(*outputs):
    book = nbformat.v4.new_notebook(cells=[new_code_cell("1", outputs=list(outputs))])
    book.metadata["widgets"] = {"state": {}}
    book.cells[0].metadata["execution"] = {"iopub.status.busy": "now"}
    execute.normalize(book)
    return book


def test_widget_views_timings_and_kernel_facts_are_dropped():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
    picture = {"image/png": "aaaa", "text/plain": "5 bits", **view}
    about = {"isolated": True, "image/png": {"alt": "a curve"}}
    book = with_output(new_output("display_data", picture, metadata=about))
    cell = book.cells[0]
    assert cell.outputs[0].metadata == {"image/png": {"alt": "a curve"}}
    assert sorted(cell.outputs[0].data) == ["image/png", "text/plain"]
    assert "widgets" not in book.metadata
    assert cell.metadata == {}
    assert cell.execution_count == 1
    with pytest.raises(BuildError, match="without a static picture"):
        with_output(new_output("display_data", {"text/plain": "IntSlider(value=0)", **view}))
    quiz = with_output(new_output("display_data", {"text/plain": "quiz\nq1. How many?", **view}))
    assert list(quiz.cells[0].outputs[0].data) == ["text/plain"]


def test_chunks_of_one_stream_are_joined():
    book = with_output(new_output("stream", text="a\n"), new_output("stream", text="b\n"))
    assert [output.text for output in book.cells[0].outputs] == ["a\nb\n"]


def test_the_kernel_is_offline_and_not_online(monkeypatch):
    monkeypatch.setenv("QUANTLAB_ONLINE", "1")
    environment = execute.kernel_environment()
    assert "QUANTLAB_ONLINE" not in environment
    assert environment["QUANTLAB_OFFLINE"] == "1"


# ---------------------------------------------------------------- building


def test_a_build_is_finished_and_in_sync(executed):
    assert build.check(FIRST, executed) == []
    assert build.main(["--root", str(executed), "check"]) == 0
    book = json.loads(FIRST.notebook(executed).read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert book["nbformat_minor"] == 5
    assert book["metadata"]["kernelspec"]["display_name"] == "Python 3"
    assert "[Introduction to Quantization Engineering](01_" in (executed / "README.md").read_text(
        "utf-8"
    )


def test_building_twice_gives_the_same_bytes(executed):
    first = FIRST.notebook(executed).read_bytes()
    build.build(FIRST, executed, force=True)
    assert FIRST.notebook(executed).read_bytes() == first


def copy_of(executed: Path, root: Path) -> Path:
    """Put the executed notebook beside a fresh source."""
    FIRST.notebook(root).write_bytes(FIRST.notebook(executed).read_bytes())
    build.write_map(root)
    return FIRST.notebook(root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Count bytes", "Count bits"),
        ("error = 0.3 - 0.25", "error = 0.3 - 0.2"),
        ('"Python 3"', '"Python 4"'),
        ('"predict"', '"control"'),
        ('"nbformat_minor": 5', '"nbformat_minor": 4'),
        ('"nbformat"', '<<<<<<< "nbformat"'),
        ('\n "metadata"', '\n  "metadata"'),
    ],
)
def test_check_sees_a_hand_edit(executed, root, old, new, capsys):
    notebook = copy_of(executed, root)
    text = notebook.read_text("utf-8")
    assert old in text
    notebook.write_text(text.replace(old, new), encoding="utf-8")
    assert build.main(["--root", str(root), "check"]) == 1
    assert "01_introduction" in capsys.readouterr().out


def test_check_sees_a_changed_source_and_a_stale_map(executed, root, capsys):
    copy_of(executed, root)
    assert build.main(["--root", str(root), "check"]) == 0
    rewrite(root, "Count bytes", "Count bits")
    (root / "README.md").write_text("<!-- modules -->\n<!-- end -->", encoding="utf-8")
    assert build.main(["--root", str(root), "check"]) == 1
    report = capsys.readouterr().out
    assert "differs from its source" in report
    assert "README.md" in report


def test_an_edit_of_prose_keeps_the_outputs_and_an_edit_of_code_does_not(executed, root):
    copy_of(executed, root)
    committed = nbformat.read(FIRST.notebook(root), as_version=4)
    rewrite(root, "Count bytes", "Count bits")
    assert "outputs kept" in build.build(FIRST, root)
    assert build.check(FIRST, root) == []
    rewrite(root, "error = 0.3 - 0.25", "error = 0.3 - 0.2")
    assert not execute.reuse_outputs(assemble(FIRST, root), committed)


def test_a_failing_cell_stops_the_build_and_leaves_the_old_notebook(root, capsys):
    rewrite(root, "error = 0.3 - 0.25", "error = 1 / 0")
    assert build.main(["--root", str(root), "build", "1"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not FIRST.notebook(root).exists()


def test_the_recall_command_writes_a_valid_notebook(root, tmp_path):
    target = tmp_path / "recall.ipynb"
    assert build.main(["--root", str(root), "recall", "1", str(target)]) == 0
    assert target.read_text("utf-8") == assembly.serialize(nbformat.read(target, as_version=4))


# ---------------------------------------------------------------- anatomy


def test_the_demo_lacks_nothing_but_real_exercises(root):
    assert lacking(root) == ""


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("# # Introduction to", "# # Intro to", "begins with the line"),
        ("60 min", "61 min", "Duration: 60 min"),
        ("# 3. Doubt a claim. (q4)\n", "", "2 objectives"),
        ("(q1)", "", "names no quiz question"),
        ("# None.", "# Patience.", "prerequisites name modules"),
        ("## Summary", "## Ending", "missing sections: ['Summary']"),
        ("## Quiz", "## Sources", "missing sections: ['Quiz']"),
        ("# Rounding costs something.", "# a\n" * 8, "summary has 8 lines"),
        ("Nagel et al. 2106.08295.", "Somebody.", "name no paper"),
        (' tags=["signature"]', "", "0 code cells tagged signature"),
        (' tags=["predict"]', "", "tagged predict"),
        ("assert abs", "print(abs", "not plain Python"),
        ("assert abs(0.3 - 0.0) > error", "print(1)", "the control that must fail"),
        ("ql.quiz.practice", "practice", "no cell tagged quiz with ql.quiz"),
        ("**In the wild**", "Outside", "'In the wild' box"),
        ("Nearly everything.", "💡💡💡💡", "4 tip boxes"),
        ("QUANTLAB_ONLINE", "ONLINE", "on a real model"),
        ("Myth 001-7", "Myth", "no myth box"),
        ("assert isinstance(0.25, float)", "print(1)", "no myth demo"),
        ("Difficulty", "Effort", "lacks Difficulty"),
        ("`hint()`, then", "", "mentions hint()"),
        ('introduction.c").check', 'introduction.b").check', "3 exercise cards and 2 exercises"),
        (".check(", "(", "without .check"),
        ("(#What-does-rounding-cost?)", "(#nowhere)", "anchor #nowhere"),
        ("(#What-does-rounding-cost?)", "(../nowhere.md)", "leads nowhere"),
    ],
)
def test_the_anatomy_finds(root, old, new, finding):
    rewrite(root, old, new)
    try:
        found = lacking(root)
    except BuildError as error:
        found = str(error)
    assert finding in found


def test_too_few_and_too_many_cells_are_found(root):
    rewrite(root, "## Sources\n", "## Sources\n" + "\n# %%\n1\n" * 20)
    assert "cells; 25 to 40" in lacking(root)


def test_a_figure_without_numbers_in_text_is_found(executed):
    book = nbformat.read(FIRST.notebook(executed), as_version=4)
    pictures = [
        cell
        for cell in book.cells
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    assert len(pictures) == 1
    pictures[0].outputs = [output for output in pictures[0].outputs if "data" in output]
    assert "figure without its numbers" in "\n".join(findings(FIRST, book, executed))
