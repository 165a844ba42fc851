"""Time GPTQ of one layer: ours against a plain-torch transcription of the original loop.

Both get the same weight and the same second moment, in float32, and alternate in one process with
equal threads, after one warm-up each (which compiles our inner loop). Validated before it is timed:
the transcription with fresh groups must agree with ours in nearly all codes, and the output errors
of both stand beside the times.

    python labs/experiments/gptq_speed.py --size 4096 --repeats 3 --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numba
import torch
from torch import Tensor

from quantlab.methods.gptq import gptq
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme
from quantlab.tensor import output_error

RESULT = Path(__file__).parent / "results" / "gptq_speed.json"


def original_gptq(
    weight: Tensor, hessian: Tensor, scheme: Scheme, *, damp: float = 0.01, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Run Algorithm 1 as the authors' code is organized; return Q and the losses.

    Cholesky, inverse, Cholesky; blocks of columns; one Python step a column, each a handful of
    torch calls; group grids read from the weight without the current block's updates. Only the
    grid rule is ours (``Scheme``), so that the comparison is of solvers.
    """
    W, H = weight.clone(), hessian.clone()
    columns = W.shape[1]
    H.diagonal().add_(damp * H.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    U = torch.linalg.cholesky(inverse, upper=True)
    Q, losses = torch.zeros_like(W), torch.zeros_like(W)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        block, errors = W[:, start:stop].clone(), torch.zeros_like(W[:, start:stop])
        inner = U[start:stop, start:stop]
        for i in range(stop - start):
            column, pivot = block[:, i], inner[i, i]
            if scheme.group_size is not None and (start + i) % scheme.group_size == 0:
                group = W[:, start + i : start + i + scheme.group_size]
                scale, zero = scheme.grid(group)
            elif start + i == 0:
                scale, zero = scheme.grid(W)
            codes = torch.clamp(torch.round(column / scale) + zero, 0, scheme.levels - 1)
            rounded = scale * (codes - zero)
            Q[:, start + i] = rounded
            losses[:, start + i] = (column - rounded) ** 2 / pivot**2 / 2
            error = (column - rounded) / pivot
            block[:, i:] -= error[:, None] @ inner[i, i:][None]
            errors[:, i] = error
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return Q, losses


def layer(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make a weight (size, size) and the second moment of correlated inputs with outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    mixing = torch.randn(size // 4, size, generator=generator) / size**0.25
    x = torch.randn(2 * size, size // 4, generator=generator) @ mixing
    x += 0.3 * torch.randn(2 * size, size, generator=generator)
    x[:, :: size // 8] *= 10
    return weight, x.T @ x / len(x)


def measure(weight: Tensor, moment: Tensor, threads: int, repeats: int) -> dict:
    """Alternate both solvers ``repeats`` times; return their wall and CPU times and errors."""
    torch.set_num_threads(threads)
    scheme = Scheme(bits=4, group_size=128)
    solvers = {
        "ours": lambda: gptq(weight, moment, scheme).dequantize(),
        "original": lambda: original_gptq(weight, moment, scheme)[0],
    }
    quantized = {name: solver() for name, solver in solvers.items()}  # warm-up
    wall: dict[str, list[float]] = {name: [] for name in solvers}
    processor: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(repeats):
        for name, solver in solvers.items():
            began, used = time.perf_counter(), time.process_time()
            solver()
            wall[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - used)
    quantized["rtn"] = rtn(weight, scheme).dequantize()
    error = {name: output_error(weight, Q, moment) for name, Q in quantized.items()}
    scale = output_error(weight, torch.zeros_like(weight), moment)
    # Scales fitted to weights that were summed in another order differ in their last digits.
    same = torch.isclose(quantized["ours"], quantized["original"], rtol=1e-3, atol=0)
    return {
        "threads": threads,
        "wall_seconds": {name: summary(times) for name, times in wall.items()},
        "cpu_seconds": {name: summary(times) for name, times in processor.items()},
        "ratio_wall": statistics.median(wall["original"]) / statistics.median(wall["ours"]),
        "ratio_cpu": statistics.median(processor["original"])
        / statistics.median(processor["ours"]),
        "relative_output_error": {name: value / scale for name, value in error.items()},
        "equal_weights": same.double().mean().item(),
    }


def summary(times: list[float]) -> dict[str, float]:
    """Return least, middle and greatest of some times, in seconds."""
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def processor_name() -> str:
    """Return the CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print one line a thread count, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    weight, moment = layer(options.size, options.seed)
    runs = []
    for threads in options.threads:
        run = measure(weight, moment, threads, options.repeats)
        runs.append(run)
        ours, original = run["wall_seconds"]["ours"], run["wall_seconds"]["original"]
        print(
            f"{options.size} x {options.size}, {threads} thread(s): ours {ours['median']:.2f} s, "
            f"original {original['median']:.2f} s, {run['ratio_wall']:.2f} x faster "
            f"(CPU time {run['ratio_cpu']:.2f} x); relative error {run['relative_output_error']}"
        )
    result = {
        "command": "python labs/experiments/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "hardware": {"cpu": processor_name(), "isa": torch.backends.cpu.get_cpu_capability()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numba": numba.__version__,
        },
        "size": options.size,
        "scheme": "w4g128sym",
        "dtype": "float32",
        "seed": options.seed,
        "repeats": options.repeats,
        "runs": runs,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    main()
