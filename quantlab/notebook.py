"""What every course notebook calls: one setup line, source on the page, numbers that repeat.

Row 4. A notebook's committed outputs are compared as text with a fresh run on another machine,
so everything here has one aim: the same text everywhere.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import random
import re
import socket
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import torch

MODULES = 25
# A value nearer than this to a rounding boundary, in units of its last printed digit, may round
# the other way on another processor; `digits` marks it and the course builder refuses it.
MARGIN = Decimal("0.02")
# Third-party warnings that say nothing about the lesson, by exact message.
QUIET = (
    "IProgress not found. Please update jupyter and ipywidgets. "
    "See https://ipywidgets.readthedocs.io/en/stable/user_install.html",
)
LOOPBACK = ("127.", "::1", "localhost")


def notebook(number: int) -> None:
    """Prepare a course notebook: threads, seeds, printing, warnings, figures.

    One torch thread (environment variable ``QUANTLAB_THREADS`` overrides it), Python, NumPy and
    torch seeded with 0, short number printing, figures drawn as PNG of fixed size. With
    ``QUANTLAB_OFFLINE=1`` connections that leave this machine are refused. Prints one fixed line.

    Parameters
    ----------
    number : 1..25
        The module.

    Raises
    ------
    ValueError
        If there is no such module.

    Examples
    --------
    >>> notebook(4)  # doctest: +SKIP
    Module 4 of 25 is ready: fixed seeds, no network needed.
    """
    if number not in range(1, MODULES + 1):
        raise ValueError(f"there is no module {number}; choose 1 to {MODULES}")
    torch.set_num_threads(int(os.environ.get("QUANTLAB_THREADS", "1")))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  a learner's own np.random.rand() should repeat as well
    torch.manual_seed(0)
    np.set_printoptions(precision=4, suppress=True, linewidth=100)
    torch.set_printoptions(precision=4, sci_mode=False, linewidth=100)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=re.escape(message) + r"\Z")
    if os.environ.get("QUANTLAB_OFFLINE") == "1":
        refuse_network()
    _draw_figures_as_png()
    print(f"Module {number} of {MODULES} is ready: fixed seeds, no network needed.")


def show(value: Any, *, sig: int = 3) -> Source | str:
    """Show a library function's own source, or a number in a form that repeats everywhere.

    Parameters
    ----------
    value : function, class, number, array or tensor
        What to show; numbers go to `digits`.
    sig : int
        Significant digits of a number.

    Returns
    -------
    Source or str
        Source renders as highlighted Python in a notebook and as plain text elsewhere.

    Examples
    --------
    >>> show(2 / 3)
    '0.667'
    """
    return Source(value) if callable(value) else digits(value, sig=sig)


@dataclass(frozen=True)
class Source:
    """The source of a function or class, its docstring cut to the first line."""

    subject: Callable[..., Any]

    def __str__(self) -> str:
        subject = inspect.unwrap(self.subject)
        module = getattr(subject, "__module__", "").replace(".", "/")
        code = textwrap.dedent(inspect.getsource(subject)).rstrip()
        return f"# {module}.py\n{_short_docstrings(code)}"

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        # Markdown, not HTML: front ends color it themselves, so no color library's version
        # stands in the committed output.
        return f"```python\n{self}\n```"


def digits(value: Any, *, sig: int = 3) -> str:
    """Write numbers with a fixed count of significant digits, or with a warning mark.

    Rounds the decimal string half to even. A value within 2 % of the last printed digit of a
    rounding boundary gets a ``~``: it may round the other way on another processor. Whole
    numbers (int) are exact and printed in full.

    Parameters
    ----------
    value : number, sequence, array or tensor
        Nested sequences print as nested brackets.
    sig : int
        Significant digits.

    Returns
    -------
    str

    Examples
    --------
    >>> digits(0.123449), digits(1234.56), digits(7), digits([0.5, 1e-9])
    ('0.123', '1230', '7', '[0.500, 1.00e-9]')
    >>> digits(0.12351), digits(0.12349), digits(0.12351, sig=4)
    ('0.124~', '0.123~', '0.1235')
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(digits(item, sig=sig) for item in value) + "]"
    if isinstance(value, (bool, int, str)):
        return str(value)
    return _round(Decimal(repr(float(value))), sig)


