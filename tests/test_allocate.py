"""Mixed precision: the solver is exact, the measured costs are the right ones, and it pays."""

import copy
import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.allocate import (
    Allocation,
    Choices,
    Mixed,
    bound,
    exact,
    fisher_losses,
    greedy,
    lagrangian,
    sensitivities,
)
from quantlab.data import calibration_set
from quantlab.data import test_set as held_out
from quantlab.evaluate import Evaluation, evaluate, log_probabilities
from quantlab.methods.adascale import AdaScale
from quantlab.methods.awq import AWQ
from quantlab.methods.gptq import GPTQ
from quantlab.methods.rtn import RTN
from quantlab.models.loading import load
from quantlab.nn import QuantizedLinear
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme

pytest.importorskip("scipy")
SCHEMES = [Scheme(bits, 64) for bits in (2, 3, 4)]


def problem(layers: int, choices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw costs that mostly fall with size; some choices are useless."""
    random = np.random.default_rng(seed)
    nbytes = np.sort(random.integers(1, 60, (layers, choices)), axis=1)
    costs = -np.sort(-random.exponential(1, (layers, choices)), axis=1)
    return random.permuted(costs, axis=1) if seed % 5 == 0 else costs, nbytes


def brute(costs: np.ndarray, nbytes: np.ndarray, budget: int) -> float:
    """Try all combinations."""
    rows = np.arange(len(costs))
    every = itertools.product(range(costs.shape[1]), repeat=len(costs))
    return min(costs[rows, k].sum() for k in every if nbytes[rows, k].sum() <= budget)


def value(costs: np.ndarray, nbytes: np.ndarray, picked: list[int]) -> tuple[float, int]:
    rows = np.arange(len(costs))
    return float(costs[rows, picked].sum()), int(nbytes[rows, picked].sum())


# ------------------------------------------------------------------ solvers


@settings(max_examples=40)
@given(
    layers=st.integers(1, 5),
    choices=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
)
def test_the_exact_solver_meets_brute_force_and_bounds_the_others(layers, choices, seed, share):
    costs, nbytes = problem(layers, choices, seed)
    least, most = int(nbytes.min(1).sum()), int(nbytes.max(1).sum())
    budget = int(least + share * (most - least))
    best, size = value(costs, nbytes, exact(costs, nbytes, budget))
    assert size <= budget
    assert best == pytest.approx(brute(costs, nbytes, budget), rel=1e-9)
    for solver in (greedy, lagrangian):
        cost, size = value(costs, nbytes, solver(costs, nbytes, budget))
        assert size <= budget
        assert cost >= best * (1 - 1e-9)
    for price in (0.0, 0.01, 0.1, 1.0):
        assert bound(costs, nbytes, budget, price) <= best * (1 + 1e-9)


def test_the_lagrangian_is_exact_where_its_budget_is_spent():
    costs, nbytes = problem(12, 4, 1)
    rough = lagrangian(costs, nbytes, int(nbytes.mean(1).sum()))
    cost, size = value(costs, nbytes, rough)
    assert value(costs, nbytes, exact(costs, nbytes, size))[0] == pytest.approx(cost, rel=1e-9)


def test_greedy_may_be_fooled_by_a_good_rate():
    costs, nbytes = np.array([[10.0, 7.0], [10.0, 2.0]]), np.array([[1, 2], [1, 4]])
    budget = 5  # one byte saves 3, three bytes save 8, and only one of the two fits
    assert greedy(costs, nbytes, budget) == [1, 0]
    assert exact(costs, nbytes, budget) == [0, 1]


@pytest.mark.parametrize("solver", [exact, greedy, lagrangian])
def test_a_budget_below_the_smallest_choices_is_refused(solver):
    costs, nbytes = problem(3, 2, 1)
    least = int(nbytes.min(1).sum())
    with pytest.raises(ValueError, match=f"the smallest choices take {least} bytes, the budget"):
        solver(costs, nbytes, least - 1)
    assert value(costs, nbytes, solver(costs, nbytes, least))[1] == least


def test_the_budget_is_given_in_one_way():
    choices = Choices(("a",), (Scheme(4, 64),), np.ones((1, 1)), np.array([[34]]), np.array([64]))
    assert choices.allocate(bits_per_weight=4.25) == choices.allocate(nbytes=34)
    assert choices.allocate(nbytes=34) == Allocation({"a": Scheme(4, 64)}, 34, 1.0)
    for wrong in ({}, {"nbytes": 34, "bits_per_weight": 4.25}):
        with pytest.raises(ValueError, match="one of bits_per_weight and nbytes"):
            choices.allocate(**wrong)


# ------------------------------------------------------------------ the story model


@lru_cache
def measured(measure: str = "kl") -> Choices:
    model, tokenizer = load("storyteller")
    tokens = calibration_set(tokenizer, samples=3 if measure == "kl" else 16, length=64)
    return sensitivities(model, RTN(), SCHEMES, tokens, tokens, measure=measure)


def on_unseen_text(allocation: Allocation) -> Evaluation:
    model, tokenizer = load("storyteller")
    tokens = held_out(tokenizer, samples=6, length=128)
    reference = log_probabilities(model, tokens)
    report = quantize_(model, Mixed(RTN(), allocation), None)
    assert report.nbytes == allocation.nbytes
    return evaluate(model, tokens, reference=reference)


def uniform(choices: Choices, column: int) -> Allocation:
    schemes = dict.fromkeys(choices.layers, choices.schemes[column])
    nbytes, cost = choices.nbytes[:, column].sum(), choices.costs[:, column].sum()
    return Allocation(schemes, int(nbytes), float(cost))


def test_a_cost_is_the_loss_with_this_layer_quantized_alone():
    choices = measured()
    model, tokenizer = load("storyteller")
    tokens = calibration_set(tokenizer, samples=3, length=64)
    reference, path = log_probabilities(model, tokens), choices.layers[9]
    block, _, attribute = path.rpartition(".")
    quantized = copy.deepcopy(model)
    quantize_(quantized, RTN(), SCHEMES[1])
    setattr(model.get_submodule(block), attribute, quantized.get_submodule(path))
    kl = evaluate(model, tokens, reference=reference).kl
    assert choices.costs[9, 1] == pytest.approx(kl, rel=1e-6)
    assert choices.weights.sum() == 3145728
    assert (choices.nbytes[:, 1] == choices.weights * 3.25 / 8).all()


def test_mixed_precision_beats_the_same_bits_everywhere_and_loses_when_shuffled():
    choices = measured()
    same = uniform(choices, 1)
    best = choices.allocate(nbytes=same.nbytes)
    assert best.cost < same.cost
    assert len(set(best.schemes.values())) > 2
    random = np.random.default_rng(1)
    costs = choices.costs[random.permutation(len(choices.layers))]
    wrong = Choices(choices.layers, choices.schemes, costs, choices.nbytes, choices.weights)
    kept, mixed, shuffled = map(on_unseen_text, (same, best, wrong.allocate(nbytes=same.nbytes)))
    assert mixed.kl + 2 * (mixed.kl_se + kept.kl_se) < kept.kl
    assert shuffled.kl > mixed.kl + 2 * (mixed.kl_se + shuffled.kl_se)


def test_the_layer_s_own_output_error_is_no_measure_of_what_it_costs():
    same = uniform(measured(), 1)
    blind, aware = (
        on_unseen_text(measured(m).allocate(nbytes=same.nbytes)) for m in ("output", "fisher")
    )
    assert blind.kl > on_unseen_text(same).kl  # worse than not to choose at all
    assert aware.kl < on_unseen_text(same).kl


def test_the_second_order_loss_of_a_small_change_is_its_kl():
    model, tokenizer = load("storyteller")
    tokens = calibration_set(tokenizer, samples=48, length=32)
    name = "model.layers.1.mlp.down_proj"
    weight = model.get_submodule(name).weight
    generator = torch.Generator().manual_seed(0)
    D = 0.02 * weight.detach().std() * torch.randn(weight.shape, generator=generator)
    estimate = fisher_losses(model, [name], [[D], [2 * D]], tokens)[0]
    assert estimate[1] == pytest.approx(4 * estimate[0], rel=1e-4)
    reference = log_probabilities(model, tokens)
    with torch.no_grad():
        weight += D
    # 48 squares of a nearly normal number: their mean is known to a fifth.
    assert estimate[0] == pytest.approx(evaluate(model, tokens, reference=reference).kl, rel=0.5)


def test_each_layer_gets_its_scheme_also_from_a_method_with_data():
    choices = measured()
    allocation = choices.allocate(bits_per_weight=3.5)
    model, tokenizer = load("storyteller")
    data = calibration_set(tokenizer, samples=4, length=64)
    quantize_(model, Mixed(GPTQ(), allocation), None, data)
    for name, scheme in allocation.schemes.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        assert layer.scheme == scheme


def test_refuses_methods_and_models_that_do_not_fit():
    choices = measured()
    allocation = choices.allocate(bits_per_weight=4)
    for method in (AWQ(), AdaScale()):
        with pytest.raises(ValueError, match="needs one scheme for a whole block"):
            Mixed(method, allocation)
    part = Allocation({"elsewhere": Scheme()}, 1, 1.0)
    with pytest.raises(ValueError, match="has no scheme in the allocation"):
        quantize_(load("storyteller")[0], Mixed(RTN(), part), None)
    tokens = torch.ones(1, 8, dtype=torch.long)
    model = load("storyteller")[0]
    with pytest.raises(ValueError, match="measure is 'trace'"):
        sensitivities(model, RTN(), SCHEMES, tokens, measure="trace")
    with pytest.raises(ValueError, match="'output' needs data"):
        sensitivities(model, RTN(), SCHEMES, tokens, measure="output")
    with pytest.raises(ValueError, match="there are no schemes"):
        sensitivities(model, RTN(), [], tokens)
