"""Which layers a network has, what each costs, and in how many bits: measured by one forward pass.

Works on the meta device too, where a network of any size costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from quantlab.integer.layers import IntegerConv2d, IntegerLayer
from quantlab.nn import QuantizedLinear
from quantlab.nn_codebook import CodebookLinear

WEIGHTED = nn.Linear | nn.Conv2d | QuantizedLinear | CodebookLinear | IntegerLayer


@dataclass(frozen=True)
class LayerCost:
    """One weighted layer.

    Attributes
    ----------
    name : str
    kind : "linear", "conv", "depthwise"
    weights : int
        Without bias.
    macs : int
        Multiplications and additions for one sample.
    nbytes : int
        As stored: codes, scales, bias.
    stored : str
        "float32", or the width of the codes, as "int8".
    """

    name: str
    kind: str
    weights: int
    macs: int
    nbytes: int
    stored: str


@torch.no_grad()
def layer_costs(model: nn.Module, example: Tensor) -> list[LayerCost]:
    """Return the cost of every weighted layer of a model, in the order in which they run.

    Parameters
    ----------
    model : nn.Module
        Float or quantized; on the meta device its example lies there too.
    example : (1, ...) tensor
        One sample.

    Raises
    ------
    ValueError
        If ``example`` is not one sample, or the model has no weighted layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> [(cost.kind, cost.weights, cost.macs) for cost in layer_costs(net, torch.zeros(1, 1, 4, 4))]
    [('conv', 36, 144), ('linear', 32, 32)]
    """
    if len(example) != 1:
        raise ValueError(f"example has shape {tuple(example.shape)}; pass one sample, (1, ...)")
    found: list[LayerCost] = []
    handles = [
        module.register_forward_hook(partial(note, found, name))
        for name, module in model.named_modules()
        if isinstance(module, WEIGHTED)
    ]
    training = model.training
    model.eval()
    try:
        model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} ran no Linear and no Conv2d: nothing to count")
    return found


def note(found: list[LayerCost], name: str, layer: nn.Module, _: object, output: object) -> None:
    """Add one layer's cost: each weight is used once at each position of the output."""
    shape: torch.Size = output.shape  # type: ignore[attr-defined]
    rows, columns = rows_and_columns(layer)
    positions = shape.numel() // shape[0] // rows
    conv = isinstance(layer, nn.Conv2d | IntegerConv2d)
    groups = layer.groups if isinstance(layer, nn.Conv2d | IntegerConv2d) else 1
    kind = "linear" if not conv else "depthwise" if groups == rows > 1 else "conv"
    weights = rows * columns
    found.append(
        LayerCost(name, kind, weights, weights * positions, layer_bytes(layer), stored(layer))
    )


def rows_and_columns(layer: nn.Module) -> tuple[int, int]:
    """Return the shape of a layer's weight as a matrix."""
    if isinstance(layer, IntegerLayer):
        return len(layer.data), layer.columns
    if isinstance(layer, QuantizedLinear | CodebookLinear):
        return layer.out_features, layer.in_features
    weight = layer.weight
    assert isinstance(weight, Tensor)  # for the type checker
    return len(weight), weight.numel() // len(weight)


def layer_bytes(layer: nn.Module) -> int:
    """Return the bytes of a layer's own tensors."""
    if isinstance(layer, IntegerLayer):
        return layer.nbytes
    if isinstance(layer, QuantizedLinear):
        bias = 0 if layer.bias is None else layer.bias.numel() * layer.bias.element_size()
        return layer.packed.nbytes + bias
    tensors = [*layer.parameters(), *layer.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def stored(layer: nn.Module) -> str:
    """Return in what form a layer's weight is stored."""
    if isinstance(layer, IntegerLayer | QuantizedLinear):
        return f"int{layer.scheme.bits}"
    if isinstance(layer, CodebookLinear):
        return "codebook"
    weight = layer.weight
    assert isinstance(weight, Tensor)  # for the type checker
    return str(weight.dtype).removeprefix("torch.")
