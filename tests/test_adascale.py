"""AdaScale: its formulas on worked examples, against a slow twin and finite differences."""

import copy
import math

import pytest
import torch
from problems import TOY, TOY_BATCHES, spread_, tensor, toy
from reference_learned import AdaScaleTwin, adascale_training
from torch import nn

from quantlab.methods.adascale import (
    AdaScale,
    AdaScaleWeight,
    start_range,
    train_block,
)
from quantlab.scheme import Scheme

EXACT = {"rtol": 0, "atol": 1e-12}
PRINTED = {"rtol": 0, "atol": 1e-6}  # the worked examples are given to so many digits


def set_(parameter, values) -> None:
    parameter.data.copy_(tensor(values).reshape(parameter.shape))


# ------------------------------------------------------------------ start


@pytest.mark.parametrize(
    ("bits", "row", "step", "codes"),
    [
        (4, [0.30, -0.10], 0.04285714, [7, -2]),
        (4, [-0.30, 0.10], 0.0375, [-8, 3]),
        (4, [1.25, 0.25, 0.75, -4.0], 0.5, [2, 0, 2, -8]),  # three ties go to even
        (3, [0.30, -0.20, 0.06], 0.1, [3, -2, 1]),
        (2, [0.30, -0.20, 0.06], 0.15, [1, -1, 0]),  # 2 bits clip the largest weight
        (4, [0.0, 0.0], 1.1920929e-07, [0, 0]),
    ],
)
def test_the_start_range_holds_the_row_in_all_its_levels(bits, row, step, codes):
    weight = AdaScaleWeight(tensor([row]), Scheme(bits))
    assert torch.allclose(weight.scale(), tensor([[step]]), **PRINTED)
    assert weight.scale().item() > 0
    assert weight.codes().tolist() == [codes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", [(6, 24), (1, 5), (5, 1), (4, 3, 3, 3)])
def test_parameters_of_zero_are_plain_rounding_bit_for_bit(bits, shape, dtype):
    W = torch.randn(shape, dtype=dtype)
    weight = AdaScaleWeight(W, Scheme(bits))
    low, high = start_range(W.flatten(1), bits)
    s = ((high - low) / (2**bits - 1)).reshape(-1, *[1] * (W.ndim - 1))
    plain = torch.clamp(torch.round(W / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s
    assert weight().equal(plain)
    assert weight.folded().equal(W)
    assert weight.scale().equal(s)


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.1, 0.3, 0.2], [-0.1, -0.3, -0.2], [1e-30] * 3])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_zero_and_one_signed_rows_train_to_finite_weights(row, bits):
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([row, [0.5, -0.25, 0.125]]))
    inputs = [torch.randn(2, 5, 3)]
    with torch.no_grad():
        targets = [layer(x) for x in inputs]
    losses, quantized = train_block(layer, inputs, targets, Scheme(bits), AdaScale(iterations=20))
    answer = quantized[""]
    assert torch.isfinite(answer.dequantize()).all()
    assert (answer.scale > 0).all()
    assert all(map(math.isfinite, losses))
    if not any(row):
        assert answer.dequantize()[0].tolist() == [0, 0, 0]


# ------------------------------------------------------------------ worked examples


