"""AdaScale: its formulas on worked examples and a slow twin, and its outcome on a known problem."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from reference_learned import AdaScaleTwin, adascale_training
from torch import nn
from torch.func import functional_call

from quantlab.methods.adascale import (
    AdaScale,
    AdaScaleWeight,
    as_call,
    learnable,
    start_range,
    train_block,
)
from quantlab.models.families import UnsupportedModelError
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError

EXACT = {"rtol": 0, "atol": 1e-12}
PRINTED = {"rtol": 0, "atol": 1e-6}  # the worked examples are given to so many digits


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def set_(parameter, values) -> None:
    parameter.data.copy_(tensor(values).reshape(parameter.shape))


def spread_(weight: AdaScaleWeight, size: float = 0.3) -> AdaScaleWeight:
    """Move all parameters away from 0, the same way for the same seed."""
    for parameter in weight.parameters():
        parameter.data.normal_(0, size)
    return weight


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


TOY = [[0.90, -0.35, 0.20], [-0.55, 0.15, 0.40]]
TOY_BATCHES = [
    [[1, 0.5, -1], [0, 2, 1], [-1.5, 0.5, 0.5], [2, -1, 0]],
    [[0.5, -0.5, 2], [1, 1, 1], [-1, 0, -2], [0.5, 1.5, -0.5]],
]


def toy() -> tuple[nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(tensor(TOY))
        inputs = [tensor([batch]) for batch in TOY_BATCHES]
        return layer, inputs, [layer(x) for x in inputs]


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


# ------------------------------------------------------------------ groups, our extension


def test_a_group_as_long_as_the_row_changes_nothing():
    layer, inputs, _ = gated()
    method = AdaScale(iterations=30)
    for name, size in (("gate", 32), ("down", 64)):
        one, other = (
            train_block(
                getattr(layer, name), inputs_of(layer, inputs, name), answers, scheme, method
            )
            for answers in [answers_of(layer, inputs, name)]
            for scheme in (Scheme(3), Scheme(3, size))
        )
        assert one[0] == other[0]
        assert one[1][""].codes.equal(other[1][""].codes)
        assert one[1][""].scale.equal(other[1][""].scale)


def inputs_of(module, inputs, name):
    if name != "down":
        return inputs
    with torch.no_grad():
        return [nn.functional.silu(module.gate(x)) * module.up(x) for x in inputs]


def answers_of(module, inputs, name):
    with torch.no_grad():
        return [getattr(module, name)(x) for x in inputs_of(module, inputs, name)]


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grouped_weight_is_the_reshaped_weight_with_a_range_a_row(bits):
    W, G = torch.randn(6, 24), torch.randn(6, 24)
    grouped = spread_(AdaScaleWeight(W, Scheme(bits, 8)))
    rows = AdaScaleWeight(W.view(18, 8), Scheme(bits))
    for mine, theirs in zip(rows.parameters(), grouped.parameters(), strict=True):
        mine.data.copy_(theirs.data.view_as(mine))
    Q, R = grouped(), rows()
    assert Q.shape == (6, 24)
    assert Q.equal(R.view(6, 24))
    Q.backward(G)
    R.backward(G.view(18, 8))
    for mine, theirs in zip(rows.parameters(), grouped.parameters(), strict=True):
        assert theirs.grad.view_as(mine).equal(mine.grad)
    assert grouped.quantized().scale.equal(rows.quantized().scale.view(6, 3))


# ------------------------------------------------------------------ problem B


class GatedBlock(nn.Module):
    """The known problem: y = x + down(silu(gate x) * up x)."""

    def __init__(self, gate, up, down):
        super().__init__()
        for name, W in (("gate", gate), ("up", up), ("down", down)):
            layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
            layer.weight.data = torch.tensor(W, dtype=torch.float32)
            setattr(self, name, layer)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gated_problem():
    """Return the block, 16 calibration batches and 8 test batches, channels 3 and 17 outliers."""
    r = np.random.default_rng(7)
    shapes = ((64, 32), (64, 32), (32, 64))
    module = GatedBlock(*(r.standard_t(5, shape) / np.sqrt(shape[1]) for shape in shapes))
    streams = []
    for batches in (16, 8):
        x = r.standard_normal((batches, 2, 16, 32))
        x[..., [3, 17]] *= 6
        streams.append(torch.tensor(x, dtype=torch.float32))
    return module, list(streams[0]), streams[1]


def gated():
    module, inputs, _ = gated_problem()
    with torch.no_grad():
        return module, inputs, [module(x) for x in inputs]


def test_error(module, weights, test) -> float:
    """Return the mean squared error of the block with these weights, on unseen inputs."""
    with torch.no_grad():
        named = {f"{name}.weight": weight for name, weight in weights.items()}
        return (functional_call(module, named, test) - module(test)).square().mean().item()


test_error.__test__ = False


@functools.cache
def trained(bits: int, iterations: int) -> tuple[list[float], float]:
    """Return the losses, and the test error of the folded block."""
    module, inputs, targets = gated()
    method = AdaScale(iterations=iterations)
    losses, quantized = train_block(module, inputs, targets, Scheme(bits), method)
    weights = {name: answer.dequantize() for name, answer in quantized.items()}
    return losses, test_error(module, weights, gated_problem()[2])


def searched_error(bits: int) -> float:
    """Clip search: the factor 0.2, 0.21 .. 1 of each row's step with the least weight error."""
    module, _, test = gated_problem()
    weights = {}
    for name, layer in module.named_children():
        W = layer.weight.detach()
        full = AdaScaleWeight(W, Scheme(bits)).scale().detach()
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        tried = torch.stack(
            [
                (W / (full * f)).round().clamp(low, high) * full * f
                for f in torch.linspace(0.2, 1, 81)
            ]
        )
        best = (tried - W).square().sum(2).argmin(0)
        weights[name] = tried[best, torch.arange(len(W))]
    return test_error(module, weights, test)


