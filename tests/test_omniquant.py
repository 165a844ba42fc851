"""OmniQuant: clipping and its gradients against a scalar twin, and scales that fold exactly."""

import copy
import math

import pytest
import torch
from learned_problem import correlated, error, linear_block, matrix, slope
from reference_learned import clipped_group, sigmoid
from torch import nn

from quantlab.block import Block, Scaling, second_moment
from quantlab.methods import omniquant
from quantlab.methods.omniquant import OmniQuant, OmniQuantWeight, ScaledGain, fold_
from quantlab.methods.rtn import rtn
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError
from quantlab.training import train

SCHEMES = ["w4g8sym", "w3g4asym", "w2", "w3asym", "w8g8sym", "w1g8asym"]


def spread(scheme: str, shape=(6, 16), *, columns=False) -> OmniQuantWeight:
    """Make a weight with factors from about 0.4 to 0.9, and with LET where asked."""
    t = nn.Parameter(0.3 * torch.randn(shape[1], dtype=torch.float64)) if columns else None
    weight = OmniQuantWeight(matrix(*shape), Scheme.parse(scheme), columns=t)
    with torch.no_grad():
        for factor in (weight.g, weight.b):
            if factor is not None:
                factor.normal_(1, 0.8)
    return weight


# ------------------------------------------------------------------ clipping


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_grids_and_gradients_equal_the_scalar_twin(scheme):
    weight, G = spread(scheme), matrix()
    Q, kept = weight(), weight.quantized()
    Q.backward(G)
    groups, upstream = weight.scheme.group(weight.W), weight.scheme.group(G)
    for i in range(len(groups)):
        for k in range(groups.shape[1]):
            b = 0.0 if weight.b is None else weight.b[i, k].item()
            twin = clipped_group(
                groups[i, k].tolist(),
                weight.g[i, k].item(),
                b,
                weight.scheme.bits,
                symmetric=weight.scheme.symmetric,
            )
            here = upstream[i, k].tolist()
            assert weight.scheme.group(Q)[i, k].tolist() == pytest.approx(twin["Q"], abs=1e-12)
            assert weight.scheme.group(kept.codes)[i, k].tolist() == twin["codes"]
            assert [kept.scale[i, k].item(), kept.zero_point[i, k].item()] == pytest.approx(
                twin["grid"], abs=1e-12
            )
            for factor, name in ((weight.g, "dg"), (weight.b, "db")):
                if factor is not None:
                    expected = sum(a * d for a, d in zip(here, twin[name], strict=True))
                    assert factor.grad[i, k].item() == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("scheme", ["w3g8sym", "w3g4asym", "w2"])
def test_gradients_are_the_slopes_of_the_soft_version(scheme, columns, monkeypatch):
    weight, G = spread(scheme, (3, 8), columns=columns), matrix(3, 8)
    weight().backward(G)
    with torch.no_grad():
        groups = weight.scheme.group(weight.scaled())
        s, z = weight.grid(groups)
        raw = z if weight.b is None else -torch.sigmoid(weight.b) * groups.amin(-1).clamp(max=0) / s
    x = groups / s[..., None]
    left, left_z = x.round() - x, z - raw  # what rounding added: constants from here on
    wanted = x.round() + z[..., None]
    inside = (wanted >= 0) & (wanted <= weight.scheme.levels - 1)
    assert inside.any()
    assert not inside.all()
    monkeypatch.setattr(omniquant, "straight_through", lambda value: value + left_z)

    @torch.no_grad()
    def soft():
        groups = weight.scheme.group(weight.scaled())
        s, z = weight.grid(groups)
        codes = groups / s[..., None] + left + z[..., None]
        codes = torch.where(inside, codes, wanted.clamp(0, weight.scheme.levels - 1))
        return (((codes - z[..., None]) * s[..., None]).flatten(1) * G).sum()

    for name, parameter in weight.named_parameters():
        for k, gradient in enumerate(parameter.grad.flatten().tolist()):
            expected = slope(parameter, k, soft)
            assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_starts_at_sigmoid_4_of_its_extremes(symmetric):
    W = matrix()
    weight = OmniQuantWeight(W, Scheme(4, 8, symmetric))
    full, zero = weight.scheme.grid(weight.scheme.group(W))
    assert sigmoid(4) == pytest.approx(0.982, abs=5e-4)
    kept = weight.quantized()
    assert torch.allclose(kept.scale, sigmoid(4) * full, rtol=1e-12)
    assert kept.zero_point.equal(zero)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_can_only_shrink(symmetric):
    # An error that a wider range would cure: the target is half as large again as the weight.
    W = matrix(8, 16)
    block = linear_block(W, correlated())
    block.targets = [1.5 * block.targets[0]]
    method = OmniQuant(iterations=100, clip_rate=0.5)
    weight = method.start(block, Scheme(3, 8, symmetric))["0"]
    full, _ = weight.scheme.grid(weight.scheme.group(W))
    train(block, {"0": weight}, iterations=100)
    assert (weight.g > 4).any()  # it would like to
    assert (weight.quantized().scale.abs() <= full.abs()).all()


