"""Measure the importance matrix of a model: E[x_j^2] of every input of every linear."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from quantlab.block import Block
from quantlab.block import imatrix as diagonal
from quantlab.data import check_tokens
from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.llama import gguf_name
from quantlab.models.families import UnsupportedModelError, find_blocks, linears
from quantlab.nn import is_quantized

BATCH = 8  # windows a forward pass


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
        If data is no tensor of the model's token ids, or the model is quantized already.
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
    if is_quantized(model):
        raise ValueError("this model is quantized already; measure the float model it came from")
    layers = {
        f"{path}.{key}": linear
        for path, block in find_blocks(model).items()
        for key, linear in linears(block).items()
    }
    names = {path: tensor_name(path) for path in layers}
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    check_tokens(data, embedding.num_embeddings if embedding else None)
    calls = [((batch,), {}) for batch in data.split(BATCH)]
    training = model.training
    model.eval()
    try:
        whole = Block(model, layers, inputs=calls, name=type(model).__name__)
        means = whole.collect(mean_squares)
    finally:
        model.train(training)
    tokens = data.numel()
    sums = {names[path]: (tokens * mean).cpu().numpy() for path, mean in means.items()}
    counts = dict.fromkeys(sums, tokens)
    return Imatrix(sums, counts, datasets, chunk_count=len(data), chunk_size=data.shape[1])


def mean_squares(x: Tensor) -> Tensor:
    """Return E[x_j^2] of inputs (tokens, in); in float16 a square would overflow beyond 255."""
    return diagonal(x.float())


def tensor_name(path: str) -> str:
    """Return GGUF's name of the weight of a linear, from the linear's path in the model."""
    name = gguf_name(f"{path}.weight")
    if name is None:
        raise UnsupportedModelError(
            f"{path} has no name in GGUF; only a Llama's linears have one here"
        )
    return name
