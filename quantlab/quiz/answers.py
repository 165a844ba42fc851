"""Read what a learner typed: digits, sign, exponent, one fraction bar. Nothing is evaluated."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

MOST_CHARACTERS = 200
LARGEST_EXPONENT = 400
DECIMAL = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:e([+-]?\d{1,4}))?", re.IGNORECASE)
HEXADECIMAL = re.compile(r"([+-]?)0x([0-9a-f]{1,16})", re.IGNORECASE)
BARE_HEXADECIMAL = re.compile(r"()(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)


def as_text(answer: Any) -> str:
    """Write any answer as the one text form that is recorded.

    Examples
    --------
    >>> as_text(["a", "c"]), as_text({"1": "b"}), as_text(0.5), as_text(None)
    ('a c', '1=b', '0.5', '')
    """
    if answer is None or answer is ...:
        return ""
    if isinstance(answer, dict):
        return " ".join(f"{as_text(key)}={as_text(value)}" for key, value in answer.items())
    if isinstance(answer, set | frozenset):
        return " ".join(sorted(map(as_text, answer)))
    if isinstance(answer, list | tuple):
        return " ".join(map(as_text, answer))
    return str(answer).strip()[:MOST_CHARACTERS]


def parse_number(text: str, unit: str = "") -> Fraction:
    """Read a decimal, a fraction of two decimals, or 0x hexadecimal, exactly.

    Raises
    ------
    ValueError
        If the text is anything else; the message says what can be written.

    Examples
    --------
    >>> parse_number("1.57e-2"), parse_number("4/255"), parse_number("3.94 GB", unit="GB")
    (Fraction(157, 10000), Fraction(4, 255), Fraction(197, 50))
    """
    plain = text.replace("\u2212", "-").replace(" ", "")  # the typographic minus sign
    if unit and plain.lower().endswith(unit.replace(" ", "").lower()):
        plain = plain[: -len(unit.replace(" ", ""))]
    top, bar, bottom = plain.partition("/")
    if not bar:
        return parse_part(top, text)
    divisor = parse_part(bottom, text)
    if divisor == 0:
        raise ValueError(f"{text!r} divides by zero; write another number")
    return parse_part(top, text) / divisor


def parse_part(part: str, whole: str) -> Fraction:
    """Read one side of a fraction bar."""
    if match := HEXADECIMAL.fullmatch(part):
        return Fraction(int(match[1] + match[2], 16))
    match = DECIMAL.fullmatch(part)
    if match is None or abs(int(match[3] or 0)) > LARGEST_EXPONENT:
        hint = "; write a point, not a comma" if "," in whole else ""
        raise ValueError(f"{whole!r} is no number; write 0.0157, 1.57e-2, 4/255 or 0x3f{hint}")
    return Fraction(part)


def parse_hexadecimal(text: str) -> int:
    """Read hexadecimal digits, with or without 0x, spaces and underscores ignored.

    Raises
    ------
    ValueError
        If other characters occur.

    Examples
    --------
    >>> parse_hexadecimal("0x7E"), parse_hexadecimal("3f")
    (126, 63)
    """
    match = BARE_HEXADECIMAL.fullmatch(re.sub(r"[\s_]", "", text))
    if match is None:
        raise ValueError(f"{text!r} is no hexadecimal number; write 0x3f or 3f")
    return int(match[2], 16)


def show_number(value: Fraction) -> str:
    """Write a parsed number for the learner to see: whole, or with six digits.

    Examples
    --------
    >>> show_number(Fraction(-64)), show_number(Fraction(4, 255))
    ('-64', '0.0156863')
    """
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6g}"


def parse_words(text: str) -> list[str]:
    """Split a list of letters or ids at spaces, commas and semicolons, in lower case."""
    return [word for word in re.split(r"[\s,;]+", text.lower()) if word]


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """Read ``1=b 2=a`` as pairs.

    Raises
    ------
    ValueError
        If a part has no sign ``=``.
    """
    pairs = []
    for word in parse_words(re.sub(r"\s*(=|->|:)\s*", "=", text)):
        left, sign, right = word.partition("=")
        if not (left and sign and right):
            raise ValueError(f"{word!r} is no pair; write 1=b 2=a, one pair for each line")
        pairs.append((left, right))
    return pairs


def normal(text: str) -> str:
    """Return a short answer in lower case, without punctuation and extra spaces.

    Examples
    --------
    >>> normal("  Zero-Point. ")
    'zero point'
    """
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())
