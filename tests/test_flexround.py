"""FlexRound: its formula and straight-through gradient against a scalar twin, and its fold."""

import math

import pytest
import torch
from learned_problem import correlated, error, linear_block, matrix, slope
from reference_learned import flexround_weight

from quantlab.methods.flexround import FlexRound, FlexRoundWeight
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme
from quantlab.training import train

SCHEMES = ["w4g8sym", "w3g4asym", "w2", "w3asym", "w8g8sym", "w1g8asym"]


def spread(scheme: str, shape=(6, 16), size=0.2) -> FlexRoundWeight:
    """Make a weight whose factors have all moved away from 1."""
    weight = FlexRoundWeight(matrix(*shape), Scheme.parse(scheme))
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.normal_(0, size)
    return weight


def group_of(weight: FlexRoundWeight, j: int) -> int:
    return j // (weight.scheme.group_size or weight.W.shape[1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_codes_and_gradients_equal_the_scalar_twin(scheme):
    weight, G = spread(scheme), matrix()
    Q = weight()
    Q.backward(G)
    rows, columns = weight.W.shape
    s1, s3 = torch.zeros_like(weight.log_s1), torch.zeros_like(weight.log_s3)
    for i in range(rows):
        for j in range(columns):
            g = group_of(weight, j)
            logs = tuple(p.item() for p in (weight.log_s1[i, g], weight.log_S2[i, j]))
            value, code, slopes = flexround_weight(
                weight.W[i, j].item(),
                weight.s[i, g].item(),
                weight.z[i, g].item(),
                (*logs, weight.log_s3[i, 0].item()),
                weight.scheme.levels,
            )
            assert Q[i, j].item() == pytest.approx(value, abs=1e-12)
            assert weight.quantized().codes[i, j].item() == code
            upstream = G[i, j].item()
            assert weight.log_S2.grad[i, j].item() == pytest.approx(upstream * slopes[1], abs=1e-12)
            s1[i, g] += upstream * slopes[0]
            s3[i, 0] += upstream * slopes[1]
    assert torch.allclose(weight.log_s1.grad, s1, rtol=0, atol=1e-12)
    assert torch.allclose(weight.log_s3.grad, s3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", ["w3g8sym", "w3g4asym", "w2"])
def test_gradients_are_the_slopes_of_the_soft_version(scheme):
    weight, G = spread(scheme, (3, 8)), matrix(3, 8)
    levels, z = weight.scheme.levels, weight.z[..., None]

    def x():  # before rounding
        divided = weight.W / torch.exp(weight.log_S2 + weight.log_s3)
        return weight.scheme.group(divided) / weight.s1()[..., None]

    left = (x().round() - x()).detach()  # what rounding added: a constant from here on
    wanted = x().round() + z
    inside = (wanted >= 0) & (wanted <= levels - 1)
    assert inside.any()
    assert not inside.all()

    def soft():
        codes = torch.where(inside, x() + left + z, wanted.clamp(0, levels - 1))
        return (((codes - z) * weight.s1()[..., None]).flatten(1) * G).sum()

    weight().backward(G)
    for name, parameter in weight.named_parameters():
        for k, gradient in enumerate(parameter.grad.flatten().tolist()):
            expected = slope(parameter, k, soft)
            assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_large_weights_travel_further():
    # Equal steps of log S2 move W / S2 in proportion to its size: the reciprocal rule.
    weight = FlexRoundWeight(torch.tensor([[4.0, 1.0, -2.0, 0.5]]).double(), Scheme(8))
    weight().backward(torch.ones(1, 4, dtype=torch.float64))
    assert weight.log_S2.grad.tolist() == [[-4.0, -1.0, 2.0, -0.5]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_untrained_it_rounds_to_nearest_on_the_searched_grid(scheme):
    scheme, W = Scheme.parse(scheme), matrix(8, 32)
    kept = FlexRoundWeight(W, scheme).quantized()
    assert kept.codes.equal(scheme.encode(W, kept.scale, kept.zero_point))
    searched = (kept.dequantize() - W).square().sum()
    assert searched <= (rtn(W, scheme).dequantize() - W).square().sum()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_and_step_are_all_that_stays(scheme):
    weight = spread(scheme)
    kept = weight.quantized()
    assert kept.dequantize().equal(weight())
    assert kept.scale.equal(weight.s * weight.log_s1.exp())
    assert not kept.scale.requires_grad


def test_training_moves_weights_by_more_than_one_level_and_pays():
    W = matrix(16, 32)
    block = linear_block(W, correlated(200, 32))
    scheme = Scheme(3, 16)
    weights = FlexRound(iterations=300).start(block, scheme)
    losses = train(block, weights, iterations=300)
    kept = weights["0"].quantized()
    nearest = scheme.encode(W, kept.scale, kept.zero_point)
    assert kept.dequantize().equal(weights["0"]())
    assert (kept.codes != nearest).any()
    assert error(block, kept) < 0.9 * error(block, rtn(W, scheme))
    assert losses[-1] < losses[0]


def test_zeros_stay_zeros_and_silent_inputs_do_no_harm():
    W, x = matrix(4, 16), correlated()
    W[1], W[2, 8:] = 0, 0
    x[:, 3] = 0
    block = linear_block(W, x)
    for scheme in ("w2g8sym", "w3g8asym"):
        method = FlexRound(iterations=40, rate=0.05)
        Q = method.quantize_block(block, Scheme.parse(scheme))["0"].dequantize()
        assert (Q[1] == 0).all()
        assert (Q[2, 8:] == 0).all()
        assert torch.isfinite(Q).all()


def test_a_negative_scale_stays_negative():
    weight = spread("w3g8sym")
    assert (weight.s < 0).any()
    assert weight.s1().sign().equal(weight.s.sign())


@pytest.mark.parametrize("shape", [(1, 8), (5, 1), (1, 1)])
@pytest.mark.parametrize("scheme", ["w3", "w2asym"])
def test_one_row_or_one_column_is_enough(shape, scheme):
    block = linear_block(matrix(*shape), correlated(20, shape[1]))
    kept = FlexRound(iterations=5).quantize_block(block, Scheme.parse(scheme))["0"]
    assert kept.shape == shape
    assert torch.isfinite(kept.dequantize()).all()


def test_half_precision_is_learned_in_float32():
    weight = FlexRoundWeight(matrix().to(torch.bfloat16), Scheme(4, 8))
    assert weight().dtype == torch.bfloat16
    assert weight.log_S2.dtype == weight.quantized().scale.dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    W = matrix()
    W[2, 3] = value
    with pytest.raises(ValueError, match=r"non-finite.*\[2, 3\]"):
        FlexRoundWeight(W, Scheme(4))
