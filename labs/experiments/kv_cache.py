"""Caches in few bits over long texts: what they lose and how many bytes they keep.

The story model reads windows of its whole context, 512 tokens, one token at a time, so that every
token sees all older ones as the cache holds them. A cache in float16 is the unit of memory.

    python labs/experiments/kv_cache.py
    python labs/experiments/kv_cache.py --table      # print the table, measure nothing
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantlab.data import test_set
from quantlab.evaluate import evaluate, log_probabilities
from quantlab.models.kv_cache import QuantizedKVCache, TokenByToken
from quantlab.models.loading import load

RESULTS = Path(__file__).parent / "results" / "kv_cache.json"
WINDOWS, LENGTH = 4, 512
FLOATS = {"key_bits": None, "value_bits": None}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": FLOATS,
    "4 bits, K per channel": {},
    "4 bits, K per channel, before RoPE": {"before_rope": True},
    "4 bits, K per token": {"key_axis": "token"},
    "2 bits, K per channel": {"key_bits": 2, "value_bits": 2},
    "2 bits, K per channel, before RoPE": {"key_bits": 2, "value_bits": 2, "before_rope": True},
    "2 bits, K per channel, latest 64 in float": {"key_bits": 2, "value_bits": 2, "residual": 64},
    "2 bits, K per token": {"key_bits": 2, "value_bits": 2, "key_axis": "token"},
}


def measure(name: str) -> dict[str, Any]:
    """Return perplexity, KL and bytes a token of each setting of one model."""
    model, tokenizer = load(name)
    tokens = test_set(tokenizer, samples=WINDOWS, length=LENGTH)
    reference = log_probabilities(model, tokens)
    rows = {}
    for setting, options in SETTINGS.items():
        make = partial(QuantizedKVCache, model.config, **({"residual": 0} | options))
        cached = TokenByToken(model, make)
        result = evaluate(cached, tokens, reference=reference)
        rows[setting] = {
            "perplexity": result.perplexity,
            "ratio": result.ratio,
            "ratio_se": result.ratio_se,
            "kl": result.kl,
            "kl_se": result.kl_se,
            "bytes_per_token": cached.nbytes / (WINDOWS * LENGTH),
        }
        print(f"{name}, {setting}: {result}, {rows[setting]['bytes_per_token']:.0f} B", flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the Markdown tables of a result."""
    lines = []
    for name, rows in result["models"].items():
        lines += [
            f"| {name} | bytes a token | perplexity | KL, nats a token |",
            "|---|--:|--:|--:|",
        ]
        for setting, row in rows.items():
            kl = f"{row['kl']:.5f} ± {row['kl_se']:.5f}"
            line = f"| {setting} | {row['bytes_per_token']:.0f} | {row['perplexity']:.3f} | {kl} |"
            lines.append(line)
        lines.append("")
    where = f"{result['hardware']}, torch {result['torch']}"
    return "\n".join([*lines, f"Made by `{result['command']}` on {where}: {WINDOWS} windows."])


def main() -> None:
    """Read the arguments; measure, or print what was measured."""
    parser = argparse.ArgumentParser(description="Measure caches in few bits.")
    parser.add_argument("--table", action="store_true", help="print the table, measure nothing")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        result = {
            "command": "python labs/experiments/kv_cache.py",
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
            "torch": str(torch.__version__),
            "windows": WINDOWS,
            "length": LENGTH,
            "models": {name: measure(name) for name in ("storyteller", "storyteller-outlier")},
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
