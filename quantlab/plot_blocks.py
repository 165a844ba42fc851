"""Figures of ggml's blocks: what lies where, what the bits are spent on, and what they buy.

Numbers in, a Picture out: nothing here reads a block or measures an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlab.plot_errors import fill
from quantlab.plot_style import CYCLE, MARKERS, PALETTE, Picture, canvas, numbers, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bits_by_field", "block_map", "error_by_bits"]

COLUMNS = 32  # cells in a line: a sub-block of Q4_K is one line of weights
Row = Mapping[str, Any]


@styled
def block_map(
    data: bytes | Sequence[int],
    fields: Mapping[str, tuple[int, int]],
    codes: Sequence[int],
    *,
    lit_bytes: Collection[int] = (),
    lit_weights: Collection[int] = (),
    name: str = "block",
) -> Picture:
    """Draw a block's bytes, colored by field, above its weights' codes; lit ones are framed.

    Parameters
    ----------
    data : the bytes of one block
    fields : name -> (first byte, byte after the last)
    codes : (weights,) whole numbers
    lit_bytes, lit_weights : indices to frame
    name : of the type, for the title

    Examples
    --------
    >>> block_map([0, 48, 16], {"d": (0, 2), "qs": (2, 3)}, [0, 1], name="tiny")
    tiny: 3 bytes (d 0-1, qs 2) hold 2 weights.
    """
    owner = {k: place for place, (a, b) in enumerate(fields.values()) for k in range(a, b)}
    lines = [-(-len(cells) // COLUMNS) for cells in (data, codes)]
    figure, (axes,) = canvas(height=1.1 + 0.21 * (sum(lines) + 2))
    size = "6.5" if max(len(str(code)) for code in codes) > 2 else "7.5"
    for k, byte in enumerate(data):
        color = PALETTE[CYCLE[owner[k] % len(CYCLE)]]
        draw_cell(axes, k, f"{byte:02X}", color, lit=k in lit_bytes, size="7.5")
    down = lines[0] + 1.6
    for i, code in enumerate(codes):
        draw_cell(axes, i, str(code), "#FFFFFF", lit=i in lit_weights, size=size, down=down)
    axes.text(0, down - 0.35, "codes of the weights", fontsize=9)
    axes.set_xlim(-0.1, COLUMNS + 0.1)
    axes.set_ylim(down + lines[1] + 0.1, -0.2)
    axes.set_axis_off()
    legend(axes, fields)
    axes.set_title(f"{name}: {len(data)} bytes hold {len(codes)} weights", pad=22)
    listed = ", ".join(f"{field} {span(a, b)}" for field, (a, b) in fields.items())
    return Picture(figure, f"{name}: {len(data)} bytes ({listed}) hold {len(codes)} weights.")


def draw_cell(
    axes: Axes, at: int, text: str, color: str, *, lit: bool, size: str, down: float = 0
) -> None:
    """Draw the at-th cell of a grid: its text, its color, and a frame if it is lit."""
    from matplotlib.patches import Rectangle

    x, y = at % COLUMNS, at // COLUMNS + down
    edge, wide = (PALETTE["ink"], 1.8) if lit else ("#C4C8D0", 0.5)
    face = "#FFF3B0" if lit and color == "#FFFFFF" else color
    axes.add_patch(Rectangle((x + 0.04, y + 0.05), 0.92, 0.9, facecolor=pale(face),
                             edgecolor=edge, lw=wide, zorder=2 + lit))  # fmt: skip
    weight = "bold" if lit else "normal"
    axes.text(x + 0.5, y + 0.53, text, fontsize=float(size), ha="center", va="center",
              weight=weight, zorder=4)  # fmt: skip


def legend(axes: Axes, fields: Mapping[str, tuple[int, int]]) -> None:
    """Name each field with its bytes in a line above the grid."""
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=pale(PALETTE[CYCLE[place % len(CYCLE)]]), label=f"{field} {span(a, b)}")
        for place, (field, (a, b)) in enumerate(fields.items())
    ]  # fmt: skip
    axes.legend(handles=patches, loc="lower left", bbox_to_anchor=(-0.005, 0.985), ncols=6,
                fontsize=9, handlelength=1.2, columnspacing=1.4, borderaxespad=0.2)  # fmt: skip


def pale(color: str) -> tuple[float, float, float]:
    """Return a color halfway to white, on which black text can be read."""
    from matplotlib.colors import to_rgb

    red, green, blue = (0.55 * part + 0.45 for part in to_rgb(color))
    return red, green, blue


def span(first: int, stop: int) -> str:
    """Return the numbers from ``first`` up to before ``stop`` as people write them.

    Examples
    --------
    >>> span(4, 16), span(7, 8)
    ('4-15', '7')
    """
    return f"{first}" if stop - first == 1 else f"{first}-{stop - 1}"


@styled
def bits_by_field(types: Mapping[str, Mapping[str, float]]) -> Picture:
    """Draw the stored bits per weight of each type, split into what they are spent on.

    Parameters
    ----------
    types : name -> {kind of field, such as "codes" -> bits per weight}

    Examples
    --------
    >>> bits_by_field({"Q4_0": {"codes": 4.0, "scales": 0.5}})
    Bits per weight: Q4_0 4.5 (codes 4, scales 0.5).
    """
    kinds = list(dict.fromkeys(kind for parts in types.values() for kind in parts))
    names, left = list(types), np.zeros(len(types))
    figure, (axes,) = canvas(height=1.5 + 0.34 * len(names))
    for index, kind in enumerate(kinds):
        width = numbers([parts.get(kind, 0.0) for parts in types.values()])
        axes.barh(names, width, left=left, label=kind, **fill(index))
        left += width
    for y, total in enumerate(left):
        axes.annotate(f"{total:.6g}", (total, y), xytext=(5, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("stored bits per weight")
    figure.legend(loc="outside lower center", ncols=len(kinds))
    whole = [name for name, total in zip(names, left, strict=True) if total == int(total)]
    count = "none" if not whole else f"{len(whole)}"
    axes.set_title(f"{count} of these {len(names)} types takes a whole number of bits per weight")
    listed = "; ".join(
        f"{name} {total:.6g} ({', '.join(f'{kind} {bits:.6g}' for kind, bits in parts.items())})"
        for (name, parts), total in zip(types.items(), left, strict=True)
    )
    return Picture(figure, f"Bits per weight: {listed}.")


@styled
def error_by_bits(rows: Sequence[Row], *, what: str = "relative error") -> Picture:
    """Draw each type's error against its bits, and what an importance matrix leaves of it.

    Parameters
    ----------
    rows : mappings with ``name``, ``bits_per_weight``, ``error``
        Optional: ``imatrix``, the error with an importance matrix, drawn in a panel of its own.
    what : label of the axis

    Examples
    --------
    >>> error_by_bits([{"name": "Q4_0", "bits_per_weight": 4.5, "error": 0.01, "imatrix": 0.008}])
    relative error: Q4_0 0.01 at 4.5 bits, 0.008 with imatrix.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    rows = sorted(rows, key=lambda row: (row["bits_per_weight"], -row["error"]))
    bits = numbers([row["bits_per_weight"] for row in rows])
    errors = numbers([row["error"] for row in rows])
    both = [row for row in rows if row.get("imatrix") is not None]
    figure, panels = canvas(2 if both else 1, height=4.0, widths=(1.5, 1) if both else None)
    axes = panels[0]
    axes.plot(bits, errors, MARKERS[0], color=PALETTE["blue"], ms=6)
    name_points(axes, rows)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.16, y=0.1)
    axes.grid(axis="y")
    axes.set_xlabel("stored bits per weight")
    axes.set_ylabel(what)
    if both:
        draw_shares(panels[1], both)
    figure.suptitle(finding(rows, both), fontsize=11.5, fontweight="bold", x=0.01, ha="left")
    listed = "; ".join(sentence_of(row) for row in rows)
    return Picture(figure, f"{what}: {listed}.")


