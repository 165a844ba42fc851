"""Measure the goals of the kernels: ours against the best of the others, in one run, by parts.

Each part is a set of races (see quantlab.kernels.bench): all contestants are validated, then take
turns. Above 1, ours is faster. The ratio of the best calls is what the kernels can do, and goals
are judged by it: noise of a shared machine only adds time. The ratio of medians, with a 99 %
bootstrap interval, is what they mostly did. Shares of the read bandwidth are against a contestant
that only reads as many bytes, in the same race. Parts can be measured apart, on a quiet machine:
each replaces its own rows in the JSON file.

    PYTHONPATH=. python labs/experiments/kernel_goals.py --ggml build/src/libggml-cpu.so

With --ggml, ggml is a library compiled for this processor; without, the one in the wheel xllamacpp,
which is compiled for AVX2. llama.cpp itself (part decode) always comes from the wheel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import goals_decode
from goals_table import line, markdown

from quantlab.kernels.bench import Bench, Row
from quantlab.kernels.bench_text import text
from quantlab.kernels.contest import Contestant, Product
from quantlab.kernels.ggml_peer import Ggml
from quantlab.kernels.machine import Limits, Machine
from quantlab.kernels.own import own_contestants
from quantlab.kernels.own_blocks import own_block_contestants
from quantlab.kernels.peers import float_peers, int4_peers, int8_peers
from quantlab.kernels.read_only import NAME, read_only
from quantlab.scheme import Scheme

RESULT = Path(__file__).parent / "results" / "kernel_goals.json"
GROUPS = (32, 64, 128)
BLOCK_TYPES = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
ROUNDS = {1: 8, 16: 6, 128: 5}
READ = 0.9  # of the read bandwidth, for cold products with one vector


class Run:
    """What parts need: the options, the machine, ggml, and the goals found so far."""

    def __init__(self, options: argparse.Namespace, machine: Machine, ggml: Ggml) -> None:
        self.options, self.machine, self.ggml = options, machine, ggml
        self.goals: list[dict] = []
        self.bench = Bench(machine)

    def race(self, product: Product, contestants: Iterable[Contestant], caches: tuple) -> list[Row]:
        batch = len(product.x)
        self.bench.run(
            product,
            contestants,
            threads=self.options.threads,
            caches=caches,
            rounds=ROUNDS[batch],
            patience=self.options.patience,
        )
        self.bench.measure_again()
        return [row for row in self.bench.rows if row.shape[2] == batch]

    def product(self, batch: int) -> Product:
        return Product.random(self.options.size, self.options.size, batch)

    def against_best(self, own: Row, peers: Iterable[Row], wanted: float | None) -> None:
        """Note how one of ours does against the fastest of the others in the same race."""
        same = [p for p in peers if (p.threads, p.cache, p.shape) == race_of(own)]
        best = min(same, key=lambda peer: peer.times.median)
        fastest = min(same, key=lambda peer: peer.times.minimum)
        ratio, of_best = own.against(best), fastest.times.minimum / own.times.minimum
        self.goals.append(
            about(own)
            | {
                "peer": best.name,
                "peer_us": us(best.times.median),
                "peer_error": best.error,
                "peer_best_us": us(fastest.times.minimum),
                "ratio": of_best,
                "median_ratio": ratio.ratio,
                "interval": [ratio.low, ratio.high],
                "goal": wanted,
                "met": None if wanted is None else of_best >= wanted,
            }
        )

    def against_memory(self, own: Row, rows: Iterable[Row]) -> None:
        """Note which part of the speed of reading, in the same race, one of ours reaches."""
        [read] = [row for row in rows if row.name == NAME and race_of(row) == race_of(own)]
        share = own.moved / own.times.minimum / (read.weight_bytes / read.times.minimum)
        self.goals.append(
            about(own)
            | {
                "peer": f"reading {read.weight_bytes / 1e6:.1f} MB",
                "peer_us": us(read.times.median),
                "peer_best_us": us(read.times.minimum),
                "ratio": share,
                "goal": READ,
                "met": share >= READ,
            }
        )


def race_of(row: Row) -> tuple:
    return row.threads, row.cache, row.shape


def us(seconds: float) -> float:
    return round(1e6 * seconds, 1)


def about(row: Row) -> dict:
    return {
        "own": row.name,
        "batch": row.shape[2],
        "threads": row.threads,
        "cache": row.cache,
        "own_us": us(row.times.median),
        "own_best_us": us(row.times.minimum),
        "own_error": row.error,
        "others": row.others,
    }


def int4(run: Run, batch: int) -> None:
    """4-bit products: ours in 8 bits against all 4-bit peers, ours in floats against theirs."""
    product = run.product(batch)
    symmetries = (True, False) if batch == 1 else (True,)
    schemes = [Scheme(4, group, symmetric=sym) for group in GROUPS for sym in symmetries]
    contestants = own_contestants(product, schemes, (16, 8) if batch < 128 else (8,))
    contestants += own_contestants(product, schemes[:1], (16,)) if batch == 128 else []
    contestants += int4_peers(product, (32, 128)) + run.ggml.contestants(product, ("Q4_0", "Q4_K"))
    contestants.append(read_only(product, contestants[0].weight_bytes))
    rows = run.race(product, contestants, ("cold",) if batch == 128 else ("hot", "cold"))
    peers = [row for row in rows if not row.ours and row.name != NAME]
    floats = [row for row in peers if not row.activations.startswith("int8")]
    for own in (row for row in rows if row.ours):
        if own.activations.startswith("int8"):
            wanted = 1.2 if batch > 1 else 2.0 if own.cache == "hot" else None
            run.against_best(own, peers, wanted)
            if batch == 1 and own.cache == "cold":
                run.against_memory(own, rows)
        else:
            run.against_best(own, floats, None)


def int8(run: Run, batch: int) -> None:
    """8-bit products: ours in 8 bits against torch's."""
    product = run.product(batch)
    contestants = own_contestants(product, [Scheme(8, 32), Scheme(8, 128), Scheme(8)], (8,))
    contestants += own_contestants(product, [Scheme(8, 128)], (16,)) + int8_peers(product)
    contestants.append(read_only(product, contestants[0].weight_bytes))
    rows = run.race(product, contestants, ("cold",) if batch == 128 else ("hot", "cold"))
    peers = [row for row in rows if not row.ours and row.name != NAME]
    bare = [row for row in peers if row.name == "torch _int_mm"]
    floats = [row for row in peers if row.activations == "bfloat16"]
    for own in (row for row in rows if row.ours):
        if not own.activations.startswith("int8"):
            run.against_best(own, floats, None)
        elif batch > 1:
            run.against_best(own, peers, 1.0)
        elif own.cache == "hot":
            run.against_best(own, bare, 1.2)
        else:
            run.against_best(own, peers, None)
            run.against_memory(own, rows)


