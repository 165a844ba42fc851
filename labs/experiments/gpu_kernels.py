"""Time the GPU kernels against other libraries' 4-bit kernels; write JSON and a roofline.

Every contestant is validated against its own weight in float64 before it is timed. All take turns
in a new order each round. A sample is one replay of a CUDA graph of many calls between two events:
no Python, no launch from the host. *Cold* calls rotate through weights of four times the second
cache, so that each comes from memory; *hot* ones use one weight. Without a GPU it says so and ends.

    PYTHONPATH=. python labs/experiments/gpu_kernels.py --rounds 20
    PYTHONPATH=. python labs/experiments/gpu_kernels.py --sweep        # our block sizes as well
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labs.experiments.gpu_contestants import Graphs, entrants
from quantlab.kernels.bench import race
from quantlab.kernels.contest import Contestant, Prepared, Product, validate
from quantlab.kernels.machine import versions
from quantlab.kernels.samples import compare, summarize
from quantlab.plot_roofline import attainable
from quantlab.plot_style import CYCLE, MARKERS, PALETTE, Picture, canvas, styled

RESULT = Path(__file__).parent / "results" / "gpu_kernels.json"
SHAPES = ((4096, 4096), (14336, 4096), (28672, 4096))  # projections of 8 billion parameters
BATCHES = (1, 16, 64, 128)
GOAL_BANDWIDTH, GOAL_BEST = 0.8, 1.3
FOUR_BITS = ("torch tinygemm", "bitsandbytes")  # 4-bit kernels that people use


@dataclass(frozen=True)
class Card:
    """A GPU and what it can do, as measured."""

    name: str
    processors: int
    cache: int  # bytes of the second cache
    copy: float  # bytes a second, read and written
    peak: float  # bfloat16 operations a second of cuBLAS


@dataclass(frozen=True)
class Row:
    """What one contestant did in one product."""

    name: str
    activations: str
    bits: float
    ours: bool
    shape: tuple[int, int, int]
    cache: str
    times: dict[str, float]
    rounds: tuple[float, ...]
    bandwidth: float
    bandwidth_share: float
    speed: float
    intensity: float
    error: float


def measured_card() -> Card:
    """Describe the GPU and measure how fast it copies and multiplies."""
    properties = torch.cuda.get_device_properties(0)
    one, two = (torch.randn(1 << 28, device="cuda") for _ in range(2))
    copy = min(Graphs([lambda: two.copy_(one)]).turn(10, 1, cold=False))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiply = min(Graphs([lambda: a @ b]).turn(10, 1, cold=False))
    return Card(
        properties.name,
        properties.multi_processor_count,
        properties.L2_cache_size,
        2 * one.nbytes / copy,
        2 * 8192**3 / multiply,
    )


def weight_sets(nbytes: int, cache: int) -> int:
    """Return how many sets of a weight are more than four times the second cache, 2 at least."""
    return max(2, 4 * cache // nbytes + 1)


def admitted(
    makers: Iterable[tuple[str, Callable[[], Contestant]]], card: Card, refused: dict[str, str]
) -> dict[Contestant, tuple[Prepared, float]]:
    """Make contestants and validate them; a library that is missing or wrong is named, not timed.

    Other people's libraries fail in their own ways: whatever they raise is the reason.
    """
    ready = {}
    for name, make in makers:
        try:
            made = make()
            prepared = made.prepare(weight_sets(made.weight_bytes, card.cache))
            ready[made] = prepared, validate(made, prepared.result())
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return ready


def timed(
    product: Product,
    ready: dict[Contestant, tuple[Prepared, float]],
    card: Card,
    cache: str,
    rounds: int,
) -> list[Row]:
    """Race the contestants once; return a row for each."""
    entries = {made.name: prepared for made, (prepared, _) in ready.items()}
    times = race(entries, cold=cache == "cold", rounds=rounds)
    return [
        row_of(product, made, times[made.name], card, cache=cache, error=error)
        for made, (_, error) in ready.items()
    ]


def row_of(
    product: Product,
    made: Contestant,
    times: Sequence[Sequence[float]],
    card: Card,
    *,
    cache: str,
    error: float,
) -> Row:
    """Return what a contestant's times (rounds of calls) say."""
    summary = summarize([seconds for calls in times for seconds in calls])
    rows, columns, batch = product.shape
    moved = made.weight_bytes + 2 * batch * (rows + columns)
    return Row(
        made.name,
        made.activations,
        made.bits,
        made.ours,
        product.shape,
        cache,
        asdict(summary),
        tuple(float(np.median(calls)) for calls in times),
        moved / summary.median,
        moved / summary.median / card.copy,
        product.operations / summary.median,
        product.operations / moved,
        error,
    )


