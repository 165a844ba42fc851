"""Float formats: nothing is nearer, the scale rules are the specifications', the bytes are real."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import nearest_float
from torch import Tensor

from quantlab import gguf
from quantlab.codebook_tensor import look, spread
from quantlab.data import test_set as held_out
from quantlab.evaluate import evaluate, log_probabilities
from quantlab.floats import E8M0, FP4_E2M1, FP8_E4M3, FP8_E5M2
from quantlab.methods.float_formats import (
    MX,
    PLAIN,
    FloatRTN,
    float_rtn,
    mx,
    nvfp4,
    shared_exponent,
)
from quantlab.models.loading import load
from quantlab.pipeline import quantize_
from quantlab.tensor import sqnr

METHODS = [
    *(FloatRTN(name, granularity) for name in PLAIN for granularity in ("tensor", "row", "block")),
    *(FloatRTN(name, rule=rule) for name in MX for rule in ("floor", "even", "ceil")),
    FloatRTN("NVFP4"),
]
every_format = pytest.mark.parametrize("method", METHODS, ids=str)


def heavy(rows: int, columns: int, seed: int = 0, unit: float = 1.0) -> Tensor:
    """Draw weights from Student's t with 3 degrees of freedom."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, rows, columns, generator=generator, dtype=torch.float64)
    return (unit * z[0] / (z[1:].square().sum(0) / 3).sqrt()).float()


# ------------------------------------------------------------------ every format


@every_format
@settings(max_examples=8)
@given(seed=st.integers(0, 1000), unit=st.sampled_from([1e-30, 0.02, 1.0, 1e20]))
def test_no_code_of_the_format_is_nearer(method, seed, unit):
    weight = heavy(3, 64, seed, unit)
    q = method.quantize(weight)
    values = q.table.values()
    values = values[torch.isfinite(values)]
    ratio = weight.double() / spread(q.scale.double(), q.tile, q.shape)
    least = (values - ratio[..., None]).abs().amin(-1)
    chosen = (look(q.table, q.codes).double() - ratio).abs()
    assert (chosen <= least * (1 + 1e-12)).all()
    assert torch.isfinite(q.dequantize()).all()


