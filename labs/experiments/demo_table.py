"""Run ``quantlab demo`` and put its figures into the README, with the command that made them.

python labs/experiments/demo_table.py
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from quantlab.demo import Row, run_demo

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "demo.json"
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "What `quantlab demo` measures on the embedded model (groups of 64; perplexity on unseen",
        "stories, and how many times the float model's it is, with one standard error; KL: how far",
        "the next-word forecast moved, in nats per token):",
        "",
        "| | bits per weight | bytes | perplexity | times float | KL |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        quality = row.quality
        score = f"{quality.perplexity:.2f} | {quality.ratio:.3f} ± {quality.ratio_se:.3f}"
        cost = f"{row.bits_per_weight:.2f} | {row.nbytes:,}"
        lines.append(f"| {row.name} | {cost} | {score} | {quality.kl:.4f} |")
    return "\n".join([*lines, "", "Made by `python labs/experiments/demo_table.py`."])


def main() -> None:
    """Measure, write the JSON, renew the README."""
    torch.set_num_threads(1)
    rows = run_demo()
    result = {
        "command": "python labs/experiments/demo_table.py",
        "torch": str(torch.__version__),
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
