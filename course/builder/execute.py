"""Run a notebook in a fresh kernel and keep only what every front end can show."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from builder.catalog import BuildError, Module
from builder.rules import WIDGET

SECONDS_PER_CELL = 60


def execute(module: Module, book: NotebookNode, root: Path, *, timeout: int) -> None:
    """Execute a notebook in place, in its own folder, without network.

    Raises
    ------
    BuildError
        If a cell raises, runs longer than `timeout` seconds or kills the kernel.
    """
    client = NotebookClient(
        book,
        timeout=timeout,
        startup_timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only, on our own terminal
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(root)}},
    )
    try:
        client.execute(env=kernel_environment())
    except CellTimeoutError as error:
        raise BuildError(f"{module.name}: a cell ran longer than {timeout} s\n{error}") from error
    except (CellExecutionError, DeadKernelError) as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        raise BuildError(f"{module.name}: {plain}") from error
    normalize(book)


def kernel_environment() -> dict[str, str]:
    """Return the environment of a build: this checkout's package, offline."""
    environment = {key: value for key, value in os.environ.items() if key != "QUANTLAB_ONLINE"}
    checkout = str(Path(__file__).resolve().parents[2])
    paths = [checkout, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["QUANTLAB_OFFLINE"] = "1"
    return environment


def normalize(book: NotebookNode) -> None:
    """Drop widget views, timings and kernel facts; number the executed cells from 1."""
    book.metadata.pop("widgets", None)
    book.metadata["language_info"] = {"name": "python"}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        cell.outputs = _merge_streams([_strip(output, count) for output in cell.outputs])


def reuse_outputs(book: NotebookNode, committed: NotebookNode) -> bool:
    """Copy committed outputs if every code cell is unchanged; say whether that was so."""
    new = [cell for cell in book.cells if cell.cell_type == "code"]
    old = [cell for cell in committed.cells if cell.cell_type == "code"]
    same = [cell.source for cell in new] == [cell.source for cell in old]
    if not same or any(cell.execution_count is None for cell in old):
        return False
    for target, source in zip(new, old, strict=True):
        target.outputs, target.execution_count = source.outputs, source.execution_count
    return True


def _strip(output: NotebookNode, count: int) -> NotebookNode:
    if "data" in output:
        if WIDGET in output.data and not _speaks_alone(output.data):
            raise BuildError("a widget without a static picture and text; give it both")
        output.data.pop(WIDGET, None)
        about = output.metadata.get("image/png")  # width, height and alt text
        output.metadata = {"image/png": about} if about else {}
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def _speaks_alone(data: dict[str, str]) -> bool:
    """Tell whether a widget says its content without a kernel: picture and line, or a full text."""
    text = data.get("text/plain", "")
    return bool(text) and ("image/png" in data or "\n" in text)  # a bare repr is one line


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighboring chunks of one stream: where a kernel flushes is chance."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            merged[-1].text += output.text
        elif output.output_type == "stream" or output.get("data") or output.output_type == "error":
            merged.append(output)
    return merged
