"""Nibble packer (module 07): eight 4-bit codes, four bytes, one 32-bit word, and four orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantlab.plot import Picture
from quantlab.plot_integers import word_map
from quantlab.widgets.base import Widget

COUNT = 8  # codes of 4 bits in a word of 32
# Nibble that each of the codes 0 .. 7 takes in the word; nibble 0 holds its lowest four bits.
ORDERS = {
    "low nibble first": (0, 1, 2, 3, 4, 5, 6, 7),  # quantlab; GPTQ's int32
    "high nibble first": (1, 0, 3, 2, 5, 4, 7, 6),  # bitsandbytes
    "halves, as Q4_0": (0, 2, 4, 6, 1, 3, 5, 7),  # ggml, there with 16 bytes
    "AWQ": (0, 4, 1, 5, 2, 6, 3, 7),  # AutoAWQ's GEMM layout: codes 0 2 4 6 1 3 5 7
}


class NibblePacker(Widget):
    """Change a code, or the order, and see which byte and which digit of the word move.

    Parameters
    ----------
    codes : eight integers 0..15
    order : name in ``ORDERS``
    code : which of them the slider changes at the start, 0..7

    Raises
    ------
    ValueError
        If there are not eight codes, or one is no 4-bit code.
    """

    script = "nibble_packer"

    def __init__(
        self,
        codes: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
        *,
        order: str = "low nibble first",
        code: int = 0,
    ) -> None:
        if len(codes) != COUNT:
            raise ValueError(f"there are {len(codes)} codes; a 32-bit word holds {COUNT} of 4 bits")
        choices = {
            "order": list(ORDERS),
            "code": list(range(COUNT)),
            **{f"c{k}": list(range(16)) for k in range(COUNT)},
        }
        table = {"choices": choices, "orders": {name: list(p) for name, p in ORDERS.items()}}
        values: dict[str, Any] = {f"c{k}": value for k, value in enumerate(codes)}
        super().__init__(table, order=order, code=code, **values)

    @property
    def codes(self) -> list[int]:
        """The eight codes as they are now."""
        return [self.position[f"c{k}"] for k in range(COUNT)]

    @property
    def word(self) -> int:
        """The 32-bit word that the codes make in the present order."""
        return pack_word(self.codes, self.position["order"])

    @property
    def sentence(self) -> str:
        """Codes, bytes and word."""
        codes = " ".join(str(code) for code in self.codes)
        data = " ".join(f"{byte:02X}" for byte in self.word.to_bytes(4, "little"))
        return (
            f"Codes {codes}, {self.position['order']}: bytes {data} in memory, "
            f"the little-endian word {self.word:08X}."
        )

    def picture(self) -> Picture:
        """Return codes, bytes and word as three rows of cells."""
        order = self.position["order"]
        return word_map(self.codes, ORDERS[order], name=order, sentence=self.sentence)


def pack_word(codes: Sequence[int], order: str = "low nibble first") -> int:
    """Return eight 4-bit codes as one 32-bit word.

    Examples
    --------
    >>> hex(pack_word([1, 2, 3, 4, 5, 6, 7, 8]))
    '0x87654321'
    >>> pack_word([1, 2, 3, 4, 5, 6, 7, 8], "AWQ").to_bytes(4, "little").hex(" ")
    '31 75 42 86'
    """
    return sum(code << 4 * place for code, place in zip(codes, ORDERS[order], strict=True))
