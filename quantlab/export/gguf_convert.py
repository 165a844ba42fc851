"""From a model's name to a GGUF file in one call: what the command line does."""

from __future__ import annotations

from pathlib import Path

from quantlab.block import Method
from quantlab.data import calibration_set
from quantlab.export.gguf import SAME, export_gguf
from quantlab.export.gguf_report import GGUFReport
from quantlab.export.imatrix import imatrix as measure_imatrix
from quantlab.gguf.codec import TYPES
from quantlab.gguf.file import read
from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.mixes import find_preset
from quantlab.models.loading import load
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme

DEFAULT = "Q4_K_M"


def convert_to_gguf(
    source: str | Path,
    out: str | Path,
    preset: str | None = None,
    *,
    imatrix: str | Path = "none",
    calibration: str | Path | None = None,
    method: Method | None = None,
    scheme: Scheme | None = None,
) -> GGUFReport:
    """Open a model and write it, with its tokenizer, as a GGUF file.

    Parameters
    ----------
    source : str or path
        Anything ``load`` opens that is a Llama.
    out : path
        A file; it is replaced if it exists.
    preset : str, or None
        As for ``export_gguf``. None: Q4_K_M, or "same" after a method.
    imatrix : "none", "auto" or path
        "auto" measures it on the calibration text.
    calibration : path of a text file, or None
        None: the embedded stories.
    method, scheme : optional
        Quantize with this method first. Its codes are kept where a block type holds them.

    Raises
    ------
    ValueError
        If ``out`` cannot be written, ``source`` is a GGUF file of rounded weights, ``calibration``
        would not be read, or as ``export_gguf`` does.
    """
    out = Path(out)
    if preset is None:
        preset = SAME if method else DEFAULT
    if preset.lower() != SAME:
        find_preset(preset)  # a typing error should not cost the time it takes to open a model
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        raise ValueError(f"{out} cannot be a file; choose an --out such as story.gguf")
    if calibration is not None and method is None and str(imatrix) != "auto":
        raise ValueError("nothing here reads calibration text; add a method, or imatrix auto")
    check_not_rounded(source)
    ready = Imatrix.load(imatrix) if str(imatrix) not in ("none", "auto") else None
    model, tokenizer = load(source)
    if str(imatrix) == "auto":
        text = "embedded stories" if calibration is None else Path(calibration).name
        data = calibration_set(tokenizer, path=calibration)
        ready = measure_imatrix(model, data, datasets=[text])
    if method is not None:
        data = calibration_set(tokenizer, path=calibration)
        quantize_(model, method, scheme or Scheme(bits=4, group_size=32), data)
    return export_gguf(model, out, preset, ready, tokenizer=tokenizer, name=Path(source).stem)


def check_not_rounded(source: str | Path) -> None:
    """Refuse a GGUF file whose weights are rounded already: rounding them again would lose more."""
    if Path(source).suffix.lower() != ".gguf" or not Path(source).is_file():
        return
    with read(source) as file:
        for name, tensor in file.tensors.items():
            if TYPES[tensor.type].size > 1:
                raise ValueError(
                    f"{name} in {source} is rounded to {tensor.type} already; start from the float "
                    "model, or from a file in F32, F16 or BF16"
                )
