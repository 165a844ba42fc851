"""What every ggml type is: a number of weights, the C struct that holds them, and two loops."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Blocks = NDArray[Any]  # structured: one record of ``layout`` a block
Bytes = NDArray[np.uint8]

TYPES: dict[str, type[BlockType]] = {}  # filled as the classes are defined


class BlockType:
    """A ggml tensor type: ``size`` weights of a row become one record of ``layout``.

    A subclass is never instantiated. Its docstring gives the formula of a weight; its two class
    methods fill one array from the other.

    Attributes
    ----------
    id : int
        The type's number in a file.
    size : weights a block
        Blocks never cross rows.
    layout : numpy dtype
        The C struct, little-endian and packed.
    limit : float
        The type refuses a weight of larger size: its scale would overflow float16, or its search
        float32.
    imatrix : "ignored", "used" or "required"
        What quantizing does with the importance of the columns.
    """

    id: ClassVar[int]
    size: ClassVar[int]
    layout: ClassVar[np.dtype]
    limit: ClassVar[float] = float(np.finfo(np.float32).max)
    imatrix: ClassVar[Literal["ignored", "used", "required"]] = "ignored"

    def __init_subclass__(cls) -> None:
        TYPES[cls.__name__] = cls

    @classmethod
    def encode(cls, rows: Floats, imatrix: Floats | None, blocks: Blocks) -> None:
        """Fill ``blocks`` (rows, columns / size), zeroed before, from ``rows`` (rows, columns)."""
        raise ValueError(f"{cls.__name__} can be read here, but not written")

    @classmethod
    def decode(cls, blocks: Blocks, rows: Floats) -> None:
        """Fill ``rows`` (rows, columns) from ``blocks`` (rows, columns / size)."""
        raise ValueError(f"{cls.__name__} holds no weights that become floats")

    @classmethod
    def bits_per_weight(cls) -> float:
        """Return the bits of a block divided by its weights."""
        return 8 * cls.layout.itemsize / cls.size

    @classmethod
    def row_bytes(cls, columns: int) -> int:
        """Return the bytes of a row of ``columns`` weights; a ValueError if blocks do not fit."""
        if columns % cls.size:
            raise ValueError(
                f"{cls.__name__} packs rows in blocks of {cls.size}, and a row has {columns} "
                "weights; choose a type with smaller blocks (Q8_0 and Q4_0: 32, F16: 1)"
            )
        return columns // cls.size * cls.layout.itemsize


def find_type(name: str | type[BlockType]) -> type[BlockType]:
    """Return the type of a name such as ``"Q4_K"``, in any case; a ValueError if there is none."""
    if isinstance(name, type):
        return name
    known = {key.upper(): cls for key, cls in TYPES.items()}
    if name.upper() not in known:
        guess = difflib.get_close_matches(name.upper(), known, n=1)
        hint = f"did you mean {guess[0]}? " if guess else ""
        raise ValueError(f"unknown ggml type {name!r}; {hint}known: {', '.join(TYPES)}")
    return known[name.upper()]