def test_one_layer_of_three_bits_gives_the_worked_values_and_gradients():
    W = [[0.50, -0.30, 0.11, -0.62], [0.07, 0.21, -0.14, 0.02]]
    weight = AdaScaleWeight(tensor(W), Scheme(3))
    assert torch.allclose(weight.scale(), tensor([[1 / 6], [0.07]]), **PRINTED)
    assert weight.codes().tolist() == [[3, -2, 1, -4], [1, 3, -2, 0]]
    set_(weight.gamma, [-0.5, -0.05])
    set_(weight.beta, [-0.3, 0])
    set_(weight.s2, [[0.1, -0.2, 0, -0.1], [0.3, 0, -0.3, -0.8]])
    set_(weight.s3, [-0.05, -0.05])
    Q = weight()
    Q.backward(tensor([[1, 2, -1, 0.5], [-1, 1, 2, 1]]))
    folded = [
        [0.4756147, -0.3852076, 0.1156398, -0.7203372],
        [0.0545161, 0.2207669, -0.1986695, 0.0467929],
    ]
    expected = [
        (weight.scale(), [[0.1138777], [0.0685369]]),
        (weight.folded(), folded),
        (
            Q,
            [
                [0.3416332, -0.3416332, 0.1138777, -0.4555109],
                [0.0685369, 0.2056106, -0.2056106, 0.0685369],
            ],
        ),
        (weight.gamma.grad, [[0.0771489], [-0.0088752]]),
        (weight.beta.grad, [[0.1256398], [-0.0124403]]),
        (
            weight.s2.grad,
            # row 0 is clamped at both ends; in row 1 an x of 3.22 rounds to 3 and still passes
            [[0, 0.7704153, 0.1156398, 0], [0.0545161, -0.2207669, 0.3973389, -0.0467929]],
        ),
        (weight.s3.grad, [[0.8860551], [0.1842951]]),
    ]
    for value, printed in expected:
        assert torch.allclose(value, tensor(printed), **PRINTED)
    assert weight.codes().tolist() == [[3, -3, 1, -4], [1, 3, -3, 1]]


def test_a_convolution_divides_by_its_input_channels_too():
    W = tensor([[[[0.40, -0.26]], [[0.90, 0.33]]], [[[-0.75, 0.12]], [[0.20, 0.61]]]])
    weight = AdaScaleWeight(W, Scheme(4))
    assert torch.allclose(weight.scale().flatten(), tensor([0.1285714, 0.09375]), **PRINTED)
    assert weight.codes().flatten().tolist() == [3, -2, 7, 3, -8, 1, 2, 7]
    set_(weight.s4, [0.25, -0.10])
    weight().backward(torch.ones_like(W))
    assert weight.codes().flatten().tolist() == [2, -2, 7, 3, -6, 1, 2, 7]
    for parameter, printed in [
        (weight.s4, [0.3816124, -1.2598948]),
        (weight.s3, [-0.4737385, -0.4045440]),
        (weight.gamma, [0.3789220, -0.0137872]),
        (weight.beta, [0.4330537, -0.0157568]),
    ]:
        assert torch.allclose(parameter.grad.flatten(), tensor(printed), **PRINTED)


def test_six_iterations_go_the_worked_way():
    layer, inputs, targets = toy()
    seen = {}

    def read(step, weights):
        seen[step] = copy.deepcopy(weights[""])

    losses, quantized = train_block(
        layer, inputs, targets, Scheme(2), AdaScale(iterations=6), after_step=read
    )
    printed = [0.6160156250, 0.9564786269, 0.6136217552, 0.9558496728, 0.6121990309, 0.9555785596]
    assert losses == pytest.approx(printed, rel=0, abs=1e-9)
    first, last = seen[1], seen[6]
    for weight, values in [
        (first, ([0.001, -0.001], [-0.0005, 0.0005], [0, -5e-4, 5e-4, 5e-4, 5e-4, -5e-4])),
        (
            last,
            (
                [0.00296769, -0.00320553],
                [-0.00136924, -0.00002419],
                [0, 0.00021311, -0.00030211, 0.00154139, 0.00174944, -0.00140508],
            ),
        ),
    ]:
        for got, printed in zip(
            (weight.gamma, weight.beta, weight.s3, weight.s2),
            (values[0], values[0], values[1], values[2]),
            strict=True,
        ):
            assert torch.allclose(got.flatten(), tensor(printed), rtol=0, atol=1e-8)
    assert torch.allclose(quantized[""].scale, tensor([[0.45133744], [0.27411989]]), **PRINTED)


