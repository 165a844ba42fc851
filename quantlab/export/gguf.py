"""Write a Llama as a GGUF file that llama.cpp runs, quantized as llama-quantize would."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from quantlab.export.gguf_metadata import describe_imatrix, describe_tokenizer, find_notes
from quantlab.export.gguf_model import Part, take_apart
from quantlab.export.gguf_report import GGUFReport, GGUFRow
from quantlab.gguf.block_type import Bytes, Floats
from quantlab.gguf.codec import TYPES, check_imatrix, quantize
from quantlab.gguf.grids import Grid
from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.llama import NAME, Architecture, model_name, to_pairs
from quantlab.gguf.mixes import PRESETS, Sizes, find_preset, fitting_type, is_quantized, wanted_type
from quantlab.gguf.writer import Raw, write
from quantlab.tensor import PackedTensor, check_weight

SAME = "same"
QUANTIZATION_VERSION = 2  # of ggml's block layouts


def export_gguf(
    model: nn.Module,
    path: str | Path,
    preset: str = "Q4_K_M",
    imatrix: Mapping[str, ArrayLike] | str | Path | None = None,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    strict: bool = False,
    requantize: bool = False,
) -> GGUFReport:
    """Write a Llama as a GGUF file.

    One tensor is quantized at a time, while the file is written. The file appears whole or not
    at all.

    Parameters
    ----------
    model : Llama, or transformers' LlamaForCausalLM
    path : str or path
    preset : str
        As llama-quantize names them: Q4_K_M, Q8_0, F16 and so on; "MXFP4" is our own mix.
        "same" rounds nothing: codes of quantized layers are kept, floats stored as F16 or BF16
        where that loses nothing, else as F32.
    imatrix : mapping of GGUF tensor name to (columns,) floats, or path of its file, optional
        E[x_j^2] of each input; see ``ql.imatrix``.
    tokenizer : optional
        What ``ql.load`` gave with the model, a ``tokenizers.Tokenizer``, or one of transformers.
    name : str, optional
        Of the model, in the file. None: the file's name.
    strict : bool
        Refuse to store a tensor in another type than the preset's.
    requantize : bool
        Round the weights of quantized layers again where the preset's type does not hold them.

    Returns
    -------
    GGUFReport
        The type of every tensor, every fallback with its reason, true bits per weight.

    Raises
    ------
    UnsupportedModelError
        If the model is no Llama, or has parts that a llama in GGUF does not have.
    ValueError
        If the preset is unknown, a weight is not finite or beyond its type, the imatrix belongs to
        another model, the tokenizer cannot be described, or a quantized layer would be rounded
        again.

    Examples
    --------
    >>> import os, tempfile
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> path = os.path.join(tempfile.mkdtemp(), "story.gguf")
    >>> report = export_gguf(model, path, "Q8_0", tokenizer=tokenizer)
    >>> round(report.bits_per_weight, 2), report.fallbacks
    (8.51, {})
    """
    started = time.perf_counter()
    check_words(preset, name)
    if isinstance(imatrix, (str, Path)):
        imatrix = Imatrix.load(imatrix)
    architecture, parts = take_apart(model)
    mix = Mix.named(preset, architecture, imatrix is not None, requantize)
    notes = find_notes(imatrix, parts, tokenizer)
    importance = dict(imatrix or {})
    jobs = [make_job(key, part, mix, importance.get(key)) for key, part in parts.items()]
    rows = [job.row for job in jobs]
    if strict:
        check_strict(rows)
    metadata = {"general.architecture": NAME, "general.name": name or Path(path).stem}
    metadata |= mix.metadata() | describe_imatrix(imatrix) | architecture.metadata()
    metadata |= describe_tokenizer(tokenizer, model, architecture.vocabulary)
    tensors = {job.row.name: Raw(job.row.type, job.data, job.row.shape) for job in jobs}
    write(path, tensors, metadata)
    return GGUFReport(tuple(rows), mix.name, mix.base(rows), notes, time.perf_counter() - started)


def check_words(preset: str, name: str | None) -> None:
    """Refuse a preset that does not exist, or a name that is no text."""
    if not isinstance(preset, str):
        raise ValueError(f"preset is {preset!r}; pass its name, such as 'Q4_K_M' or 'same'")
    if preset.lower() != SAME:
        find_preset(preset)
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name is {name!r}; pass a string, or None for the file's name")


@dataclass(frozen=True)
class Mix:
    """A preset, applied to one model; ``sizes`` is None for the preset "same"."""

    name: str
    sizes: Sizes | None
    heads_of: Callable[[str], int | None]
    weighted: bool
    requantize: bool

    @classmethod
    def named(cls, name: str, model: Architecture, weighted: bool, requantize: bool) -> Mix:
        """Return the mix of a preset's name for a model."""
        if name.lower() == SAME:
            return cls(SAME, None, model.heads_of, weighted, requantize)
        sizes = Sizes(model.layers, model.heads, model.kv_heads, model.tied, imatrix=weighted)
        return cls(find_preset(name)[0], sizes, model.heads_of, weighted, requantize)

    def wanted(self, name: str, part: Part) -> str:
        """Return the type that a tensor should get."""
        if not is_quantized(name, part.shape):
            return "F32"
        if self.sizes is not None:
            return wanted_type(name, PRESETS[self.name], self.sizes)
        return grid_of(part).holders[0] if isinstance(part, PackedTensor) else lossless(part)

    def base(self, rows: list[GGUFRow]) -> str:
        """Return the type that the mix is made around."""
        if self.sizes is not None:
            return PRESETS[self.name].base
        return Counter(row.type for row in rows if len(row.shape) == 2).most_common(1)[0][0]

    def metadata(self) -> dict[str, Any]:
        """Return what the file says about its quantization."""
        found: dict[str, Any] = {"general.quantization_version": QUANTIZATION_VERSION}
        if self.sizes is not None:
            found["general.file_type"] = PRESETS[self.name].file_type
        return found


