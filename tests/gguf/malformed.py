"""GGUF files written byte by byte, with no help from the package: sound ones, and broken ones.

Each broken file breaks one rule, and names the byte where a reader should notice.
"""

import struct
from typing import NamedTuple

U8, BOOL, STRING, ARRAY, U32, F32_VALUE, U64 = 0, 7, 8, 9, 4, 6, 10
F32, Q4_0, IQ4_XS = 0, 2, 23
REMOVED = (4, 5, 31, 32, 33, 36, 37, 38)
START = 24  # where the first key begins


def text(raw: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def entry(name: bytes, sizes: tuple, kind: int, offset: int = 0, dimensions: int = -1) -> bytes:
    """Return a row of the tensor table; ``sizes`` in the file's order."""
    count = len(sizes) if dimensions < 0 else dimensions
    return (
        text(name)
        + struct.pack(f"<I{len(sizes)}Q", count, *sizes)
        + struct.pack("<IQ", kind, offset)
    )


def whole(
    pairs=(), entries=(), data=b"", *, magic=b"GGUF", version=3, counts=None, alignment=32
) -> bytes:
    """Return a file; ``counts`` are its claims where they differ from the truth."""
    tensors, values = counts or (len(entries), len(pairs))
    head = magic + struct.pack("<IQQ", version, tensors, values)
    head += b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


class Broken(NamedTuple):
    data: bytes
    byte: int  # named in the message
    words: str  # found in the message


ARCH = pair(b"general.architecture", STRING, text(b"llama"))  # 45 bytes
NAME = 8 + 6  # bytes of the key below
ONE = entry(b"weight", (64,), F32)  # 38 bytes
DATA = bytes(256)
SIZES = START + len(ARCH) + 8 + 6 + 4  # of the first tensor after ARCH
KIND = SIZES + 8
AFTER = START + len(ARCH)


def value(kind: int, raw: bytes, key: bytes = b"some.k") -> bytes:
    """Return a file with one value of interest, which begins at byte 38 with its type."""
    return whole([pair(key, kind, raw)], [ONE], DATA)


def tensor(*args, data=DATA, **kwargs) -> bytes:
    """Return a file with one tensor, whose table entry begins at byte ``AFTER``."""
    return whole([ARCH], [entry(*args, **kwargs)], data)


def two(second: int, first: int = 0, data: bytes = bytes(320), sizes=(40,)) -> bytes:
    """Return a file with two tensors at the given offsets; 40 floats are 160 bytes."""
    return whole([], [entry(b"a", sizes, F32, first), entry(b"b", (8,), F32, second)], data)


SOUND = whole([ARCH], [ONE], DATA)
ODD = {  # legal, if unusual
    "version 2": whole([ARCH], [ONE], DATA, version=2),
    "nothing at all": whole(),
    "no tensors, and no padding": whole([ARCH])[: START + len(ARCH)],
    "bytes after the end": SOUND + b"more",
    "an unpadded last tensor": tensor(b"weight", (3,), F32, data=bytes(12)),
    "no dimensions: one number": tensor(b"weight", (), F32, data=bytes(4)),
    "a dimension of zero": tensor(b"weight", (32, 0), Q4_0, data=b""),
    "a row of zero": tensor(b"weight", (0, 7), Q4_0, data=b""),
    "a name of 63 bytes": tensor(b"n" * 63, (64,), F32),
    "a name of no bytes": tensor(b"", (64,), F32),
    "an empty array": value(ARRAY, array(STRING, 0, b"")),
    "an empty string": value(STRING, text(b"")),
    "alignment 1": whole(
        [pair(b"general.alignment", U32, struct.pack("<I", 1))], [ONE], DATA, alignment=1
    ),
    "alignment 4096": whole(
        [pair(b"general.alignment", U32, struct.pack("<I", 4096))], [ONE], DATA, alignment=4096
    ),
    "a key of 65,535 bytes": whole([pair(b"k" * 65_535, BOOL, b"\1")], [ONE], DATA),
}

BROKEN = {
    "an empty file": Broken(b"", 0, "0 are left"),
    "another magic": Broken(whole(magic=b"GGML"), 0, "b'GGML'"),
    "version 0": Broken(whole(version=0), 4, "version 0"),
    "version 1": Broken(whole(version=1), 4, "version 1"),
    "version 4": Broken(whole(version=4), 4, "version 4"),
    "big-endian, version 3": Broken(whole(version=3 << 24), 4, "big-endian file"),
    "big-endian, version 2": Broken(whole(version=2 << 24), 4, "big-endian file"),
    "an end inside the counts": Broken(whole()[:20], 16, "4 are left"),
    "2^40 tensors": Broken(
        whole([ARCH], [ONE], DATA, counts=(2**40, 1)), 8, "1099511627776 tensors"
    ),
    "one tensor more than bytes for it": Broken(whole(counts=(1, 0)), 8, "1 tensors"),
    "2^64 - 1 values": Broken(whole([ARCH], counts=(0, 2**64 - 1)), 16, "18446744073709551615"),
    "a value more than there is": Broken(whole([ARCH], counts=(0, 2)), AFTER, "is empty"),
    "an empty key": Broken(value(BOOL, b"\1", key=b""), START, "key is empty"),
    "a key of 65,536 bytes": Broken(value(BOOL, b"\1", key=b"k" * 65_536), START, "65536 bytes"),
    "a key of 2^64 - 1 bytes": Broken(
        whole([text(b"k", 2**64 - 1) + bytes(20)]), START, "18446744073709551615"
    ),
    "a key past the end": Broken(
        whole([text(b"k", 1000) + bytes(20)]), START + 8, "takes 1000 bytes"
    ),
    "a key that is no UTF-8": Broken(value(BOOL, b"\1", key=b"some.\xff"), START + 13, "not UTF-8"),
    "a key twice": Broken(
        whole([ARCH, ARCH]), AFTER, "'general.architecture' stands here a second"
    ),
    "a value type of 13": Broken(value(13, bytes(8)), START + NAME, "value type 13"),
    "a string past the end": Broken(value(STRING, text(b"", 2**30)), 50, "takes 1073741824 bytes"),
    "a string over 2^30": Broken(value(STRING, text(b"", 2**30 + 1)), 42, "at most 2^30"),
    "a string of 2^63": Broken(value(STRING, text(b"", 2**63)), 42, "9223372036854775808"),
    "a string that is no UTF-8": Broken(value(STRING, text(b"ab\xc3")), 52, "not UTF-8"),
    "an array of arrays": Broken(
        value(ARRAY, array(ARRAY, 1, array(U8, 1, b"\0"))), 42, "array of arrays"
    ),
    "an array of type 13": Broken(value(ARRAY, array(13, 1, bytes(8))), 42, "value type 13"),
    "an array of 2^63": Broken(value(ARRAY, array(U8, 2**63, b"")), 46, "9223372036854775808"),
    "an array that wraps to no bytes": Broken(
        value(ARRAY, array(U64, 2**61, b"")),
        46,
        "2305843009213693952 elements of 'some.k' cannot fit",
    ),
    "an array past the end": Broken(value(ARRAY, array(F32_VALUE, 2**28, b"")), 46, "268435456"),
    "an array of strings past the end": Broken(
        value(ARRAY, array(STRING, 2**20, b"")), 46, "1048576 elements of 'some.k'"
    ),
    "a string of an array past the end": Broken(
        value(ARRAY, array(STRING, 2, text(b"a") + text(b"b", 5000))), 71, "element 1 of 'some.k'"
    ),
    "a string of an array that is no UTF-8": Broken(
        value(ARRAY, array(STRING, 2, text(b"a") + text(b"\x80"))), 71, "element 1 of 'some.k'"
    ),
    "a string of an array without its length": Broken(
        value(ARRAY, array(STRING, 2, text(b"a" * 300)))[:366], 362, "element 1 of 'some.k'"
    ),
    "a bool of 2": Broken(value(BOOL, b"\2"), 42, "a bool of 2"),
    "an array with a bool of 7": Broken(value(ARRAY, array(BOOL, 2, b"\1\7")), 55, "a byte of 7"),
    "tensor name of 64 bytes": Broken(tensor(b"n" * 64, (64,), F32), AFTER, "64 bytes; at most 63"),
    "tensor name past the end": Broken(
        whole([ARCH], [text(b"n", 9999) + bytes(16)]), AFTER + 8, "takes 9999 bytes"
    ),
    "tensor name that is no UTF-8": Broken(tensor(b"\xff", (64,), F32), AFTER + 8, "not UTF-8"),
    "tensor name twice": Broken(
        whole([ARCH], [ONE, entry(b"weight", (64,), F32, 256)], bytes(512)),
        AFTER + len(ONE),
        "'weight' stands here a second time",
    ),
    "five dimensions": Broken(tensor(b"weight", (2,) * 5, F32), SIZES - 4, "5 dimensions"),
    "2^32 - 1 dimensions": Broken(
        tensor(b"weight", (64,), F32, dimensions=2**32 - 1), SIZES - 4, "4294967295 dimensions"
    ),
    "a dimension of 2^63": Broken(
        tensor(b"weight", (2**63,), F32), SIZES, "of 9223372036854775808"
    ),
    "a dimension of -1": Broken(
        tensor(b"weight", (2**64 - 1,), F32), SIZES, "18446744073709551615"
    ),
    "a product that wraps to 0": Broken(
        tensor(b"weight", (2**32, 2**32), F32), SIZES, "more weights"
    ),
    "a product beside a zero": Broken(
        tensor(b"weight", (0, 2**62, 2**62), F32), SIZES, "more weights"
    ),
    "a size that pads to 0": Broken(tensor(b"weight", (2**62 - 1,), F32), SIZES, "more weights"),
    "a size that wraps to 2": Broken(
        tensor(b"weight", (5124095576030431008,), Q4_0), SIZES, "more weights"
    ),
    "a size that nothing holds": Broken(
        tensor(b"weight", (2**59,), F32), 128, f"ends at byte {2**61 + 128}, and the file has 384"
    ),
    "type 200": Broken(tensor(b"weight", (64,), 200), KIND, "type 200"),
    "type -1": Broken(tensor(b"weight", (64,), 2**32 - 1), KIND, "type 4294967295"),
    "a row of 33 in blocks of 32": Broken(tensor(b"weight", (33,), Q4_0), SIZES, "rows of 33"),
    "a row of 128 in blocks of 256": Broken(
        tensor(b"weight", (128, 2), IQ4_XS), SIZES, "rows of 128"
    ),
    "one number in blocks of 32": Broken(tensor(b"weight", (), Q4_0), SIZES, "rows of 1 weights"),
    "a first offset of 32": Broken(two(192, first=32), 49, "offset 32; it must be 0"),
    "a gap": Broken(two(192), 82, "offset 192; it must be 160"),
    "an overlap": Broken(two(128), 82, "offset 128; it must be 160"),
    "an unaligned offset": Broken(two(148, sizes=(37,)), 82, "offset 148; it must be 160"),
    "two tensors in one place": Broken(two(0), 82, "offset 0; it must be 160"),
    "an offset that wraps": Broken(two(2**64 - 32), 82, "offset 18446744073709551584"),
    "tensors in reverse": Broken(two(0, first=32), 49, "offset 32; it must be 0"),
    "data cut short": Broken(SOUND[:-1], 128, "ends at byte 384, and the file has 383"),
    "no data": Broken(SOUND[:110], 128, "the file has 110"),
    "no data section for an empty tensor": Broken(
        tensor(b"weight", (0,), F32, data=b"")[:-1], 128, "the file has 127"
    ),
    "alignment 0": Broken(whole([pair(b"general.alignment", U32, bytes(4))]), 49, "alignment is 0"),
    "alignment 24": Broken(
        whole([pair(b"general.alignment", U32, struct.pack("<I", 24))], [ONE], DATA), 49, "is 24"
    ),
    "alignment as u64": Broken(
        whole([pair(b"general.alignment", U64, struct.pack("<Q", 32))], [ONE], DATA),
        49,
        "stored as u64",
    ),
    "alignment as a string": Broken(
        whole([pair(b"general.alignment", STRING, text(b"32"))], [ONE], DATA), 49, "stored as str"
    ),
    "data beyond the end by alignment": Broken(
        whole([pair(b"general.alignment", U32, struct.pack("<I", 2**31))], [ONE], DATA),
        2**31,
        "ends at byte 2147483904",
    ),
} | {
    f"removed type {number}": Broken(tensor(b"weight", (64,), number), KIND, f"type {number}")
    for number in REMOVED
}