@pytest.mark.parametrize(("iterations", "expected"), [(1, None), (6, 0.195924), (200, 0.180358)])
def test_the_toy_ends_with_the_worked_error(iterations, expected):
    layer, inputs, targets = toy()
    error = toy_error(AdaScaleWeight(layer.weight, Scheme(2)), inputs, targets)
    assert error == pytest.approx(0.196621, abs=1e-6)
    if expected is not None:
        method = AdaScale(iterations=iterations)
        _, quantized = train_block(layer, inputs, targets, Scheme(2), method)
        Q = quantized[""].dequantize()
        assert toy_error(lambda: Q, inputs, targets) == pytest.approx(expected, abs=1e-6)


def toy_error(weight, inputs, targets) -> float:
    errors = [(x @ weight().T - y).square().mean() for x, y in zip(inputs, targets, strict=True)]
    return (sum(errors) / len(errors)).item()


# ------------------------------------------------------------------ gradients


def twin_of(weight: AdaScaleWeight, W: torch.Tensor, channels) -> AdaScaleTwin:
    kernel = W.reshape(*W.shape[:2], -1)
    return AdaScaleTwin(
        kernel.tolist(),
        weight.scheme.bits,
        channels,
        weight.gamma.flatten().tolist(),
        weight.beta.flatten().tolist(),
        weight.s2.reshape(kernel.shape).tolist(),
        weight.s3.flatten().tolist(),
        [0.0] * W.shape[1] if weight.s4 is None else weight.s4.flatten().tolist(),
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5, 9), (1, 4), (3, 2, 2, 3)])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_values_and_gradients_equal_the_scalar_twin(bits, shape, per_tensor):
    W, G = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    weight = spread_(AdaScaleWeight(W, Scheme(bits), per_tensor=per_tensor))
    everything = list(range(len(W)))
    twin = twin_of(weight, W, [everything] if per_tensor else [[o] for o in everything])
    gradients = twin.run(G.reshape(*shape[:2], -1).tolist())
    Q = weight()
    Q.backward(G)
    order = sorted(twin.Q)
    assert torch.allclose(Q.flatten(), tensor([twin.Q[k] for k in order]), **EXACT)
    assert torch.allclose(
        weight.folded().flatten(), tensor([twin.folded[k] for k in order]), **EXACT
    )
    assert weight.codes().flatten().tolist() == [twin.codes[k] for k in order]
    for name, parameter in weight.named_parameters():
        expected = tensor([gradients[name][key] for key in sorted(gradients[name])])
        assert torch.allclose(parameter.grad.flatten(), expected, **EXACT), name


def test_training_equals_the_scalar_twin_step_by_step():
    layer, inputs, targets = toy()
    losses, quantized = train_block(layer, inputs, targets, Scheme(3), AdaScale(iterations=40))
    expected, twin = adascale_training(TOY, TOY_BATCHES, bits=3, iterations=40)
    assert losses == pytest.approx(expected, rel=0, abs=1e-12)
    assert torch.allclose(quantized[""].scale.flatten(), tensor(twin.scale), **EXACT)
    codes = quantized[""].codes.int() - 4
    assert codes.flatten().tolist() == [twin.codes[k] for k in sorted(twin.codes)]


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 1, 2)])
def test_gradients_are_the_slopes_of_the_soft_version(shape):
    # Straight through means: the distance to the level, r - x, counts as a constant.
    W, G = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    weight = spread_(AdaScaleWeight(W, Scheme(3)))
    x = (weight.folded() / weight.scale()).detach()
    r = x.round()
    inside = (r >= -4) & (r <= 3)
    assert inside.any()
    assert not inside.all()

    def soft() -> float:
        moved = weight.folded() / weight.scale() + (r - x)
        return (G * torch.where(inside, moved, r.clamp(-4, 3)) * weight.scale()).sum().item()

    weight().backward(G)
    for name, parameter in weight.named_parameters():
        flat, gradient = parameter.data.flatten(), parameter.grad.flatten()
        for k in range(flat.numel()):
            middle = flat[k].item()
            values = []
            for moved in (middle + 1e-5, middle - 1e-5):
                flat[k] = moved
                parameter.data.copy_(flat.view_as(parameter))
                values.append(soft())
            flat[k] = middle
            parameter.data.copy_(flat.view_as(parameter))
            slope = (values[0] - values[1]) / 2e-5
            assert slope == pytest.approx(gradient[k].item(), rel=1e-6, abs=1e-8), name


