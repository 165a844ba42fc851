"""What a quantization did, layer by layer, as a table a person can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantlab.plot import Picture


@dataclass(frozen=True)
class LayerResult:
    """One quantized linear.

    Attributes
    ----------
    name, scheme : str
    weights : int
        Number of weights.
    nbytes : bytes
        As stored: codes, scales, zero points.
    sqnr : dB
        Of the stored weight against the float one.
    output_error : float, or None without calibration data
        tr(D M D^T) / tr(W M W^T): the share of the output's energy that is error.
    seconds : float
        The block's time divided by its linears.
    notes : tuple of str
        What the method had to decide, such as a raised damping.
    """

    name: str
    scheme: str
    weights: int
    nbytes: int
    sqnr: float
    output_error: float | None
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All layers, what stayed in float and why, and the time it took.

    Attributes
    ----------
    rows : tuple of LayerResult
    left_in_float : name -> reason
    method : str
    seconds : float
    """

    rows: tuple[LayerResult, ...]
    left_in_float: dict[str, str] = field(default_factory=dict)
    method: str = ""
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all quantized weights."""
        return sum(row.nbytes for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight."""
        return 8 * self.nbytes / max(1, sum(row.weights for row in self.rows))

    def plot(self) -> Picture:
        """Draw the output error of each layer (needs matplotlib)."""
        from quantlab.plot import layer_errors

        return layer_errors({self.method: self})

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows], default=5)
        lines = [
            f"{'layer':<{width}}  {'scheme':<9} {'bits/w':>6} {'SQNR dB':>8} {'output error':>13}"
        ]
        for row in self.rows:
            error = "-" if row.output_error is None else f"{row.output_error:.3e}"
            bits = 8 * row.nbytes / row.weights
            line = f"{row.name:<{width}}  {row.scheme:<9} {bits:6.3f} {row.sqnr:8.2f} {error:>13}"
            lines += [line, *(f"{'':<{width}}  ! {note}" for note in row.notes)]
        lines.append(
            f"{self.method}: {len(self.rows)} linears, {self.nbytes:,} bytes, "
            f"{self.bits_per_weight:.3f} bits per weight, {self.seconds:.1f} s"
        )
        lines += [f"left in float: {name} ({why})" for name, why in self.left_in_float.items()]
        return "\n".join(lines)