@dataclass(frozen=True)
class Job:
    """A tensor's row in the report, and the function that makes its bytes when its turn comes."""

    row: GGUFRow
    data: Callable[[], Bytes | Floats]


def make_job(name: str, part: Part, mix: Mix, importance: ArrayLike | None) -> Job:
    """Decide a tensor's type and check all that can be checked before a byte is written."""
    shape = tuple(part.shape)
    wanted = mix.wanted(name, part)
    heads = mix.heads_of(name)
    if isinstance(part, PackedTensor):
        grid = grid_of(part)
        if wanted in grid.holders:
            reason = grid.why_none() if (mix.name, wanted) == (SAME, "F32") else ""
            row = GGUFRow(name, shape, wanted, wanted, reason, kept=True)
            return Job(row, partial(kept_blocks, part, wanted, heads))
        if not mix.requantize:
            raise ValueError(rounded_again(name, part, grid, wanted))
    else:
        check_weight(part if part.ndim > 1 else part[None], str(model_name(name)))
    type, reason = fitting_type(wanted, shape[-1])
    uses = TYPES[type].imatrix != "ignored"
    if importance is not None:
        try:
            importance = check_imatrix(importance, shape[-1], TYPES[type])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    missing = mix.weighted and uses and importance is None
    row = GGUFRow(name, shape, type, wanted, reason, unweighted=missing)
    return Job(row, partial(new_blocks, name, part, heads, type, importance))


def new_blocks(
    name: str, part: Part, heads: int | None, type: str, importance: ArrayLike | None
) -> Bytes:
    """Quantize a tensor."""
    weight = part.dequantize() if isinstance(part, PackedTensor) else part
    W = weight.to("cpu", torch.float32).numpy()
    if heads is not None:
        W = to_pairs(W, heads)
    try:
        return quantize(W, type, importance)
    except ValueError as error:
        raise ValueError(f"{model_name(name)}: {error}") from None


def kept_blocks(part: PackedTensor, type: str, heads: int | None) -> Bytes | Floats:
    """Return a quantized layer as it is; rows change places whole, blocks or not."""
    grid = grid_of(part)  # again: keeping all of them unpacked would take the memory of a model
    rows = grid.dequantize() if type == "F32" else grid.blocks(type)
    return rows if heads is None else to_pairs(rows, heads)


def grid_of(part: PackedTensor) -> Grid:
    """Return a packed layer's integers."""
    parts = part.unpack(torch.float16)
    zero = None if part.zeros is None else parts.zero_point.to(torch.uint8)
    arrays = (parts.codes, parts.scale, zero)
    codes, scale, zero = (None if array is None else array.cpu().numpy() for array in arrays)
    assert codes is not None  # for the type checker
    assert scale is not None
    return Grid(codes, scale, zero, part.scheme.bits)


def rounded_again(name: str, part: PackedTensor, grid: Grid, wanted: str) -> str:
    """Return the message that refuses to quantize a quantized layer."""
    held = grid.holders[0]
    way = grid.why_none() if held == "F32" else f"{held} keeps them as they are"
    return (
        f"{model_name(name)} holds {part.scheme} codes, which {wanted} would round again; {way}. "
        'Choose a preset that keeps them, such as "same", or pass requantize=True'
    )


def lossless(part: Tensor) -> str:
    """Return the smallest type that holds floats exactly."""
    for type, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        if part.to(dtype).to(torch.float64).equal(part.to(torch.float64)):
            return type
    return "F32"


def check_strict(rows: list[GGUFRow]) -> None:
    """Refuse fallbacks."""
    fallen = [row for row in rows if row.reason]
    if fallen:
        first = fallen[0]
        raise ValueError(
            f"{len(fallen)} tensors would not be stored as the preset says, first {first.name} "
            f"as {first.type} instead of {first.wanted}: {first.reason}; choose a preset of "
            "32-blocks such as Q4_0 or Q8_0, or pass strict=False"
        )
