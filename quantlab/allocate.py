"""Mixed precision: give each layer its own scheme, so that a budget of bytes buys the most.

    minimize    sum over layers of cost[layer, choice]          KL, or output error
    subject to  sum over layers of nbytes[layer, choice] <= budget,   one choice a layer

Costs are measured with one layer quantized and all others in float, and then added up: a model of
the truth, good while the losses are small.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from quantlab.block import Block, Method
from quantlab.evaluate import evaluate, log_probabilities
from quantlab.pipeline import matrix, quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

Floats = np.ndarray
Solver = Callable[[Floats, Floats, int], list[int]]


@dataclass(frozen=True, eq=False)  # == on arrays is an array: compare the fields
class Choices:
    """What each scheme costs in each layer.

    Attributes
    ----------
    layers : names, as in a ``Report``
    schemes : tuple of Scheme
    costs : (layers, schemes) float array
        What is lost when only this layer is quantized.
    nbytes : (layers, schemes) integer array
    weights : (layers,) integer array
    """

    layers: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    costs: Floats
    nbytes: Floats
    weights: Floats

    def allocate(
        self,
        *,
        bits_per_weight: float | None = None,
        nbytes: int | None = None,
        solver: Solver | None = None,
    ) -> Allocation:
        """Choose a scheme for each layer: the least sum of costs that the budget allows.

        Parameters
        ----------
        bits_per_weight, nbytes
            The budget, in one of the two.
        solver : function
            ``exact`` (the default), ``greedy`` or ``lagrangian``.

        Raises
        ------
        ValueError
            If both budgets or none are given, or even the smallest choices exceed it.
        """
        if (bits_per_weight is None) == (nbytes is None):
            raise ValueError("the budget is one of bits_per_weight and nbytes; pass one of them")
        if nbytes is None:
            assert bits_per_weight is not None  # for the type checker
            nbytes = int(bits_per_weight * self.weights.sum() / 8)
        picked = (solver or exact)(self.costs, self.nbytes, nbytes)
        chosen = {name: self.schemes[k] for name, k in zip(self.layers, picked, strict=True)}
        rows = np.arange(len(picked))
        total = int(self.nbytes[rows, picked].sum())
        return Allocation(chosen, total, float(self.costs[rows, picked].sum()))


@dataclass(frozen=True)
class Allocation:
    """A scheme for each layer.

    Attributes
    ----------
    schemes : layer -> Scheme
    nbytes : bytes of all layers
    cost : sum of the layers' costs
    """

    schemes: Mapping[str, Scheme]
    nbytes: int
    cost: float


# ---------------------------------------------------------------- solvers


def exact(costs: Floats, nbytes: Floats, budget: int) -> list[int]:
    """Return the choices of least total cost, by mixed-integer linear programming (SciPy, HiGHS).

    Parameters
    ----------
    costs, nbytes : (layers, choices) arrays
    budget : bytes

    Raises
    ------
    ValueError
        If even the smallest choices exceed the budget.
    ImportError
        If SciPy is missing.

    Examples
    --------
    >>> exact(np.array([[9.0, 1.0], [5.0, 4.0]]), np.array([[2, 4], [2, 4]]), budget=6)
    [1, 0]
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise ImportError(
            "the exact solver needs SciPy, which comes with quantlab[notebook]; "
            "or choose solver=greedy"
        ) from error
    check_budget(nbytes, budget)
    layers, choices = costs.shape
    one_each = np.kron(np.eye(layers), np.ones(choices))
    unit = np.abs(costs).max() or 1.0  # tolerances are absolute: bring costs near 1
    result = milp(
        costs.ravel() / unit,
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(nbytes.reshape(1, -1) / budget, -np.inf, 1),
        ],
        options={"mip_rel_gap": 0},
    )
    return [int(k) for k in result.x.reshape(layers, choices).argmax(1)]


