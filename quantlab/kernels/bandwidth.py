"""How fast this machine reads memory, measured: the limit of a product with one vector.

One loop adds up a buffer of 64-bit integers, pass after pass, each thread its own part. A buffer
that fits a core's second cache gives that cache's speed, a larger one that of the third, and one of
several times the third gives the memory's. In the manner of McCalpin's STREAM (stream.h, 1995), but
reading only: a weight is read and never written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from quantlab.native import compiled

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
L2, L3 = 1 << 20, 32 << 20  # bytes, where the system does not tell
LARGEST = 1 << 30  # a buffer for memory's speed need not be larger
SECONDS = 0.05  # of one measurement: long against starting a thread


@compiled
def add_up(numbers, passes):
    """Read ``numbers`` (n,) uint64, n a multiple of 64, so many times; return something of it."""
    total = np.uint64(0)
    for turn in range(passes):
        part = np.uint64(turn)
        for i in range(np.uintp(numbers.size)):
            part += numbers[i]
        total ^= part
    return total


def read_bandwidth(
    nbytes: int, threads: int = 1, *, seconds: float = SECONDS, repeats: int = 5
) -> float:
    """Return the bytes a second at which a buffer is read again and again, the best of repeats.

    Parameters
    ----------
    nbytes : int >= 4096
        Size of the whole buffer, shared out over the threads.
    threads : int >= 1
    seconds : least duration of one measurement
    repeats : int >= 1

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if nbytes < 4096 * max(threads, 1):
        raise ValueError(f"asked to read {nbytes} bytes with {threads} threads; take 4096 for each")
    check_effort(threads, seconds, repeats)
    size = nbytes // (8 * threads) // 64 * 64
    buffers = [np.full(size, k, np.uint64) for k in range(threads)]

    def read(passes: int) -> float:
        return together([partial(add_up, buffer, passes) for buffer in buffers])

    passes = calibrated(read, seconds)
    return 8 * size * threads * passes / min(read(passes) for _ in range(repeats))


def check_effort(threads: int, seconds: float, repeats: int) -> None:
    """Raise a ValueError unless all three are above 0."""
    if threads < 1 or repeats < 1 or not 0 < seconds < np.inf:
        raise ValueError(
            f"threads is {threads}, repeats {repeats} and seconds {seconds}; all are above 0"
        )


def calibrated(work: Callable[[int], float], seconds: float) -> int:
    """Return how often to repeat ``work``, which tells how long it took, to fill so many seconds.

    Its first calls are the warm-up. The best of three counts: an interrupted call would end the
    search too early.
    """
    times = 1
    while (took := min(work(times) for _ in range(3))) < seconds / 4:
        times = max(2 * times, int(times * seconds / max(took, seconds / 64)))
    return max(1, int(times * seconds / took))


def together(jobs: Sequence[Callable[[], object]]) -> float:
    """Run each job in a thread of its own; return the seconds from first start to last end."""
    spans: list[tuple[float, float]] = []
    ready = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        ready.wait()
        began = time.perf_counter()
        job()
        spans.append((began, time.perf_counter()))

    workers = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)


def cache_bytes(level: int) -> int:
    """Return the size of a data cache (2: a core's own, 3: shared), as the system tells it.

    Where it does not tell: 1 MB and 32 MB.
    """
    for folder in sorted(CACHES.glob("index*")):
        try:
            kind, number = (folder / "type").read_text(), (folder / "level").read_text()
            if int(number) == level and kind.strip() != "Instruction":
                return parse_size((folder / "size").read_text())
        except (OSError, ValueError):
            continue  # a container that hides this file: try the next
    return L2 if level == 2 else L3


def parse_size(text: str) -> int:
    """Read a size such as ``32768K`` in bytes.

    Examples
    --------
    >>> parse_size("32768K"), parse_size("2M"), parse_size("512")
    (33554432, 2097152, 512)
    """
    text = text.strip()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor


def levels(threads: int) -> dict[str, int]:
    """Return the buffer sizes that stand for L2, L3 and memory: half of each cache, and 8 L3.

    Each thread has its own L2. The sum of the L3 buffer over all threads is half of L3.
    """
    l2, l3 = cache_bytes(2), cache_bytes(3)
    return {"L2": threads * l2 // 2, "L3": max(l3 // 2, threads * l2), "memory": memory_bytes()}


def memory_bytes() -> int:
    """Return a size that is several times the third cache, at most 1 GB."""
    return min(max(8 * cache_bytes(3), 256 << 20), LARGEST)
