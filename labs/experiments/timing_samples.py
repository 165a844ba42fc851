"""Take the timing samples of module 24, and write them for the package.

Every sample is the time of one call of a real product, 4096 x 4096 with one vector. Some are taken
well and some badly, on purpose: cold and hot, with and without warm-up, one after another while a
neighbor wakes up, alternating, and with two threads under a processor quota.

The quota is emulated, so that no administrator's rights are needed: a child process is stopped and
continued by signals. A quota of 32 ms of processor time in every 32 ms is one core's worth; two
threads use it up in 16 ms and are then stopped for 16 ms, and one thread is never stopped.

    python labs/experiments/timing_samples.py
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import quantlab as ql
from quantlab.kernels.bandwidth import add_up, memory_bytes
from quantlab.kernels.bench import use_threads
from quantlab.kernels.contest import Product, weight_sets
from quantlab.kernels.machine import Machine
from quantlab.kernels.own import own_contestants
from quantlab.kernels.samples import summarize

TARGET = Path(ql.__file__).parent / "kernels" / "stored_samples.json"
SIZE, CALLS, SEED = 4096, 200, 24
PERIOD, RUN = 0.032, 0.016  # seconds: two threads use up 32 ms of processor time in 16 ms
QUOTA_CALLS = {"float32": 120, "bfloat16": 240, "int8": 1000}  # enough to be stopped often
QUOTA = (
    "emulated: a parent process sends SIGSTOP to the measuring process and, 16 ms later, SIGCONT, "
    "every 32 ms, as a quota of 32 ms of processor time in 32 ms does to two threads; one thread "
    "stays within that quota, so its process is not stopped"
)
Call = Callable[[], object]


def int4_calls(bits: int, *, cold: bool) -> list[Call]:
    """Return W4A16 or W4A8 products on one set of weights, or on enough to leave every cache."""
    product = Product.random(SIZE, SIZE, seed=SEED)
    (contestant,) = own_contestants(product, [ql.Scheme(4, 32)], [bits])
    prepared = contestant.prepare(weight_sets(contestant.weight_bytes) if cold else 1)
    return prepared.calls


def quota_call(kind: str) -> Call:
    """Return a product with a float32, bfloat16 or int8 weight."""
    product = Product.random(SIZE, SIZE, seed=SEED)
    if kind == "int8":
        (contestant,) = own_contestants(product, [ql.Scheme(8)], [8])
        return contestant.prepare(1).calls[0]
    dtype = getattr(torch, kind)
    weight, x = product.weight.to(dtype), product.x.to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


def timed(call: Call) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def series(calls: list[Call], count: int, warm_up: int) -> list[float]:
    """Call in rotation; return the seconds of ``count`` calls after the warm-up."""
    times = [timed(calls[k % len(calls)]) for k in range(warm_up + count)]
    return times[warm_up:]


def alternating(a: list[Call], b: list[Call], count: int, halfway: Call | None = None):
    """Time one call of a and one of b in turn, the order drawn anew for each pair."""
    rng = np.random.default_rng(SEED)
    series(a, 20 + len(a), 0), series(b, 20 + len(b), 0)  # warm-up
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(count):
        if halfway is not None and k == count // 2:
            halfway()
        for which in rng.permutation(2):
            calls = (a, b)[which]
            times[which].append(timed(calls[k % len(calls)]))
    return times


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run this script's other half in a process of its own, stopped at the end."""
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def fresh(bits: int) -> list[float]:
    """Return the first calls that a new process makes."""
    with child("--fresh", str(bits)) as process:
        assert process.stdout is not None
        return json.loads(process.stdout.readline())


def under_quota(threads: int) -> dict[str, list[float]]:
    """Return calls of a process with one core's worth of processor time, by kind of weight."""
    with child("--quota", str(threads)) as process:
        assert process.stdout is not None
        process.stdout.readline()  # warmed up
        while threads == 2 and process.poll() is None:
            time.sleep(RUN)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(PERIOD - RUN)
            os.kill(process.pid, signal.SIGCONT)
        found = json.loads(process.stdout.readline())
    return {f"quota, {kind}, {threads} threads": times for kind, times in found.items()}


