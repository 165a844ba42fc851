"""Every method on the same models, schemes and text: a fair table, resumable cell by cell.

Same calibration windows for all, same held-out windows, one thread, the same number of steps for
all methods that learn. Each finished cell is written to the JSON at once; a second run goes on with
those that are missing.

    python labs/experiments/methods.py                         # all that is missing
    python labs/experiments/methods.py --only "storyteller/w3g64sym/*"
    python labs/experiments/methods.py --table                 # print the table, measure nothing
    python labs/experiments/methods.py --readme                # and put it into the README
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quantlab.block import Method
from quantlab.data import calibration_set, test_set
from quantlab.evaluate import evaluate, log_probabilities
from quantlab.methods.adaround import AdaRound
from quantlab.methods.adascale import AdaScale
from quantlab.methods.awq import AWQ
from quantlab.methods.flexround import FlexRound
from quantlab.methods.gptq import GPTQ
from quantlab.methods.hqq import HQQ
from quantlab.methods.omniquant import OmniQuant
from quantlab.methods.rtn import RTN
from quantlab.models.loading import load
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "methods.json"
BEGIN, END = "<!-- methods table: begin -->", "<!-- methods table: end -->"
STEPS, CALIBRATION, TEST = 300, 32, 32  # steps a block; windows of 256 tokens
MODELS = ("storyteller", "storyteller-outlier")
SCHEMES = ("w4g64sym", "w3g64sym", "w2g32sym", "w4sym")
METHODS: dict[str, Method] = {
    "RTN": RTN(),
    "HQQ": HQQ(),
    "AWQ": AWQ(),
    "GPTQ": GPTQ(),
    "AWQ+GPTQ": AWQ(then=GPTQ()),
    "AdaRound": AdaRound(iterations=STEPS),
    "FlexRound": FlexRound(iterations=STEPS),
    "OmniQuant": OmniQuant(iterations=STEPS),
    "AdaScale": AdaScale(iterations=STEPS),
}
Result = dict[str, Any]


def new_result() -> Result:
    """Return a result without cells: what was fixed for all of them, and where."""
    return {
        "command": "python labs/experiments/methods.py",
        "hardware": f"{processor()}, {os.cpu_count()} cores, 1 thread",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "seed": 0,
        "steps": STEPS,
        "calibration_windows": CALIBRATION,
        "test_windows": TEST,
        "window": 256,
        "methods": {name: repr(method) for name, method in METHODS.items()},
        "float": {},
        "cells": {},
    }


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(result: Result) -> None:
    """Write the JSON with the cells that are already there: runs of other cells may go on beside.

    To a neighbor first, so that a killed run leaves the old file whole.
    """
    if RESULTS.exists():
        there = json.loads(RESULTS.read_text(encoding="utf-8"))
        for part in ("float", "cells"):
            result[part] = there[part] | result[part]
    written = RESULTS.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    written.replace(RESULTS)


def read() -> Result:
    """Return the JSON, or a result without cells.

    Raises
    ------
    SystemExit
        If its cells were measured with other methods, steps or windows.
    """
    fresh = new_result()
    if not RESULTS.exists():
        return fresh
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in ("seed", "steps", "calibration_windows", "test_windows", "methods"):
        if found[name] != fresh[name]:
            raise SystemExit(f"{RESULTS.name} was made with another {name!r}; delete it to begin")
    return found


def run(pattern: str) -> None:
    """Measure the cells whose name ``model/scheme/method`` matches and that are missing."""
    torch.set_num_threads(1)
    result = read()
    for name in MODELS:
        wanted = [
            (scheme, method)
            for scheme, method in itertools.product(SCHEMES, METHODS)
            if fnmatch.fnmatch(f"{name}/{scheme}/{method}", pattern)
            and f"{name}/{scheme}/{method}" not in result["cells"]
        ]
        if wanted:
            measure_model(name, wanted, result)


def measure_model(name: str, wanted: list[tuple[str, str]], result: Result) -> None:
    """Measure cells of one model, and write each as soon as it is known."""
    model, tokenizer = load(name)
    tokens, data = (
        test_set(tokenizer, samples=TEST),
        calibration_set(tokenizer, samples=CALIBRATION),
    )
    reference = log_probabilities(model, tokens)
    result["float"][name] = asdict(evaluate(model, tokens, tokenizer=tokenizer))
    for scheme, method in wanted:
        twin, _ = load(name)
        started = time.process_time()  # of the processor: other programs may run beside
        report = quantize_(twin, METHODS[method], Scheme.parse(scheme), data)
        seconds = time.process_time() - started
        quality = evaluate(twin, tokens, reference=reference, tokenizer=tokenizer)
        result["cells"][f"{name}/{scheme}/{method}"] = {
            "bits_per_weight": report.bits_per_weight,
            "seconds": round(seconds, 1),
            **asdict(quality),
        }
        save(result)
        print(f"{name}/{scheme}/{method}: {quality} in {seconds:.0f} s", flush=True)


# ---------------------------------------------------------------- the table


def table(result: Result) -> str:
    """Return the Markdown tables, one for each model, and what they say."""
    windows = f"{result['calibration_windows']} calibration and {result['test_windows']} test"
    parts = [
        f"Perplexity as a multiple of the float model's, with one standard error ({windows}",
        f"windows of {result['window']} tokens, paired). `w3g64` has 3 bits and groups of 64, `w4`",
        "one scale a row. AdaRound, FlexRound, OmniQuant and AdaScale learn for",
        f"{result['steps']} steps a block.",
    ]
    for name in (name for name in MODELS if name in result["float"]):
        parts += ["", *model_table(name, result)]
    made = f"Made by `{result['command']}` on {result['hardware']}, torch {result['torch']}."
    return "\n".join([*parts, "", *findings(result), "", made])


def model_table(name: str, result: Result) -> list[str]:
    """Return one model's table as lines: a row a method, a column a scheme, the best one bold."""
    cells, floating = result["cells"], result["float"][name]
    heads = [scheme.removesuffix("sym") for scheme in SCHEMES]
    heads = [f"{name} (float: {floating['perplexity']:.2f})", *heads, "CPU seconds, w3g64"]
    lines = [
        f"| {' | '.join(heads)} |",
        f"|---|{'--:|' * (len(SCHEMES) + 1)}",
    ]
    best = {}
    for scheme in SCHEMES:
        rows = {m: cells.get(f"{name}/{scheme}/{m}") for m in METHODS}
        known = {m: cell["ratio"] for m, cell in rows.items() if cell}
        best[scheme] = min(known, key=lambda m: known[m]) if known else None
    for method in METHODS:
        row = [one_cell(cells.get(f"{name}/{s}/{method}"), best[s] == method) for s in SCHEMES]
        timed = cells.get(f"{name}/w3g64sym/{method}")
        row.append("" if timed is None else f"{timed['seconds']:.0f}")
        lines.append(f"| {method} | {' | '.join(row)} |")
    return lines


