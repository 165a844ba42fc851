"""Rows of a benchmark as a table in text: the time, its spread, and beside them the error."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from quantlab.kernels.bench import BUSY, Bench, Row

HEAD = (
    "",
    "activations",
    "min us",
    "median",
    "p10-p90",
    "GB/s",
    "of read",
    "Gop/s",
    "of peak",
    "error",
)


def text(bench: Bench) -> str:
    """Return the machine, the rows in groups that ran against one another, and the refused."""
    parts = [str(bench.machine)]
    parts += [table(list(rows)) for _, rows in groupby(bench.rows, key=same_race)]
    parts += [f"refused: {why}" for why in bench.refused.values()]
    return "\n\n".join(parts)


def same_race(row: Row) -> tuple[object, ...]:
    """Return what rows of one race have in common."""
    return row.shape, row.threads, row.cache, row.others


def table(rows: Sequence[Row]) -> str:
    """Return rows of one race under a line that says what they share."""
    first = rows[0]
    out, columns, batch = first.shape
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    title = f"{out}x{columns}, batch {batch}, {threads}, {first.cache} weights"
    if first.others is not None and first.others > BUSY:
        title += f" (others used {100 * first.others:.0f} % of the processor: measure again)"
    cells = [HEAD, *(fields(row) for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([title, *lines])


def fields(row: Row) -> tuple[str, ...]:
    """Return a row's cells as text."""
    low, high = (1e6 * value for value in (row.times.p10, row.times.p90))
    return (
        row.name,
        row.activations,
        f"{1e6 * row.times.minimum:.0f}",
        f"{1e6 * row.times.median:.0f}",
        f"{low:.0f}-{high:.0f}",
        f"{row.bandwidth / 1e9:.1f}",
        f"{100 * row.bandwidth_share:.0f} %",
        f"{row.speed / 1e9:.0f}",
        "-" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
        f"{row.error:.1e}",
    )
