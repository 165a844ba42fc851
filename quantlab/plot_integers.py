"""Figures of module 07: where codes lie in a word, and how full an accumulator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlab.plot_style import CYCLE, HATCHES, MARKERS, PALETTE, Picture, canvas, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def word_map(codes: Sequence[int], places: Sequence[int], *, name: str, sentence: str) -> Picture:
    """Draw eight codes, the bytes they lie in, and the word that the bytes make.

    Parameters
    ----------
    codes : eight integers 0..15
    places : the nibble of the word that each code takes, 0 the lowest
    name : of the order
    sentence : what the picture says
    """
    held = [list(places).index(nibble) for nibble in range(len(codes))]
    memory = [nibble for low in range(0, len(codes), 2) for nibble in (low + 1, low)]
    figure, (axes,) = canvas(height=3.2)
    rows = (
        ("codes, in order", list(range(len(codes))), 0.0),
        ("bytes in memory, as a dump prints them", [held[n] for n in memory], 0.45),
        ("the 32-bit word, little-endian", [held[n] for n in range(len(codes))][::-1], 0.0),
    )
    for level, (label, order, gap) in enumerate(rows):
        top = -1.6 * level
        axes.text(0, top + 0.86, label, va="bottom")
        for k, code in enumerate(order):
            draw_nibble(axes, k + gap * (k // 2), top, code, f"{codes[code]:X}")
    axes.set_title(f"Eight codes, {name}")
    axes.set(xlim=(-0.1, 9.6), ylim=(-3.4, 1.3))
    axes.axis("off")
    return Picture(figure, sentence)


def draw_nibble(axes: Axes, left: float, bottom: float, code: int, digit: str) -> None:
    """Draw one nibble: its hex digit, and which code it is."""
    from matplotlib.patches import Rectangle

    color = PALETTE[CYCLE[code % len(CYCLE)]]
    hatch = HATCHES[(code + code // len(CYCLE)) % len(HATCHES)]
    axes.add_patch(
        Rectangle(
            (left, bottom), 0.92, 0.8, facecolor="white", edgecolor=color, hatch=hatch, lw=1.4
        )
    )
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(left + 0.46, bottom + 0.52, digit, ha="center", va="center", weight="bold", bbox=box)
    axes.text(
        left + 0.46, bottom + 0.18, f"code {code}", ha="center", va="center", size=8, bbox=box
    )


@styled
def fill_curve(
    terms: Sequence[int], sums: Mapping[str, Any], bits: int, marked: int, *, sentence: str
) -> Picture:
    """Draw the size of sums over their length, as a percentage of what an accumulator holds.

    Parameters
    ----------
    terms : lengths of the sums
    sums : name -> exact sum at each length; the first is the worst case
    bits : width of the signed accumulator
    marked : one of the lengths
    sentence : what the picture says
    """
    figure, (axes,) = canvas()
    x = np.asarray(terms)
    capacity = 2.0 ** (bits - 1)
    for index, (name, values) in enumerate(sums.items()):
        share = 100 * np.abs(np.asarray(values, dtype=np.float64)) / capacity
        share = np.where(share > 0, share, np.nan)  # a sum of 0 has no place on a log scale
        style = "-" if index == 0 else "--"
        color = PALETTE[CYCLE[index]]
        axes.plot(x, share, style, marker=MARKERS[2 * index], ms=4, color=color, label=name)
    axes.axhline(100, color=PALETTE["vermillion"], lw=1.6)
    axes.axvline(marked, color=PALETTE["quiet"], ls=":", lw=1.4)
    axes.annotate(
        f"{marked:,} terms", (marked, 0.02), xycoords=("data", "axes fraction"),
        xytext=(5, 2), textcoords="offset points",
    )  # fmt: skip
    axes.text(x[0], 130, "full: beyond this line the sum wraps", color=PALETTE["vermillion"])
    axes.set(xscale="log", yscale="log", xlabel="terms of the sum")
    axes.set_xscale("log", base=2)
    axes.set_ylabel(f"size, % of what int{bits} holds")
    axes.set_title("The worst case grows as the terms, random codes slower")
    axes.legend(loc="lower right")
    return Picture(figure, sentence)
