"""Quantize a model in place, block by block, each block fed by the quantized blocks before it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlab.block import Block, FormatMethod, Method, second_moment
from quantlab.codebook_tensor import Quantized
from quantlab.models.families import find_blocks, linears
from quantlab.nn import QuantizedLinear
from quantlab.nn_codebook import CodebookLinear
from quantlab.report import LayerResult, Report
from quantlab.resume import FinishedBlocks, run_key
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight, output_error, sqnr
from quantlab.walk import BATCH, walk


@torch.no_grad()
def quantize_(
    model: nn.Module,
    method: Method | FormatMethod,
    scheme: Scheme | None,
    data: Tensor | None = None,
    *,
    blocks: str | Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Report:
    """Replace the linears of every block by quantized ones, in place.

    The blocks are walked once. Each method sees the inputs that the already quantized blocks
    produce, so later layers can repair what earlier ones lost. If anything fails, the model is put
    back as it was.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(tokens)``. Its embedding, norms and head stay in float.
    method : Method
        For instance ``ql.RTN()`` or ``ql.GPTQ()``.
    scheme : Scheme, or None
        Bits 1..8. None for a method that brings its own grid, such as ``ql.FloatRTN()``.
    data : (samples, length) LongTensor, or None
        Calibration tokens. With them the Report holds each layer's output error.
    blocks : dotted path of the model's list of blocks, or the names of the blocks, or None
        For an architecture that ``families.py`` does not know.
    checkpoint : folder, or None
        Finished blocks are kept there; the same call, made again after the process was killed,
        reads them and goes on to the same result.
    progress : bool, or None
        Draw a progress bar on stderr; None: if that is a terminal.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If a weight is not finite, a group size does not divide, data is no token tensor, or the
        checkpoint is of another run.
    CalibrationError
        If the method needs data and there is none, or activations are not finite.
    UnsupportedModelError
        If the model has no blocks at a known path.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> report = ql.quantize_(model, ql.RTN(), ql.Scheme(bits=4, group_size=64))
    >>> round(report.bits_per_weight, 2), len(report.rows)
    (4.25, 28)
    """
    started = time.perf_counter()
    rows = replace_layers_(
        model, method, scheme, data, blocks=blocks, checkpoint=checkpoint, progress=progress
    )
    seconds = time.perf_counter() - started
    return Report(tuple(rows), left_in_float(model), type(method).__name__, seconds)


Store = Callable[[Any, Any], nn.Module]  # (float layer, its result) -> replacement


def packed(linear: nn.Linear, tensor: QuantizedTensor | Quantized) -> nn.Module:
    """Return the layer that holds the result in packed form."""
    if isinstance(tensor, QuantizedTensor):
        return QuantizedLinear(tensor.pack(), linear.bias)
    return CodebookLinear(tensor.pack(), linear.bias)


@torch.no_grad()
def replace_layers_(
    model: nn.Module,
    method: Method | FormatMethod,
    scheme: Scheme | None,
    data: Tensor | None,
    *,
    blocks: str | Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    store: Store = packed,
    convolutions: bool = False,
) -> list[LayerResult]:
    """Replace every layer that the method quantizes by what ``store`` makes of the result.

    The walk behind ``quantize_`` and ``QuantSim.apply``: all of it, or the model is put back.
    """
    check_method(method, scheme, checkpoint)
    found = find_blocks(model, blocks)
    check_layers(found, scheme)
    rows: list[LayerResult] = []
    undo: list[Callable[[], None]] = []
    kept = None
    if checkpoint is not None:
        kept = FinishedBlocks(Path(checkpoint), run_key(model, method, scheme, data))
    walked = walk(
        model,
        found,
        data,
        batch_size=getattr(method, "batch_size", BATCH),
        wants_targets=getattr(method, "wants_targets", False),
        convolutions=convolutions and getattr(method, "convolutions", False),
    )
    training = model.training
    model.eval()
    try:
        for done, block in enumerate(walked):
            show_progress(progress, done, len(found))
            quantized, seconds = quantize_block(block, method, scheme, undo, kept)
            rows += replace_block_(block, quantized, seconds, store, undo)
        show_progress(progress, len(found), len(found))
    except BaseException:  # also Ctrl-C: half a quantized model is nobody's wish
        for put_back in reversed(undo):
            put_back()
        raise
    finally:
        model.train(training)
    return rows


def check_method(
    method: Method | FormatMethod, scheme: Scheme | None, checkpoint: str | Path | None
) -> None:
    """Refuse what is no method, and a method with a scheme it cannot use."""
    if isinstance(method, type) or not hasattr(method, "quantize_block"):
        raise ValueError(f"method is {method!r}; pass a method such as ql.RTN() or ql.GPTQ()")
    name, own_grid = type(method).__name__, getattr(method, "own_grid", False)
    if own_grid and scheme is not None:
        raise ValueError(f"{name} brings its own grid; pass None, not the scheme {scheme}")
    if own_grid and checkpoint is not None:
        raise ValueError(f"checkpoint keeps schemes, not the codes of {name}; leave it out")
    if not own_grid and scheme is None:
        raise ValueError(f"{name} needs a scheme, such as Scheme(bits=4, group_size=64)")


def check_layers(blocks: Mapping[str, nn.Module], scheme: Scheme | None) -> None:
    """Refuse, before anything is changed, weights and shapes that the scheme cannot take."""
    if scheme is not None and scheme.bits > 8:
        raise ValueError(f"weights take 1..8 bits, the scheme says {scheme.bits}")
    for block_name, block in blocks.items():
        for name, linear in linears(block).items():
            check_weight(linear.weight.detach(), f"{block_name}.{name}")
            try:
                if scheme is not None:
                    scheme.group(linear.weight)
            except ValueError as error:
                raise ValueError(f"{block_name}.{name}: {error}") from None


def keep(module: nn.Module) -> Callable[[], None]:
    """Copy a module's parameters, and return the function that puts them back."""
    saved = {name: weight.detach().clone() for name, weight in module.named_parameters()}

    def put_back() -> None:
        for name, weight in saved.items():
            module.get_parameter(name).data.copy_(weight)

    return put_back


