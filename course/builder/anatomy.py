"""The fixed anatomy of a course notebook, as findings an author can act on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from builder.catalog import COLAB, COURSE, Module
from builder.rules import count_lines

SECTIONS = [
    "Objectives",
    "Prerequisites",
    "Exercises",
    "Quiz",
    "Summary",
    "What we left out",
    "Sources",
]
CELLS = range(25, 41)
LONG_CELL, LONG_CELLS = 15, 3
ONLINE = {1, 4, 5, 6, 8, 12, 19, 25}  # modules that end with an optional real model
MYTH = r"\b(?:00\d-\d+|G\d+)\b"
MYTHS = COURSE.parent / "quizzes" / "myths.json"


def findings(module: Module, book: NotebookNode, root: Path) -> list[str]:
    """List everything a notebook still lacks; an empty list is a finished one.

    Figures are judged only where outputs are present, so an unexecuted notebook works too.
    """
    checks = (_opening, _order, _sizes, _parts, _myths, _exercises, _figures)
    found = [text for check in checks for text in check(module, book)]
    return found + list(_links(book, root))


def _opening(module: Module, book: NotebookNode) -> Iterator[str]:
    title = book.cells[1].source
    if not title.startswith(f"# {module.title}\n"):
        yield f"the first cell begins with the line '# {module.title}'"
    duration = f"Duration: {module.minutes} min · runs in about N s on 2 CPU cores"
    if not re.search(duration.replace(" N ", r" \d+ "), title):
        yield f"the first cell needs '{duration}'"
    goals = re.findall(r"^(?:\d+\.|-) .+(?:\n  .+)*", _section(book, "Objectives"), re.M)
    if len(goals) not in range(3, 6):
        yield f"{len(goals)} objectives; write 3 to 5 list items"
    for goal in goals:
        if not re.search(r"\bq\d", goal):
            yield f"the objective {goal[:40]!r} names no quiz question such as (q1, q3)"
    needs = _section(book, "Prerequisites")
    if not re.search(r"\b\d\d\b|[Nn]one", needs):
        yield "prerequisites name modules by two-digit number, or none"


def _order(_: Module, book: NotebookNode) -> Iterator[str]:
    headings = [heading for cell in book.cells for heading in _headings(cell, level=2)]
    present = [heading for heading in headings if heading in SECTIONS]
    if present != SECTIONS:
        missing = [section for section in SECTIONS if section not in present]
        yield f"missing sections: {missing}" if missing else f"section order is {present}"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if not code or "setup" not in _tags(code[0]):
        yield "the setup cell is not the first code cell"
    summary = [line for line in _section(book, "Summary").split("\n") if line.strip()]
    if len(summary) > 7:
        yield f"the summary has {len(summary)} lines; 7 are allowed"
    if not re.search(r"\d{4}\.\d{4,5}|https?://|\w+/\w+|doi", _section(book, "Sources")):
        yield "the sources name no paper or repository"


def _sizes(_: Module, book: NotebookNode) -> Iterator[str]:
    if len(book.cells) not in CELLS:
        yield f"{len(book.cells)} cells; {CELLS.start} to {CELLS.stop - 1} are allowed"
    long = [cell for cell in book.cells if cell.cell_type == "code"]
    long = [cell for cell in long if count_lines(cell.source) > LONG_CELL]
    if len(long) > LONG_CELLS:
        yield f"{len(long)} code cells over {LONG_CELL} lines; {LONG_CELLS} are allowed"


def _parts(module: Module, book: NotebookNode) -> Iterator[str]:
    signatures = [cell for cell in _tagged(book, "signature") if cell.cell_type == "code"]
    if len(signatures) != 1:
        yield f"{len(signatures)} code cells tagged signature; exactly one is the signature"
    if not _tagged(book, "predict"):
        yield "no cell tagged predict"
    if not any(_asserts(cell) for cell in _tagged(book, "control")):
        yield "no cell tagged control with an assert: the control that must fail"
    quiz = f'ql.quiz.practice("{module.name}")'
    if not any(quiz in cell.source for cell in _tagged(book, "quiz")):
        yield f"no cell tagged quiz with {quiz}"
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    if "in the wild" not in prose.lower():
        yield "no 'In the wild' box"
    if prose.count("💡") > 3:
        yield f"{prose.count('💡')} tip boxes; 3 are allowed"
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    if module.number in ONLINE and "QUANTLAB_ONLINE" not in code:
        yield "no cell that repeats the signature on a real model if QUANTLAB_ONLINE=1"


def _myths(_: Module, book: NotebookNode) -> Iterator[str]:
    cells = _tagged(book, "myth")
    named = set(re.findall(MYTH, "\n".join(cell.source for cell in cells)))
    if not named:
        yield "no myth box: a cell tagged myth with an id such as 002-1"
    if not any(_asserts(cell) for cell in cells):
        yield "no myth demo: a code cell tagged myth that ends in an assert"
    if MYTHS.exists():
        unknown = named - set(re.findall(MYTH, MYTHS.read_text("utf-8")))
        if unknown:
            yield f"unknown myth ids: {sorted(unknown)}"


def _exercises(_: Module, book: NotebookNode) -> Iterator[str]:
    cells = _tagged(book, "exercise")
    cards = [cell for cell in cells if cell.cell_type == "markdown"]
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    asked = set(re.findall(r'ql\.exercise\("([^"]+)"\)', code))
    if len(cards) < 3 or len(asked) < 3:
        yield f"{len(cards)} exercise cards and {len(asked)} exercises; at least 3 of each"
    if code.count(".check(") < len(asked):
        yield "an exercise without .check(...)"
    for card in cards:
        for word in ("Difficulty", "Importance", r"\d+ min"):
            if not re.search(word, card.source):
                yield f"the exercise card {card.source[:40]!r} lacks {word}"
    words = "\n".join(cell.source for cell in cells)
    for call in ("hint()", "solution()"):
        if cells and call not in words:
            yield f"no exercise mentions {call}"


def _figures(_: Module, book: NotebookNode) -> Iterator[str]:
    for cell in book.cells:
        outputs = cell.get("outputs", [])
        if not any("image/png" in output.get("data", {}) for output in outputs):
            continue
        texts = [_text(output) for output in outputs]
        spoken = [text for text in texts if not text.startswith("<Figure")]
        if not any(re.search(r"\d", text) for text in spoken):
            yield f"a figure without its numbers in text: {cell.source[:60]!r}"


def _links(book: NotebookNode, root: Path) -> Iterator[str]:
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    anchors = {
        heading.replace(" ", "-")
        for cell in book.cells
        for heading in re.findall(r"^#+ (.+)$", cell.source, flags=re.M)
        if cell.cell_type == "markdown"
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(COLAB):
            target = target.removeprefix(COLAB).lstrip("/")
        elif target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        if path and not (root / path).exists() and not _source_of(root / path).exists():
            yield f"the link {target} leads nowhere"
        if anchor and not path and anchor not in anchors:
            yield f"the anchor #{anchor} matches no heading"


def _source_of(notebook: Path) -> Path:
    """Name the source that a notebook is built from: it may not be built yet."""
    return notebook.parent / "src" / f"{notebook.stem}.py"


def _text(output: NotebookNode) -> str:
    """Return what an output says without its picture."""
    return output.get("text", output.get("data", {}).get("text/plain", ""))


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _tagged(book: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in book.cells if tag in _tags(cell)]


def _headings(cell: NotebookNode, level: int) -> list[str]:
    if cell.cell_type != "markdown":
        return []
    return re.findall(rf"^{'#' * level} (.+?)\s*$", cell.source, flags=re.M)


def _section(book: NotebookNode, title: str) -> str:
    """Return the text under a second-level heading, in its own cell."""
    for cell in book.cells:
        if title in _headings(cell, level=2):
            return cell.source.split(f"## {title}", 1)[1]
    return ""


def _asserts(cell: NotebookNode) -> bool:
    if cell.cell_type != "code":
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))


def describe(found: list[str], module: Module) -> str:
    """Write findings one a line, with the module's name in front."""
    return "\n".join(f"{module.name}: {text}" for text in found)
