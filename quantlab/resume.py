"""Finished blocks on disk, so that a killed run goes on at the block it was in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from quantlab.block import Block
from quantlab.codebook_tensor import Quantized
from quantlab.float_zero import FloatZeroTensor
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

PARTS = ("codes", "scale", "zero_point")
WEIGHT = "parameter."  # prefix of a block's own parameters, kept for methods that rescale them


@dataclass(frozen=True)
class FinishedBlocks:
    """A folder with one file for each finished block of one run.

    Attributes
    ----------
    folder : path
    key : str
        Names model, data, method and scheme; files of another run are refused.
    """

    folder: Path
    key: str

    def path(self, block: Block) -> Path:
        """Return where a block's file lies."""
        return self.folder / f"{block.name}.safetensors"

    def load_(self, block: Block) -> dict[str, Quantized] | None:
        """Return a finished block's tensors and restore its parameters; None if not finished.

        Raises
        ------
        ValueError
            If the file is damaged or belongs to another run.
        """
        path = self.path(block)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["quantlab"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it and run again") from error
        if told["key"] != self.key:
            raise ValueError(
                f"{path} was written for another model, data, method or scheme; "
                "choose an empty folder, or delete this one"
            )
        for name, parameter in block.module.named_parameters():
            if WEIGHT + name in tensors:
                parameter.data.copy_(tensors[WEIGHT + name])
        result: dict[str, Quantized] = {}
        for name, layer in told["layers"].items():
            codes, scale, zero_point = (tensors[f"{name}.{part}"] for part in PARTS)
            scheme, notes = Scheme.parse(layer["scheme"]), tuple(layer["notes"])
            kind = FloatZeroTensor if layer.get("float_zeros") else QuantizedTensor
            result[name] = kind(codes, scale, zero_point, scheme, notes)
        return result

    def save(self, block: Block, quantized: Mapping[str, Quantized], *, folds: bool) -> None:
        """Write a finished block: whole or not at all.

        Raises
        ------
        ValueError
            If the folder cannot be written.
        """
        layers = {
            name: {
                "scheme": str(q.scheme),
                "notes": q.notes,
                "float_zeros": isinstance(q, FloatZeroTensor),
            }
            for name, q in quantized.items()
        }
        state = {
            f"{name}.{part}": getattr(tensor, part).contiguous()
            for name, tensor in quantized.items()
            for part in PARTS
        }
        if folds:
            parameters = block.module.named_parameters()
            state |= {WEIGHT + name: p.detach().contiguous() for name, p in parameters}
        path = self.path(block)
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            told = {"quantlab": json.dumps({"key": self.key, "layers": layers})}
            partial.write_bytes(save(state, metadata=told))
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise ValueError(f"cannot write {path}: {error.strerror}") from error


def run_key(model: nn.Module, method: object, scheme: Scheme | None, data: Tensor | None) -> str:
    """Return a digest of everything that decides what a run produces.

    Examples
    --------
    >>> linear = nn.Linear(2, 2)
    >>> run_key(linear, "rtn", Scheme(4), None) == run_key(linear, "rtn", Scheme(3), None)
    False
    """
    digest = hashlib.sha256(repr((method, str(scheme))).encode())
    tensors: dict[str, Any] = model.state_dict()  # with buffers: batch norm computes with them
    if data is not None:
        tensors["data"] = data
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
