"""Store codes of 1 to 8 bits without a gap between them, and read them back.

Each row of codes is one little-endian bit stream: code k lies in bits k*bits .. k*bits + bits - 1,
its least significant bit first. Bit i of a stream is bit i % 8 of byte i // 8. A row is padded with
zero bits to whole bytes. Eight 3-bit codes a .. h fill three bytes, drawn as we write binary
numbers, high bit on the left; two of the codes straddle a border:

    byte            0                   1                   2
    bit      7 6 5 4 3 2 1 0     7 6 5 4 3 2 1 0     7 6 5 4 3 2 1 0
    code     c c b b b a a a     f e e e d d d c     h h h g g g f f
    its bit  1 0 2 1 0 2 1 0     0 2 1 0 2 1 0 2     2 1 0 2 1 0 2 1

Four-bit codes come out with the low nibble first: codes 1, 2 are the byte 0x21.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that a row of ``count`` codes takes, the last one padded.

    Raises
    ------
    ValueError
        If bits is not 1..8, or count is negative.

    Examples
    --------
    >>> packed_bytes(8, bits=3), packed_bytes(9, bits=3)
    (3, 4)
    """
    check_bits(bits)
    if count < 0:
        raise ValueError(f"count is {count}; pass the number of codes in a row, 0 or more")
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Write each row of codes as a dense little-endian bit stream.

    Parameters
    ----------
    codes : (..., count) uint8 tensor
        Below 2**bits.
    bits : 1..8
        Width of a code.

    Returns
    -------
    (..., packed_bytes(count, bits)) uint8 tensor

    Raises
    ------
    ValueError
        If bits is not 1..8, or codes is not uint8 or holds a value that needs more bits.

    Examples
    --------
    >>> pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), bits=4).tolist()
    [33, 3]
    """
    check_bits(bits)
    check_bytes(codes, "codes")
    count = codes.shape[-1]
    size = packed_bytes(count, bits)
    too_large = codes > 2**bits - 1
    if too_large.any():
        first = tuple(too_large.nonzero()[0].tolist())
        raise ValueError(
            f"code {int(codes[first])} at {list(first)} does not fit {bits} bits; "
            f"codes go up to {2**bits - 1}"
        )
    cycles = whole_cycles(codes, 8 // gcd(bits, 8))
    data = codes.new_zeros(*cycles.shape[:-1], bits // gcd(bits, 8))
    for code, byte, shift in places(bits):
        data[..., byte] |= cycles[..., code] << shift
        if shift + bits > 8:  # the code straddles a border: its high bits open the next byte
            data[..., byte + 1] |= cycles[..., code] >> (8 - shift)
    return data.flatten(-2)[..., :size].contiguous()


def unpack_codes(data: Tensor, bits: int, count: int) -> Tensor:
    """Read ``count`` codes from each row of bytes; the inverse of ``pack_codes``.

    Parameters
    ----------
    data : (..., bytes) uint8 tensor
        At least packed_bytes(count, bits) bytes a row; what follows them is not read.
    bits : 1..8
        Width of a code.
    count : codes in a row
        Padding leaves no trace in the bytes, so the caller says it.

    Returns
    -------
    (..., count) uint8 tensor

    Raises
    ------
    ValueError
        If bits is not 1..8, or data is not uint8 or too short.

    Examples
    --------
    >>> unpack_codes(torch.tensor([33, 3], dtype=torch.uint8), bits=4, count=3).tolist()
    [1, 2, 3]
    """
    check_bits(bits)
    check_bytes(data, "data")
    size = packed_bytes(count, bits)
    if data.shape[-1] < size:
        raise ValueError(
            f"data has {data.shape[-1]} bytes a row, but {count} codes of {bits} bits take {size}; "
            "check bits and count"
        )
    cycles = whole_cycles(data[..., :size], bits // gcd(bits, 8))
    codes = data.new_empty(*cycles.shape[:-1], 8 // gcd(bits, 8))
    for code, byte, shift in places(bits):
        value = cycles[..., byte] >> shift
        if shift + bits > 8:
            value |= cycles[..., byte + 1] << (8 - shift)
        codes[..., code] = value & (2**bits - 1)
    return codes.flatten(-2)[..., :count].contiguous()


def places(bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (code, its first byte, its shift there) until a code ends at a byte's end.

    Examples
    --------
    >>> list(places(6))
    [(0, 0, 0), (1, 0, 6), (2, 1, 4), (3, 2, 2)]
    """
    for code in range(8 // gcd(bits, 8)):
        yield code, *divmod(code * bits, 8)


def whole_cycles(row: Tensor, length: int) -> Tensor:
    """View (..., n) as (..., cycles, length), zeros behind the end."""
    cycles = -(-row.shape[-1] // length)
    return pad(row, (0, cycles * length - row.shape[-1])).unflatten(-1, (cycles, length))


def check_bits(bits: int) -> None:
    """Raise a ValueError unless ``bits`` is an integer from 1 to 8."""
    if type(bits) is not int or not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}; packing takes 1..8")


def check_bytes(data: Tensor, name: str) -> None:
    """Raise a ValueError unless ``data`` is a uint8 tensor with at least one axis."""
    if data.dtype != torch.uint8:
        raise ValueError(f"{name} has dtype {data.dtype}; convert it with {name}.to(torch.uint8)")
    if data.ndim == 0:
        raise ValueError(f"{name} is a scalar; pass a tensor with at least one axis")
