"""Integer inference: equal to the fake-quantized model in float64, and to rational arithmetic."""

import copy
from collections import OrderedDict
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_integer import code_twin, convolution_twin
from torch import nn

import quantlab as ql
from quantlab.integer.codes import Codes, Grid, common, ratios, requantize, rounded_division
from quantlab.integer.fold import fold_batch_norm
from quantlab.integer.layers import IntegerConv2d, IntegerLayer, IntegerLinear
from quantlab.tensor import CalibrationError

DOUBLE = torch.float64


def network(conv: nn.Conv2d, activation: nn.Module | None = None) -> nn.Module:
    parts = OrderedDict(quant=ql.QuantStub(), conv=conv, norm=nn.BatchNorm2d(conv.out_channels))
    if activation is not None:
        parts["relu"] = activation
    parts["dequant"] = ql.DequantStub()
    return nn.Sequential(parts)


def lived(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and gains that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -1.0),
                (module.running_var, 0.2),
                (module.weight.data, 0.5),
                (module.bias.data, -1.0),
            ):
                tensor.copy_(low + 1.5 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def exact(twin: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a twin in float64, where it rounds nothing but what it should."""
    with torch.no_grad():
        return copy.deepcopy(twin).double()(x.double()).float()


class Residual(nn.Module):
    """Everything at once: convolutions, a sum, ReLUs fused and alone, pool, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ql.QuantStub(), ql.DequantStub()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4))
        self.add, self.relu = ql.Add(), nn.ReLU(inplace=True)
        self.tail = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4, 6),
            nn.ReLU(),
            nn.Linear(6, 3, bias=False),
        )

    def forward(self, x):
        x = self.stem(self.quant(x))
        return self.dequant(self.tail(self.relu(self.add(x, self.body(x)))))


# ---------------------------------------------------------------- exact arithmetic


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**20))
@settings(max_examples=200, deadline=None)
def test_division_rounds_half_to_even(numerator, denominator):
    here = rounded_division(torch.tensor(numerator), torch.tensor(denominator)).item()
    assert here == round(Fraction(numerator, denominator))


def test_every_small_division_rounds_half_to_even_ties_included():
    tops = torch.arange(-60, 61)
    for bottom in range(1, 25):
        wanted = [round(Fraction(top, bottom)) for top in tops.tolist()]
        assert rounded_division(tops, torch.tensor(bottom)).tolist() == wanted


@given(st.lists(st.fractions(-9, 9, max_denominator=50), min_size=1, max_size=4))
def test_a_common_denominator_changes_no_fraction(numbers):
    tops, bottom = common(numbers)
    assert [Fraction(top, bottom) for top in tops] == numbers


def test_ratios_and_products_that_leave_int64_are_refused():
    with pytest.raises(ValueError, match="too far from 1"):
        ratios([Fraction(1, 2**63)])
    sums, grid = torch.tensor([2**40]), Grid(1.0, 0, 8)
    with pytest.raises(OverflowError, match="does not fit int64"):
        requantize(sums, torch.tensor(2**30), torch.tensor(1), grid)


# ---------------------------------------------------------------- one layer, by rational numbers


@st.composite
def layers(draw):
    groups = draw(st.sampled_from([1, 2, 4]))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([1, 2, 3]))
    torch.manual_seed(draw(st.integers(0, 10**6)))
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, kernel - 1)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    activation = draw(st.sampled_from([None, nn.ReLU(), nn.ReLU6()]))
    bits = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    x = torch.randn(2, inputs, draw(st.integers(3, 5)), draw(st.integers(3, 6))) * 3
    return conv, activation, bits, x


@given(layers())
@settings(max_examples=60, deadline=None)
def test_a_convolution_equals_the_fake_quantized_one_and_rational_arithmetic(layer):
    conv, activation, (weight_bits, activation_bits), x = layer
    net = lived(network(conv, activation))
    twin = ql.prepare(net, weight_bits=weight_bits, activation_bits=activation_bits)
    integers = ql.convert(ql.calibrate(twin, x))
    y = integers(x)
    assert torch.equal(y, exact(twin, x))

    codes, layer = integers.quant(x), integers.conv
    assert isinstance(layer, IntegerConv2d)
    unit = Fraction(codes.grid.scale)
    scales = [Fraction(s) for s in layer.scale[:, 0].tolist()]
    levels = (layer.codes().int() - layer.scheme.middle).view(conv.weight.shape).tolist()
    weight = [
        [[[v * s for v in row] for row in plane] for plane in one]
        for one, s in zip(levels, scales, strict=True)
    ]
    bias = [b * unit * s for b, s in zip(layer.bias.tolist(), scales, strict=True)]
    image = [
        [[v * unit for v in row] for row in plane]
        for plane in (codes.codes[0].int() - codes.grid.zero_point).tolist()
    ]
    sizes = {"stride": conv.stride[0], "padding": conv.padding[0], "groups": conv.groups}
    wanted = convolution_twin(image, weight, bias, **sizes)
    if activation is not None:
        top = Fraction(6) if isinstance(activation, nn.ReLU6) else Fraction(10**9)
        wanted = [[[min(max(v, Fraction(0)), top) for v in r] for r in p] for p in wanted]
    scale, zero, bits = Fraction(layer.grid.scale), layer.grid.zero_point, layer.grid.bits
    found = layer(codes).codes[0].tolist()
    assert found == [[[code_twin(v, scale, zero, bits) for v in r] for r in p] for p in wanted]