def test_a_huge_factor_is_plain_rounding():
    W = matrix()
    for scheme in (Scheme(3, 8), Scheme(3, 8, symmetric=False)):
        weight = OmniQuantWeight(W, scheme)
        with torch.no_grad():
            for factor in weight.parameters():
                factor.fill_(100.0)  # sigmoid is 1
        kept, plain = weight.quantized(), rtn(W, scheme)
        assert torch.allclose(kept.scale, plain.scale, rtol=1e-12)
        assert (kept.codes != plain.codes).double().mean() < 0.02  # ties of the extremes, no more


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_stays_is_what_was_trained(scheme, columns):
    weight = spread(scheme, columns=columns)
    kept = weight.quantized()
    assert torch.allclose(kept.dequantize(), weight(), rtol=0, atol=1e-14)
    assert kept.zero_point.equal(kept.zero_point.round())
    assert not kept.scale.requires_grad


def test_learned_clipping_pays_where_a_few_weights_are_far_out():
    W = matrix(16, 64)
    W[:, ::16] *= 4
    block = linear_block(W, torch.randn(300, 64, dtype=torch.float64))
    kept = OmniQuant(iterations=200).quantize_block(block, Scheme(3, 64))["0"]
    assert error(block, kept) < 0.9 * error(block, rtn(W, Scheme(3, 64)))


def test_zeros_stay_zeros_and_silent_inputs_do_no_harm():
    W, x = matrix(4, 16), correlated()
    W[1], W[2, 8:] = 0, 0
    x[:, 3] = 0
    for scheme in ("w2g8sym", "w3g8asym"):
        method = OmniQuant(iterations=40, clip_rate=0.1)
        Q = method.quantize_block(linear_block(W, x), Scheme.parse(scheme))["0"].dequantize()
        assert (Q[1] == 0).all()
        assert (Q[2, 8:] == 0).all()
        assert torch.isfinite(Q).all()


@pytest.mark.parametrize("shape", [(1, 8), (5, 1), (1, 1)])
@pytest.mark.parametrize("scheme", ["w3", "w2asym"])
def test_one_row_or_one_column_is_enough(shape, scheme):
    block = linear_block(matrix(*shape), correlated(20, shape[1]))
    kept = OmniQuant(iterations=5).quantize_block(block, Scheme.parse(scheme))["0"]
    assert kept.shape == shape
    assert torch.isfinite(kept.dequantize()).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    W = matrix()
    W[2, 3] = value
    with pytest.raises(ValueError, match=r"non-finite.*\[2, 3\]"):
        OmniQuantWeight(W, Scheme(4))


# ------------------------------------------------------------------ scales


