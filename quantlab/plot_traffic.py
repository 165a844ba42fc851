"""Figure of module 23: what a loop has touched, and how many bytes that was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from quantlab.plot_style import CYCLE, HATCHES, PALETTE, Picture, canvas, styled


@styled
def traffic_panels(touched: Mapping[str, Any], moved: Mapping[str, int], once: int) -> Picture:
    """Draw how often each element was touched, and the bytes moved beside the least possible.

    Parameters
    ----------
    touched : array name -> array of counts
    moved : array name -> bytes so far
    once : bytes if each array were moved once
    """
    figure, (left, right) = canvas(2, height=3.4, widths=(2.2, 1))
    top, ticks = 0.0, {}
    most = max(1, max(int(np.max(counts)) for counts in touched.values()))
    for name, counts in touched.items():
        grid = np.atleast_2d(np.asarray(counts, dtype=float))
        rows, columns = grid.shape
        box = (0.0, float(columns), top + rows, top)
        left.imshow(grid, extent=box, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        left.add_patch(outline(columns, top, rows))
        ticks[top + rows / 2] = f"{name}: up to {int(grid.max())} x"
        top += rows + 1.5
    left.set(xlim=(0, max(np.atleast_2d(c).shape[1] for c in touched.values())), ylim=(top, -0.5))
    left.set_yticks(list(ticks), list(ticks.values()))
    left.set_xticks([])
    left.set_title("how often each element was touched")
    base = 0
    for k, (name, size) in enumerate(moved.items()):
        look: dict[str, Any] = {
            "color": PALETTE[CYCLE[k]],
            "hatch": HATCHES[k],
            "edgecolor": "white",
        }
        right.bar(["moved"], [size], bottom=[base], label=name, **look)
        base += size
    right.axhline(once, color="black", ls="--", lw=1)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    right.text(0, once, "each byte once", ha="center", va="bottom", bbox=box)
    right.set(ylabel="bytes", ylim=(0, 1.15 * max(base, once)))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4)
    sentence = f"{base:,} bytes moved so far; {once:,} if every array were moved once."
    return Picture(figure, sentence)


def outline(columns: int, top: float, rows: int) -> Any:
    """Return a frame around a grid."""
    from matplotlib.patches import Rectangle

    return Rectangle((0, top), columns, rows, fill=False, lw=1, edgecolor="0.4")