def goals(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return each goal with its figure: what our fastest float product reached, weights cold."""
    found: dict[str, dict[str, Any]] = {}
    for shape in dict.fromkeys(row.shape for row in rows):
        here = [row for row in rows if row.shape == shape and row.cache == "cold"]
        own = [row for row in here if row.ours and row.activations == "bfloat16"]
        peers = [row for row in here if row.name.startswith(FOUR_BITS)]
        if not own:
            continue
        best = min(own, key=lambda row: row.times["median"])
        label, batch = "{} x {}, batch {}".format(*shape), shape[2]
        if batch == 1:
            share = best.bandwidth_share
            found[f"{label}: share of copy bandwidth"] = met(share, share >= GOAL_BANDWIDTH)
        for peer in peers:
            least = 1 / GOAL_BEST if 16 <= batch <= 64 else 1.0
            ratio = compare(best.rounds, peer.rounds)
            found[f"{label}: against {peer.name}"] = met(ratio.ratio, ratio.ratio >= least) | {
                "interval": [ratio.low, ratio.high]
            }
    return found


def met(value: float, reached: bool) -> dict[str, Any]:
    """Return a figure and whether it reaches its goal."""
    return {"value": round(value, 3), "met": reached}


@styled
def roofline(card: Card, rows: Sequence[Row]) -> Picture:
    """Draw the card's limits, and the products with cold weights under them."""
    chosen = [row for row in rows if row.cache == "cold" and row.shape[:2] == SHAPES[0]]
    names = list(dict.fromkeys(row.name for row in chosen))
    figure, (axes,) = canvas(height=4.4 + 0.1 * len(names))
    at = np.geomspace(0.5, 4 * card.peak / card.copy, 100)
    roof = [attainable(value, card.copy, card.peak) / 1e12 for value in at]
    label = f"copies {card.copy / 1e12:.2f} TB/s, bfloat16 {card.peak / 1e12:.0f} Top/s"
    axes.plot(at, roof, color=PALETTE["ink"], label=label)
    for k, name in enumerate(names):
        points = [(row.intensity, row.speed / 1e12) for row in chosen if row.name == name]
        color, marker = PALETTE[CYCLE[k % len(CYCLE)]], MARKERS[k % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), marker, color=color, mec="white", label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte moved")
    axes.set_ylabel("trillion operations a second")
    axes.set_title(f"{card.name}: what it can reach, and what products reach")
    axes.grid(which="major")
    figure.legend(loc="outside lower center", ncols=2)
    return Picture(figure, f"Roofline of {card.name}: {label}; {len(chosen)} products under it.")


def write(path: Path, card: Card, rows: Sequence[Row], refused: dict[str, str]) -> None:
    """Write everything as JSON, and the roofline beside it as SVG and PNG."""
    result = {
        "units": {"times": "seconds", "bandwidth": "bytes/s", "speed": "operations/s"},
        "card": asdict(card),
        "python": platform.python_version(),
        "versions": versions(),
        "refused": refused,
        "goals": goals(rows),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    picture = roofline(card, rows)
    for suffix in (".svg", ".png"):
        picture.figure.savefig(path.with_suffix(suffix))


def shown(row: Row) -> str:
    """Return a row as a line of text."""
    return (
        f"{row.name:<34} {row.cache:<5} {row.times['median'] * 1e6:9.1f} us "
        f"{row.bandwidth / 1e9:7.0f} GB/s ({row.bandwidth_share:4.0%} of a copy's) "
        f"{row.speed / 1e12:7.2f} Top/s  error {row.error:.1e}"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run everything; return 1 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sweep", action="store_true", help="also time other block sizes of ours")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing was measured, nothing written", file=sys.stderr)
        return 1
    card, rows, refused = measured_card(), [], {}
    for height, width in SHAPES:
        for batch in BATCHES:
            product = Product.random(height, width, batch)
            ready = admitted(entrants(product, options.sweep), card, refused)
            for cache in ("hot", "cold"):
                added = timed(product, ready, card, cache, options.rounds)
                print(f"{height} x {width}, batch {batch}", *map(shown, added), sep="\n  ")
                rows += added
            write(options.out, card, rows, refused)  # what is measured is kept
            ready.clear()
    print(json.dumps({"refused": refused, "goals": goals(rows)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
