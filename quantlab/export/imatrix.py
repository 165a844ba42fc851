"""Measure the importance matrix of a model: E[x_j^2] of every input of every linear."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from quantlab.block import Block
from quantlab.block import imatrix as mean_squares
from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.llama import gguf_name
from quantlab.models.families import UnsupportedModelError, find_blocks, linears


@torch.no_grad()
def imatrix(model: nn.Module, data: Tensor, *, datasets: Iterable[str] = ()) -> Imatrix:
    """Measure how large each input of each linear is, for a GGUF export.

    Embedding and head are left out, as ``llama-imatrix`` leaves them out by default.

    Parameters
    ----------
    model : nn.Module
        A Llama in float; not changed.
    data : (samples, length) LongTensor
        Calibration tokens. Each sample is one chunk, read by itself.
    datasets : strings
        Noted in the file, for whoever wonders later.

    Returns
    -------
    Imatrix
        By GGUF's tensor names; ``save`` writes it for llama.cpp's tools.

    Raises
    ------
    ValueError
        If data is no token tensor.
    UnsupportedModelError
        If the model has no blocks at a known path, or linears that GGUF has no name for.
    CalibrationError
        If an input is not finite.

    Examples
    --------
    >>> import quantlab as ql
    >>> from quantlab.export.imatrix import imatrix
    >>> model, tokenizer = ql.load("storyteller")
    >>> matrix = imatrix(model, ql.calibration_set(tokenizer, samples=2, length=64))
    >>> matrix, matrix["blk.0.ffn_down.weight"].shape
    (Imatrix(28 tensors, 2 chunks of 64 tokens), (768,))
    """
    found = find_blocks(model)
    names = tensor_names(found)
    training = model.training
    model.eval()
    sums = {}
    try:
        calls = first_calls(model, found, data)
        for path, module in found.items():
            means = Block(module, linears(module), inputs=calls, name=path).collect(mean_squares)
            sums |= {
                names[f"{path}.{key}"]: (data.numel() * mean).cpu().numpy()
                for key, mean in means.items()
            }
            calls = [(after(module(*args, **kwargs), args), kwargs) for args, kwargs in calls]
    finally:
        model.train(training)
    counts = dict.fromkeys(sums, data.numel())
    return Imatrix(sums, counts, datasets, chunk_count=len(data), chunk_size=data.shape[1])


def tensor_names(blocks: dict[str, nn.Module]) -> dict[str, str]:
    """Return GGUF's name of the weight of each linear, by its path in the model."""
    names = {}
    for path, module in blocks.items():
        for key in linears(module):
            name = gguf_name(f"{path}.{key}.weight")
            if name is None:
                raise UnsupportedModelError(
                    f"{path}.{key} has no name in GGUF; models of the Llama kind have one"
                )
            names[f"{path}.{key}"] = name
    return names
