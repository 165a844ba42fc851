"""Damage at random: a file parses or raises FormatError, in milliseconds, whatever it met."""

import random
import struct
import time
import tracemalloc

import pytest

from quantlab import gguf
from quantlab.gguf.cursor import Cursor
from tests.gguf import malformed as m

WIDTHS = {1: "B", 2: "H", 4: "I", 8: "Q"}
HOSTILE = sorted(
    {
        (2**bits + step) % 2**64
        for bits in (0, 8, 15, 16, 31, 32, 59, 60, 61, 62, 63, 64)
        for step in (-2, -1, 0, 1)
    }
    | {2, 3, 4, 5, 9, 13, 32, 33, 255, 2**30, 2**30 + 1, 2**64 - 32, 5124095576030431008}
)
SECONDS = 0.05  # of one file


def rich(version=3, alignment=32):
    """Return a file with every kind of value and several tensors."""
    pairs = [m.ARCH, m.pair(b"general.alignment", m.U32, struct.pack("<I", alignment))]
    for kind, letter in enumerate("BbHhIif?..Qqd"):
        if letter != ".":
            raw = struct.pack(f"<3{letter}", 1, 0, 1)
            pairs.append(m.pair(b"one.%d" % kind, kind, raw[: len(raw) // 3]))
            pairs.append(m.pair(b"many.%d" % kind, m.ARRAY, m.array(kind, 3, raw)))
    words = b"".join(map(m.text, (b"<s>", b"\xe2\x96\x81the", b"", b"<0x0A>")))
    pairs.append(m.pair(b"tokens", m.ARRAY, m.array(m.STRING, 4, words)))
    entries, blocks = [], b""
    for name, sizes, kind, size in TENSORS:
        entries.append(m.entry(name, sizes, kind, len(blocks)))
        blocks += random.Random(0).randbytes(size) + bytes(-size % alignment)
    return m.whole(pairs, entries, blocks, version=version, alignment=alignment)


TENSORS = [
    (b"token_embd.weight", (32, 2), m.Q4_0, 36),
    (b"norm.weight", (8,), m.F32, 32),
    (b"scale", (), m.F32, 4),
    (b"none", (32, 0), m.Q4_0, 0),
    (b"deep", (2, 1, 3, 2), 1, 24),  # F16
    (b"big", (256,), m.IQ4_XS, 136),
]
SEEDS = [rich(), rich(version=2, alignment=8)] * 4 + [m.SOUND, *m.ODD.values()]
SEEDS = [data for data in SEEDS if len(data) < 10_000]


def fields(data):
    """Return where each number of a sound file stands, and its width: what a liar would change."""
    found = []

    class Watched(Cursor):
        def number(self, kind, what):
            before = self.at
            result = super().number(kind, what)
            found.append((before, self.at - before))
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantlab.gguf.file.Cursor", Watched)
        gguf.parse(data)
    return found


FIELDS = [fields(data) for data in SEEDS]


def flip(data, places, rng):
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)


def cut(data, places, rng):
    del data[rng.randrange(len(data)) :]


def splice(data, places, rng):
    other = rng.choice(SEEDS)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def repeat(data, places, rng):
    at, length = rng.randrange(len(data)), rng.randint(1, 64)
    data[at:at] = data[at : at + length] * rng.randint(1, 4)


def drop(data, places, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def overwrite(data, places, rng):
    width = rng.choice(list(WIDTHS))
    put(data, rng.randrange(len(data)), width, rng)


def lie(data, places, rng):
    """Change a number that the reader believes: a count, a length, a size, a type, an offset."""
    for _ in range(rng.randint(1, 2)):
        put(data, *rng.choice(places), rng)


def put(data, at, width, rng):
    value = rng.choice(HOSTILE) % 2 ** (8 * width)
    data[at : at + width] = struct.pack(f"<{WIDTHS[width]}", value)


MUTATIONS = (flip, cut, splice, repeat, drop, overwrite, lie, lie, lie)


def damaged(rng):
    """Return a file after one to three accidents."""
    pick = rng.randrange(len(SEEDS))
    data = bytearray(SEEDS[pick])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            rng.choice(MUTATIONS)(data, FIELDS[pick], rng)
    return bytes(data)


def open_all(data):
    """Parse, and touch every tensor; tell whether the file was accepted."""
    try:
        file = gguf.parse(data, name="damaged.gguf")
    except gguf.FormatError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith("damaged.gguf, byte ")
        assert message.isprintable()
        return False
    for tensor in file.tensors.values():
        assert tensor.data.nbytes == tensor.nbytes
        if tensor.nbytes:
            tensor.data[..., -1].max()
        if tensor.nbytes < 4096:
            assert tensor.dequantize().shape == tensor.shape
    return True


def timed(data):
    """Return whether a file was accepted, and the seconds of this thread."""
    start = time.thread_time()  # what else the machine does is not our affair
    accepted = open_all(data)
    return accepted, time.thread_time() - start


def fuzz(count, seed):
    """Return how many of ``count`` damaged files were accepted, and the seconds of the slowest."""
    rng = random.Random(seed)
    accepted, slowest = 0, 0.0
    for _ in range(count):
        data = damaged(rng)
        good, seconds = timed(data)
        if seconds > SECONDS:  # perhaps the first of its type, which waits for a compiler
            _, seconds = timed(data)
        accepted += good
        slowest = max(slowest, seconds)
    return accepted, slowest


def test_3000_damaged_files_parse_or_raise_format_error():
    accepted, slowest = fuzz(3000, seed=1)
    assert 300 < accepted < 2700  # both happen: the damage is neither harmless nor hopeless
    assert slowest < SECONDS


@pytest.mark.slow
def test_100000_damaged_files_parse_or_raise_format_error_within_a_minute():
    start = time.thread_time()
    accepted, slowest = fuzz(100_000, seed=2)
    assert time.thread_time() - start < 60
    assert 10_000 < accepted < 90_000
    assert slowest < SECONDS


def test_damaged_files_take_little_memory():
    rng = random.Random(3)
    files = [damaged(rng) for _ in range(500)]
    for data in files:  # once before, for what is compiled and remembered
        open_all(data)
    tracemalloc.start()
    for data in files:
        open_all(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000  # the largest of these files has 8 kB
