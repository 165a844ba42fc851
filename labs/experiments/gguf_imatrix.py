"""Does an importance matrix help? The storyteller's linears in four GGUF types, with and without.

Every linear is replaced by its quantized and dequantized self; embedding, norms and head stay in
float. Two controls take the measured importances away again:

- "ones" runs the search that ggml uses with an imatrix, but tells it that all columns are alike;
- "shuffled" gives each column another column's importance (the middle of several shuffles).

    python labs/experiments/gguf_imatrix.py
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor, nn

import quantlab as ql
from quantlab.evaluate import compare, log_probabilities, losses
from quantlab.export.imatrix import imatrix
from quantlab.gguf import TYPES, dequantize, quantize
from quantlab.gguf.llama import gguf_name

RESULT = Path(__file__).parent / "results" / "gguf_imatrix.json"
Importances = Mapping[str, np.ndarray]


@torch.no_grad()
def round_trip(model: nn.Module, type: str, importances: Importances | None) -> nn.Module:
    """Return a copy of the model whose linears went through a GGUF type."""
    result = copy.deepcopy(model)
    for path, layer in result.named_modules():
        if isinstance(layer, nn.Linear):
            name = gguf_name(f"{path}.weight")
            assert name is not None
            blocks = quantize(
                layer.weight.float().numpy(), type, importances[name] if importances else None
            )
            layer.weight.copy_(torch.from_numpy(dequantize(blocks, type)))
    return result


def shuffled(importances: Importances, seed: int) -> Importances:
    """Return the same numbers, each in another column's place."""
    rng = np.random.default_rng(seed)
    return {name: rng.permutation(row) for name, row in importances.items()}


def measure(models: Mapping[str, nn.Module], tokens: Tensor, reference: Tensor) -> dict[str, dict]:
    """Return each model's quality beside the float model, and its loss beside the first model's."""
    rows, plain = {}, None
    for name, model in models.items():
        log_p = log_probabilities(model, tokens)
        plain = log_p if plain is None else plain
        paired = compare(log_p, plain, tokens)
        rows[name] = {
            "perplexity": math.exp(losses(log_p, tokens).mean()),
            **compare(log_p, reference, tokens),
            "ratio_to_none": paired["ratio"],
            "ratio_to_none_se": paired["ratio_se"],
        }
    return rows


def main() -> None:
    """Measure, print one line a model, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--types", nargs="+", default=["Q2_K", "Q3_K", "IQ4_XS", "Q4_K"])
    parser.add_argument("--shuffles", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=64, help="windows of 256 tokens")
    parser.add_argument("--windows", type=int, default=64, help="held-out windows of 256 tokens")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = ql.load("storyteller")
    tokens = ql.test_set(tokenizer, samples=options.windows)
    measured = imatrix(model, ql.calibration_set(tokenizer, samples=options.calibration))
    variants: dict[str, Importances | None] = {
        "none": None,
        "imatrix": dict(measured),
        "ones": {name: np.ones_like(row) for name, row in measured.items()},
    }
    for seed in range(options.shuffles):
        variants[f"shuffled {seed}"] = shuffled(measured, seed)
    reference = log_probabilities(model, tokens)
    types = {}
    for type in options.types:
        models = {name: round_trip(model, type, row) for name, row in variants.items()}
        rows = measure(models, tokens, reference)
        middle = statistics.median(row["kl"] for name, row in rows.items() if "shuffled" in name)
        types[type] = {"bits": TYPES[type].bits_per_weight(), "median_shuffled_kl": middle} | rows
        for name, row in rows.items():
            print(
                f"{type:7} {name:11} perplexity {row['perplexity']:8.3f}, "
                f"x {row['ratio']:.4f} +- {row['ratio_se']:.4f}, "
                f"KL {row['kl']:.5f} +- {row['kl_se']:.5f}, "
                f"x none {row['ratio_to_none']:.4f} +- {row['ratio_to_none_se']:.4f}",
                flush=True,
            )
    result = {
        "command": "python labs/experiments/" + " ".join([Path(__file__).name, *sys.argv[1:]]),
        "hardware": {"machine": platform.machine(), "isa": torch.backends.cpu.get_cpu_capability()},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "numba": numba.__version__,
        },
        "calibration": [measured.chunk_count, measured.chunk_size],
        "windows": list(tokens.shape),
        "float_perplexity": math.exp(losses(reference, tokens).mean()),
        "types": types,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    main()