@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_whole_network_equals_its_twin_in_every_bit(weight_bits, activation_bits, seed):
    torch.manual_seed(seed)
    x = torch.randn(5, 2, 7, 6)
    net = lived(Residual(), seed)
    twin = ql.prepare(net, weight_bits=weight_bits, activation_bits=activation_bits)
    integers = ql.convert(ql.calibrate(twin, x))
    assert torch.equal(integers(2 * x), exact(twin, 2 * x))


@pytest.mark.parametrize("learn", [ql.learn_steps, ql.learn_clips, lambda twin: twin])
def test_a_trained_network_equals_its_twin_in_every_bit(learn):
    torch.manual_seed(1)
    x, labels = torch.randn(48, 2, 8, 8), torch.randint(0, 3, (48,))
    twin = ql.calibrate(ql.prepare(lived(Residual()), weight_bits=3, activation_bits=4), x)
    twin = learn(twin)
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    options = {"learning_rate": 0.01, "batch_size": 16, "penalty": 1e-3}  # PACT's decay
    ql.train_classifier(twin, x, labels, epochs=2, **options)
    assert all(not torch.equal(p, before[name]) for name, p in twin.named_parameters())
    assert torch.equal(ql.convert(twin)(x), exact(twin, x))


def test_six_stays_six_on_a_learned_grid_that_reaches_further():
    torch.manual_seed(2)
    x = 20 * torch.randn(4, 1, 6, 6)
    twin = ql.calibrate(ql.prepare(lived(network(nn.Conv2d(1, 2, 3), nn.ReLU6()))), x)
    ql.learn_steps(twin)
    with torch.no_grad():
        twin.conv.quantizer.scale.mul_(3)  # the top code now stands for 18
        twin.quant.quantizer.scale.mul_(2)  # convert must know the learned grid without a run
    integers = ql.convert(twin)
    assert torch.equal(integers(x), exact(twin, x))
    assert integers(x).max().item() == pytest.approx(6, abs=integers.conv.grid.scale)


# ---------------------------------------------------------------- what is inside


def inside(model: nn.Module) -> list[torch.dtype]:
    seen = []

    def see(_, __, output):
        if isinstance(output, Codes):
            seen.append(output.codes.dtype)

    for module in model.modules():
        module.register_forward_hook(see)
    model(torch.randn(2, 2, 8, 8))
    return seen


def test_no_float_passes_between_the_stubs():
    twin = ql.calibrate(ql.prepare(lived(Residual())), torch.randn(4, 2, 8, 8))
    integers = ql.convert(twin)
    dtypes = inside(integers)
    assert len(dtypes) >= 8
    assert set(dtypes) == {torch.uint8}
    assert not list(integers.parameters())
    layers = [m for m in integers.modules() if isinstance(m, IntegerLayer)]
    assert [m.bias.dtype for m in layers] == [torch.int32] * 4
    assert [m.data.dtype for m in layers] == [torch.uint8] * 4


def test_bytes_are_those_of_packed_codes_float16_scales_and_int32_biases():
    net = nn.Sequential(ql.QuantStub(), nn.Linear(10, 3))
    twin = ql.calibrate(ql.prepare(net, weight_bits=4), torch.randn(4, 10))
    layer = ql.convert(twin)[1]
    assert isinstance(layer, IntegerLinear)
    assert layer.nbytes == 3 * 5 + 3 * 2 + 3 * 4
    assert layer.packed.nbytes == 3 * 5 + 3 * 2


def test_neither_prepare_nor_convert_changes_the_model_it_was_given():
    net = lived(Residual())
    x = torch.randn(4, 2, 8, 8)
    before = net(x)
    twin = ql.calibrate(ql.prepare(net), x)
    assert torch.equal(net(x), before)
    y = twin(x)
    ql.convert(twin)
    assert torch.equal(twin(x), y)


def test_calibration_runs_in_float_and_forgets_earlier_ranges():
    net = lived(Residual())
    x = torch.randn(8, 2, 8, 8)
    twin = ql.prepare(net, weight_bits=2)
    ql.calibrate(twin, 100 * x)
    ql.calibrate(twin, x)
    seen = net.stem(x)
    assert twin.stem[0].quantizer.range()[1] == pytest.approx(seen.max().item(), rel=1e-5)


def test_following_ranges_move_in_training_and_frozen_ones_stay():
    x = torch.randn(8, 2, 8, 8)
    twin = ql.calibrate(ql.prepare(lived(Residual()), momentum=0.5), x)
    before = twin.quant.quantizer.range()
    twin(9 * x)
    assert twin.quant.quantizer.range() == before
    ql.follow_ranges(twin)(9 * x)
    assert twin.quant.quantizer.range()[1] > 2 * before[1]
    with pytest.raises(CalibrationError, match="no frozen range"):
        ql.convert(ql.prepare(lived(Residual())))


