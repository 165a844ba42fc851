"""Make tests/bnb_vectors.npz: what the real bitsandbytes does with awkward tensors, on a CPU.

With these, codes and scales are compared bit for bit where bitsandbytes is not installed; of the
decoded floats only the SHA-256 is kept.

    PYTHONPATH=. python labs/experiments/bnb_vectors.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import bitsandbytes.functional as F
import numpy as np
import torch
from torch import Tensor

OUT = Path(__file__).parents[2] / "tests" / "bnb_vectors.npz"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def sha(floats: Tensor) -> np.ndarray:
    """Return the SHA-256 of some float32 numbers."""
    return np.array(hashlib.sha256(floats.contiguous().numpy().tobytes()).hexdigest())


def inputs() -> dict[str, Tensor]:
    """Return weights with outliers, zeros and odd shapes, ties of both tables, and activations."""
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((8, 256)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.01] *= 12
    weight[2], weight[5, 64:128], weight[7] = 0, 0, weight[7] * 1e-6
    odd = rng.standard_normal((5, 77)).astype(np.float32)
    x = rng.standard_normal((12, 256)).astype(np.float32)
    x[:, 7] *= 25
    x[3, 100] = -6
    x[9] = 0
    bias = rng.standard_normal(8).astype(np.float32)
    made = {"weight": weight, "odd": odd, "ties": ties(), "x": x, "bias": bias}
    return {name: torch.from_numpy(array) for name, array in made.items()}


def ties() -> np.ndarray:
    """Return (2, 64): the midpoints between levels of NF4 and FP4, and a step to either side."""
    rows = []
    for kind in ("nf4", "fp4"):
        levels = F.get_4bit_type(kind, device="cpu").unique().numpy()
        middle = (levels[1:] + levels[:-1]) / 2
        around = [np.nextafter(middle, -2), middle, np.nextafter(middle, 2), levels]
        row = np.concatenate(around).astype(np.float32)
        rows.append(np.pad(row, (0, 64 - len(row)), constant_values=1))
    return np.stack(rows)


def four_bits(x: Tensor, key: str) -> dict[str, Any]:
    """Return packed codes, scales and decoded weights for tables, blocks and double scales."""
    found: dict[str, Any] = {}
    for kind in ("nf4", "fp4"):
        for block in (32, 64, 256):
            for double in (False, True):
                data, state = F.quantize_4bit(
                    x, blocksize=block, compress_statistics=double, quant_type=kind
                )
                name = f"{key}/{kind}/{block}/{'double' if double else 'plain'}"
                found[f"{name}/data"] = data.flatten()
                found[f"{name}/absmax"] = state.absmax
                if double:
                    found[f"{name}/offset"] = state.offset
                    found[f"{name}/second"] = state.state2.absmax
                if x.ndim == 2 and x.shape[1] % block == 0:
                    found[f"{name}/decoded"] = sha(F.dequantize_4bit(data, state).float())
    return found


def eight_bits(x: Tensor, key: str) -> dict[str, Any]:
    """Return codes and scales of the dynamic 8-bit tables."""
    found: dict[str, Any] = {}
    for sign in ("signed", "unsigned"):
        table = F.create_dynamic_map(signed=sign == "signed")
        found[f"dynamic/{sign}"] = table
        for block in (64, 256, 4096):
            source = x if sign == "signed" else x.abs()
            codes, state = F.quantize_blockwise(source, code=table, blocksize=block)
            found[f"{key}/{sign}/{block}/codes"] = codes
            found[f"{key}/{sign}/{block}/absmax"] = state.absmax
            found[f"{key}/{sign}/{block}/decoded"] = sha(F.dequantize_blockwise(codes, state))
    return found


def int8(weight: Tensor, x: Tensor, bias: Tensor) -> dict[str, Any]:
    """Return int8 codes of weight and activations, and what Linear8bitLt makes of them."""
    codes, absmax, _ = F.int8_vectorwise_quant(weight.half())
    found: dict[str, Any] = {"int8/weight/codes": codes, "int8/weight/absmax": absmax}
    for threshold in (0.0, 6.0):
        key = f"int8/{threshold:g}"
        codes, absmax, columns = F.int8_vectorwise_quant(x.half(), threshold=threshold)
        found[f"{key}/codes"], found[f"{key}/absmax"] = codes, absmax
        if columns is not None:
            found[f"{key}/columns"] = columns
        layer = bnb.nn.Linear8bitLt(256, 8, has_fp16_weights=False, threshold=threshold)
        layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False)
        layer.bias = torch.nn.Parameter(bias.clone())
        layer = layer.to("cpu").eval()
        with torch.no_grad():
            found[f"{key}/y"] = layer(x).numpy()
    return found


def main() -> None:
    """Ask bitsandbytes, write the file, say its size."""
    torch.set_num_threads(1)
    given = inputs()
    found: dict[str, Any] = dict(given)
    for name in ("weight", "odd", "ties"):
        found |= four_bits(given[name], name)
    for name, dtype in DTYPES.items():
        found |= four_bits(given["weight"][:4].to(dtype), f"weight {name}")
    for name in ("weight", "odd"):
        found |= eight_bits(given[name], name)
    found |= int8(given["weight"], given["x"], given["bias"])
    arrays = {name: np.asarray(value) for name, value in found.items()}
    arrays["bitsandbytes"] = np.array(bnb.__version__)
    np.savez_compressed(OUT, **arrays)
    print(
        f"bitsandbytes {bnb.__version__}: {len(arrays)} arrays, {OUT.stat().st_size / 1e3:.0f} kB"
    )


if __name__ == "__main__":
    main()
