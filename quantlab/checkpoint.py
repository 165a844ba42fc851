"""A quantized model as a folder: packed safetensors, config, tokenizer. All of it, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Size, Tensor, nn, uint8

from quantlab.block import Method
from quantlab.data import calibration_set
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama
from quantlab.models.loading import Tokenizer, fill_, load
from quantlab.nn import QuantizedLinear, stores_integers
from quantlab.packing import packed_bytes
from quantlab.pipeline import quantize_
from quantlab.report import Report
from quantlab.scheme import Scheme
from quantlab.tensor import PackedTensor

FORMAT = "quantlab"


def quantize_checkpoint(
    source: str | Path,
    method: Method,
    scheme: Scheme,
    out: str | Path,
    *,
    calibration: str | Path | None = None,
    progress: bool | None = None,
) -> Report:
    """Open a model, quantize it and write the result as a new folder.

    Parameters
    ----------
    source : str or path
        Anything ``load`` opens that is a small Llama.
    method, scheme
        As for ``quantize_``.
    out : path
        Must not exist, or be an empty folder. It appears whole at the end or not at all.
    calibration : path of a text file, or None
        None: the embedded stories.
    progress : bool, or None
        As for ``quantize_``.

    Raises
    ------
    ValueError
        If ``out`` is taken or cannot be written, or as ``quantize_`` does.
    """
    out = Path(out)
    check_free(out)
    model, tokenizer = load(source)
    data = calibration_set(tokenizer, path=calibration)
    report = quantize_(model, method, scheme, data, progress=progress)
    save(model, tokenizer, out)
    return report


def check_free(out: Path) -> None:
    """Refuse a target that holds something, before any work is done on its behalf."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another --out")
    home = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not os.access(home, os.W_OK):
        raise ValueError(f"{home} is not writable; choose another --out")


def save(model: nn.Module, tokenizer: Tokenizer, out: str | Path) -> None:
    """Write a quantized small Llama as a folder that ``load`` opens.

    Raises
    ------
    UnsupportedModelError
        If the model is not the small Llama, or a layer is not on the grid of a ``Scheme``.
    ValueError
        If ``out`` is taken or cannot be written.
    """
    out = Path(out)
    if not isinstance(model, Llama):
        raise UnsupportedModelError(
            f"this folder format holds the small Llama, not {type(model).__name__}"
        )
    for name, layer in model.named_modules():
        if stores_integers(layer) and not isinstance(layer, QuantizedLinear):
            raise UnsupportedModelError(
                f"{name} is a {type(layer).__name__}; this folder format holds grids of a Scheme. "
                "Keep such a model with torch.save(model)"
            )
    if model.lm_head is not None:
        raise UnsupportedModelError(
            "a rotated model has a head of its own, which this folder format has no place for; "
            "rotate with online=False and use export_gguf"
        )
    check_free(out)
    config = model.config.to_dict() | {
        "quantization_config": {"quant_method": FORMAT, "layers": schemes(model)}
    }
    state = {name: stored(tensor) for name, tensor in model.state_dict().items()}

    def write(folder: Path) -> None:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tokenizer.raw.save(str(folder / "tokenizer.json"))

    write_folder(out, write)


def stored(tensor: Tensor) -> Tensor:
    """Return floats as float16 when that loses nothing, everything else as it is."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half.contiguous() if half.to(tensor.dtype).equal(tensor) else tensor.contiguous()


def schemes(model: nn.Module) -> dict[str, str]:
    """Return the scheme's name of every quantized layer."""
    layers = model.named_modules()
    return {name: str(m.scheme) for name, m in layers if isinstance(m, QuantizedLinear)}


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder beside ``out``, then rename it: whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        write(partial)
        partial.chmod(0o755)  # temporary files are private; a finished folder is not
        for path in partial.iterdir():
            path.chmod(0o644)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except Exception as error:  # safetensors reports a full disk as its own exception
        raise ValueError(f"cannot write {out}: {error}; nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_(model: Llama, state: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    """Put packed layers where the config says and load every tensor.

    Raises
    ------
    UnsupportedModelError
        If the folder was written by another program, or a tensor is missing or misshapen.
    """
    if quantization.get("quant_method") != FORMAT:
        raise UnsupportedModelError(
            f"quant_method is {quantization.get('quant_method')!r}; only {FORMAT!r} is read here"
        )
    for name, text in quantization.get("layers", {}).items():
        parent_path, _, attribute = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_path)
            rows, columns = model.get_parameter(f"{name}.weight").shape
            packed = take(state, name, Scheme.parse(text), (rows, columns))
        except (AttributeError, KeyError, TypeError) as error:
            raise UnsupportedModelError(f"{name}: no such layer or tensor ({error})") from error
        setattr(parent, attribute, QuantizedLinear(packed))
    fill_(model, {name: tensor.float() for name, tensor in state.items()})


def take(
    state: dict[str, Tensor], name: str, scheme: Scheme, shape: tuple[int, int]
) -> PackedTensor:
    """Remove one layer's packed tensors from ``state`` and check their shapes."""
    data, scale = state.pop(f"{name}.data"), state.pop(f"{name}.scale")
    zeros = None if scheme.symmetric else state.pop(f"{name}.zeros")
    rows, columns = shape
    groups = columns // (scheme.group_size or columns)
    expected = [(rows, packed_bytes(columns, scheme.bits)), (rows, groups)]
    if not scheme.symmetric:
        expected.append((rows, packed_bytes(groups, scheme.bits)))
    parts = [data, scale] + ([] if zeros is None else [zeros])
    found = [tuple(part.shape) for part in parts]
    dtypes = {part.dtype for part in (data, zeros) if part is not None}
    if found != expected or dtypes != {uint8}:
        raise UnsupportedModelError(
            f"{name}: codes, scales and zero points are {found}, but {scheme} of a "
            f"{rows} x {columns} layer has {expected}, codes as uint8"
        )
    return PackedTensor(data, scale.half(), zeros, scheme, Size(shape))
