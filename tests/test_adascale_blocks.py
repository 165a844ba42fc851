"""AdaScale on whole blocks: a known problem, groups, convolutions, and everything it refuses."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from problems import gated, gated_problem, mean_error, spread_, toy
from torch import nn

from quantlab.methods.adascale import AdaScale, AdaScaleWeight, as_call, learnable, train_block
from quantlab.models.families import UnsupportedModelError
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError

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


@functools.cache
def trained(bits: int, iterations: int) -> tuple[list[float], float]:
    """Return the losses, and the test error of the folded block."""
    module, inputs, targets = gated()
    method = AdaScale(iterations=iterations)
    losses, quantized = train_block(module, inputs, targets, Scheme(bits), method)
    weights = {name: answer.dequantize() for name, answer in quantized.items()}
    return losses, mean_error(module, weights, gated_problem()[2])


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
    return mean_error(module, weights, test)


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
    # Codes flip after some hundred steps, and the end depends on the last bits of every sum. Over
    # instruction sets and equally good ways to add, 3 bits at 1500 end at 2.03 to 2.29, here 2.26.
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
    return mean_error(module, {name: weight() for name, weight in weights.items()}, test)


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
    assert mean_error(module, last, test) < mean_error(module, folded[80], test) < plain_error(4)
    # The last round of losses was taken while the weights moved: close, but not the error itself.
    judged = np.mean([mean_error(module, last, x) * x.shape[1] for x in inputs])
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