@every_format
def test_codes_equal_an_exact_search_over_all_values(method):
    weight = heavy(2, 32)
    q = method.quantize(weight)
    positive = q.table.values()[: q.table.max_code + 1].tolist()
    for row in range(2):
        for column in range(32):
            scale = q.scale[row // q.tile[0], column // q.tile[1]].item()
            ratio = weight[row, column].item() / scale
            assert look(q.table, q.codes[row, column]).item() == nearest_float(positive, ratio)


@every_format
def test_a_power_of_two_moves_the_scale_only_and_three_halves_change_codes(method):
    weight = heavy(8, 128)
    q, shifted = method.quantize(weight), method.quantize(weight * 2.0**9)
    assert shifted.codes.equal(q.codes)
    assert shifted.scale.equal(q.scale * 2.0**9)
    if method.format in MX:  # other scales follow the weights, whatever the factor
        assert not method.quantize(weight * 1.5).codes.equal(q.codes)


@every_format
def test_the_packed_form_decodes_to_the_same_weights(method):
    q = method.quantize(heavy(5, 96))
    packed = q.pack()
    assert packed.data.shape == (5, 96 * q.bits // 8)
    assert packed.dequantize().equal(q.dequantize())
    assert packed.unpack().codes.equal(q.codes)
    assert packed.nbytes == q.nbytes


@pytest.mark.parametrize(
    ("name", "granularity", "expected"),
    [
        ("FP8_E4M3", "tensor", 8 + 32 / 2**16),
        ("FP8_E5M2", "row", 8 + 32 / 256),
        ("FP8_E4M3", "block", 8 + 32 / 2**14),
        ("FP6_E3M2", "row", 6 + 32 / 256),
        ("MXFP8_E4M3", None, 8.25),
        ("MXFP6_E2M3", None, 6.25),
        ("MXFP4", None, 4.25),
        ("NVFP4", None, 4.5 + 32 / 2**16),
    ],
)
def test_bits_per_weight_count_every_stored_byte(name, granularity, expected):
    assert FloatRTN(name, granularity).quantize(heavy(256, 256)).bits_per_weight == expected


# ------------------------------------------------------------------ float32 scales


@pytest.mark.parametrize("element", [FP8_E4M3, FP8_E5M2])
def test_fp8_codes_equal_torch_s_casts(element):
    weight = heavy(64, 64)
    largest = weight.abs().max()
    weight[0, 0] = weight[0, 0].sign() * 2 ** math.ceil(math.log2(largest)) * element.max / 512
    weight = weight.clamp(-weight[0, 0].abs(), weight[0, 0].abs())
    q = float_rtn(weight, element, granularity="tensor")
    assert math.log2(q.scale.item()).is_integer()  # so that torch's division is exact as well
    dtype = torch.float8_e4m3fn if element is FP8_E4M3 else torch.float8_e5m2
    assert q.codes.equal((weight / q.scale).to(dtype).view(torch.uint8))


def test_blocks_are_squares_cut_off_at_the_edge():
    weight = heavy(130, 300)
    q = float_rtn(weight, FP8_E4M3)
    assert q.scale.shape == (2, 3)
    for i, j in ((0, 0), (1, 2)):
        tile = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
        assert q.scale[i, j].item() == (tile.abs().max().double() / 448).float().item()
        part = float_rtn(tile, FP8_E4M3, granularity="tensor").dequantize()
        rows, columns = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
        assert q.dequantize()[rows, columns].equal(part)


# ------------------------------------------------------------------ MX


@settings(max_examples=100)
@given(
    a=st.floats(2.0**-100, 2.0**100, width=32),
    element=st.sampled_from(list(MX.values())),
)
def test_scale_rules_are_what_they_say(a, element):
    def exponent(rule) -> int:
        return int(shared_exponent(torch.tensor(a), element, rule))

    largest = math.frexp(element.max)[1] - 1
    floor = math.frexp(a)[1] - 1 - largest
    assert exponent("floor") == floor
    ceil = exponent("ceil")
    assert a / 2.0**ceil <= element.max < a / 2.0 ** (ceil - 1)
    even = exponent("even")
    assert floor <= even <= floor + 1
    step = 2.0 ** (largest - element.mantissa_bits)
    # Rounded to the format's mantissa, a lies in the binade of the largest number.
    assert 2.0**largest - step / 4 <= a / 2.0**even < 2.0 ** (largest + 1) - step / 2
    if element is not FP8_E4M3:  # which gives its last code to NaN: 448, not 480, is its largest
        assert a / 2.0**even < element.max + step / 2


def test_a_block_whose_largest_weight_is_the_largest_number_needs_no_higher_exponent():
    for element in MX.values():
        assert shared_exponent(torch.tensor(element.max), element, "ceil") == 0


def test_the_specified_rule_clips_and_ceil_does_not():
    weight = torch.tensor([[7.9, *[0.5] * 31]])
    assert mx(weight, FP4_E2M1).dequantize()[0, 0] == 6
    assert mx(weight, FP4_E2M1, rule="even").dequantize()[0, 0] == 8
    assert mx(weight, FP4_E2M1, rule="ceil").dequantize()[0, 0] == 8
    assert mx(weight, FP4_E2M1).dequantize()[0, 1] == 0.5
    assert mx(weight, FP4_E2M1, rule="ceil").dequantize()[0, 1] == 0  # the price: a coarser step
    assert mx(weight, FP4_E2M1).scales.data.item() == 127  # 2^(2 - 2)


def test_mxfp4_means_the_same_as_gguf_s_blocks():
    weight = heavy(16, 256)
    weight[3, 32:64] = 0
    blocks = gguf.quantize(weight.numpy(), "MXFP4").reshape(16, 8, 17)
    q = mx(weight, FP4_E2M1)
    assert torch.from_numpy(blocks[..., 0].copy()).equal(q.scales.data)
    decoded = gguf.dequantize(blocks.reshape(16, -1), "MXFP4", (16, 256))
    assert torch.from_numpy(decoded).equal(q.dequantize())


def test_exponents_beyond_e8m0_are_clamped():
    tiny = torch.full((1, 32), 2.0**-140)
    q = mx(tiny, FP4_E2M1)
    assert q.scales.data.item() == 0
    assert E8M0.decode(q.scales.data).item() == 2.0**-127
    assert (q.dequantize() == 0).all()
    huge = torch.full((1, 32), torch.finfo(torch.float32).max)
    beyond = torch.full((1, 32), 2.0**140, dtype=torch.float64)
    assert mx(beyond, FP4_E2M1).scales.data.item() == E8M0.max_code
    assert mx(huge, FP8_E5M2).scales.data.item() == 127 + 127 - 15
    assert torch.isfinite(mx(huge, FP8_E5M2).dequantize()).all()


# ------------------------------------------------------------------ NVFP4


def test_nvfp4_puts_the_largest_block_s_scale_on_448():
    weight = heavy(16, 64)
    q = nvfp4(weight)
    assert q.scales.factor == (weight.abs().max().double() / (6 * 448)).float()
    assert q.scales.data.max() == FP8_E4M3.max_code
    wanted = weight.abs().double().unflatten(1, (4, 16)).amax(-1) / 6 / q.scales.factor.double()
    stored = FP8_E4M3.decode(q.scales.data, torch.float64)
    normal = wanted > 2.0**-6
    assert ((stored / wanted - 1).abs()[normal] <= 1 / 16).all()  # half a step of 3 mantissa bits


def test_nvfp4_without_a_second_level_means_the_same_as_gguf_s_blocks():
    weight = heavy(8, 256)
    blocks = gguf.quantize(weight.numpy(), "NVFP4")
    q = nvfp4(weight, two_levels=False)
    decoded = torch.from_numpy(gguf.dequantize(blocks, "NVFP4", (8, 256)))
    assert decoded.equal(q.dequantize())
    assert q.scales.factor is None
    assert q.bits_per_weight == 4.5


def test_nvfp4_meets_matrices_that_one_level_could_not():
    weight = heavy(4, 64) * 1e-6
    assert (nvfp4(weight, two_levels=False).dequantize() == 0).all()
    assert sqnr(weight, nvfp4(weight).dequantize()) > 15
    assert (nvfp4(torch.zeros(2, 16)).dequantize() == 0).all()


# ------------------------------------------------------------------ how good


def test_signal_to_noise_depends_on_the_tail():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 512, 512, generator=generator, dtype=torch.float64)
    tails = z[0], z[0] / (z[1:].square().sum(0) / 5).sqrt()

    def decibels(method: FloatRTN) -> list[float]:
        return [sqnr(W, method.quantize(W).dequantize()) for W in tails]

    # Published in the course for a million samples; the fewer here move them by some hundredths.
    assert decibels(FloatRTN("NVFP4")) == pytest.approx([20.43, 20.70], abs=0.15)
    assert decibels(FloatRTN("MXFP4")) == pytest.approx([18.79, 17.96], abs=0.15)
    assert decibels(FloatRTN("FP8_E4M3", "tensor"))[0] == pytest.approx(31.6, abs=0.15)
    assert decibels(FloatRTN("FP8_E5M2", "tensor"))[0] == pytest.approx(25.6, abs=0.15)


def test_the_story_model_gains_from_smaller_blocks_and_mantissa_bits_but_not_from_exponent_bits():
    tokens = held_out(load("storyteller")[1], samples=4, length=128)
    reference = log_probabilities(load("storyteller")[0], tokens)
    loss = {}
    for name in ("MXFP4", "NVFP4", "MXFP6_E2M3", "MXFP8_E4M3"):
        model, _ = load("storyteller")
        quantize_(model, FloatRTN(name), None)
        loss[name] = evaluate(model, tokens, reference=reference).kl
    assert loss["MXFP4"] > 1.3 * loss["NVFP4"]
    assert loss["NVFP4"] > 8 * loss["MXFP6_E2M3"]
    # Both have three mantissa bits; 32 neighboring weights do not need E4M3's range.
    assert loss["MXFP8_E4M3"] == pytest.approx(loss["MXFP6_E2M3"], rel=0.4)


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "FP5"}, "format is 'FP5'; choose FP8_E4M3, .* MXFP4 or NVFP4"),
        ({"format": "NVFP4", "granularity": "row"}, "NVFP4 fixes its blocks"),
        ({"format": "FP8_E4M3", "rule": "ceil"}, "FP8_E4M3 has no power of two"),
    ],
)
def test_unknown_formats_and_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FloatRTN(**options)


def test_words_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="in_features 48 is not a multiple of 32, the block of MX"):
        mx(torch.ones(2, 48), FP4_E2M1)
    with pytest.raises(ValueError, match="in_features 24 is not a multiple of 16, the block of NV"):
        nvfp4(torch.ones(2, 24))
    with pytest.raises(ValueError, match="granularity is 'channel'"):
        float_rtn(torch.ones(2, 24), FP8_E4M3, granularity="channel")
    with pytest.raises(ValueError, match="rule is 'nearest'"):
        mx(torch.ones(2, 32), FP4_E2M1, rule="nearest")
    with pytest.raises(ValueError, match="non-finite"):
        nvfp4(torch.tensor([[torch.inf] * 16]))
