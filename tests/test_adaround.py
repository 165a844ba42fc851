"""AdaRound: its formulas against the paper and a scalar twin, and what training leaves."""

import math

import pytest
import torch
from learned_problem import correlated, error, linear_block, matrix, slope
from reference_learned import adaround_weight

from quantlab.methods.adaround import (
    AdaRound,
    AdaRoundWeight,
    rectified_sigmoid,
    rounding_penalty,
)
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme
from quantlab.training import relative_error, train

SCHEMES = ["w4g8sym", "w3g4asym", "w2", "w3asym", "w8g8sym"]


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grids(weight: AdaRoundWeight):
    """Yield (row, column, scale, zero point) of every weight."""
    rows, columns = weight.V.shape
    size = weight.scheme.group_size or columns
    for i in range(rows):
        for j in range(columns):
            yield i, j, weight.s[i, j // size].item(), weight.z[i, j // size].item()


# ------------------------------------------------------------------ formulas


@pytest.mark.parametrize(
    ("V", "h"),
    [(0.0, 0.5), (math.log(11), 1.0), (-math.log(11), 0.0), (1.0, 1.2 / (1 + math.exp(-1)) - 0.1)],
)
def test_h_is_the_paper_s_rectified_sigmoid(V, h):
    # zeta = 1.1 and gamma = -0.1: sigmoid = 11/12 is stretched to 1, so V = ln 11 ends it.
    assert rectified_sigmoid(tensor(V)).item() == pytest.approx(h, abs=1e-12)
    assert rectified_sigmoid(tensor(-V)).item() == pytest.approx(1 - h, abs=1e-12)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_the_penalty_is_one_minus_a_power_of_the_distance_to_one_half(beta):
    V = matrix()
    h = rectified_sigmoid(V)
    expected = sum(1 - abs(2 * x - 1) ** beta for x in h.flatten().tolist()) / V.numel()
    assert rounding_penalty(V, beta).item() == pytest.approx(expected, abs=1e-12)
    assert rounding_penalty(tensor([9.0, -9.0]), beta).item() == 0
    assert rounding_penalty(tensor([0.0]), beta).item() == 1


def test_the_exponent_falls_from_20_to_2_after_a_start_without_penalty():
    weight = AdaRoundWeight(matrix(), Scheme(3), strength=0.5)
    assert weight.penalty(0.0) == 0
    assert weight.penalty(0.19) == 0
    for done, beta in [(0.2, 20.0), (0.6, 11.0), (1.0, 2.0)]:
        expected = 0.5 * rounding_penalty(weight.V, beta).item()
        assert weight.penalty(done).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_soft_weight_starts_as_the_clipped_weight(scheme):
    scheme, W = Scheme.parse(scheme), matrix()
    weight = AdaRoundWeight(W, scheme)
    for i, j, s, z in grids(weight):
        ends = sorted((s * -z, s * (scheme.levels - 1 - z)))
        expected = min(max(W[i, j].item(), ends[0]), ends[1])
        assert weight()[i, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_and_gradients_equal_the_scalar_twin(scheme):
    W, G = matrix(), matrix()
    weight = AdaRoundWeight(W, Scheme.parse(scheme))
    with torch.no_grad():
        weight.V.add_(2 * torch.randn_like(weight.V))
    Q = weight()
    Q.backward(G)
    for i, j, s, z in grids(weight):
        levels = weight.scheme.levels
        expected, slope = adaround_weight(W[i, j].item(), s, z, weight.V[i, j].item(), levels)
        assert Q[i, j].item() == pytest.approx(expected, abs=1e-12)
        assert weight.V.grad[i, j].item() == pytest.approx(G[i, j].item() * slope, abs=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_the_slopes_of_the_soft_version(scheme):
    weight = AdaRoundWeight(matrix(3, 8), Scheme.parse(scheme))
    with torch.no_grad():
        weight.V.add_(0.5 * torch.randn_like(weight.V))
    G = matrix(3, 8)
    weight().backward(G)
    for k, gradient in enumerate(weight.V.grad.flatten().tolist()):
        if abs(abs(weight.V.flatten()[k].item()) - math.log(11)) > 1e-3:  # not at a corner of h
            expected = slope(weight.V, k, lambda: (weight() * G).sum())
            assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-8)


# ------------------------------------------------------------------ what stays


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_stays_is_the_soft_weight_once_every_h_has_chosen(scheme):
    W = matrix()
    weight = AdaRoundWeight(W, Scheme.parse(scheme))
    with torch.no_grad():
        weight.V.copy_(9 * torch.randn_like(weight.V).sign())
    kept = weight.quantized()
    assert kept.dequantize().equal(weight())
    up = weight.V > 0
    for i, j, s, z in grids(weight):
        wanted = math.floor(W[i, j].item() / s) + int(up[i, j]) + z
        assert kept.codes[i, j].item() == min(max(wanted, 0), weight.scheme.levels - 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_untrained_it_rounds_to_nearest_on_the_searched_grid(scheme):
    scheme, W = Scheme.parse(scheme), matrix(8, 32)
    kept = AdaRoundWeight(W, scheme).quantized()
    steps = scheme.group(W) / kept.scale[..., None]
    tie = ((steps - steps.floor() - 0.5).abs() < 1e-9).flatten(1)
    expected = scheme.encode(W, kept.scale, kept.zero_point)
    assert kept.codes[~tie].equal(expected[~tie])
    searched = (kept.dequantize() - W).square().sum()
    assert searched <= (rtn(W, scheme).dequantize() - W).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_stay_zeros_though_their_step_is_arbitrary(dtype):
    W = matrix(4, 16).to(dtype)
    W[1], W[2, 8:], W[3] = 0, 0, torch.finfo(dtype).tiny / 16
    W[3, ::2] *= -1
    block = linear_block(W, correlated().to(dtype).abs())
    block.targets = [block.targets[0] + 100]  # an error that only larger weights could lower
    for scheme in ("w2g8sym", "w3g8asym"):
        method = AdaRound(iterations=40, rate=1.0, strength=0.0)  # nothing holds it back
        kept = method.quantize_block(block, Scheme.parse(scheme))["0"]
        Q = kept.dequantize()
        assert (Q[1] == 0).all()
        assert (Q[2, 8:] == 0).all()
        assert (Q[3] == 0).all()
        assert torch.isfinite(Q).all()
        assert (Q[0] != 0).any()


def test_scales_may_be_negative():
    W = matrix(6, 16).abs()  # the extreme is positive, so code 0 stands for a positive number
    weight = AdaRoundWeight(W, Scheme(3, 8))
    assert (weight.s < 0).any()
    assert torch.allclose(weight(), W.clamp(max=weight().max().item()), atol=0.5)
    block = linear_block(W, correlated())
    kept = AdaRound(iterations=200, rate=0.05).quantize_block(block, Scheme(3, 8))["0"]
    assert error(block, kept) < error(block, rtn(W, Scheme(3, 8)))


@pytest.mark.parametrize("shape", [(1, 8), (5, 1), (1, 1)])
@pytest.mark.parametrize("scheme", ["w3", "w2asym"])
def test_one_row_or_one_column_is_enough(shape, scheme):
    W = matrix(*shape)
    block = linear_block(W, correlated(20, shape[1]))
    kept = AdaRound(iterations=5).quantize_block(block, Scheme.parse(scheme))["0"]
    assert kept.shape == shape
    assert torch.isfinite(kept.dequantize()).all()


@pytest.mark.parametrize(("iterations", "share"), [(100, 0.5), (500, 0.95)])
def test_nearly_every_weight_has_chosen_a_side_when_training_ends(iterations, share):
    W = matrix(16, 32)
    block = linear_block(W, correlated(200, 32))
    method = AdaRound(iterations=iterations)
    weights = method.start(block, Scheme(3, 16))
    start = weights["0"].quantized().codes
    losses = train(block, weights, iterations=iterations, loss=relative_error)
    weight = weights["0"]
    h = rectified_sigmoid(weight.V)
    assert ((h < 0.01) | (h > 0.99)).double().mean() > share
    moved = (weight.quantized().codes != start).double().mean()
    assert 0.01 < moved < 0.5
    assert error(block, weight.quantized()) < 0.7 * error(block, rtn(W, Scheme(3, 16)))
    assert math.isfinite(losses[-1])


def test_each_code_is_a_neighbor_of_its_weight():
    W = matrix(16, 32)
    block = linear_block(W, correlated(200, 32))
    kept = AdaRound(iterations=200).quantize_block(block, Scheme(4, 16))["0"]
    scheme = kept.scheme
    steps = (scheme.group(W) / kept.scale[..., None]).floor()
    low = (steps + kept.zero_point[..., None]).flatten(1)
    up = (kept.codes - low).double()
    inside = (low >= 0) & (low < scheme.levels - 1)
    assert set(up[inside].unique().tolist()) == {0.0, 1.0}
