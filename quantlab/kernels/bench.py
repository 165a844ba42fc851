"""Time products honestly: validate first, then take turns, then say all that counts.

A *contestant* is one way to compute y = x W^T with its own form of W. Before it is timed, its
result is compared with the product of its own weight in float64, and its error stays beside its
time: a kernel that rounds activations to 8 bits does less work than one that does not.

*Hot*: one set of weights, which stays in the cache if it fits. *Cold*: several sets in rotation,
together more than four times the third cache, so that each call reads its weights from memory, as
a model does that is larger than the cache.

Contestants take turns, in a new order each round, so that a slow second of the machine falls on
all. Each turn begins with calls that are not timed: they wake threads and fill caches. Repacking a
weight is not timed, rounding activations is: a model does the first once, the second at each call.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantlab.gguf.writer import whole_file
from quantlab.kernels.contest import (
    Contestant,
    Prepared,
    Product,
    WrongKernel,
    validate,
    weight_sets,
)
from quantlab.kernels.machine import Bystanders, Limits, Machine
from quantlab.kernels.samples import Comparison, Summary, compare, summarize
from quantlab.kernels.threads import set_threads

FEWEST, MOST = 3, 100  # timed calls of a turn
ROUNDS = 10
TURN = 0.01  # seconds that a turn should last
BUSY = 0.05  # of the processor used by others: more, and a race is worth another try
CACHES = ("hot", "cold")
SHARED = ("name", "activations", "bits", "ours", "note")  # by Contestant and Row


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes
    ----------
    name, activations, bits, ours, note
        As in ``Contestant``.
    shape : (out, in, batch)
    threads : int
    cache : ``hot`` or ``cold``
    times : Summary of all timed calls
    rounds : median seconds of each round, for comparisons
    weight_bytes : bytes of weights that one call reads
    moved : these, and the bytes of activations and results
    bandwidth, speed : bytes and operations a second, at the median
    error : relative error against float64
    others : part of the processor that other programs used, or None if untold
    bandwidth_share, peak_share : parts of what the machine can do, as measured; see ``Limits``
    """

    name: str
    activations: str
    bits: float
    ours: bool
    note: str
    shape: tuple[int, int, int]
    threads: int
    cache: str
    times: Summary
    rounds: tuple[float, ...]
    weight_bytes: int
    moved: int
    bandwidth: float
    speed: float
    error: float
    others: float | None
    bandwidth_share: float = float("nan")
    peak_share: float | None = None

    def against(self, other: Row, **options: Any) -> Comparison:
        """Compare with another row of the same run: above 1, this one is faster."""
        return compare(self.rounds, other.rounds, **options)


@dataclass(frozen=True)
class Ready:
    """A contestant that was right, its weights, and its relative error."""

    contestant: Contestant
    prepared: Prepared
    error: float


@dataclass
class Bench:
    """A whole run: the machine, the rows, and who was refused and why."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        product: Product,
        contestants: Iterable[Contestant],
        *,
        threads: Sequence[int] = (1,),
        caches: Sequence[str] = CACHES,
        rounds: int = ROUNDS,
        turn: float = TURN,
        patience: int = 1,
    ) -> list[Row]:
        """Validate contestants, time them against one another, add their rows and return them.

        One whose result is wrong is not timed; the reason stands in ``refused``. A race during
        which others used more than 5 % of the processor is run again, up to ``patience`` times,
        and the least disturbed one counts.

        Raises
        ------
        ValueError
            If caches holds other words than hot and cold, a number is out of range, the machine's
            limits were not measured for these threads, or a weight is too small to be cold.
        """
        check_words(caches)
        if rounds < 1 or not turn >= 0 or patience < 0:
            raise ValueError(
                f"rounds is {rounds}, turn {turn} and patience {patience}; take at least 1, 0, 0"
            )
        limits = [self.machine.limit(count) for count in threads]
        ready = self.prepared(contestants, cold="cold" in caches)
        added, before = [], torch.get_num_threads()
        try:
            for limit in limits:
                for cache in caches:
                    once = partial(timed, product, ready, limit, cache, rounds, turn)
                    added += undisturbed(once, patience)
        finally:
            torch.set_num_threads(before)
            for entry in ready:
                entry.prepared.close()
        added = [with_shares(row, self.machine) for row in added]
        self.rows += added
        return added

    def measure_again(self) -> None:
        """Measure the machine's limits once more, and state all shares of the higher ones."""
        self.machine = self.machine.measure_again()
        self.rows = [with_shares(row, self.machine) for row in self.rows]

    def prepared(self, contestants: Iterable[Contestant], *, cold: bool) -> list[Ready]:
        """Make weights ready; keep contestants whose results are right, with their errors."""
        ready = []
        for contestant in contestants:
            prepared = contestant.prepare(weight_sets(contestant.weight_bytes) if cold else 1)
            try:
                error = validate(contestant, prepared.result())
            except WrongKernel as wrong:
                self.refused[contestant.name] = str(wrong)
                prepared.close()
            else:
                ready.append(Ready(contestant, prepared, error))
        return ready

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, texts and numbers, for JSON."""
        return {
            "format": "quantlab bench 1",
            "units": {"times": "seconds", "bandwidth": "bytes/s", "speed": "operations/s"},
            "machine": self.machine.to_dict(),
            "rows": [asdict(row) for row in self.rows],
            "refused": dict(self.refused),
        }

    def write(self, path: Path) -> None:
        """Write a JSON file, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        with whole_file(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())