def one_cell(cell: Result | None, best: bool) -> str:
    """Return ratio and standard error, bold if it is the best of its column."""
    if cell is None:
        return "not measured"
    digits = 3 if cell["ratio"] < 9.9995 else 1
    text = f"{cell['ratio']:.{digits}f} ± {cell['ratio_se']:.{digits}f}"
    return f"**{text}**" if best else text


def complete(result: Result) -> bool:
    """Tell whether every cell has been measured."""
    names = itertools.product(MODELS, SCHEMES, METHODS)
    return all("/".join(name) in result["cells"] for name in names)


def recovered(name: str, scheme: str, result: Result) -> tuple[str, float] | None:
    """Return the best method and the share that it wins back of the perplexity that RTN loses."""
    ratios = {m: result["cells"].get(f"{name}/{scheme}/{m}", {}).get("ratio") for m in METHODS}
    if None in ratios.values():
        return None
    best = min(ratios, key=lambda method: ratios[method])
    return best, (ratios["RTN"] - ratios[best]) / (ratios["RTN"] - 1)


def findings(result: Result) -> list[str]:
    """Return sentences that follow from the numbers: the best method at 3 and 2 bits."""
    lines = []
    for name, scheme in itertools.product(MODELS, ("w3g64sym", "w2g32sym")):
        found = recovered(name, scheme, result)
        if found is not None:
            method, share = found
            lines.append(
                f"- {name}, {scheme.removesuffix('sym')}: {method} wins back {100 * share:.0f} % "
                "of the perplexity that RTN loses."
            )
    return lines


def write_readme(result: Result) -> None:
    """Put the table between its marks in the README, or in front of the tests if there are none."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text:
        text = text.replace("## Run the tests", f"{BEGIN}\n{END}\n\n## Run the tests", 1)
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(result)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Read the arguments; measure, or print what was measured."""
    parser = argparse.ArgumentParser(description="Compare all methods.")
    parser.add_argument("--only", default="*", help="cells to measure: model/scheme/method")
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    parser.add_argument("--readme", action="store_true", help="put the table into the README")
    arguments = parser.parse_args()
    if not (arguments.table or arguments.readme):
        run(arguments.only)
    if arguments.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    if arguments.readme:
        write_readme(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
