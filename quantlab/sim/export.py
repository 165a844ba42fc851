"""Write a simulation: weights on their grids, encodings, and ONNX where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantlab.checkpoint import write_folder
from quantlab.export.encodings import Encoding, check_encodings, write_encodings
from quantlab.sim.layer import SimulatedLayer

PACKAGES = "onnx", "onnxscript"


def write_export(
    model: nn.Module,
    encodings: Mapping[str, Encoding],
    version: str,
    folder: Path,
    prefix: str,
    example: Tensor | None,
) -> None:
    """Write all files of a simulation, or none; ``model`` is plain, its weights on their grids.

    Raises
    ------
    ValueError
        If something cannot be written.
    """
    check_encodings(encodings, version)
    if not prefix or Path(prefix).name != prefix:
        raise ValueError(f"prefix is {prefix!r}; choose a file name without a folder, as 'story'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another")
    # Copies, because safetensors refuses two names for one memory.
    tensors = model.state_dict().items()
    state = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors}

    def write(partial: Path) -> None:
        save_file(state, partial / f"{prefix}.safetensors", metadata={"format": "pt"})
        write_encodings(partial / f"{prefix}.encodings", encodings, version)
        if example is not None:
            write_onnx(model, example, partial / f"{prefix}.onnx")

    write_folder(folder, write)


def biases(twins: Mapping[str, SimulatedLayer]) -> dict[str, Encoding]:
    """Return the biases as int32 on the grid of their products: scale of input times weight."""
    found = {}
    for name, twin in twins.items():
        bias, grid = getattr(twin.layer, "bias", None), twin.weight_encoding
        if bias is None or twin.input is None or grid.group_size is not None:
            continue
        assert twin.input.encoding is not None  # calibrated: checked before
        scale = twin.input.encoding.scale * grid.scale
        middle = torch.full_like(scale, 2.0**31)
        found[f"{name}.bias".lstrip(".")] = Encoding("bias", 32, True, scale, middle)
    return found


def onnx_example(example: Tensor | None, wanted: bool | None) -> Tensor | None:
    """Return the input to trace, or None where no ONNX file is to be written.

    Raises
    ------
    ValueError
        If the file is wanted and cannot be made.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if wanted and missing:
        raise ValueError(f"onnx=True needs the packages {' and '.join(missing)}; pip install them")
    if wanted and example is None:
        raise ValueError("onnx=True traces a sample; call compute_encodings with a tensor first")
    return None if wanted is False or missing else example


def write_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the model as ONNX, unoptimized: folding a norm would take weights off their grids.

    Raises
    ------
    ValueError
        If the exporter cannot follow the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own parts
        try:
            torch.onnx.export(model, (example,), path, dynamo=True, optimize=False, verbose=False)
        except Exception as error:  # torch documents no list of what it may raise
            line = str(error).strip().partition("\n")[0]
            raise ValueError(f"ONNX cannot be made ({line}); pass onnx=False") from error