@dataclass(frozen=True)
class Table:
    """Rows under headers, printed as aligned plain text."""

    rows: Sequence[Sequence[Any]]
    headers: Sequence[str]
    sig: int = 3

    def __str__(self) -> str:
        cells = [[digits(cell, sig=self.sig) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.headers, *cells, strict=True)]
        numeric = [all(not isinstance(cell, str) for cell in column) for column in _columns(self)]
        lines = [list(self.headers), ["-" * width for width in widths], *cells]
        return "\n".join(
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )

    __repr__ = __str__


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], *, sig: int = 3) -> Table:
    """Lay rows out as a plain-text table: text to the left, numbers to the right.

    Parameters
    ----------
    rows : sequence of rows
        Each of ``len(headers)`` cells: strings as they are, int in full, float by `digits`.
    headers : sequence of str
        One per column.
    sig : int
        Significant digits of a float.

    Raises
    ------
    ValueError
        If a row's length differs from the headers'.

    Examples
    --------
    >>> table([("RTN", 4, 0.1884), ("GPTQ", 4, 0.10712)], ["method", "bits", "error"])
    method  bits  error
    ------  ----  -----
    RTN        4  0.188
    GPTQ       4  0.107
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"row {tuple(row)!r} has {len(row)} cells for {len(headers)} headers; "
                "give each row one cell per header"
            )
    return Table(rows, headers, sig)


def refuse_network() -> None:
    """Refuse every connection and name lookup that would leave this machine.

    The kernel's own loopback sockets keep working. Lasts until the process ends; calling it
    twice is harmless.
    """
    if getattr(socket.socket.connect, "refuses_network", False):
        return
    connect, connect_ex, lookup = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _only_local(address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _only_local(address)
        return connect_ex(self, address)

    def guarded_lookup(host: Any, *args: Any, **keywords: Any) -> Any:
        _only_local((host,))
        return lookup(host, *args, **keywords)

    guarded_connect.refuses_network = True  # type: ignore[attr-defined]
    socket.socket.connect = guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded_connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = guarded_lookup


def _only_local(address: Any) -> None:
    """Raise unless an address is a loopback or Unix-domain one."""
    host = address[0] if isinstance(address, tuple) else None
    if host is None or str(host).startswith(LOOPBACK):
        return
    raise ConnectionError(
        f"a connection to {host} was refused because QUANTLAB_OFFLINE=1; "
        "course notebooks need no network: remove the call or unset QUANTLAB_OFFLINE"
    )


def _draw_figures_as_png() -> None:
    """Let a bare matplotlib Figure show as PNG, whole canvas, no version or date inside."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return  # a plain interpreter or a script: nothing displays figures

    def png(figure: Any) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    # By name, so that notebooks without figures never import matplotlib.
    formatter = shell.display_formatter.formatters["image/png"]
    formatter.for_type_by_name("matplotlib.figure", "Figure", png)


def _short_docstrings(code: str) -> str:
    """Cut each docstring in a piece of source to its first line, keeping every comment."""
    lines = code.split("\n")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    owners = [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
    for owner in sorted(owners, key=lambda node: -node.lineno):
        text, first = ast.get_docstring(owner), owner.body[0]
        if text and first.end_lineno and first.end_lineno > first.lineno:
            summary = " " * first.col_offset + f'"""{text.split(chr(10))[0]}"""'
            lines[first.lineno - 1 : first.end_lineno] = [summary]
    return "\n".join(lines)


def _round(number: Decimal, sig: int) -> str:
    """Round one decimal number to `sig` digits, marking a value beside a boundary."""
    if not number.is_finite() or not number:
        return str(number).lower() if number else "0"
    last = number.adjusted() - sig + 1  # the power of ten of the last digit
    unit = Decimal(1).scaleb(last)
    position = abs(number) / unit % 1
    rounded = number.quantize(unit, ROUND_HALF_EVEN)
    if rounded.adjusted() > number.adjusted():  # 9.996 became 10.00: one digit too many
        rounded = rounded.quantize(Decimal(1).scaleb(last + 1))
    mark = "~" if abs(position - Decimal("0.5")) < MARGIN else ""
    return format(rounded, "f" if -5 < number.adjusted() < 7 else "e") + mark


def _columns(laid_out: Table) -> list[tuple[Any, ...]]:
    """Return a table's columns, one empty column per header if it has no rows."""
    return list(zip(*laid_out.rows, strict=True)) or [() for _ in laid_out.headers]