def test_gamma_and_beta_share_one_gradient_in_a_known_ratio():
    weight = spread_(AdaScaleWeight(torch.randn(7, 20, dtype=torch.float64), Scheme(4)))
    weight().backward(torch.randn(7, 20, dtype=torch.float64))
    ratio = 7 * weight.gamma.exp() / (8 * weight.beta.exp())
    assert torch.allclose(weight.gamma.grad / weight.beta.grad, ratio.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 1, 2)])
def test_every_parameter_is_trained_the_range_faster_than_the_divisors(shape):
    weight = AdaScaleWeight(torch.randn(shape), Scheme(4), range_lr=3.0, divisor_lr=2.0)
    rates = {id(p): rate for parameters, rate in weight.rates() for p in parameters}
    for name, parameter in weight.named_parameters():
        assert rates[id(parameter)] == (3.0 if name in ("gamma", "beta") else 2.0)


# ------------------------------------------------------------------ fold


@pytest.mark.parametrize("scheme", [Scheme(4), Scheme(2), Scheme(3, 8)])
def test_ordinary_rounding_of_the_folded_weight_with_its_step_gives_q(scheme):
    weight = spread_(AdaScaleWeight(torch.randn(6, 24), scheme))
    quantized = weight.quantized()
    again = scheme.encode(weight.folded().detach(), quantized.scale, quantized.zero_point)
    assert again.equal(quantized.codes)
    assert quantized.dequantize().equal(weight().detach())
    assert (quantized.scale > 0).all()
    assert (quantized.zero_point == scheme.middle).all()
    assert not quantized.scale.requires_grad


def test_a_range_derived_from_the_folded_weight_undoes_the_training():
    weight = AdaScaleWeight(tensor([[0.50, -0.30, 0.11, -0.62]]), Scheme(3))
    set_(weight.gamma, [-0.5])
    set_(weight.beta, [-0.3])
    set_(weight.s2, [[0.1, -0.2, 0, -0.1]])
    set_(weight.s3, [-0.05])
    again = AdaScaleWeight(weight.folded(), Scheme(3))
    assert weight.codes().tolist() == [[3, -3, 1, -4]]
    assert again.scale().item() == pytest.approx(0.1800843, abs=1e-6)
    assert again.codes().tolist() == [[3, -2, 1, -4]]  # plain rounding's


def test_the_kernel_of_a_convolution_is_stored_as_a_matrix():
    weight = spread_(AdaScaleWeight(torch.randn(4, 3, 2, 2), Scheme(4)))
    quantized = weight.quantized()
    assert quantized.shape == (4, 12)
    assert quantized.dequantize().view(4, 3, 2, 2).equal(weight().detach())


def test_one_range_for_the_tensor_is_stored_once_a_row():
    weight = spread_(AdaScaleWeight(torch.randn(4, 6), Scheme(4), per_tensor=True))
    assert weight.gamma.shape == weight.beta.shape == weight.s3.shape == ()
    assert weight.quantized().scale.shape == (4, 1)
    assert weight.quantized().dequantize().equal(weight().detach())


def test_half_precision_is_learned_in_float32_and_answered_in_half():
    W = torch.randn(4, 8).half()
    weight = AdaScaleWeight(W, Scheme(4))
    assert weight().dtype == torch.float16
    assert weight.scale().dtype == weight.s2.dtype == torch.float32
    assert weight.codes().equal(AdaScaleWeight(W.float(), Scheme(4)).codes())