def test_some_modules_can_keep_8_bits():
    twin = ql.prepare(lived(Residual()), weight_bits=2, activation_bits=3, keep_8_bits=("tail.5",))
    assert [twin.tail[3].weight_quantizer.bits, twin.tail[5].weight_quantizer.bits] == [2, 8]
    assert [twin.quant.quantizer.bits, twin.tail[5].quantizer.bits] == [3, 8]
    with pytest.raises(ValueError, match="keep_8_bits names"):
        ql.prepare(Residual(), keep_8_bits=("tail.1",))


# ---------------------------------------------------------------- batch norms


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_leaves_the_function_as_it_was(affine, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, groups=2, bias=bias).double()
    norm = nn.BatchNorm2d(4, affine=affine).double().eval()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.1, 3)
    x = torch.randn(3, 2, 5, 5, dtype=DOUBLE)
    before = norm(conv(x))
    fold_batch_norm(conv, norm)
    assert torch.allclose(conv(x), before, atol=1e-12, rtol=0)


def test_only_a_norm_right_after_a_layer_is_folded():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2))
    assert isinstance(ql.folded(net)[2], nn.BatchNorm2d)
    assert isinstance(net[2], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="3 channels"):
        fold_batch_norm(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="no running statistics"):
        fold_batch_norm(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))


# ---------------------------------------------------------------- refusals that teach


def test_a_model_without_a_stub_is_not_converted():
    net = nn.Sequential(nn.Linear(4, 2), ql.DequantStub())
    twin = ql.calibrate(ql.prepare(net), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"put a ql\.QuantStub"):
        ql.convert(twin)


def test_a_functional_call_is_invisible_and_is_refused_where_it_happens():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.dequant = ql.QuantStub(), ql.DequantStub()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.dequant(F.relu(self.linear(self.quant(x))))

    twin = ql.calibrate(ql.prepare(Functional()), torch.randn(3, 4))
    with pytest.raises(TypeError, match=r"relu got integer codes"):
        ql.convert(twin)(torch.randn(3, 4))


def test_codes_do_not_add_up_and_floats_do_not_enter():
    twin = ql.calibrate(ql.prepare(lived(Residual())), torch.randn(4, 2, 8, 8))
    integers = ql.convert(twin)
    codes = integers.quant(torch.randn(1, 2, 8, 8))
    with pytest.raises(TypeError, match=r"use ql.Add\(\)"):
        codes + codes
    with pytest.raises(TypeError, match=r"put a ql.QuantStub\(\)"):
        integers.stem(torch.randn(1, 2, 8, 8))
    with pytest.raises(TypeError, match="got a float tensor"):
        integers.dequant(torch.randn(1))
    with pytest.raises(ValueError, match="convert again"):
        integers.stem(Codes(codes.codes, Grid(1.0, 0, 8)))


def test_convert_asks_for_a_prepared_and_calibrated_model():
    with pytest.raises(ValueError, match="prepare it first"):
        ql.convert(nn.Linear(2, 2))
    with pytest.raises(CalibrationError, match="no tensor was seen"):
        ql.freeze_ranges(ql.prepare(lived(Residual())))


@pytest.mark.parametrize(
    "option", [{"padding": "same"}, {"dilation": 2}, {"padding_mode": "reflect"}]
)
def test_convolutions_that_integers_do_not_know_are_refused(option):
    net = nn.Sequential(ql.QuantStub(), nn.Conv2d(1, 1, 3, **option))
    twin = ql.calibrate(ql.prepare(net), torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="integers take"):
        ql.convert(twin)


# ---------------------------------------------------------------- dynamic


def test_dynamic_quantization_swaps_linears_only_and_uses_the_int8_kernel():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))
    x = torch.randn(3, 1, 4, 4)
    dynamic = ql.quantize_dynamic(net, skip=("3",))
    assert isinstance(net[2], nn.Linear)
    assert type(dynamic[3]) is nn.Linear
    layer, hidden = dynamic[2], net[1](net[0](x))
    assert layer.scheme == ql.Scheme(8)
    wanted = ql.int8_matmul(hidden, layer.packed, activation_bits=8) + net[2].bias
    assert torch.equal(layer(hidden), wanted)
    assert torch.equal(dynamic[0](x), net[0](x))
    error = (dynamic(x) - net(x)).abs().max() / net(x).abs().max()
    assert 0 < error < 0.03


def test_dynamic_quantization_refuses_a_model_without_linears():
    with pytest.raises(ValueError, match="no linear layer to quantize"):
        ql.quantize_dynamic(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(ValueError, match="skip names"):
        ql.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), skip=("nope",))
    assert isinstance(ql.quantize_dynamic(nn.Linear(4, 4)), ql.QuantizedLinear)
