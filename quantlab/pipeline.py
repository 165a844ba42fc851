"""Quantize a model in place, block by block, each block fed by the quantized blocks before it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from quantlab.block import Block, Method, second_moment
from quantlab.models.families import find_blocks, linears
from quantlab.nn import QuantizedLinear
from quantlab.report import LayerResult, Report
from quantlab.resume import FinishedBlocks, run_key
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight, output_error, sqnr
from quantlab.walk import BATCH, walk


@torch.no_grad()
def quantize_(
    model: nn.Module,
    method: Method,
    scheme: Scheme,
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
    scheme : Scheme
        Bits 1..8.
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
    if isinstance(method, type) or not isinstance(method, Method):
        raise ValueError(f"method is {method!r}; pass a method such as ql.RTN() or ql.GPTQ()")
    found = find_blocks(model, blocks)
    check_layers(found, scheme)
    started, rows, undo = time.perf_counter(), [], []
    training = model.training
    kept = None
    if checkpoint is not None:
        kept = FinishedBlocks(Path(checkpoint), run_key(model, method, scheme, data))
    model.eval()
    try:
        walked = walk(
            model,
            found,
            data,
            batch_size=getattr(method, "batch_size", BATCH),
            wants_targets=getattr(method, "wants_targets", False),
        )
        for done, block in enumerate(walked):
            show_progress(progress, done, len(found))
            rows += quantize_block_(block, method, scheme, undo, kept)
        show_progress(progress, len(found), len(found))
    except BaseException:  # also Ctrl-C: half a quantized model is nobody's wish
        for put_back in reversed(undo):
            put_back()
        raise
    finally:
        model.train(training)
    return Report(
        tuple(rows), left_in_float(model), type(method).__name__, time.perf_counter() - started
    )


def check_layers(blocks: Mapping[str, nn.Module], scheme: Scheme) -> None:
    """Refuse, before anything is changed, weights and shapes that the scheme cannot take."""
    if scheme.bits > 8:
        raise ValueError(f"weights take 1..8 bits, the scheme says {scheme.bits}")
    for block_name, block in blocks.items():
        for name, linear in linears(block).items():
            check_weight(linear.weight.detach(), f"{block_name}.{name}")
            try:
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


@torch.no_grad()
def quantize_block_(
    block: Block,
    method: Method,
    scheme: Scheme,
    undo: list[Callable[[], None]],
    kept: FinishedBlocks | None = None,
) -> list[LayerResult]:
    """Quantize one block's linears in place, note how to undo it, and return a result for each."""
    folds = getattr(method, "folds", False)
    if folds:
        undo.append(keep(block.module))
    started = time.perf_counter()
    quantized = kept.load_(block) if kept else None
    if quantized is None:
        quantized = method.quantize_block(block, scheme)
        if kept:
            kept.save(block, quantized, folds=folds)
    seconds = (time.perf_counter() - started) / max(1, len(quantized))
    moments = block.collect(second_moment) if block.inputs else {}
    rows = []
    for name, tensor in quantized.items():
        linear = block.linears[name]
        layer = QuantizedLinear(tensor.pack(), linear.bias)
        rows.append(
            measure(f"{block.name}.{name}", linear, layer, tensor, moments.get(name), seconds)
        )
        parent_path, _, attribute = name.rpartition(".")
        parent = block.module.get_submodule(parent_path)
        undo.append(partial(setattr, parent, attribute, linear))
        setattr(parent, attribute, layer)
    return rows


def measure(
    name: str,
    linear: nn.Linear,
    layer: QuantizedLinear,
    tensor: QuantizedTensor,
    moment: Tensor | None,
    seconds: float,
) -> LayerResult:
    """Compare what is stored with the float weight."""
    weight, stored = linear.weight.detach().float(), layer.packed.dequantize()
    error = None
    if moment is not None:
        signal = output_error(torch.zeros_like(weight), weight, moment)
        error = output_error(weight, stored, moment) / signal if signal else 0.0
    return LayerResult(
        name=name,
        scheme=str(tensor.scheme),
        weights=weight.numel(),
        nbytes=layer.packed.nbytes,
        sqnr=sqnr(weight, stored),
        output_error=error,
        seconds=seconds,
        notes=tensor.notes,
    )


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
