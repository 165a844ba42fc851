"""What the build refuses, in sources before execution and in outputs after it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from nbformat import NotebookNode

from builder.catalog import BuildError, Module

TAGS = {
    "predict",
    "exercise",
    "solution",
    "control",
    "myth",
    "signature",
    "quiz",
    "nbval-ignore-output",
}
IGNORED = "nbval-ignore-output"
MOST_LINES = 20
MOST_IGNORED = 2
MOST_BYTES = 1_000_000
# Each breaks the comparison of outputs: NOTEBOOKS fail under nbval or pass without a check.
BANNED_CALLS = {
    "interact": "use a quantlab widget",
    "interactive": "use a quantlab widget",
    "Output": "use a quantlab widget",
    "clear_output": "print once",
    "update_display": "display once",
    "check_call": "install packages outside the notebook",
    "system": "keep shell commands out of the notebook",
}
BANNED_TEXT = {
    r"^\s*[%!]": "magics and shell lines do not run outside IPython; write Python",
    r"\bipympl\b": "ipympl does not work in Colab; show a Figure",
    r"\bpip3?\b.*\binstall\b": "the setup cell installs everything",
    r"#\s*(NBVAL|PYTEST)_": "nbval comments hide a cell from the comparison; use a tag",
}
WIDGET = "application/vnd.jupyter.widget-view+json"
UNSTABLE_TEXT = {
    r"\d~": "a number too close to a rounding boundary; change the seed or the digits",
    r"\b0x[0-9a-fA-F]{7,}": "a memory address; print something with a name",
    r"(?<![\w.])/(?:home|root|tmp|usr|work|Users|var)/\w": "an absolute path; print the file name",
}


def refuse_source(module: Module, cells: list[NotebookNode]) -> None:
    """Raise `BuildError` with every broken rule of a source, one line each."""
    problems = [
        f"{module.name}, cell {place}: {problem}"
        for place, cell in enumerate(cells, start=1)
        for problem in source_problems(cell)
    ]
    ignored = sum(IGNORED in cell.metadata.get("tags", []) for cell in cells)
    if ignored > MOST_IGNORED:
        problems.append(f"{module.name}: {ignored} ignored outputs; {MOST_IGNORED} are allowed")
    if problems:
        raise BuildError("\n".join(problems))


def source_problems(cell: NotebookNode) -> Iterator[str]:
    """Name what is wrong with one cell as its author wrote it."""
    # jupytext notes the blank lines of the source in the second one
    for key in sorted(set(cell.metadata) - {"tags", "lines_to_next_cell"}):
        yield f"metadata {key!r} is not allowed; cells carry tags only"
    for tag in sorted(set(cell.metadata.get("tags", [])) - TAGS):
        yield f"unknown tag {tag!r}; choose from {', '.join(sorted(TAGS))}"
    if cell.cell_type == "raw":
        yield "raw cells are not allowed; write markdown"
    if cell.cell_type == "code":
        yield from code_problems(cell.source)


def code_problems(source: str) -> Iterator[str]:
    """Name what is wrong with the text of one code cell."""
    if count_lines(source) > MOST_LINES:
        yield f"{count_lines(source)} code lines; split the cell, {MOST_LINES} are allowed"
    for pattern, advice in BANNED_TEXT.items():
        found = re.search(pattern, source, flags=re.MULTILINE)
        if found:
            yield f"{found[0].strip()!r}: {advice}"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield f"not plain Python: {error.msg}, line {error.lineno}"
        return
    yield from _call_problems(tree)
    if re.sub(r"#.*", "", source.split("\n")[-1]).rstrip().endswith(";"):
        yield "a trailing semicolon does not hide the value from the comparison; assign it to _"


def count_lines(source: str) -> int:
    """Count the lines that are neither blank nor only a comment."""
    lines = [line.strip() for line in source.split("\n")]
    return sum(line != "" and not line.startswith("#") for line in lines)


def refuse_outputs(module: Module, book: NotebookNode, size: int) -> None:
    """Raise `BuildError` with every output that another machine would not reproduce."""
    problems = [
        f"{module.name}, cell {place}: {problem}"
        for place, cell in enumerate(book.cells, start=1)
        if cell.cell_type == "code"
        for output in cell.outputs
        for problem in output_problems(output, cell.metadata.get("tags", []))
    ]
    if size > MOST_BYTES:
        problems.append(f"{module.name}: {size:,} bytes; {MOST_BYTES:,} are allowed")
    if problems:
        raise BuildError("\n".join(problems))


def output_problems(output: NotebookNode, tags: list[str]) -> Iterator[str]:
    """Name what is wrong with one output."""
    if output.output_type == "stream" and output.name == "stderr":
        yield f"text on stderr: {output.text.strip()[:200]!r}; repair its cause"
    data = output.get("data", {})
    if WIDGET in data or "image/svg+xml" in data:
        yield "widget views and SVG do not belong in a committed notebook"
    text = output.get("text", "") + "\n".join(
        str(value) for kind, value in data.items() if not kind.startswith("image/")
    )
    if IGNORED in tags:
        return
    for pattern, advice in UNSTABLE_TEXT.items():
        found = re.search(rf".{{0,20}}{pattern}", text)
        if found:
            yield f"{found[0]!r} in the output: {advice}"


def _call_problems(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            yield "a stub that raises stops the build; write ... as its body"
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in BANNED_CALLS:
            yield f"{name}(...) is banned: {BANNED_CALLS[name]}"
        if any(word.arg == "display_id" for word in node.keywords):
            yield "display_id is banned: display once"
