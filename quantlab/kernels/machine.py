"""The machine that timings come from: its name, its limits as measured, and who else was busy."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from quantlab.kernels.bandwidth import SECONDS, cache_bytes, levels, read_bandwidth
from quantlab.kernels.paths import available
from quantlab.kernels.peak import byte_peak, float_peak

PACKAGES = ("quantlab", "torch", "numpy", "numba", "llvmlite", "bitsandbytes", "xllamacpp")
ENVIRONMENT = ("GLIBC_TUNABLES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
PROC = Path("/proc")


@dataclass(frozen=True)
class Limits:
    """What a number of threads reach together when nothing else limits them.

    Attributes
    ----------
    threads : int
    read : bytes a second, by where the bytes lie: ``L2``, ``L3``, ``memory``
    float32 : operations a second, a multiply-add counted as two
    int8 : the same for bytes; None where the processor has no VPDPBUSD
    """

    threads: int
    read: Mapping[str, float]
    float32: float
    int8: float | None

    @classmethod
    def measure(cls, threads: int = 1, *, seconds: float = SECONDS) -> Limits:
        """Measure, in about 40 times ``seconds``.

        Raises
        ------
        ValueError
            If threads or seconds is not above 0.
        """
        read = {
            name: read_bandwidth(size, threads, seconds=seconds)
            for name, size in levels(threads).items()
        }
        return cls(
            threads,
            read,
            float_peak(threads, seconds=seconds),
            byte_peak(threads, seconds=seconds),
        )

    def best(self, other: Limits) -> Limits:
        """Return the higher of two measurements of each limit: what was reached can be reached."""
        read = {name: max(speed, other.read[name]) for name, speed in self.read.items()}
        int8 = None if self.int8 is None else max(self.int8, other.int8 or 0.0)
        return Limits(self.threads, read, max(self.float32, other.float32), int8)

    def bandwidth(self, nbytes: int, cache: str = "cold") -> float:
        """Return the speed of the memory that bytes come from: hot ones from where they fit."""
        if cache == "cold" or nbytes > cache_bytes(3):
            return self.read["memory"]
        return self.read["L2" if nbytes <= self.threads * cache_bytes(2) else "L3"]

    def peak(self, activations: str) -> float | None:
        """Return the operations a second for ``float32`` or ``int8`` activations.

        None for bfloat16: some processors multiply it twice as fast as float32, some slower.
        """
        if activations == "bfloat16":
            return None
        return self.int8 if activations.startswith("int8") else self.float32


@dataclass(frozen=True)
class Machine:
    """A processor and the software on it.

    Attributes
    ----------
    cpu : its name
    path : the fastest instructions that our kernels can use on it
    cores : those that this process may use
    caches : bytes of ``L2`` (one core's) and ``L3``
    system, python : text
    versions : of packages that take part
    environment : variables that change speed, where set
    limits : one for each number of threads
    """

    cpu: str
    path: str
    cores: int
    caches: Mapping[str, int]
    system: str
    python: str
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    limits: tuple[Limits, ...] = field(default=())

    @classmethod
    def measure(cls, threads: Iterable[int] = (1,), *, seconds: float = SECONDS) -> Machine:
        """Describe this machine and measure its limits for each number of threads."""
        limits = tuple(Limits.measure(count, seconds=seconds) for count in threads)
        return cls(
            cpu=processor_name(),
            path=available()[0],
            cores=usable_cores(),
            caches={"L2": cache_bytes(2), "L3": cache_bytes(3)},
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            versions=versions(),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            limits=limits,
        )

    def measure_again(self, *, seconds: float = SECONDS) -> Machine:
        """Measure the limits once more; return this machine with the higher ones."""
        limits = [old.best(Limits.measure(old.threads, seconds=seconds)) for old in self.limits]
        return replace(self, limits=tuple(limits))

    def limit(self, threads: int) -> Limits:
        """Return the limits for a number of threads.

        Raises
        ------
        ValueError
            If they were not measured.
        """
        for limits in self.limits:
            if limits.threads == threads:
                return limits
        measured = ", ".join(str(limits.threads) for limits in self.limits) or "none"
        raise ValueError(f"no limits for {threads} threads; measured: {measured}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, texts and numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.cpu}, {self.cores} cores ({self.path}), L2 {self.caches['L2'] >> 10} KB, "
            f"L3 {self.caches['L3'] >> 20} MB; {self.system}, Python {self.python}",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]
        lines += [f"{name}={value}" for name, value in self.environment.items()]
        for limits in self.limits:
            read = ", ".join(f"{name} {speed / 1e9:.0f}" for name, speed in limits.read.items())
            bytes_ = "no VPDPBUSD" if limits.int8 is None else f"int8 {limits.int8 / 1e9:.0f} Gop/s"
            lines.append(
                f"{limits.threads} thread{'s' * (limits.threads > 1)}: reads {read} GB/s; "
                f"float32 {limits.float32 / 1e9:.0f} GFLOP/s, {bytes_}"
            )
        return "\n".join(lines)


def processor_name() -> str:
    """Return the processor's name where the system tells it."""
    info = PROC / "cpuinfo"
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}


class Bystanders:
    """Watch how much of the processor others use while we measure.

    Examples
    --------
    >>> watch = Bystanders()
    >>> share = watch.share()
    >>> share is None or 0 <= share <= 1
    True
    """

    def __init__(self, children: Iterable[int] = ()) -> None:
        self.processes = [os.getpid(), *children]
        self.began = self.reading()

    def reading(self) -> tuple[float, float, float] | None:
        """Return now, busy seconds of all cores, and our own part of them; None if untold."""
        try:
            fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
            busy = sum(int(ticks) for k, ticks in enumerate(fields[:8]) if k not in (3, 4))
            own = sum(self.ticks(process) for process in self.processes)
        except (OSError, ValueError, IndexError):
            return None
        second = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy / second, own / second

    @staticmethod
    def ticks(process: int) -> int:
        """Return the clock ticks that a process has used."""
        after_name = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])

    def share(self) -> float | None:
        """Return the part of all cores, 0 to 1, that others used since the start.

        The system counts in steps of 10 ms: over less than 0.1 s, and where it tells nothing, None.
        """
        now = self.reading()
        if now is None or self.began is None or now[0] - self.began[0] < 0.1:
            return None
        spent, busy, own = (b - a for a, b in zip(self.began, now, strict=True))
        return min(1.0, max(0.0, (busy - own) / (spent * (os.cpu_count() or 1))))