def gguf(run: Run) -> None:
    """Products straight from the blocks of a GGUF file, against ggml's of the same type."""
    product = run.product(1)
    contestants = own_block_contestants(product, BLOCK_TYPES)
    contestants += run.ggml.contestants(product, BLOCK_TYPES)
    rows = run.race(product, contestants, ("hot", "cold"))
    for own in (row for row in rows if row.ours):
        kind = own.name.split()[1]
        peers = [r for r in rows if not r.ours and r.name.split()[1] == kind]
        run.against_best(own, peers, 1.5 if own.activations.startswith("int8") else None)


def floats(run: Run) -> None:
    """Torch's float products: what everything else is read against."""
    for batch in (1, 16, 128):
        product = run.product(batch)
        run.race(product, float_peers(product), ("hot", "cold") if batch < 128 else ("cold",))


def first_call(run: Run) -> None:
    """Measure the first calls of all products in a new process with an empty cache of code."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", FIRST],
                    env={**environment(), "NUMBA_CACHE_DIR": folder},
                    capture_output=True,
                    check=True,
                    text=True,
                ).stdout
            )
            for _ in range(2)
        ]
    for name, took, wanted in (("empty", seconds[0], 5.0), ("filled", seconds[1], None)):
        run.goals.append(
            {
                "own": f"first calls, cache on disk {name}",
                "own_s": round(took, 2),
                "peer": "limit of 5 s",
                "ratio": 5 / took,
                "goal": wanted and 1.0,
                "met": None if wanted is None else took <= wanted,
            }
        )


FIRST = """
import json, time, torch
import quantlab as ql
from quantlab.kernels.tiles import Tiles
weight, x = torch.randn(256, 256), torch.randn(16, 256)
tiles = {bits: Tiles.of(ql.rtn(weight, ql.Scheme(bits, 32)).pack()) for bits in (4, 8)}
began = time.perf_counter()
for activation_bits in (8, 16):
    for batch in (1, 16):
        ql.int4_matmul(x[:batch], tiles[4], activation_bits=activation_bits)
        ql.int8_matmul(x[:batch], tiles[8], activation_bits=activation_bits)
