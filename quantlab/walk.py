"""Walk through a model's blocks in order, each with the inputs that reach it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantlab.block import Block, Call
from quantlab.data import check_tokens
from quantlab.models.families import find_scalings, layers, resolve
from quantlab.tensor import CalibrationError
from quantlab.training import first

BATCH = 8  # windows that pass through a block together


@torch.no_grad()
def walk(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    data: Tensor | None,
    *,
    batch_size: int = BATCH,
    wants_targets: bool = False,
    convolutions: bool = False,
) -> Iterator[Block]:
    """Yield the blocks in order; what is done to one before the next is asked for, the next sees.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    blocks : name -> module
        As ``find_blocks`` returns them.
    data : (samples, ...) tensor, or None
        Tokens, or whatever the model is called with. Without it blocks have no inputs.
    batch_size : samples in a batch
    wants_targets : bool
        Also give each block the float model's inputs and outputs.
    convolutions : bool
        Count Conv2d among a block's layers.
    """
    check_data(model, data)
    scalings = find_scalings(model)
    batches = [] if data is None else list(data.split(batch_size))
    source = chained if is_list(model, blocks) else captured
    for block in source(model, blocks, batches, wants_targets):
        block.scalings = scalings
        block.linears = layers(block.module, convolutions=convolutions)
        yield block


def check_data(model: nn.Module, data: Tensor | None) -> None:
    """Raise unless data is None, tokens of the model's vocabulary, or finite floats."""
    if data is None:
        return
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is not None or not data.is_floating_point():
        check_tokens(data, embedding.num_embeddings if embedding else None)
    elif len(data) == 0 or not torch.isfinite(data).all():
        raise CalibrationError(
            f"calibration data has shape {tuple(data.shape)}; pass at least one sample, all finite"
        )


def is_list(model: nn.Module, blocks: Mapping[str, nn.Module]) -> bool:
    """Tell whether the blocks are one ModuleList, whole: then each feeds the next."""
    path = next(iter(blocks)).rpartition(".")[0]
    found = resolve(model, path)
    return isinstance(found, nn.ModuleList) and list(found) == list(blocks.values())


# ---------------------------------------------------------------- a list of blocks: hand on


def chained(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: list[Tensor], wants_targets: bool
) -> Iterator[Block]:
    """Run each block once on what the block before it made."""
    calls = float_calls = first_calls(model, blocks, batches) if batches else []
    for name, module in blocks.items():
        block = Block(module, {}, inputs=calls, name=name)
        if wants_targets:
            float_calls = add_targets_(block, float_calls)
        yield block
        calls = [(after(module(*args, **kwargs), args), kwargs) for args, kwargs in calls]


class Recorder(nn.Module):
    """Stands in for all blocks, and keeps what the first of them would have been called with."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a child: the model must not see it twice
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        """Answer for the block where a model asks its blocks for settings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the call and hand the hidden states on."""
        self.calls.append((args, kwargs))
        return args[0]


def first_calls(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: list[Tensor]
) -> list[Call]:
    """Return the calls that reach the first block of a list, one a batch."""
    names = list(blocks)
    path = names[0].rpartition(".")[0]
    parent_path, _, attribute = path.rpartition(".")
    parent, whole = model.get_submodule(parent_path), resolve(model, path)
    recorder = Recorder(blocks[names[0]])
    config: Any = getattr(model, "config", None)
    caching = getattr(config, "use_cache", None)
    setattr(parent, attribute, nn.ModuleList([recorder]))
    try:
        if caching:  # a recorded KV cache would grow at every replay of the call
            config.use_cache = False
        for batch in batches:
            model(batch)
    finally:
        setattr(parent, attribute, whole)
        if caching:
            config.use_cache = caching
    return recorder.calls


def after(output: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the next block's positional arguments: the new hidden states, the rest unchanged."""
    return (first(output), *args[1:])


def add_targets_(block: Block, float_calls: list[Call]) -> list[Call]:
    """Give the block its float inputs and targets; return the float calls of the next block."""
    outputs = [first(block.module(*args, **kwargs)) for args, kwargs in float_calls]
    block.float_inputs, block.targets = float_calls, outputs
    return [
        (after(output, args), kwargs)
        for output, (args, kwargs) in zip(outputs, float_calls, strict=True)
    ]


# ---------------------------------------------------------------- named blocks: run up to each


def captured(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: list[Tensor], wants_targets: bool
) -> Iterator[Block]:
    """Run the model up to each block: for blocks that lie anywhere, at the price of more runs."""
    reference = copy.deepcopy(model) if wants_targets and batches else model
    for name, module in blocks.items():
        block = Block(module, {}, inputs=calls_of(model, name, batches), name=name)
        if wants_targets:
            block.float_inputs = (
                block.inputs if name == next(iter(blocks)) else calls_of(reference, name, batches)
            )
            twin = reference.get_submodule(name)
            block.targets = [first(twin(*args, **kwargs)) for args, kwargs in block.float_inputs]
        yield block


class Reached(Exception):
    """Ends a forward pass at the module whose inputs were asked for."""


def calls_of(model: nn.Module, name: str, batches: list[Tensor]) -> list[Call]:
    """Return the first call that reaches a module, for each batch."""
    calls: list[Call] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise Reached

    handle = model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(batch)
            except Reached:
                continue
            raise CalibrationError(f"{name} is never called; take it out of blocks")
    finally:
        handle.remove()
    return calls