def test_the_known_problem_is_built_as_described():
    module, inputs, test = gated_problem()
    sums = [layer.weight.detach().double().abs().sum().item() for layer in module.children()]
    assert sums == pytest.approx([339.2379, 332.3134, 246.6973], abs=1e-4)
    assert (len(inputs), inputs[0].shape, test.shape) == (16, (2, 16, 32), (8, 2, 16, 32))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (4, [34.399956, 26.846165, 10.634689, 13.144043]),
        (3, [208.47406, 140.70940, 58.685097, 83.974800]),
        (2, [281.71469, 253.76251, 112.09173, 168.81818]),
    ],
)
def test_the_first_losses_are_those_of_the_definition(bits, expected):
    assert trained(bits, 1500)[0][:4] == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize(
    ("bits", "iterations", "limit"),
    [(4, 320, 0.80), (4, 1500, 0.66), (3, 320, 4.24), (3, 1500, 2.29), (2, 1500, 6.41)],
)
def test_training_long_enough_beats_the_clip_search(bits, iterations, limit):
    error = trained(bits, iterations)[1]
    assert error < limit < searched_error(bits)


@pytest.mark.parametrize(("bits", "iterations"), [(3, 96), (2, 96), (2, 320)])
def test_training_too_short_loses_to_the_clip_search(bits, iterations):
    # The rates are made for 1500 steps. Where training is short, a search without data wins.
    assert plain_error(bits) > trained(bits, iterations)[1] > searched_error(bits)


@pytest.mark.parametrize(
    ("bits", "plain", "searched"), [(4, 1.401, 1.249), (3, 7.249, 4.303), (2, 13.06, 9.401)]
)
def test_the_rivals_of_the_known_problem_have_their_known_errors(bits, plain, searched):
    assert plain_error(bits) == pytest.approx(plain, rel=5e-4)
    assert searched_error(bits) == pytest.approx(searched, rel=5e-4)


def plain_error(bits: int) -> float:
    module, _, test = gated_problem()
    weights = learnable(dict(module.named_children()), Scheme(bits), AdaScale())
    return test_error(module, {name: weight() for name, weight in weights.items()}, test)