def greedy(costs: Floats, nbytes: Floats, budget: int) -> list[int]:
    """Return choices bought one after the other: each time the most cost saved per byte.

    Examples
    --------
    >>> greedy(np.array([[9.0, 1.0], [5.0, 4.0]]), np.array([[2, 4], [2, 4]]), budget=6)
    [1, 0]
    """
    check_budget(nbytes, budget)
    picked, rows = cheapest(costs, nbytes), np.arange(len(costs))
    while True:
        extra = nbytes - nbytes[rows, picked][:, None]
        saved = costs[rows, picked][:, None] - costs
        left = budget - nbytes[rows, picked].sum()
        useful = (saved > 0) & (extra <= left)
        if not useful.any():
            return picked.tolist()
        rate = np.where(useful, saved / np.maximum(extra, 1e-9), -np.inf)
        layer, choice = np.unravel_index(rate.argmax(), rate.shape)
        picked[layer] = choice


def lagrangian(costs: Floats, nbytes: Floats, budget: int, *, steps: int = 60) -> list[int]:
    """Return each layer's best choice at a price per byte, the least price that keeps the budget.

    All layers then save cost at the same rate. What is left of the budget stays unspent.

    Examples
    --------
    >>> lagrangian(np.array([[9.0, 1.0], [5.0, 4.0]]), np.array([[2, 4], [2, 4]]), budget=6)
    [1, 0]
    """
    check_budget(nbytes, budget)
    rows = np.arange(len(costs))
    best = cheapest(costs, nbytes)
    low, high = 0.0, 2.0 * float(np.ptp(costs)) + 1e-300  # a byte's price: above it, none is bought
    for _ in range(steps):
        price = (low + high) / 2
        picked = (costs + price * nbytes).argmin(1)
        if nbytes[rows, picked].sum() <= budget:
            high = price
            if costs[rows, picked].sum() <= costs[rows, best].sum():
                best = picked
        else:
            low = price
    return best.tolist()


def bound(costs: Floats, nbytes: Floats, budget: int, price: float) -> float:
    """Return the dual value at a price per byte: no choice within the budget costs less.

    Examples
    --------
    >>> bound(np.array([[9.0, 1.0], [5.0, 4.0]]), np.array([[2, 4], [2, 4]]), 6, price=1.0)
    6.0
    """
    return float((costs + price * nbytes).min(1).sum() - price * budget)


def cheapest(costs: Floats, nbytes: Floats) -> np.ndarray:
    """Return the smallest choice of each layer; among equals the one of least cost."""
    smallest = nbytes == nbytes.min(1, keepdims=True)
    return np.where(smallest, costs, np.inf).argmin(1)


def check_budget(nbytes: Floats, budget: int) -> None:
    """Raise a ValueError if even the smallest choices exceed the budget."""
    least = int(nbytes.min(1).sum())
    if budget < least:
        raise ValueError(f"the smallest choices take {least} bytes, the budget is {budget}")


# ---------------------------------------------------------------- sensitivities


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    method: Method,
    schemes: Sequence[Scheme],
    tokens: Tensor,
    data: Tensor | None = None,
    *,
    measure: Literal["kl", "fisher", "output"] = "kl",
) -> Choices:
    """Measure what each scheme costs in each layer.

    Parameters
    ----------
    model : nn.Module
        In float; not changed.
    method : Method
        One that leaves the other layers alone, such as ``RTN`` or ``GPTQ``.
    schemes : list of Scheme
        To choose from.
    tokens : (samples, length) LongTensor
        Calibration text on which the losses are measured; never the text of the final test.
    data : (samples, length) LongTensor, or None
        For the method, and for the measure "output".
    measure : "kl", "fisher" or "output"
        "kl": KL(float || model) with this layer quantized and no other; a pass for each layer and
        scheme. "fisher": the same to second order, from gradients (``fisher_losses``); a backward
        pass for each text, whatever the number of layers and schemes. "output": the layer's own
        relative output error tr(D M D^T) / tr(W M W^T), which knows nothing of later layers.

    Raises
    ------
    ValueError
        If there are no schemes, the measure is another word, or "output" has no data.

    References
    ----------
    Dong et al., HAWQ-V2, arXiv:1911.03852: layers' losses from the Hessian, added up.
    """
    if measure not in get_args(Literal["kl", "fisher", "output"]):
        raise ValueError(f"measure is {measure!r}; choose 'kl', 'fisher' or 'output'")
    if not schemes or (measure == "output" and data is None):
        raise ValueError("there are no schemes" if not schemes else "'output' needs data")
    twins = [copy.deepcopy(model) for _ in schemes]
    reports = [quantize_(t, method, scheme, data) for t, scheme in zip(twins, schemes, strict=True)]
    rows = reports[0].rows
    names = tuple(row.name for row in rows)
    if measure == "output":
        costs = np.array([[row.output_error for row in report.rows] for report in reports]).T
    elif measure == "fisher":
        costs = fisher_losses(model, names, [differences(model, t, names) for t in twins], tokens)
    else:
        reference = log_probabilities(model, tokens)
        each = [[one_layer_kl(model, t, n, tokens, reference) for t in twins] for n in names]
        costs = np.array(each)
    nbytes = np.array([[row.nbytes for row in report.rows] for report in reports]).T
    return Choices(names, tuple(schemes), costs, nbytes, np.array([row.weights for row in rows]))


