"""Bit inspector (module 02): what each bit of a code means, and where its value lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from quantlab.floats import FP4_E2M1, FP6_E2M3, FP6_E3M2, FP8_E4M3, FP8_E5M2, FloatFormat
from quantlab.plot import Picture, number_line
from quantlab.scheme import Scheme
from quantlab.widgets.base import Widget

FORMATS = (FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3, FP4_E2M1, Scheme(bits=8), Scheme(bits=4))
MOST_BITS = 8  # 65,536 codes of a 16-bit format would not fit the table


class BitInspector(Widget):
    """Switch the bits of a code and see its fields, its formula and its value.

    Parameters
    ----------
    formats : FloatFormat, or symmetric Scheme (integers, shown with scale 1)
    format : name of the one to start with; by default the first
    code : to start with; by default that of 1

    Raises
    ------
    ValueError
        If a format has more than 8 bits, or is a scheme that is not symmetric.
    """

    script = "bit_inspector"

    def __init__(
        self,
        formats: Iterable[FloatFormat | Scheme] = FORMATS,
        *,
        format: str | None = None,
        code: int | None = None,
    ) -> None:
        entries = [entry(one) for one in formats]
        table = {"formats": {one["name"]: one for one in entries}}
        name = entries[0]["name"] if format is None else format
        position: dict[str, Any] = {"format": name}
        super().__init__(table, **position if code is None else {**position, "code": code})

    def choices(self, position: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """Return the formats, and the codes of the present one."""
        formats = self.table["formats"]
        here = formats.get(position["format"])
        return {"format": list(formats), "code": range(len(here["values"]) if here else 0)}

    def checked(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Return the position after a change; another format starts at its code of 1."""
        if "format" in change and "code" not in change:
            new = self.table["formats"].get(change["format"], {})
            change = {**change, "code": new.get("one", 0)}
        return super().checked(change)

    @property
    def entry(self) -> dict[str, Any]:
        """The present format: its values, fields and sentences."""
        return self.table["formats"][self.position["format"]]

    @property
    def sentence(self) -> str:
        """What the present code stands for."""
        return self.entry["sentences"][self.position["code"]]

    def picture(self) -> Picture:
        """Return the number line of the format, with the present value marked."""
        values = [float(value) for value in self.entry["values"]]
        return number_line(values, values[self.position["code"]], name=self.entry["name"])


def entry(one: FloatFormat | Scheme) -> dict[str, Any]:
    """Return all that the browser needs to know of a format."""
    if one.bits > MOST_BITS:
        raise ValueError(f"{one} has {one.bits} bits; the inspector shows up to {MOST_BITS}")
    if isinstance(one, FloatFormat):
        name, values = one.name, one.values().tolist()
        formulas = [float_formula(one, code) for code in range(len(values))]
        widths = [("sign", int(one.signed)), ("exponent", one.exponent_bits)]
        widths = [*widths, ("mantissa", one.mantissa_bits)]
    else:
        name, values = f"INT{one.bits} (code - {one.middle})", integers(one)
        formulas = [f"1 × ({code} - {one.middle})" for code in range(len(values))]
        widths = [("integer", one.bits)]
    fields = [[field, width] for field, width in widths if width]
    texts = [exact(value) for value in values]
    sentences = [
        f"{name} code {code} (0x{code:02X}), bits {grouped(code, fields)}: "
        + (f"{formula} = {text}." if math.isfinite(value) else f"{text}.")
        for code, (formula, value, text) in enumerate(zip(formulas, values, texts, strict=True))
    ]
    return {"name": name, "fields": fields, "one": values.index(1.0), "values": texts,
            "sentences": sentences}  # fmt: skip


def integers(scheme: Scheme) -> list[float]:
    """Return what the codes of a symmetric scheme stand for at scale 1."""
    if not scheme.symmetric:
        raise ValueError(f"{scheme} has no fixed zero point; pass a symmetric scheme")
    codes = torch.arange(scheme.levels)
    zero_point = torch.full((1,), float(scheme.middle))
    return scheme.decode(codes, torch.ones(1), zero_point).tolist()


def float_formula(one: FloatFormat, code: int) -> str:
    """Return the value of a code as a product: sign, power of two, significand."""
    sign, exponent, mantissa = one.fields(code)
    normal = exponent > 0 or not one.signed
    fraction = f"{mantissa}/{2**one.mantissa_bits}"
    significand = f"(1 + {fraction})" if normal else f"({fraction})"
    return f"(-1)^{sign} × 2^({exponent if normal else 1} - {one.bias}) × {significand}"


def grouped(code: int, fields: Sequence[Sequence[Any]]) -> str:
    """Return the bits of a code with a space between its fields."""
    bits = f"{code:0{sum(width for _, width in fields)}b}"
    parts = []
    for _, width in fields:
        parts.append(bits[:width])
        bits = bits[width:]
    return " ".join(parts)


def exact(value: float) -> str:
    """Return a value of at most 8 bits with all its digits, or NaN, Infinity, -Infinity."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value).removesuffix(".0")
