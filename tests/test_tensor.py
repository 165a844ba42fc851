"""QuantizedTensor and its packed form: exact codes, honest bytes, and the errors in between."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlab.packing import packed_bytes
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor, check_weight, output_error, sqnr

every_packable = pytest.mark.parametrize(
    "scheme",
    [
        Scheme(bits, size, sym)
        for bits in range(1, 9)
        for size in (5, None)
        for sym in (True, False)
    ],
    ids=str,
)


def quantize(weight: torch.Tensor, scheme: Scheme) -> QuantizedTensor:
    scale, zero_point = scheme.grid(scheme.group(weight))
    return QuantizedTensor(scheme.encode(weight, scale, zero_point), scale, zero_point, scheme)


# ---------------------------------------------------------------- storage


@every_packable
@pytest.mark.parametrize("columns", [5, 15, 40])  # rows of codes and zero points end inside a byte
def test_packing_and_unpacking_returns_the_same_codes_and_zero_points(scheme, columns):
    q = quantize(torch.randn(3, columns), scheme)
    back = q.pack().unpack()
    assert back.codes.equal(q.codes)
    assert back.zero_point.equal(q.zero_point)
    assert back.scale.equal(q.scale.half().float())
    assert back.scheme == scheme
    assert back.shape == (3, columns)


@every_packable
@pytest.mark.parametrize("columns", [5, 15, 40])
def test_nbytes_is_what_the_packed_tensors_occupy(scheme, columns):
    q = quantize(torch.randn(3, columns), scheme)
    packed = q.pack()
    groups = columns // (scheme.group_size or columns)
    zeros = 0 if scheme.symmetric else packed_bytes(groups, scheme.bits)
    assert (
        q.nbytes == packed.nbytes == 3 * (packed_bytes(columns, scheme.bits) + 2 * groups + zeros)
    )
    assert q.bits_per_weight == 8 * q.nbytes / (3 * columns)


@pytest.mark.parametrize(("name", "expected"), [("w4g128sym", 4.125), ("w4g64asym", 4.3125)])
def test_bits_per_weight_of_a_tensor_without_padding_is_that_of_its_scheme(name, expected):
    q = quantize(torch.randn(4, 256), Scheme.parse(name))
    assert q.bits_per_weight == q.scheme.bits_per_weight == expected


def test_a_packed_row_is_its_codes_in_bytes_a_float16_and_its_zero_point():
    q = quantize(torch.tensor([[-1.0, 0.0, 2.0, 0.5]]), Scheme(2, None, False))
    assert q.codes.tolist() == [[0, 1, 3, 1]]  # scale 1, zero point 1; 0.5 goes to even
    packed = q.pack()
    assert packed.data.tolist() == [[0b01_11_01_00]]
    assert packed.scale.tolist() == [[1.0]]
    assert packed.zeros is not None
    assert packed.zeros.tolist() == [[1]]
    assert packed.dequantize().tolist() == [[-1, 0, 2, 0]]


@every_packable
def test_the_packed_weight_is_the_weight_with_scales_rounded_to_float16(scheme):
    q = quantize(torch.randn(4, 20, dtype=torch.float64), scheme)
    half = QuantizedTensor(q.codes, q.scale.half().double(), q.zero_point, scheme)
    assert q.pack().dequantize(torch.float64).equal(half.dequantize())
    assert q.pack().dequantize().dtype == torch.float32
    assert q.pack().dequantize(torch.float16).dtype == torch.float16
    # Float16 keeps 11 bits: no scale, so no weight, moves by more than 2**-11 of itself.
    assert torch.allclose(q.pack().dequantize(torch.float64), q.dequantize(), rtol=2**-11, atol=0)


def test_negative_scales_survive_packing():
    q = quantize(torch.tensor([[1.0, 0.5, -0.25, 0.0]]), Scheme(4))
    assert q.scale.item() == -0.125
    assert q.pack().dequantize().tolist() == [[1.0, 0.5, -0.25, 0.0]]


@given(st.integers(1, 8), st.integers(1, 30), st.integers(1, 4), st.booleans(), st.data())
def test_any_codes_survive_packing(bits, columns, rows, symmetric, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)
    scale = torch.ones(rows, 1)
    zero_point = torch.randint(0, 2**bits, (rows, 1), generator=generator).float()
    scheme = Scheme(bits, None, symmetric)
    if symmetric:
        zero_point = torch.full_like(scale, scheme.middle)
    back = QuantizedTensor(codes, scale, zero_point, scheme).pack().unpack()
    assert back.codes.equal(codes)
    assert back.zero_point.equal(zero_point)


def test_scales_beyond_float16_are_refused_with_the_way_out():
    weight = torch.randn(2, 8)
    with pytest.raises(ValueError, match=r"scales from .* to .* do not fit float16 \(5\.96e-08 to"):
        quantize(weight * 1e6, Scheme(4)).pack()
    with pytest.raises(ValueError, match=r"multiply the weight by a power of two first"):
        quantize(weight * 1e-9, Scheme(4)).pack()
    assert (
        quantize(weight / weight.abs().max() * 65504 * 8, Scheme(4)).pack().scale.isfinite().all()
    )


def test_one_dead_group_among_living_ones_packs_and_decodes_to_zero():
    weight = torch.randn(2, 8)
    weight[1] *= 1e-12
    packed = quantize(weight, Scheme(4)).pack()
    assert (packed.dequantize()[1] == 0).all()
    assert (packed.dequantize()[0] != 0).any()


def test_sixteen_bit_codes_are_not_packed():
    q = quantize(torch.randn(2, 8), Scheme(16))
    assert q.codes.dtype == torch.int32
    with pytest.raises(ValueError, match=r"bits is 16; packing takes 1\.\.8"):
        q.pack()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_weight_is_kept(dtype):
    q = quantize(torch.randn(2, 8, dtype=dtype), Scheme(4))
    assert q.dequantize().dtype == q.scale.dtype == q.zero_point.dtype == dtype
    assert q.shape == q.dequantize().shape == (2, 8)


# ---------------------------------------------------------------- measures


def test_output_error_is_the_mean_squared_error_of_the_outputs():
    weight, quantized = torch.randn(6, 10), torch.randn(6, 10)
    x = torch.randn(500, 10, dtype=torch.float64)
    outputs = x @ (quantized.double() - weight.double()).T
    moment = x.T @ x / 500
    expected = outputs.square().sum(1).mean().item()
    assert output_error(weight, quantized, moment) == pytest.approx(expected, rel=1e-12)


def test_output_error_keeps_differences_smaller_than_half_precision_can_hold():
    weight = torch.ones(1, 1, dtype=torch.float16)
    quantized = torch.tensor([[1.0 + 2.0**-20]], dtype=torch.float32)
    assert output_error(weight, quantized, torch.eye(1)) == 2.0**-40


def test_sqnr_gains_six_decibels_a_bit():
    weight = torch.randn(64, 1024)
    ratios = [sqnr(weight, quantize(weight, Scheme(b, 64)).dequantize()) for b in (5, 6, 7, 8)]
    gains = [b - a for a, b in pairwise(ratios)]
    # 20 log10(2) = 6.02; the coarse grids' clipped ends shift it by a few hundredths.
    assert gains == pytest.approx([20 * math.log10(2)] * 3, abs=0.2)


def test_sqnr_of_an_exact_copy_is_infinite():
    assert sqnr(torch.ones(3), torch.ones(3)) == math.inf


# ---------------------------------------------------------------- checks


def test_check_weight_takes_finite_float_matrices_only():
    check_weight(torch.zeros(2, 3))
    check_weight(torch.zeros(1, 1, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"weight has dtype torch\.int64; pass a float tensor"):
        check_weight(torch.zeros(2, 3, dtype=torch.int64))
    for shape in [(3,), (2, 3, 4), (0, 3), (3, 0), ()]:
        with pytest.raises(ValueError, match=r"weight has shape .*; pass a matrix \(out, in\)"):
            check_weight(torch.zeros(shape))


def test_check_weight_names_how_many_and_where():
    weight = torch.zeros(20, 30)
    weight[17, 5] = torch.nan
    weight[18, 2] = torch.inf
    message = r"q_proj holds 2 non-finite values, first NaN at \[17, 5\]; repair the checkpoint"
    with pytest.raises(ValueError, match=message):
        check_weight(weight, "q_proj")
    weight[17, 5] = 0
    with pytest.raises(ValueError, match=r"holds 1 non-finite values, first Inf at \[18, 2\]"):
        check_weight(weight)