@contextmanager
def neighbor() -> Iterator[Callable[[int], None]]:
    """Start a process that reads memory as fast as it can, stopped; give what sends it a signal."""
    with child("--neighbor") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield process.send_signal


def play_child(role: list[str]) -> None:
    """Be one of the children."""
    if role[0] == "--neighbor":
        buffer = np.ones(memory_bytes() // 8, np.uint64)
        add_up(buffer, 1)
        print("ready", flush=True)
        while True:
            add_up(buffer, 10)
    if role[0] == "--fresh":
        use_threads(1)
        print(json.dumps(series(int4_calls(int(role[1]), cold=False), 60, 0)), flush=True)
        return
    use_threads(int(role[1]))
    calls = {kind: quota_call(kind) for kind in QUOTA_CALLS}
    for call in calls.values():
        series([call], 50, 0)
    print("ready", flush=True)
    found = {kind: series([call], QUOTA_CALLS[kind], 5) for kind, call in calls.items()}
    print(json.dumps(found), flush=True)


def take() -> dict[str, list[float]]:
    """Return all samples in seconds, by name."""
    found = {"no warm-up": fresh(8)}
    for threads in (1, 2):
        found |= under_quota(threads)
    hot, cold = int4_calls(8, cold=False), int4_calls(8, cold=True)
    floats = int4_calls(16, cold=False)
    for threads in (1, 2):
        use_threads(threads)
        found[f"hot, {threads} threads"] = series(hot, CALLS, 50)
        found[f"cold, {threads} threads"] = series(cold, CALLS, len(cold))
    use_threads(1)
    found["A"], found["A again"] = alternating(hot, hot, CALLS)
    found["W4A8"], found["W4A16"] = alternating(hot, floats, CALLS)
    found["alone"] = series(cold, CALLS, len(cold))
    with neighbor() as send:
        send(signal.SIGCONT)
        found["with a neighbor"] = series(cold, CALLS, len(cold))
        send(signal.SIGSTOP)
        found["first of two"], found["second of two"] = alternating(
            cold, cold, CALLS, lambda: send(signal.SIGCONT)
        )
    return found


def main() -> None:
    """Measure and write."""
    if sys.argv[1:2] and sys.argv[1] in ("--fresh", "--quota", "--neighbor"):
        play_child(sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--remark", default="", help="kept in the file, such as: a shared machine")
    arguments = parser.parse_args()
    out = arguments.out
    samples = take()
    machine = Machine.measure((1, 2), seconds=0.03)
    weight = ql.rtn(torch.zeros(SIZE, SIZE), ql.Scheme(4, 32)).pack().nbytes
    document = {
        "format": "quantlab timing samples 1",
        "command": "python labs/experiments/timing_samples.py",
        "seed": SEED,
        "product": "4096 x 4096 with one vector; W4A8 in groups of 32 where nothing else is said",
        "weight_bytes": weight,
        "unit": "microseconds, in the order in which they were taken",
        "quota": QUOTA,
        "spread": "undisturbed calls, (p90 - p10) / median: "
        f"{summarize(samples['hot, 1 threads']).spread:.2f}; "
        "a run on a busy machine is to be repeated",
        "remark": arguments.remark,
        "machine": machine.to_dict(),
        "samples": {name: [round(1e6 * t, 2) for t in times] for name, times in samples.items()},
    }
    head = json.dumps({k: v for k, v in document.items() if k != "samples"}, indent=1)[:-2]
    lists = ",\n".join(f"  {json.dumps(n)}: {t}" for n, t in document["samples"].items())
    out.write_text(f'{head},\n "samples": {{\n{lists}\n }}\n}}\n', encoding="utf-8")
    for name, times in samples.items():
        low, middle, high = 1e6 * np.quantile(times, (0.1, 0.5, 0.9))
        print(f"{name:28} first {1e6 * times[0]:10.1f}  p10 {low:8.1f} median {middle:8.1f} "
              f"p90 {high:9.1f} max {1e6 * max(times):10.1f} us")  # fmt: skip


if __name__ == "__main__":
    main()