def draw_shares(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw what is left of each error with an importance matrix, in percent."""
    shares = [100 * row["imatrix"] / row["error"] for row in rows]
    axes.barh([row["name"] for row in rows], shares, **fill(1))
    for y, share in enumerate(shares):
        axes.annotate(f"{share:.0f} %", (max(share, 100), y), xytext=(5, 0), va="center",
                      fontsize=9, textcoords="offset points")  # fmt: skip
    axes.axvline(100, color=PALETTE["quiet"], ls="--", lw=1)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(100.0, *shares))
    axes.set_xlabel("left with an imatrix, in %")


def name_points(axes: Axes, rows: Sequence[Row]) -> None:
    """Write the names beside the points; neighbors share one list, the largest error on top."""
    groups: list[list[Row]] = []
    for row in rows:  # by rising bits
        if groups and row["bits_per_weight"] - groups[-1][0]["bits_per_weight"] <= 0.3:
            groups[-1].append(row)
        else:
            groups.append([row])
    for group in groups:
        right = max(row["bits_per_weight"] for row in group)
        middle = float(np.exp(np.mean([np.log(row["error"]) for row in group])))
        listed = sorted(group, key=lambda row: -row["error"])
        axes.annotate("\n".join(row["name"] for row in listed), (right, middle), xytext=(7, 0),
                      textcoords="offset points", fontsize=8.5, va="center")  # fmt: skip


def finding(rows: Sequence[Row], both: Sequence[Row]) -> str:
    """Say what the picture shows: the largest gain, or what the most bits buy."""
    if not both:
        ratio = rows[0]["error"] / rows[-1]["error"]
        return f"{rows[-1]['name']} has {short(ratio)} times less error than {rows[0]['name']}"
    gains = [1 - row["imatrix"] / row["error"] for row in both]
    best = int(np.argmax(gains))
    return f"The imatrix takes up to {100 * gains[best]:.0f} % off the error ({both[best]['name']})"


def sentence_of(row: Row) -> str:
    """Return one type's numbers in words."""
    text = f"{row['name']} {short(row['error'])} at {row['bits_per_weight']:.6g} bits"
    imatrix = row.get("imatrix")
    return text if imatrix is None else f"{text}, {short(imatrix)} with imatrix"
