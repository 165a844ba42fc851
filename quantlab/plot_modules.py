"""Figure of a network's modules: what each stores, computes, and in how many bits.

Numbers in, a Picture out: nothing here counts or rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantlab.plot_style import PALETTE, Picture, canvas, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["module_tree"]

# Of a storage form: color and hatch, so that neither is needed alone.
LOOKS = {"float": ("#FFFFFF", ""), "int8": (PALETTE["sky"], "///")}
NARROW = (PALETTE["orange"], "...")


def look(stored: str) -> tuple[str, str]:
    """Return color and hatch of what a layer stores."""
    return LOOKS.get("float" if stored.startswith("float") else stored, NARROW)


@styled
def module_tree(rows: Sequence[Mapping[str, Any]], *, title: str, most: float) -> Picture:
    """Draw a module tree with bars: kilobytes as stored, and share of all products.

    Parameters
    ----------
    rows : mappings with label, depth, stored, macs, nbytes
        A layer, or a module that holds layers (stored is empty). ``macs`` is a share in percent.
    title : str
    most : kilobytes at the end of the axis
    """
    figure, panels = canvas(2, height=0.75 + 0.21 * len(rows), widths=(1.0, 1.0))
    for axes, field, label in zip(
        panels, ("nbytes", "macs"), ("kilobytes as stored", "% of all products"), strict=True
    ):
        bars(axes, rows, field)
        axes.set_xlabel(label)
    panels[0].set_xlim(0, 1.05 * most)
    panels[0].set_yticks(range(len(rows)))
    names = ["    " * row["depth"] + row["label"] for row in rows]
    panels[0].set_yticklabels([name.ljust(max(map(len, names))) for name in names])
    for label in panels[0].get_yticklabels():
        label.set_fontfamily("DejaVu Sans Mono")
        label.set_fontsize(8)
    panels[1].set_yticks([])
    panels[0].set_title(title)
    layers = [row for row in rows if row["stored"]]
    held = [row for row in layers if not row["stored"].startswith("float")]
    return Picture(
        figure,
        f"{title}: {len(held)} of {len(layers)} layers hold integers; they are "
        f"{sum(row['macs'] for row in held):.1f} % of the products; "
        f"{sum(row['nbytes'] for row in layers) / 1000:.1f} kB in all.",
    )


def bars(axes: Axes, rows: Sequence[Mapping[str, Any]], field: str) -> None:
    """Draw one bar a layer, and an outline for a module that holds layers."""
    for place, row in enumerate(rows):
        value = row[field] / 1000 if field == "nbytes" else row[field]
        if row["stored"]:
            color, hatch = look(row["stored"])
            axes.barh(
                place, value, 0.74, color=color, hatch=hatch, edgecolor=PALETTE["ink"], lw=0.8
            )
        else:
            axes.barh(place, value, 0.3, color=PALETTE["quiet"], alpha=0.45)
    kinds = dict.fromkeys(row["stored"] for row in rows if row["stored"])
    for kind in kinds:
        color, hatch = look(kind)
        axes.barh(0, 0, color=color, hatch=hatch, edgecolor=PALETTE["ink"], lw=0.8, label=kind)
    if field == "macs":
        axes.legend(loc="lower right")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x")