class Normed(nn.Module):
    """A norm that two linears read, and a third linear behind them."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.one, self.two = (nn.Linear(16, 12) for _ in range(2))
        self.last = nn.Linear(12, 16)

    def forward(self, x):
        """Map (batch, tokens, 16) to the same shape."""
        y = self.norm(x)
        return x + self.last(torch.tanh(self.one(y)) * self.two(y))


def normed_block(norm: nn.Module) -> Block:
    module = Normed(norm).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        norm.weight[3] *= 20  # an outlier channel
        inputs = [((torch.randn(2, 20, 16, dtype=torch.float64),), {}) for _ in range(3)]
        targets = [module(*args) for args, _ in inputs]
    linears = {name: getattr(module, name) for name in ("one", "two", "last")}
    places = (Scaling("norm", ("one", "two"), inspect=""), Scaling("two", ("last",), inspect=""))
    return Block(
        module, linears, inputs=inputs, float_inputs=inputs, targets=targets, scalings=places
    )


NORMS = [lambda: nn.LayerNorm(16), lambda: nn.RMSNorm(16), lambda: nn.LayerNorm(16, bias=False)]


@pytest.mark.parametrize("norm", NORMS, ids=["with bias", "rms", "without bias"])
def test_folded_scales_leave_the_float_block_as_it_was(norm):
    block = normed_block(norm())
    before = copy.deepcopy(block.module.state_dict())
    block.collect(second_moment)
    answer = OmniQuant(iterations=60, scale_rate=0.05).quantize_block(block, Scheme(3, 4))
    assert not torch.allclose(before["norm.weight"], block.module.norm.weight)
    for (args, _), target in zip(block.inputs, block.targets, strict=True):
        assert torch.allclose(block.module(*args), target, rtol=0, atol=1e-12)
    assert torch.equal(before["last.weight"], block.module.last.weight)  # no norm before it
    x = torch.cat([block.module.norm(args[0]).flatten(0, 1) for args, _ in block.inputs])
    moment = block.collect(second_moment)["one"]  # of the new inputs: the old is forgotten
    assert torch.allclose(moment, second_moment(x.detach()))
    assert set(answer) == {"one", "two", "last"}


@pytest.mark.parametrize("norm", NORMS, ids=["with bias", "rms", "without bias"])
def test_what_is_trained_is_what_the_folded_block_computes(norm):
    block = normed_block(norm())
    method, scheme = OmniQuant(scale_rate=0.05), Scheme(3, 4)
    gains = method.gains(block)
    weights = method.start(block, scheme, gains)
    named = {place.previous: gain for place, gain in gains.items()}
    losses = train(block, weights | named, iterations=40, input_mix=1.0)
    fold_(block, weights, gains)
    with torch.no_grad():
        for name, weight in weights.items():
            block.linears[name].weight.copy_(weight.quantized().dequantize())
        outputs = [block.module(*args) for args, _ in block.inputs]
    errors = [(y - t).square().sum(1).mean() for y, t in zip(outputs, block.targets, strict=True)]
    # The last losses were taken just before steps of nearly no length.
    assert max(errors).item() == pytest.approx(max(losses[-3:]), rel=1e-2)


def test_scales_help_where_a_channel_is_loud():
    errors = []
    for scales in (False, True):
        torch.manual_seed(4)
        block = normed_block(nn.RMSNorm(16))
        with torch.no_grad():  # the same function, but 3 bits a row round these columns to nothing
            block.module.norm.weight[5] *= 32
            for linear in (block.module.one, block.module.two):
                linear.weight[:, 5] /= 32
        method = OmniQuant(iterations=120, scale_rate=0.05, scales=scales)
        answer = method.quantize_block(block, Scheme(3))
        with torch.no_grad():
            for name, kept in answer.items():
                block.linears[name].weight.copy_(kept.dequantize())
            y = block.module(*block.inputs[0][0])
        errors.append((y - block.targets[0]).square().mean().item())
    assert errors[1] < 0.9 * errors[0]


def test_a_gain_and_a_bias_are_divided_alike():
    norm = nn.LayerNorm(4)
    with torch.no_grad():
        norm.bias.copy_(torch.arange(4.0))
    gain = ScaledGain(norm, rate=0.1)
    with torch.no_grad():
        gain.t.fill_(math.log(2))
    seen = gain.stand_ins("norm")
    assert torch.allclose(seen["norm.weight"], torch.full((4,), 0.5))
    assert torch.allclose(seen["norm.bias"], torch.arange(4.0) / 2)


def test_without_a_known_norm_nothing_is_scaled():
    block = normed_block(nn.RMSNorm(16))
    block.scalings = (Scaling("missing", ("one",), inspect=""), Scaling("norm", ("other",), ""))
    assert OmniQuant().gains(block) == {}


class Breaks(OmniQuant):
    """Fold the first block, then fail at the second."""

    def quantize_block(self, block, scheme):
        answer = super().quantize_block(block, scheme)
        if block.name.endswith("1"):
            raise CalibrationError("broken on purpose")
        return answer


def test_a_failure_later_on_takes_the_folds_back():
    model = Llama(LlamaConfig(32, 3, 2, 1, 48, 50)).eval()
    before = copy.deepcopy(model.state_dict())
    data = torch.randint(0, 50, (2, 12))
    with pytest.raises(CalibrationError, match="on purpose"):
        quantize_(model, Breaks(iterations=3, scale_rate=0.1), Scheme(3, 8), data)
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    quantize_(model, OmniQuant(iterations=3, scale_rate=0.1), Scheme(3, 8), data)
    norm = "model.layers.0.input_layernorm.weight"
    assert not before[norm].equal(model.state_dict()[norm])
