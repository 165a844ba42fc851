"""The committed notebooks: generated, executed, whole; and a comparison that can fail."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from course_builder import CHECKOUT, COURSE, build, catalog, execute, rules

SANITIZE = CHECKOUT / "tests" / "sanitize.cfg"
WRITTEN = catalog.written(COURSE)
BUILT = [module for module in WRITTEN if module.notebook(COURSE).exists()]
per_notebook = pytest.mark.parametrize("module", BUILT, ids=lambda module: module.name)
# Small, and with one output of each kind that nbval compares.
TINY = """\
# %% [markdown]
# ## Prerequisites

# %%
import quantlab as ql

print("the error is", ql.digits(0.25))

# %%
ql.table([("RTN", 4), ("GPTQ", 3)], ["method", "bits"])

# %%
ql.show(ql.Scheme.parse)

# %%
print("untouched")
"""


def cells_of(module):
    """Read the cells as plain JSON: nothing repaired on the way."""
    return json.loads(module.notebook(COURSE).read_text("utf-8"))["cells"]


def code_of(module):
    return [cell for cell in cells_of(module) if cell["cell_type"] == "code"]


# ---------------------------------------------------------------- every notebook


def test_every_source_has_its_notebook_and_every_notebook_its_source():
    notebooks = {path.stem for path in COURSE.glob("*.ipynb")}
    assert notebooks == {module.name for module in WRITTEN}


def test_the_map_of_modules_is_up_to_date():
    assert not build.write_map(COURSE, dry=True)


@per_notebook
def test_a_notebook_is_what_its_source_says_and_lacks_nothing(module):
    assert build.check(module, COURSE) == []


@per_notebook
def test_every_code_cell_was_executed_in_order(module):
    # nbval passes a cell without a count unseen
    counts = [cell["execution_count"] for cell in code_of(module)]
    assert counts == list(range(1, len(counts) + 1))


@per_notebook
def test_no_widget_state_is_committed(module):
    text = module.notebook(COURSE).read_text("utf-8")
    assert "application/vnd.jupyter.widget" not in text
    assert "widgets" not in json.loads(text)["metadata"]


@per_notebook
def test_no_cell_escapes_the_comparison(module):
    tags = {tag for cell in cells_of(module) for tag in cell["metadata"].get("tags", [])}
    assert tags <= rules.TAGS | {"setup", "nav"}
    hidden = [cell for cell in code_of(module) if rules.IGNORED in str(cell["metadata"])]
    assert len(hidden) <= rules.MOST_IGNORED


@per_notebook
def test_no_cell_ended_in_an_error_or_on_stderr(module):
    outputs = [output for cell in code_of(module) for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@per_notebook
def test_every_picture_has_a_sentence_in_place_of_sight(module):
    outputs = [output for cell in code_of(module) for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        alt = picture["metadata"]["image/png"]["alt"]
        assert any(letter.isdigit() for letter in alt)
        assert alt == "".join(picture["data"]["text/plain"])


@per_notebook
def test_a_notebook_stays_under_a_megabyte(module):
    assert module.notebook(COURSE).stat().st_size <= rules.MOST_BYTES


@per_notebook
def test_the_setup_cell_is_the_same_everywhere_but_for_number_and_extras(module):
    setup = "".join(code_of(module)[0]["source"])
    setup = setup.replace(f"ql.notebook({module.number})", "ql.notebook(N)")
    setup = setup.replace(f"[{','.join(module.extras)}]", "[EXTRAS]")
    setup = re.sub(r" +# ", "  # ", setup)
    assert setup.split("\n") == [
        "import importlib.util, subprocess, sys",
        'if importlib.util.find_spec("quantlab") is None:',
        f'    home = "quantlab[EXTRAS] @ {catalog.INSTALL}"',
        '    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", home])',
        "import quantlab as ql",
        "ql.notebook(N)  # threads, seeds, warning filters, print options, offline guard",
    ]


# ---------------------------------------------------------------- the comparison


def test_the_sanitize_file_hides_little():
    patterns = re.findall(r"^regex: (.*)\n(?=replace: )", SANITIZE.read_text("utf-8"), flags=re.M)
    assert 0 < len(patterns) <= 10
    telling = ["0.123", "18.5 dB", "w4g64", "12,345", "0x3f", "3/4", "-1.5e-07", "True", "4.5 bits"]
    for pattern in patterns:
        for text in telling:
            assert re.sub(pattern, "X", text) == text


def failed_cells(notebook: Path) -> set[int]:
    """Run nbval on one notebook; return the numbers of its red cells."""
    report = notebook.with_suffix(".xml")
    words = "-q -p no:cacheprovider -p no:xdist -p no:benchmark --nbval"
    words += f" -c {CHECKOUT / 'pyproject.toml'}"
    words += f" --rootdir {notebook.parent} --nbval-current-env --nbval-cell-timeout 60"
    words += f" --nbval-sanitize-with {SANITIZE} --junitxml {report} {notebook}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words.split()],
        env=execute.kernel_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    cases = ElementTree.parse(report).iter("testcase")
    red = [case for case in cases if case.find("failure") is not None]
    numbers = {int(case.attrib["name"].split()[-1]) for case in red}
    assert bool(numbers) == bool(done.returncode)
    return numbers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Build a small notebook with the course's own builder."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "src").mkdir()
    module = catalog.find("3")
    module.source(root).write_text(TINY, encoding="utf-8")
    build.build(module, root)
    return module.notebook(root)


def test_nbval_passes_an_untouched_notebook(tiny):
    assert failed_cells(tiny) == set()


def test_nbval_turns_red_at_exactly_the_changed_outputs(tiny, tmp_path):
    text = tiny.read_text("utf-8")
    changes = [  # one word, one digit in a stream, one in a table, one in shown source
        ('"Module 3 of 25 is ready', '"Module 3 of 25 is steady'),
        ('"the error is 0.250', '"the error is 0.251'),
        ("GPTQ       3", "GPTQ       4"),
        ("```python\\n", "```pythons\\n"),
    ]
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    copy = tmp_path / "changed.ipynb"
    copy.write_text(text, encoding="utf-8")
    assert failed_cells(copy) == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.skipif(not BUILT, reason="no notebook is built yet")
def test_nbval_turns_red_at_one_changed_digit_of_a_real_notebook(tmp_path):
    module = min(BUILT, key=lambda module: module.notebook(COURSE).stat().st_size)
    book = json.loads(module.notebook(COURSE).read_text("utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    place, output = next(
        (place, output)
        for place, cell in reversed(list(enumerate(code)))
        if rules.IGNORED not in str(cell["metadata"])
        for output in cell["outputs"]
        if re.search(r"\d", "".join(output.get("text", [])))
    )
    text = "".join(output["text"])
    digit = re.search(r"\d", text)
    changed = text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :]
    output["text"] = changed.splitlines(keepends=True)
    copy = tmp_path / module.notebook(COURSE).name
    copy.write_text(json.dumps(book), encoding="utf-8")
    assert failed_cells(copy) == {place}


def test_a_notebook_cannot_reach_the_network(tmp_path):
    (tmp_path / "src").mkdir()
    module = catalog.find("3")
    attempt = "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)\n"
    source = TINY.replace('print("untouched")\n', attempt)
    module.source(tmp_path).write_text(source, encoding="utf-8")
    with pytest.raises(catalog.BuildError, match=r"a connection to 192\.0\.2\.1 was refused"):
        build.build(module, tmp_path)
