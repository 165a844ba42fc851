"""What a GGUF export did with every tensor, as a table a person can read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from quantlab.gguf.codec import TYPES


@dataclass(frozen=True)
class GGUFRow:
    """One tensor of the file.

    Attributes
    ----------
    name : str
        GGUF's, such as ``blk.0.attn_q.weight``.
    shape : tuple of int
    type, wanted : str
        The type it is stored in, and the one that the preset asks for.
    reason : str
        Why the two differ; empty if they do not.
    kept : bool
        The codes of an already quantized layer are stored; nothing was rounded again.
    unweighted : bool
        There is an imatrix and the type makes use of one, but it has no entry for this tensor.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    wanted: str
    reason: str = ""
    kept: bool = False
    unweighted: bool = False

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits of all its blocks."""
        return self.weights * TYPES[self.type].bits_per_weight()


@dataclass(frozen=True)
class GGUFReport:
    """All tensors of a file, what fell back to another type and why, and its true size.

    Attributes
    ----------
    rows : tuple of GGUFRow
    preset, base : str
        Such as Q4_K_M, and the type of most of its tensors, Q4_K.
    notes : tuple of str
        What else the reader should know.
    seconds : float
    """

    rows: tuple[GGUFRow, ...]
    preset: str
    base: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def fallbacks(self) -> dict[str, str]:
        """Tensors that are not of the type the preset asks for, with the reason."""
        return {row.name: row.reason for row in self.rows if row.reason}

    @property
    def unweighted(self) -> tuple[str, ...]:
        """Tensors that were quantized without an entry of the imatrix."""
        return tuple(row.name for row in self.rows if row.unweighted)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return int(sum(row.bits for row in self.rows)) // 8

    @property
    def weights(self) -> int:
        """Weights of all tensors."""
        return sum(row.weights for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the whole file's tensors, as llama.cpp counts them."""
        return 8 * self.nbytes / max(1, self.weights)

    @property
    def nominal_bits(self) -> float:
        """Bits per weight of the base type alone, which the preset's name suggests."""
        return TYPES[self.base].bits_per_weight()

    @property
    def planned_bits(self) -> float:
        """Bits per weight that the preset would take if nothing fell back."""
        bits = sum(row.weights * TYPES[row.wanted].bits_per_weight() for row in self.rows)
        return bits / max(1, self.weights)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows], default=6)
        lines = [f"{'tensor':<{width}}  {'shape':>14}  {'type':<7} {'bits/w':>7}"]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            bits = TYPES[row.type].bits_per_weight()
            kept = "  codes kept" if row.kept else ""
            lines.append(f"{row.name:<{width}}  {shape:>14}  {row.type:<7} {bits:7.4f}{kept}")
            if row.reason:
                lines.append(f"{'':<{width}}  ! not {row.wanted}: {row.reason}")
        lines.append(
            f"{self.preset}: {len(self.rows)} tensors, {self.nbytes:,} bytes, "
            f"{self.bits_per_weight:.3f} bits per weight ({self.base} alone: "
            f"{self.nominal_bits:.3f}), {self.seconds:.1f} s"
        )
        if self.fallbacks:
            lines.append(
                f"fallbacks: {len(self.fallbacks)} tensors; without them the file would take "
                f"{self.planned_bits:.3f} bits per weight"
            )
        if self.unweighted:
            lines.append(f"without an imatrix entry: {', '.join(self.unweighted)}")
        return "\n".join([*lines, *self.notes])