print(json.dumps(time.perf_counter() - began))
"""


def environment() -> dict[str, str]:
    import os

    return dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}


def decode(run: Run) -> None:
    """Tokens a second of the story model: float32, 8 and 4 bits, and llama.cpp on the exports."""
    for threads in run.options.threads:
        run.goals += goals_decode.measure(threads)


PARTS = {
    "float": floats,
    "int4 batch 1": lambda run: int4(run, 1),
    "int4 batch 16": lambda run: int4(run, 16),
    "int4 batch 128": lambda run: int4(run, 128),
    "int8 batch 1": lambda run: int8(run, 1),
    "int8 batch 16": lambda run: int8(run, 16),
    "int8 batch 128": lambda run: int8(run, 128),
    "gguf": gguf,
    "decode": decode,
    "first call": first_call,
}


def reached(machine: Machine, result: dict) -> Machine:
    """Raise a machine's limits to what other parts measured: what was reached can be reached."""
    limits = {limit.threads: limit for limit in machine.limits}
    for told in result["parts"].values():
        before = told["machine"]
        same = (before["cpu"], before["environment"]) == (machine.cpu, machine.environment)
        for fields in before["limits"] if same else []:
            threads = fields["threads"]
            if threads in limits:
                limits[threads] = limits[threads].best(Limits(**fields))
    return replace(machine, limits=tuple(limits.values()))


def measure(options: argparse.Namespace, result: dict) -> None:
    """Measure the parts that were asked for, and write after each."""
    machine = reached(Machine.measure(options.threads), result)
    print(machine, flush=True)
    with ExitStack() as stack:
        ggml = stack.enter_context(Ggml(options.ggml))
        for name in options.parts:
            began = time.perf_counter()
            run = Run(options, machine, ggml)
            PARTS[name](run)
            if run.bench.refused:
                raise SystemExit(f"{name}: {run.bench.refused}")
            machine = run.bench.machine
            told = {"seconds": round(time.perf_counter() - began, 1), "goals": run.goals}
            told["machine"] = machine.to_dict()
            told["rows"] = [asdict(row) for row in run.bench.rows]
            result["parts"][name] = told
            result["parts"] = {key: result["parts"][key] for key in PARTS if key in result["parts"]}
            write(options.out, result)
            print(text(run.bench) if options.rows else "", f"{name}: {told['seconds']} s")
            judged = [goal for goal in run.goals if goal["goal"] is not None]
            print("\n".join(line(name, goal) for goal in judged), flush=True)


def write(path: Path, result: dict) -> None:
    """Write the JSON file and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result) + "\n")


def main() -> None:
    """Measure, and update the JSON file and its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--ggml", type=Path, metavar="LIBRARY")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    parser.add_argument("--patience", type=int, default=1, help="more tries of a disturbed race")
    parser.add_argument("--rows", action="store_true", help="print all rows")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result = {"parts": {}}
    if options.out.exists():
        result = json.loads(options.out.read_text())
    words = [word for word in sys.argv[1:] if "/" not in word]  # without this machine's folders
    result["command"] = " ".join(["python labs/experiments/kernel_goals.py", *words])
    measure(options, result)


if __name__ == "__main__":
    main()
