"""Read numbers and strings from bytes that nobody vouches for, and never beyond their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from quantlab.gguf.block_type import Bytes
from quantlab.gguf.layout import DTYPES, KINDS, LONGEST_ARRAY, LONGEST_TEXT, SCALARS, ValueType


class FormatError(ValueError):
    """A file is no GGUF, or breaks one of its rules; the message names the byte."""


class Cursor:
    """A position in a file, and the checked ways to move it on.

    Parameters
    ----------
    data : (bytes of the file,) uint8 array
    name : str
        Of the file, for messages.
    """

    def __init__(self, data: Bytes, name: str) -> None:
        self.data = data
        self.view = memoryview(data.data)
        self.name = name
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise a FormatError about the byte ``at``, or the current one."""
        raise FormatError(f"{self.name}, byte {self.at if at is None else at}: {message}")

    def need(self, size: int, what: str) -> None:
        """Refuse when fewer than ``size`` bytes are left."""
        left = len(self.view) - self.at
        if size > left:
            self.fail(f"{what} takes {size} bytes and {left} are left: the file is cut or damaged")

    def take(self, size: int, what: str) -> bytes:
        """Read ``size`` bytes."""
        self.need(size, what)
        self.at += size
        return bytes(self.view[self.at - size : self.at])

    def number(self, kind: str, what: str) -> Any:
        """Read a scalar of a kind such as ``"u32"``."""
        scalar = SCALARS[kind]
        self.need(scalar.size, what)
        if kind == "bool" and self.view[self.at] > 1:
            self.fail(f"{what} is a bool of {self.view[self.at]}; it must be 0 or 1")
        [value] = scalar.unpack_from(self.view, self.at)
        self.at += scalar.size
        return value

    def text(self, what: str, rule: Callable[[bytes], str] | None = None) -> str:
        """Read a string, which ``rule`` may refuse by a complaint about its bytes."""
        start = self.at
        length = self.number("u64", f"the length of {what}")
        if length > LONGEST_TEXT:
            self.fail(f"{what} claims {length} bytes; at most 2^30 are allowed", start)
        raw = self.take(length, what)
        fault = rule(raw) if rule else ""
        if fault:
            self.fail(fault, start)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8: {error.reason}", start + 8 + error.start)

    def texts(self, count: int, what: str) -> list[str]:
        """Read strings, a vocabulary of hundreds of thousands without a wait."""
        length, view, end = SCALARS["u64"].unpack_from, self.view, len(self.view)
        values = []
        at = self.at
        for number in range(count):
            first = at + 8
            last = first + length(view, at)[0] if first <= end else end + 1
            try:
                if last > end or last - first > LONGEST_TEXT:
                    raise ValueError
                values.append(str(view[first:last], "utf-8"))
            except ValueError:  # UnicodeDecodeError is one
                self.at = at
                self.text(f"element {number} of {what}")  # raises, with the reason
            at = last
        self.at = at
        return values

    def count(self, what: str, smallest: int) -> int:
        """Read a number of things that take at least ``smallest`` bytes each."""
        start = self.at
        count = self.number("u64", f"the number of {what}")
        left = len(self.view) - self.at
        if count * smallest > left:
            self.fail(f"{count} {what} cannot fit the {left} bytes that follow", start)
        return count

    def kind(self, what: str) -> str:
        """Read the number of a value type and return its name."""
        start = self.at
        number = self.number("u32", f"the type of {what}")
        if number >= len(KINDS):
            self.fail(f"{what} has value type {number}; the types run from 0 to 12", start)
        return KINDS[number]

    def value(self, what: str) -> tuple[Any, ValueType]:
        """Read a value of any type, and return it with the name of its type."""
        kind = self.kind(what)
        if kind == "array":
            return self.array(what)
        return (self.text(what) if kind == "str" else self.number(kind, what)), kind

    def array(self, what: str) -> tuple[Any, ValueType]:
        """Read an array: strings as a list, numbers as a NumPy array of their own memory."""
        start = self.at
        kind = self.kind(f"the elements of {what}")
        if kind == "array":
            self.fail(f"{what} is an array of arrays, which llama.cpp does not read either", start)
        start = self.at
        width = 8 if kind == "str" else SCALARS[kind].size
        count = self.count(f"elements of {what}", width)
        if count > LONGEST_ARRAY:
            self.fail(f"{what} claims {count} elements; at most 2^30 are allowed", start)
        if kind == "str":
            return self.texts(count, what), "[str]"
        raw = np.frombuffer(self.take(count * width, what), np.uint8)
        if kind == "bool" and raw.max(initial=0) > 1:
            wrong = int(np.argmax(raw > 1))
            self.fail(
                f"{what} is an array of bools with a byte of {raw[wrong]}; it must be 0 or 1",
                self.at - count + wrong,
            )
        return raw.view(DTYPES[kind]).copy(), f"[{kind}]"
