"""Build the course notebooks from their sources.

    python course/build.py build [NN ...] [--force]   execute what changed, write NN_slug.ipynb
    python course/build.py check [NN ...]             compare with the committed files, run nothing
    python course/build.py lint [NN ...]              list what the anatomy still lacks
    python course/build.py recall NN FILE             headings and code only, to explain from memory

Sources are ``course/src/NN_slug.py`` (jupytext py:percent). ``build`` executes a notebook only if
one of its code cells changed; an edit of prose keeps the outputs. After a change in the library
use ``--force``, and let ``make notebooks`` compare the outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from builder import catalog
from builder.anatomy import describe, findings
from builder.assemble import assemble, recall, serialize, without_outputs
from builder.catalog import COURSE, BuildError, Module
from builder.execute import SECONDS_PER_CELL, execute, reuse_outputs
from builder.rules import refuse_outputs
from nbformat import NotebookNode

BUDGET = 30  # seconds a notebook may take on two CPU cores


def build(module: Module, root: Path, *, force: bool = False, timeout: int = 60) -> str:
    """Write one notebook and say what happened to it."""
    target = module.notebook(root)
    book = assemble(module, root)
    committed = _read(target)
    start = time.perf_counter()
    if committed is None or force or not reuse_outputs(book, committed):
        execute(module, book, root, timeout=timeout)
        seconds = time.perf_counter() - start
        over = f", over the budget of {BUDGET} s" if seconds > BUDGET else ""
        done = f"executed in {seconds:.1f} s{over}"
    else:
        done = "code unchanged, outputs kept"
    text = serialize(book)
    refuse_outputs(module, book, len(text.encode()))
    _write(target, text)
    lacking = findings(module, book, root)
    return f"{module.name}: {done}\n{describe(lacking, module)}".rstrip()


def check(module: Module, root: Path) -> list[str]:
    """List the differences between a committed notebook and its source, and what it lacks."""
    target = module.notebook(root)
    if not target.exists():
        return [f"not built yet; run python course/build.py build {module.label}"]
    committed = _read(target)
    if committed is None:
        return ["not a valid notebook; build it again"]
    text = target.read_text("utf-8")
    if serialize(without_outputs(committed)) != serialize(assemble(module, root)):
        return [f"differs from its source; run python course/build.py build {module.label}"]
    if text != serialize(committed):
        return ["not in the form the builder writes; build it again"]
    refuse_outputs(module, committed, len(text.encode()))
    return findings(module, committed, root)


def write_map(root: Path, *, dry: bool = False) -> bool:
    """Renew the table of modules in README.md; say whether it was out of date."""
    path = root / "README.md"
    if not path.exists():
        return False
    text = path.read_text("utf-8")
    table = f"<!-- modules -->\n{catalog.module_table(root)}\n<!-- end -->"
    new = re.sub(r"<!-- modules -->.*<!-- end -->", lambda _: table, text, flags=re.S)
    if new != text and not dry:
        _write(path, new)
    return new != text


def _read(path: Path) -> NotebookNode | None:
    """Read a notebook; None if there is none or if it is damaged."""
    if not path.exists():
        return None
    try:
        book = nbformat.from_dict(json.loads(path.read_text("utf-8")))
        nbformat.validate(book)
    except (nbformat.ValidationError, ValueError):
        return None
    return nbformat.read(path, as_version=4)


def _write(path: Path, text: str) -> None:
    """Replace a file whole, so that a stopped build leaves the old one."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    os.replace(fresh, path)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=COURSE, help="folder that holds src/")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "check", "lint"):
        command = commands.add_parser(name)
        command.add_argument("modules", nargs="*", metavar="NN", help="default: all written ones")
        if name == "build":
            command.add_argument("--force", action="store_true", help="execute even if unchanged")
            command.add_argument("--timeout", type=int, default=SECONDS_PER_CELL)
    twin = commands.add_parser("recall")
    twin.add_argument("modules", nargs=1, metavar="NN")
    twin.add_argument("file", type=Path)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when everything is in order, 1 with the reasons printed."""
    options = _arguments(words)
    root = options.root
    try:
        chosen = [catalog.find(label) for label in options.modules] or catalog.written(root)
        if options.command == "recall":
            _write(options.file, serialize(recall(chosen[0], root)))
        elif options.command == "build":
            for module in chosen:
                print(build(module, root, force=options.force, timeout=options.timeout), flush=True)
            write_map(root)
        else:
            return _report(options.command, chosen, root)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _report(command: str, modules: list[Module], root: Path) -> int:
    """Print the findings of `check` or `lint`; 1 if there are any."""
    lines = []
    for module in modules:
        if command == "check":
            found = check(module, root)
        else:
            found = findings(module, assemble(module, root), root)
        lines += [describe(found, module)] if found else []
    if command == "check" and write_map(root, dry=True):
        lines.append("README.md: the table of modules is out of date; run build")
    print("\n".join(lines) or f"{len(modules)} notebooks in order")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