def check_words(caches: Sequence[str]) -> None:
    """Raise a ValueError unless each word is hot or cold."""
    for word in caches:
        if word not in CACHES:
            raise ValueError(f"cache is {word!r}; choose from {', '.join(CACHES)}")


def race(
    entries: Mapping[str, Prepared],
    *,
    threads: int = 1,
    cold: bool = False,
    rounds: int = ROUNDS,
    turn: float = TURN,
    seed: int = 0,
) -> dict[str, list[list[float]]]:
    """Let prepared contestants take turns; return the seconds of each one's calls, by round.

    Parameters
    ----------
    entries : Prepared by name
    threads : int
        For torch, for our kernels, and for ggml.
    cold : bool
        Rotate through the sets of weights.
    rounds : int >= 1
    turn : seconds that the calls of one turn take, about
    seed : int
        Of the order in each round.
    """
    use_threads(threads)

    def fitting(taken: Sequence[float]) -> int:
        return min(MOST, max(FEWEST, round(turn / float(np.median(taken)))))

    calls = {
        name: fitting(entry.turn(FEWEST, threads, cold=cold)) for name, entry in entries.items()
    }
    order, shuffler = list(entries), random.Random(seed)
    times: dict[str, list[list[float]]] = {name: [] for name in entries}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            taken = entries[name].turn(calls[name], threads, cold=cold)
            calls[name] = fitting(taken)  # a disturbed contestant must not stretch the race
            times[name].append(taken)
    return times


def undisturbed(run: Callable[[], list[Row]], patience: int) -> list[Row]:
    """Run a race until others leave the processor alone; return the least disturbed rows."""
    best = run()
    for _ in range(patience):
        if not best or (best[0].others or 0.0) <= BUSY:
            break
        again = run()
        if (again[0].others or 0.0) < (best[0].others or 0.0):
            best = again
    return best


def timed(
    product: Product,
    ready: Sequence[Ready],
    limits: Limits,
    cache: str,
    rounds: int,
    turn: float,
) -> list[Row]:
    """Race once and return a row for each contestant."""
    children = {entry.prepared.process for entry in ready} - {None}
    watch = Bystanders(number for number in children if number is not None)
    times = race(
        {entry.contestant.name: entry.prepared for entry in ready},
        threads=limits.threads,
        cold=cache == "cold",
        rounds=rounds,
        turn=turn,
    )
    others = watch.share()
    return [
        Row(
            **{name: getattr(entry.contestant, name) for name in SHARED},
            **speeds(product, entry.contestant, times[entry.contestant.name]),
            shape=product.shape,
            threads=limits.threads,
            cache=cache,
            error=entry.error,
            others=others,
        )
        for entry in ready
    ]


def speeds(
    product: Product, contestant: Contestant, times: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return what a contestant's times say, as fields of a Row."""
    summary = summarize([seconds for calls in times for seconds in calls])
    rows, columns, batch = product.shape
    element = 2 if contestant.activations == "bfloat16" else 4
    moved = contestant.weight_bytes + element * batch * (rows + columns)
    return {
        "times": summary,
        "rounds": tuple(float(np.median(calls)) for calls in times),
        "weight_bytes": contestant.weight_bytes,
        "moved": moved,
        "bandwidth": moved / summary.median,
        "speed": product.operations / summary.median,
    }


def with_shares(row: Row, machine: Machine) -> Row:
    """Return a row with its parts of what the machine can do."""
    limits = machine.limit(row.threads)
    roof, peak = limits.bandwidth(row.weight_bytes, row.cache), limits.peak(row.activations)
    return replace(
        row,
        bandwidth_share=row.bandwidth / roof,
        peak_share=None if peak is None else row.speed / peak,
    )


def use_threads(count: int) -> None:
    """Set the threads of torch, and let our kernels follow it."""
    torch.set_num_threads(count)
    set_threads(None)