def test_the_training_loss_is_not_the_error_of_what_is_kept():
    module, inputs, targets = gated()
    test = gated_problem()[2]
    folded = {}

    def read(step, weights):
        if step % 80 == 0:
            kept = {name: weight.quantized().dequantize() for name, weight in weights.items()}
            folded[step] = kept

    losses, quantized = train_block(
        module, inputs, targets, Scheme(4), AdaScale(iterations=320), after_step=read
    )
    last = {name: answer.dequantize() for name, answer in quantized.items()}
    assert all(folded[320][name].equal(last[name]) for name in last)
    assert test_error(module, last, test) < test_error(module, folded[80], test) < plain_error(4)
    # The last round of losses was taken while the weights moved: close, but not the error itself.
    judged = np.mean([test_error(module, last, x) * x.shape[1] for x in inputs])
    assert 1e-4 < abs(np.mean(losses[-16:]) / judged - 1) < 0.1


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme(4, symmetric=False), "AdaScale needs symmetric=True; the scheme is w4asym"),
        (Scheme(1), "bits is 1; AdaScale takes 2..8"),
        (Scheme(16), "bits is 16; AdaScale takes 2..8"),
        (Scheme(4, 5), "in_features 3 is not a multiple of group_size 5"),
    ],
)
def test_a_grid_that_it_cannot_learn_is_refused(scheme, words):
    layer, inputs, targets = toy()
    with pytest.raises(ValueError, match=words):
        train_block(layer, inputs, targets, scheme, AdaScale(iterations=2))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_groups_divide_rows_of_matrices_only(per_tensor):
    W = torch.randn(4, 4) if per_tensor else torch.randn(4, 4, 3, 3)
    with pytest.raises(ValueError, match="choose group_size=None"):
        AdaScaleWeight(W, Scheme(4, 2), per_tensor=per_tensor)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\); pass \(out, in\)"):
        AdaScaleWeight(torch.randn(4, 4, 4), Scheme(4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(value):
    module, inputs, targets = gated()
    with torch.no_grad():
        module.up.weight[3, 7] = value
    with pytest.raises(ValueError, match=r"GatedBlock\.up: .*non-finite values.*\[3, 7\]"):
        train_block(module, inputs, targets, Scheme(4), AdaScale(iterations=2))


def test_data_that_is_empty_or_not_finite_is_refused():
    module, inputs, targets = gated()
    with pytest.raises(CalibrationError, match="needs calibration data"):
        train_block(module, [], [], Scheme(4), AdaScale(iterations=2))
    inputs[1] = inputs[1].clone()
    inputs[1][0, 3, 5] = math.nan
    with pytest.raises(CalibrationError, match="batch 1 holds NaN or infinity"):
        train_block(module, inputs, targets, Scheme(4), AdaScale(iterations=2))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"iterations": 0}, "iterations is 0; choose a positive integer"),
        ({"iterations": True}, "iterations is True"),
        ({"input_mix": 1.5}, "input_mix is 1.5; choose a probability"),
        ({"range_lr": -1e-3}, "range_lr is -0.001; choose a finite number >= 0"),
        ({"divisor_lr": math.inf}, "divisor_lr is inf"),
    ],
)
def test_numbers_that_no_training_can_use_are_refused_at_once(numbers, words):
    with pytest.raises(ValueError, match=words):
        AdaScale(**numbers)


def test_a_block_without_a_layer_to_train_is_refused():
    with pytest.raises(ValueError, match="LayerNorm has no weight to train"):
        train_block(
            nn.LayerNorm(3), [torch.randn(1, 2, 3)], [torch.randn(1, 2, 3)], Scheme(4), AdaScale()
        )


class Unknown(nn.Module):
    """A model whose blocks lie where no known architecture keeps them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 32)
        module = gated_problem()[0]
        self.parts = nn.ModuleList([module, copy.deepcopy(module)])

    def forward(self, tokens):
        x = self.embed(tokens)
        for part in self.parts:
            x = part(x)
        return x


def test_an_unknown_model_is_never_passed_over_in_silence():
    model, data = Unknown(), torch.randint(0, 11, (3, 6))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=r"Unknown has no blocks.*parts.*blocks="):
        quantize_(model, AdaScale(iterations=2), Scheme(4), data)
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    report = quantize_(model, AdaScale(iterations=2), Scheme(4), data, blocks="parts")
    assert len(report.rows) == 6


def test_a_model_is_put_back_when_the_scheme_or_the_data_is_refused():
    model, data = Unknown(), torch.randint(0, 11, (3, 6))
    for scheme, tokens, words in [
        (Scheme(4, symmetric=False), data, r"parts\.0\.gate: AdaScale needs symmetric=True"),
        (Scheme(4), None, "needs calibration data"),
    ]:
        with pytest.raises(ValueError, match=words):
            quantize_(model, AdaScale(iterations=2), scheme, tokens, blocks="parts")
        assert all(isinstance(part.gate, nn.Linear) for part in model.parts)


# ------------------------------------------------------------------ blocks of other kinds


class Picture(nn.Module):
    """A small convolutional block with a norm that keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        """Map (batch, 2, height, width) to (batch, 3)."""
        return self.head(self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3)))


def test_linears_and_convolutions_of_a_block_are_trained_together():
    module = Picture()
    inputs = [torch.randn(4, 2, 6, 6) for _ in range(3)]
    module(inputs[0])  # fills the running statistics
    before, mode = copy.deepcopy(module.state_dict()), module.training
    module.eval()
    with torch.no_grad():
        targets = [module(x) for x in inputs]
    module.train(mode)
    losses, quantized = train_block(module, inputs, targets, Scheme(3), AdaScale(iterations=300))
    assert set(quantized) == {"first", "second", "head"}
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
    assert module.training == mode
    assert all(before[name].equal(value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_batch_is_a_tensor_a_tuple_or_a_whole_call():
    x = torch.randn(2, 3)
    assert as_call(x) == ((x,), {})
    assert as_call((x, 1)) == ((x, 1), {})
    assert as_call(((x,), {"scale": 2})) == ((x,), {"scale": 2})
