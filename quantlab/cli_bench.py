"""``quantlab bench``: time products with packed weights on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from quantlab.gguf import TYPES
from quantlab.kernels.bench import CACHES, ROUNDS, Bench
from quantlab.kernels.bench_text import same_race, text
from quantlab.kernels.contest import Contestant, Product
from quantlab.kernels.ggml_peer import BLOCK_TYPES, Ggml
from quantlab.kernels.machine import Machine, usable_cores
from quantlab.kernels.own import own_contestants
from quantlab.kernels.own_blocks import own_block_contestants
from quantlab.kernels.peers import float_peers, int4_peers, int8_peers
from quantlab.kernels.read_only import read_only
from quantlab.scheme import Scheme

SCHEMES = ("w4g32sym", "w4g128sym", "w8g128sym")
PICTURES = (".svg", ".png")


def bench_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``quantlab bench``."""
    add = command.add_argument
    add("--shape", type=shape, default=(4096, 4096), metavar="OUTxIN", help="default: 4096x4096")
    add("--batch", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    add("--threads", type=int, nargs="+", metavar="N", help="default: 1, and all cores")
    add("--cache", nargs="+", choices=CACHES, default=list(CACHES), help="default: both")
    add(
        "--scheme",
        nargs="+",
        default=list(SCHEMES),
        metavar="NAME",
        help=f"of our kernels (default: {' '.join(SCHEMES)})",
    )
    add("--peers", action="store_true", help="also torch's, bitsandbytes' and ggml's products")
    add("--ggml", type=Path, metavar="LIBRARY", help="also a ggml of your own: libggml-cpu.so")
    add("--gguf", nargs="+", default=[], metavar="TYPE", help="also our products of GGUF blocks")
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="everything, for programs")
    add("--picture", type=Path, metavar="FILE", help="the roofline, as .svg or .png")


def bench(options: argparse.Namespace) -> int:
    """Time products with packed weights: validated first, and their errors beside the times.

    Hot: one set of weights, in the cache if it fits. Cold: several sets in turns, from memory.
    Times are of medians unless they say min; "of read" is a part of the read bandwidth, and
    "of peak" of the operations a second, both measured on this machine just before.
    """
    check(options)
    threads = options.threads or sorted({1, usable_cores()})
    run = Bench(Machine.measure(threads))
    with ExitStack() as stack:
        ggml = engines(options, stack)
        for batch in options.batch:
            rows, columns = options.shape
            product = Product.random(rows, columns, batch)
            contestants = field_of(product, options, ggml)
            run.run(
                product,
                contestants,
                threads=threads,
                caches=options.cache,
                rounds=options.rounds,
            )
    print(text(run))
    if options.json:
        run.write(options.json)
        print(f"\nwritten to {options.json}")
    if options.picture:
        draw(run, options.picture)
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise a ValueError for what would only fail after minutes of measuring."""
    counts = [*options.batch, *(options.threads or [1]), options.rounds]
    if min(counts) < 1:
        raise ValueError(f"asked for {min(counts)}; batch, threads and rounds are 1 or more")
    if options.picture and options.picture.suffix.lower() not in PICTURES:
        raise ValueError(f"{options.picture} is no picture's name; end it with .svg or .png")
    if options.picture and find_spec("matplotlib") is None:
        raise ImportError("--picture needs matplotlib; pip install 'quantlab[notebook]'")
    for path in (options.json, options.picture):
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"{path.parent} is no folder; create it first")
    for name in options.scheme:
        Scheme.parse(name)


def shape(word: str) -> tuple[int, int]:
    """Read ``--shape``, such as 4096x11008.

    Examples
    --------
    >>> shape("4096x11008")
    (4096, 11008)
    """
    rows, _, columns = word.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"{word!r} is not OUTxIN, such as 4096x4096")
    return int(rows), int(columns)


def engines(options: argparse.Namespace, stack: ExitStack) -> list[Ggml]:
    """Start the ggml libraries that take part; each ends with the stack."""
    paths: list[Path | None] = [options.ggml] if options.ggml else []
    if options.peers and Ggml.installed():
        paths.append(None)
    return [stack.enter_context(Ggml(path)) for path in paths]


def field_of(
    product: Product, options: argparse.Namespace, ggml: Iterable[Ggml]
) -> list[Contestant]:
    """Return who takes part: torch's float rows first, then ours, then the peers."""
    schemes = [Scheme.parse(name) for name in options.scheme]
    ours = own_contestants(product, schemes)
    found = [*float_peers(product), read_only(product, ours[0].weight_bytes), *ours]
    if options.peers:
        sizes = sorted({scheme.group_size for scheme in schemes if scheme.group_size})
        found += int4_peers(product, sizes) + int8_peers(product)
    found += own_block_contestants(product, [name.upper() for name in options.gguf])
    columns = product.weight.shape[1]
    types = [name for name in BLOCK_TYPES if columns % TYPES[name].size == 0]
    for engine in ggml:
        found += engine.contestants(product, types)
    return found


def draw(run: Bench, path: Path) -> None:
    """Write the roofline of the largest number of threads, with ours and the best of the others."""
    from quantlab.plot_roofline import roofline, roofline_points

    limits = run.machine.limits[-1]
    shown = [row for row in run.rows if row.threads == limits.threads and row.ours]
    for _, rows in groupby(run.rows, key=same_race):
        others = [row for row in rows if row.threads == limits.threads and not row.ours]
        shown += sorted(others, key=lambda row: row.times.median)[:1]
    picture = roofline(limits, roofline_points(shown))
    path.write_bytes(picture.svg() if path.suffix.lower() == ".svg" else picture.png())
    print(f"written to {path}")
