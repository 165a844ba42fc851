"""Memory dial (module 01): what bits and group size cost in bytes and in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantlab.plot import Picture, quality_ladder
from quantlab.plot_style import short, size
from quantlab.widgets.base import Widget

FIELDS = ("bits", "group", "bits_per_weight", "nbytes", "perplexity")


class MemoryDial(Widget):
    """Two sliders, bits and group size, over measured models.

    Parameters
    ----------
    rows : mappings with bits, group, bits_per_weight, nbytes, perplexity, and optionally text
        One for each combination; group None stands for the whole row. ``text`` is a sample.
    reference : mapping with nbytes, perplexity, and optionally text
        The float model.
    bits, group : where the sliders start; by default 4 bits, and the middle group size

    Raises
    ------
    ValueError
        If a combination of bits and group is missing or a row lacks a field.
    """

    script = "memory_dial"

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        reference: Mapping[str, Any],
        *,
        bits: int | None = None,
        group: int | None = None,
    ) -> None:
        cells = {}
        for row in rows:
            if missing := [field for field in FIELDS if field not in row]:
                raise ValueError(f"a row of the dial lacks {missing[0]!r}; it has {sorted(row)}")
            cells[row["bits"], row["group"] or 0] = {"text": "", **row, "group": row["group"] or 0}
        widths = sorted({bits for bits, _ in cells})
        groups = sorted({group for _, group in cells}, key=lambda group: group or 1e9)
        if gaps := [(b, g) for b in widths for g in groups if (b, g) not in cells]:
            raise ValueError(f"there is no row with bits, group = {gaps[0]}; pass the whole grid")
        table = {
            "choices": {"bits": widths, "group": groups},
            "reference": {"text": "", **reference},
            "rows": [
                {**row, "sentence": describe(row, reference)} for _, row in sorted(cells.items())
            ],
        }
        start_bits = bits or (4 if 4 in widths else widths[-1])
        start_group = groups[len(groups) // 2] if group is None else group
        super().__init__(table, bits=start_bits, group=start_group)

    @property
    def row(self) -> dict[str, Any]:
        """The measured model at the present position."""
        at = self.position
        rows = self.table["rows"]
        return next(r for r in rows if (r["bits"], r["group"]) == (at["bits"], at["group"]))

    @property
    def sentence(self) -> str:
        """What the present combination costs."""
        return self.row["sentence"]

    def picture(self) -> Picture:
        """Return perplexity against bits per weight, one line for each group size."""
        rows = [
            {**row, "name": scheme_name(row), "series": group_name(row["group"])}
            for row in self.table["rows"]
        ]
        reference = self.table["reference"]["perplexity"]
        return quality_ladder(rows, reference=reference, highlight=scheme_name(self.row))


def group_name(group: int) -> str:
    """Return how people say a group size."""
    return f"groups of {group}" if group else "whole rows"


def scheme_name(row: Mapping[str, Any]) -> str:
    """Return a short name such as w4g32."""
    return f"w{row['bits']}" + (f"g{row['group']}" if row["group"] else "")


def describe(row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Say what a row costs next to the float model."""
    more = 100 * (row["perplexity"] / reference["perplexity"] - 1)
    return (
        f"{row['bits']} bits in {group_name(row['group'])}: "
        f"{short(row['bits_per_weight'], 4)} bits per weight, {size(row['nbytes'])} "
        f"({reference['nbytes'] / row['nbytes']:.2f} times smaller than float), "
        f"perplexity {short(row['perplexity'], 4)} against {short(reference['perplexity'], 4)} "
        f"({more:+.1f} %)."
    )