def differences(model: nn.Module, quantized: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return D = Q - W of each layer."""
    return [
        matrix(quantized.get_submodule(name)) - matrix(model.get_submodule(name)) for name in names
    ]


@torch.enable_grad()
def fisher_losses(
    model: nn.Module, names: Sequence[str], changes: Sequence[Sequence[Tensor]], tokens: Tensor
) -> Floats:
    """Return KL per token to second order, E <G, D>^2 / 2, for each layer and each change D.

    G is the gradient of sum_t log p(y_t) by the layer's weight, with y_t drawn from the model's own
    distribution: the mean of G G^T is the Fisher information, the Hessian of the KL.

    Parameters
    ----------
    model : nn.Module
    names : paths of linears
    changes : for each choice, D of each linear
    tokens : (samples, length) LongTensor

    Returns
    -------
    (layers, choices) array
        Of as many draws as texts, each of the same seed: noisy, unbiased.
    """
    weights = [cast(Tensor, model.get_submodule(name).weight) for name in names]
    generator = torch.Generator().manual_seed(0)
    total = np.zeros((len(names), len(changes)))
    for text in tokens:
        log_p = torch.log_softmax(model(text[None])[0, :-1].float(), -1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        gradients = torch.autograd.grad(log_p.gather(1, drawn).sum(), weights)
        for k, change in enumerate(changes):
            slopes = [float((G * D).sum()) for G, D in zip(gradients, change, strict=True)]
            total[:, k] += np.square(slopes) / 2
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def one_layer_kl(
    model: nn.Module, quantized: nn.Module, name: str, tokens: Tensor, reference: Tensor
) -> float:
    """Return the KL of the float model with one layer taken from a quantized one."""
    parent_path, _, attribute = name.rpartition(".")
    parent = model.get_submodule(parent_path)
    kept = getattr(parent, attribute)
    setattr(parent, attribute, quantized.get_submodule(name))
    try:
        kl = evaluate(model, tokens, reference=reference).kl
    finally:
        setattr(parent, attribute, kept)
    assert kl is not None  # for the type checker: there is a reference
    return kl


# ---------------------------------------------------------------- quantize with it


@dataclass(frozen=True)
class Mixed:
    """A method with the schemes of an allocation: pass None where ``quantize_`` takes a scheme.

    Parameters
    ----------
    method : Method
        One that treats each linear by itself, such as ``RTN``, ``HQQ`` or ``GPTQ``.
    allocation : Allocation

    Raises
    ------
    ValueError
        If the method changes several linears together, or a layer has no scheme.
    """

    method: Any
    allocation: Allocation = field(repr=False)
    own_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse methods that need a whole block under one scheme."""
        together = ("folds", "wants_targets", "own_grid")
        if any(getattr(self.method, name, False) for name in together):
            raise ValueError(
                f"{type(self.method).__name__} needs one scheme for a whole block; "
                "choose a method that treats each linear by itself, such as GPTQ"
            )

    def quantize_block(self, block: Block, scheme: None = None) -> dict[str, QuantizedTensor]:
        """Quantize each linear of the block with its own scheme."""
        wanted: dict[Scheme, dict[str, nn.Linear]] = {}
        for name, linear in block.linears.items():
            path = f"{block.name}.{name}"
            if path not in self.allocation.schemes:
                raise ValueError(f"{path} has no scheme in the allocation; measure it again")
            wanted.setdefault(self.allocation.schemes[path], {})[name] = linear
        results: dict[str, QuantizedTensor] = {}
        for chosen, linears in wanted.items():
            part = replace(block, linears=linears, _collected={})
            results |= self.method.quantize_block(part, chosen)
        return {name: results[name] for name in block.linears}
