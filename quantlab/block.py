"""One block of a model, the activations that reach it, and the statistics that methods ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quantlab.codebook_tensor import Quantized
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, QuantizedTensor

Statistic = Callable[[Tensor], Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def second_moment(x: Tensor) -> Tensor:
    """Return M = E[x x^T] of inputs (tokens, in), as (in, in) float64.

    Examples
    --------
    >>> second_moment(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    return (x.T @ x).double() / x.shape[0]


def imatrix(x: Tensor) -> Tensor:
    """Return E[x_j^2] of inputs (tokens, in), as (in,) float64: the diagonal of the second moment.

    Examples
    --------
    >>> imatrix(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
    [5.0, 2.0]
    """
    return x.square().sum(0).double() / x.shape[0]


@dataclass(frozen=True)
class Scaling:
    """A place where the inputs of linears can be scaled without changing the float model.

    Attributes
    ----------
    previous : str
        The module that takes 1 / s: a norm (its gain) or a linear (its rows).
    linears : tuple of str
        Those that read the result and take s (their columns).
    inspect : str
        The smallest module that holds all of them: its output shows the error.
    """

    previous: str
    linears: tuple[str, ...]
    inspect: str


@dataclass
class Block:
    """A block with its linears, and its inputs and targets for each micro-batch.

    Attributes
    ----------
    module : nn.Module
        Called as ``module(*args, **kwargs)``; returns a tensor, or a tuple that begins with one.
    linears : name -> nn.Linear
        The layers to quantize, by their names inside the block.
    inputs : calls (args, kwargs)
        As the quantized blocks before this one produce them.
    float_inputs : calls (args, kwargs)
        As the float model produces them.
    targets : tensors
        The float block's outputs for ``float_inputs``.
    scalings : tuple of Scaling
        Where input scales can be folded; empty for an architecture that names none.
    name : str
        The block's path in the model, for messages.
    """

    module: nn.Module
    linears: Mapping[str, nn.Linear]
    inputs: Sequence[Call] = ()
    float_inputs: Sequence[Call] = ()
    targets: Sequence[Tensor] = ()
    scalings: tuple[Scaling, ...] = ()
    name: str = "block"
    _collected: dict[Statistic, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def collect(self, statistic: Statistic) -> dict[str, Tensor]:
        """Return the token-weighted mean of ``statistic`` over each linear's inputs.

        Runs the block once a statistic; a second request is answered from memory.

        Parameters
        ----------
        statistic : function of (tokens, in)
            For instance ``second_moment`` or ``imatrix``.

        Raises
        ------
        CalibrationError
            If there are no inputs, or a linear sees NaN, infinity or no token at all.
        """
        if statistic not in self._collected:
            if not self.inputs:
                raise CalibrationError(
                    f"{self.name}: this method needs calibration data; "
                    "pass quantize_(model, method, scheme, data)"
                )
            self._collected[statistic] = collect(self, statistic)
        return self._collected[statistic]

    def forget(self) -> None:
        """Drop the statistics: the block's parameters have changed."""
        self._collected.clear()


def collect(block: Block, statistic: Statistic) -> dict[str, Tensor]:
    """Run the block on its inputs and average ``statistic`` over each linear's input tokens."""
    totals: dict[str, Tensor] = {}
    tokens = dict.fromkeys(block.linears, 0)
    shared: list[tuple[Tensor, Tensor]] = []  # the latest input and its statistic

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().flatten(0, -2)
            if not shared or shared[0][0] is not args[0]:  # q, k, v read one tensor: count it once
                check_activations(x, f"{block.name}.{name}")
                shared[:] = [(args[0], statistic(x) * x.shape[0])]
            totals[name] = totals.get(name, 0) + shared[0][1]
            tokens[name] += x.shape[0]

        return watch

    handles = [
        linear.register_forward_pre_hook(hook_for(name)) for name, linear in block.linears.items()
    ]
    try:
        with torch.no_grad():
            for args, kwargs in block.inputs:
                block.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    unseen = [name for name, count in tokens.items() if count == 0]
    if unseen:
        raise CalibrationError(
            f"{block.name}.{unseen[0]} saw no token; add calibration text that reaches it"
        )
    return {name: total / tokens[name] for name, total in totals.items()}


def check_activations(x: Tensor, name: str) -> None:
    """Raise a CalibrationError if activations (tokens, in) hold NaN or infinity."""
    bad = ~torch.isfinite(x)
    if bad.any():
        token, channel = bad.nonzero()[0].tolist()
        raise CalibrationError(
            f"{name}: input holds {int(bad.sum())} non-finite values, first at token {token}, "
            f"channel {channel}; check the model in float and the calibration data"
        )


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyperparameters that turns a block's linears into quantized tensors.

    Class attributes say what a method needs beyond a block's inputs: ``wants_targets = True`` for
    the float stream (``float_inputs`` and ``targets``), ``folds = True`` if it rescales the block's
    own parameters, ``batch_size`` for windows in a batch.
    """

    def quantize_block(self, block: Block, scheme: Scheme) -> dict[str, QuantizedTensor]:
        """Return one tensor for each name in ``block.linears`` that it quantizes."""
        ...


class FormatMethod(Protocol):
    """A method that brings its own grid, such as a float format: ``quantize_`` gets no scheme."""

    own_grid: ClassVar[bool]

    def quantize_block(self, block: Block, scheme: None = None) -> Mapping[str, Quantized]:
        """Return one tensor for each name in ``block.linears`` that it quantizes."""
        ...
