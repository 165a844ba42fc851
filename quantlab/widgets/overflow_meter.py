"""Overflow meter (module 07): how full an accumulator gets, and what it holds beyond that."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantlab.accumulators import Range, safe_terms, wrapped
from quantlab.plot import Picture
from quantlab.plot_integers import fill_curve
from quantlab.widgets.base import Widget

OPERANDS: dict[str, tuple[Range, Range]] = {
    "int4 × int4": ((-8, 7), (-8, 7)),
    "uint4 × int8": ((0, 15), (-127, 127)),
    "int8 × int8, ±127": ((-127, 127), (-127, 127)),
    "int8 × int8, with -128": ((-128, 127), (-128, 127)),
    "uint8 × int8": ((0, 255), (-128, 127)),
}
WIDTHS = (16, 32)
LONGEST = 2**19  # lengths 1, 2, 4 .. this, and both sides of a safe one that is shorter
SEED = 7


class OverflowMeter(Widget):
    """Choose codes, accumulator and number of terms; see when the worst case no longer fits.

    Parameters
    ----------
    operands : name in ``OPERANDS``
    bits : 16 or 32
    terms : at the start; by default one more than is safe
    """

    script = "overflow_meter"

    def __init__(
        self, *, operands: str = "int4 × int4", bits: int = 16, terms: int | None = None
    ) -> None:
        pairs = {
            name: {str(b): column(a, c, b) for b in WIDTHS} for name, (a, c) in OPERANDS.items()
        }
        table = {"operands": pairs, "widths": list(WIDTHS)}
        if terms is None and operands in pairs and bits in WIDTHS:
            terms = pairs[operands][str(bits)]["start"]
        super().__init__(table, operands=operands, bits=bits, terms=terms)

    def choices(self, position: Any) -> dict[str, Any]:
        """Return operands and widths, and the lengths that were computed for them."""
        here = self.table["operands"].get(position["operands"], {}).get(str(position["bits"]))
        terms = here["terms"] if here else []
        return {"operands": list(self.table["operands"]), "bits": list(WIDTHS), "terms": terms}

    def checked(self, change: Any) -> dict[str, Any]:
        """Return the position after a change; other codes start one term beyond what is safe."""
        if {"operands", "bits"} & set(change) and "terms" not in change:
            position = {**self.position, **change}
            names = self.table["operands"].get(position["operands"], {})
            here = names.get(str(position["bits"]))
            change = {**change, "terms": here["start"] if here else None}
        return super().checked(change)

    @property
    def column(self) -> dict[str, Any]:
        """Lengths, sums and sentences of the present codes and accumulator."""
        return self.table["operands"][self.position["operands"]][str(self.position["bits"])]

    @property
    def sentence(self) -> str:
        """What the accumulator holds for the worst and for random codes."""
        place = self.column["terms"].index(self.position["terms"])
        name, bits = self.position["operands"], self.position["bits"]
        return f"{name} in int{bits}, {self.column['sentences'][place]}"

    def picture(self) -> Picture:
        """Return how full the accumulator is at each length."""
        here, bits = self.column, self.position["bits"]
        sums = {"worst codes": here["worst"], "random codes": here["random"]}
        return fill_curve(here["terms"], sums, bits, self.position["terms"], sentence=self.sentence)


def column(a: Range, b: Range, bits: int) -> dict[str, Any]:
    """Return all that the browser shows for one pair of ranges and one accumulator."""
    safe = safe_terms(a, b, bits)
    assert safe is not None  # each range holds a code other than 0
    powers = {2**k for k in range(LONGEST.bit_length())}
    terms = sorted(powers | {k for k in (safe, safe + 1) if k < LONGEST})
    worst = worst_product(a, b, bits)
    totals = [worst * k for k in terms]
    random = random_sums(a, b, terms)
    held = [wrapped(sums, bits).tolist() for sums in (totals, random)]
    sentences = [
        f"{k:,} terms ({safe:,} are safe): the worst codes add up to {total:,}, "
        f"{verdict(total, w)}; random codes to {r:,}, {verdict(r, v)}."
        for k, total, w, r, v in zip(terms, totals, held[0], random, held[1], strict=True)
    ]
    start = min(safe + 1, LONGEST)
    return {"safe": safe, "start": start, "terms": terms, "worst": totals, "random": random,
            "held": held[0], "sentences": sentences}  # fmt: skip


def verdict(exact: int, held: int) -> str:
    """Say what became of a sum."""
    return "which fits" if exact == held else f"and {held:,} is what is left"


def worst_product(a: Range, b: Range, bits: int) -> int:
    """Return the product of two codes that fills a signed accumulator soonest."""
    products = [x * y for x in a for y in b]
    limits = {
        p: 2 ** (bits - 1) / -p if p < 0 else (2 ** (bits - 1) - 1) / p for p in products if p
    }
    return min(limits, key=limits.__getitem__)


def random_sums(a: Range, b: Range, terms: list[int]) -> list[int]:
    """Return exact sums of the first products of two seeded rows of codes."""
    rng = np.random.default_rng(SEED)
    rows = [rng.integers(low, high + 1, max(terms)) for low, high in (a, b)]
    totals = np.cumsum(rows[0] * rows[1])
    return [int(totals[k - 1]) for k in terms]