def quantize_block(
    block: Block,
    method: Method | FormatMethod,
    scheme: Scheme | None,
    undo: list[Callable[[], None]],
    kept: FinishedBlocks | None,
) -> tuple[Mapping[str, Any], float]:
    """Return a block's results, from disk if they lie there, and the seconds they took."""
    folds = getattr(method, "folds", False)
    if folds:
        undo.append(keep(block.module))
    started = time.perf_counter()
    quantized = kept.load_(block) if kept else None
    if quantized is None:
        quantized = cast(Any, method).quantize_block(block, scheme)
        if kept:
            kept.save(block, quantized, folds=folds)
    return quantized, time.perf_counter() - started


def replace_block_(
    block: Block,
    quantized: Mapping[str, Any],
    seconds: float,
    store: Store,
    undo: list[Callable[[], None]],
) -> list[LayerResult]:
    """Replace a block's layers, note how to undo it, and return a result for each."""
    matrices = all(isinstance(layer, nn.Linear) for layer in block.linears.values())
    moments = block.collect(second_moment) if block.inputs and matrices else {}
    rows = []
    for name, tensor in quantized.items():
        layer = block.linears[name]
        replacement = store(layer, tensor)
        row = measure(f"{block.name}.{name}", layer, replacement, tensor, moments.get(name))
        rows.append(replace(row, seconds=seconds / len(quantized)))
        parent_path, _, attribute = name.rpartition(".")
        parent = block.module.get_submodule(parent_path)
        undo.append(partial(setattr, parent, attribute, layer))
        setattr(parent, attribute, replacement)
    return rows


def measure(
    name: str,
    layer: nn.Module,
    replacement: nn.Module,
    tensor: QuantizedTensor | Quantized,
    moment: Tensor | None,
) -> LayerResult:
    """Compare what is stored with the float weight."""
    weight, stored = matrix(layer), matrix(replacement)
    error = None
    if moment is not None:
        signal = output_error(torch.zeros_like(weight), weight, moment)
        error = output_error(weight, stored, moment) / signal if signal else 0.0
    return LayerResult(
        name=name,
        scheme=str(tensor.scheme),
        weights=weight.numel(),
        nbytes=tensor.nbytes,
        sqnr=sqnr(weight, stored),
        output_error=error,
        seconds=0.0,
        notes=tensor.notes,
    )


def matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weight as a float (out, in) matrix."""
    if isinstance(layer, QuantizedLinear | CodebookLinear):
        return layer.packed.dequantize()
    weight = layer.weight
    assert isinstance(weight, Tensor)  # for the type checker
    return weight.detach().float().flatten(1)


def left_in_float(model: nn.Module) -> dict[str, str]:
    """Return every module that keeps float matrices, with the reason."""
    left = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            left[name] = f"embedding of {module.weight.numel():,} weights: not a linear of a block"
        elif isinstance(module, nn.Linear):
            left[name] = f"linear of {module.weight.numel():,} weights: outside the blocks"
    return left


def show_progress(wanted: bool | None, done: int, total: int) -> None:
    """Redraw a bar on stderr."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        return
    filled = "#" * (20 * done // total)
    end = "\n" if done == total else ""
    print(
        f"\rquantizing  [{filled:<20}] block {done}/{total}", end=end, file=sys.stderr, flush=True
    )
