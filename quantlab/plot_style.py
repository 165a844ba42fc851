"""One look for all figures: palette, hatches, size, and a Picture that also reads as a sentence."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by color-blind readers. widgets/style.css repeats it.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "ink": "#1F2430",
    "quiet": "#6B7280",
}
CYCLE = ("blue", "orange", "green", "vermillion", "purple", "sky")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")  # so that no series depends on its color
MARKERS = ("o", "s", "^", "D", "v", "P")

DPI = 150
SHOWN_PER_INCH = 100  # CSS pixels; the image holds 1.5 times as many, for sharp screens

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "font.size": 10.0,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALETTE["quiet"],
    "axes.labelcolor": PALETTE["ink"],
    "axes.axisbelow": True,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["ink"],
    "ytick.color": PALETTE["ink"],
    "grid.color": "#D9DCE2",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure, and one sentence that says the same with its numbers.

    Notebooks show the figure; screen readers, GitHub's plain view and nbval read the sentence.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
    sentence : str
    """

    figure: Figure
    sentence: str

    def __repr__(self) -> str:
        return self.sentence

    def png(self) -> bytes:
        """Return the figure as PNG, free of dates and versions: same numbers, same bytes."""
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context(RC):
            self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()

    def svg(self) -> bytes:
        """Return the figure as SVG: letters stay text, and the same numbers give the same bytes."""
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context({**RC, "svg.fonttype": "none", "svg.hashsalt": "quantlab"}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return image and sentence for a notebook; the sentence is also the image's alt text."""
        width, height = (round(side * SHOWN_PER_INCH) for side in self.figure.get_size_inches())
        image = base64.b64encode(self.png()).decode("ascii")
        about = {"width": width, "height": height, "alt": self.sentence}
        return {"image/png": image, "text/plain": self.sentence}, {"image/png": about}


def styled(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """Run a drawing function under our style, whatever style the caller has set."""

    @wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            return draw(*args, **kwargs)

    return drawn


def canvas(
    panels: int = 1, *, height: float = 3.6, widths: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure 7.2 inches wide on an Agg canvas, and its panels from left to right.

    Not made by pyplot: no window, no global state, nothing to close.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = list(widths) if widths else None
    axes = figure.subplots(1, panels, squeeze=False, width_ratios=ratios)
    return figure, list(axes[0])


def numbers(values: Any) -> NDArray[np.float64]:
    """Return tensors, arrays or lists as a float64 array.

    Raises
    ------
    ValueError
        If there is nothing in it.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("there are no numbers to draw; pass at least one")
    return array


def short(value: float, digits: int = 3) -> str:
    """Return a number as people write it: 3 significant digits, no exponent between 1e-4 and 1e6.

    Examples
    --------
    >>> short(0.012345), short(2), short(1234.5), short(-0.5), short(3e-7)
    ('0.0123', '2', '1,234', '-0.5', '3e-07')
    """
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def size(nbytes: float) -> str:
    """Return bytes in the unit that people compare: 7.34 MB, 12.3 kB, 640 bytes (decimal units).

    Examples
    --------
    >>> size(7_344_640), size(640), size(14e9)
    ('7.34 MB', '640 bytes', '14.0 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:#.3g} {name}".replace(". ", " ")
    return f"{nbytes:.0f} bytes"
