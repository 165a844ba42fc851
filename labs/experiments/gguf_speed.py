"""Time GGUF block types: ggml's C, ours with one and two threads, and the NumPy package ``gguf``.

All work on the same weights in one process and alternate; a figure is the best of some rounds, in
million weights a second. Equal bytes are demanded before anything is timed. ggml is called through
the wheel ``xllamacpp``, an AVX2 build; its quantizers are plain C, one thread.

    PYTHONPATH=. python labs/experiments/gguf_speed.py --rounds 7
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gguf
import numba
import numpy as np
import torch

from quantlab.gguf import TYPES, dequantize, quantize
from tests import ggml
from tests.gguf.rows import importance, written_types

RESULT = Path(__file__).parent / "results" / "gguf_speed.json"
Work = dict[str, Callable[[], object]]


def best_speeds(work: Work, weights: int, rounds: int) -> dict[str, float]:
    """Alternate the calls; return million weights a second of each one's fastest round."""
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return {name: round(weights / least / 1e6, 1) for name, least in seconds.items()}


def quantizers(name: str, x: np.ndarray, imatrix: np.ndarray | None) -> Work:
    """Return the ways to quantize x, after a look at their bytes; the first call compiles."""
    number = TYPES[name].id
    work: Work = {
        "C": lambda: ggml.quantize(x, number, imatrix),
        "ours": lambda: quantize(x, name, imatrix, threads=1),
        "ours, 2 threads": lambda: quantize(x, name, imatrix, threads=2),
    }
    if imatrix is None:
        work["numpy"] = lambda: gguf.quants.quantize(x, gguf.GGMLQuantizationType(number))
    return validated(name, work)


def dequantizers(name: str, data: np.ndarray, columns: int) -> Work:
    """Return the ways to read blocks back, after a look at their floats."""
    number = TYPES[name].id
    return validated(
        name,
        {
            "C": lambda: ggml.dequantize(data, number, columns),
            "ours": lambda: dequantize(data, name, threads=1),
            "ours, 2 threads": lambda: dequantize(data, name, threads=2),
            "numpy": lambda: gguf.quants.dequantize(data, gguf.GGMLQuantizationType(number)),
        },
    )


def validated(name: str, work: Work) -> Work:
    """Keep the calls that the package implements; all must give C's result."""
    wanted = np.asarray(work["C"]())
    for key, call in list(work.items()):
        try:
            result = call()
        except (NotImplementedError, ValueError):
            if key != "numpy":
                raise
            del work[key]
            continue
        if not np.array_equal(np.asarray(result).view(np.uint8), wanted.view(np.uint8)):
            raise SystemExit(f"{name}: {key} and C differ; nothing was timed")
    return work


def measure(name: str, x: np.ndarray, rounds: int) -> dict:
    """Return the speeds of one type, and how ours compare."""
    row: dict = {"quantize": best_speeds(quantizers(name, x, None), x.size, rounds)}
    if TYPES[name].imatrix != "ignored":
        work = quantizers(name, x, importance(x.shape[1]))
        row["quantize_with_imatrix"] = best_speeds(work, x.size, rounds)
    data = quantize(x, name)
    row["dequantize"] = best_speeds(dequantizers(name, data, x.shape[1]), x.size, rounds)
    speed = row["quantize"]
    row["ratio_to_C"] = round(speed["ours"] / speed["C"], 2)
    row["ratio_2_to_1_threads"] = round(speed["ours, 2 threads"] / speed["ours"], 2)
    if "numpy" in speed:
        row["ratio_to_numpy"] = round(speed["ours"] / speed["numpy"], 2)
    return row


def processor_name() -> str:
    """Return the CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure the types, print a line for each, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--types", nargs="+", default=written_types(), metavar="TYPE")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    x = rng.standard_normal((options.rows, options.columns), dtype=np.float32)
    result: dict = {
        "command": "python labs/experiments/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "hardware": {"cpu": processor_name(), "isa": torch.backends.cpu.get_cpu_capability()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "ggml": ggml.library().ggml_version().decode(),
            "xllamacpp": version("xllamacpp"),
            "gguf": version("gguf"),
        },
        "weights": {"shape": list(x.shape), "distribution": "normal(0, 1)", "dtype": "float32"},
        "unit": "million weights a second, the fastest round",
        "seed": options.seed,
        "rounds": options.rounds,
        "types": {},
    }
    for name in options.types:
        row = result["types"][name] = measure(name, x, options.rounds)
        kinds = [key for key in row if isinstance(row[key], dict)]
        print(f"{name}: {row['ratio_to_C']} x C; " + "; ".join(f"{k} {row[k]}" for k in kinds))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    main()
