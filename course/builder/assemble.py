"""A source file plus the generated cells gives a notebook without outputs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from builder.catalog import BADGE, INSTALL, MODULES, BuildError, Module, neighbor
from builder.rules import refuse_source

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SETUP = """\
import importlib.util, subprocess, sys
if importlib.util.find_spec("quantlab") is None:
    home = "quantlab[{extras}] @ {home}"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", home])
import quantlab as ql
{call:<28}# threads, seeds, warning filters, print options, offline guard"""


def assemble(module: Module, root: Path) -> NotebookNode:
    """Read a module's source, check it, add the generated cells; nothing is executed.

    Raises
    ------
    BuildError
        If the source breaks a rule of `refuse_source` or has no place for the setup cell.
    """
    path = module.source(root)
    if not path.exists():
        raise BuildError(f"{path} does not exist; write the source first")
    parsed = jupytext.reads(path.read_text("utf-8"), fmt="py:percent").cells
    refuse_source(module, parsed)
    cells = [_clean(cell) for cell in parsed]
    place = _setup_place(module, cells)
    cells.insert(place, new_code_cell(_setup(module), metadata={"tags": ["setup"]}))
    cells.insert(1, _navigation(_links(module, root)))
    cells.insert(0, _navigation(_header(module)))
    cells.append(_navigation(_footer(module, root)))
    book = new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)
    _number_cells(module, book)
    return book


def serialize(book: NotebookNode) -> str:
    """Write a notebook in its one canonical form: sorted keys, one newline at the end."""
    nbformat.validate(book)
    return nbformat.writes(book, version=4) + "\n"


def recall(module: Module, root: Path) -> NotebookNode:
    """Keep headings and code, drop prose and outputs: a notebook to explain from memory."""
    book = assemble(module, root)
    kept = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ .+$", cell.source, flags=re.MULTILINE)
            cell.source = "\n\n".join(headings)
        if cell.source and "nav" not in cell.metadata.get("tags", []):
            kept.append(cell)
    book.cells = kept
    return book


def without_outputs(book: NotebookNode) -> NotebookNode:
    """Copy a notebook with the outputs and counts taken out, to compare what was written."""
    bare = nbformat.from_dict(book)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return bare


def _clean(cell: NotebookNode) -> NotebookNode:
    tags = cell.metadata.get("tags", [])
    make = new_code_cell if cell.cell_type == "code" else new_markdown_cell
    return make(cell.source.strip("\n"), metadata={"tags": tags} if tags else {})


def _setup_place(module: Module, cells: list[NotebookNode]) -> int:
    for place, cell in enumerate(cells):
        if cell.cell_type == "code":
            break
        if re.search(r"^## Prerequisites", cell.source, flags=re.MULTILINE):
            return place + 1
    raise BuildError(
        f"{module.name}: no markdown cell '## Prerequisites' before the first code cell; "
        "the setup cell is inserted after it"
    )


def _setup(module: Module) -> str:
    call = f"ql.notebook({module.number})"
    return SETUP.format(extras=",".join(module.extras), home=INSTALL, call=call)


def _navigation(text: str) -> NotebookNode:
    return new_markdown_cell(text, metadata={"tags": ["nav"]})


def _header(module: Module) -> str:
    badge = f"[![Open in Colab]({BADGE})]({module.colab})"
    place = f"Module {module.label} of {len(MODULES)}"
    return f"{badge}\n\n{place} · Quantization Engineering · Advanced"


def _links(module: Module, root: Path) -> str:
    """Previous, map, next; a module that is not written yet stands there as plain text."""
    parts = ["[Course map](README.md)"]
    for step, arrow in ((-1, "← {}"), (1, "{} →")):
        other, exists = neighbor(module, step, root)
        if other:
            text = arrow.format(f"{other.label} {other.title}")
            part = f"[{text}]({other.name}.ipynb)" if exists else text
            parts.insert(0 if step < 0 else len(parts), part)
    return " · ".join(parts)


def _footer(module: Module, root: Path) -> str:
    near = [neighbor(module, step, root) for step in (-1, 1)]
    colab = [f"[{other.label}]({other.colab})" for other, exists in near if other and exists]
    online = f"\n\nIn Colab: {' · '.join(colab)}" if colab else ""
    return f"---\n\n{_links(module, root)}{online}"


def _number_cells(module: Module, book: NotebookNode) -> None:
    """Give each cell an id that survives edits of the other cells."""
    seen: Counter[str] = Counter()
    for cell in book.cells:
        key = f"{module.name}\n{cell.source}"
        digest = hashlib.sha256(f"{key}\n{seen[key]}".encode()).hexdigest()
        seen[key] += 1
        cell["id"] = digest[:8]
