"""The GPU kernels: on a GPU if there is one, else the same kernels run by Triton's interpreter."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantlab as ql
from quantlab.kernels import gpu, gpu_language, gpu_launch, reference
from quantlab.kernels.tiles import Tiles
from tests.kernels.weights import random_weight

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# (group, columns): several groups in a block and several blocks in a group, a group that no large
# power of two divides, and whole rows with a tail in their last word
SHAPES = ((32, 1120), (128, 256), (512, 1024), (24, 72), (None, 203))
ROWS = 37  # two tiles and a bit
CASES = [
    pytest.param(ql.Scheme(bits, group, symmetric), columns, id=f"{bits}-{group}-{symmetric}")
    for bits, symmetric, (group, columns) in product((4, 8), (True, False), SHAPES)
]

pytestmark = [
    pytest.mark.skipif(gpu_language.triton is None, reason="Triton is not installed"),
    pytest.mark.skipif(
        DEVICE.type == "cpu" and not gpu_language.INTERPRETED,
        reason="no GPU here, and Triton was imported before TRITON_INTERPRET=1 was set",
    ),
]


@pytest.fixture(autouse=True)
def _memory_begins_as_nan():
    """Fill new tensors with NaN, or large integers: what a kernel forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def on_device(weight):
    tiles = Tiles.of(weight)
    zeros = None if tiles.zeros is None else tiles.zeros.to(DEVICE)
    return replace(tiles, words=tiles.words.to(DEVICE), scale=tiles.scale.to(DEVICE), zeros=zeros)


def activations(tokens, columns, dtype=torch.float32):
    return torch.randn(tokens, columns).to(dtype)


def assert_float_product(y, x, weight):
    """Each output is as near to the truth as sums in float32 and one last rounding can be."""
    assert y.dtype == x.dtype
    dense = weight.dequantize(torch.float64)
    truth, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T
    allowed = 8 * UNIT[torch.float32] * size + UNIT[x.dtype] * truth.abs()
    assert ((y.cpu().double() - truth).abs() <= allowed).all()


# ---------------------------------------------------------------- floats


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("scheme", "columns"), CASES)
def test_products_of_floats_are_right(scheme, columns, tokens):
    weight, x = random_weight(ROWS, columns, scheme), activations(tokens, columns)
    assert_float_product(gpu.matmul(x.to(DEVICE), on_device(weight)), x, weight)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["w4g32sym", "w4g64asym", "w4asym", "w8g32sym", "w8g64asym"])
def test_halves_lose_nothing_but_the_last_rounding(scheme, dtype, tokens):
    weight = random_weight(20, 128, ql.Scheme.parse(scheme))
    x = activations(tokens, 128, dtype)
    assert_float_product(gpu.matmul(x.to(DEVICE), on_device(weight)), x, weight)


@pytest.mark.parametrize("tokens", [17, 129, 512])
def test_any_batch_is_taken(tokens):
    weight = random_weight(19, 64, ql.Scheme(4, None, False))
    x, tiles = activations(tokens, 64, torch.float16), on_device(weight)
    assert_float_product(gpu.matmul(x.to(DEVICE), tiles), x, weight)
    assert gpu.matmul(x.to(DEVICE), tiles, 8).cpu().equal(reference.matmul(x, weight, 8))


@pytest.mark.parametrize("bits", [4, 8])
def test_each_code_is_met_by_each_zero_point(bits):
    levels = 2**bits
    scheme = ql.Scheme(bits, group_size=levels, symmetric=False)
    zero = torch.arange(levels, dtype=torch.float32)[:, None]
    codes = torch.arange(levels, dtype=torch.uint8).expand(levels, levels)
    weight = ql.QuantizedTensor(codes, torch.full((levels, 1), -0.5), zero, scheme).pack()
    tiles, units, some = on_device(weight), torch.eye(levels, device=DEVICE), levels // 16
    wanted = weight.dequantize().T  # multiples of a half: all of it is exact
    assert gpu.matmul(units.half(), tiles).cpu().equal(wanted.half())
    assert gpu.matmul(units[::some], tiles).cpu().equal(wanted[::some])
    last = gpu.matmul(units[-1], tiles).cpu()  # another kernel, which takes one token
    assert last.equal(wanted[-1])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("scheme", ["w4g32asym", "w8asym"])
def test_columns_shared_out_give_the_same_product(monkeypatch, scheme, tokens):
    weight = random_weight(ROWS, 1760, ql.Scheme.parse(scheme))
    x, tiles = activations(tokens, 1760), on_device(weight)
    monkeypatch.setattr(gpu_launch, "processors", lambda device: 16)
    out = x.new_empty(tokens, ROWS, device=DEVICE)
    plan = gpu_launch.gemv_launch if tokens == 1 else gpu_launch.gemm_launch
    assert plan(out, x.to(DEVICE), tiles).grid[-1] > 2
    assert_float_product(gpu.matmul(x.to(DEVICE), tiles), x, weight)


def test_the_kernel_for_many_tokens_takes_one_as_well():
    weight = random_weight(ROWS, 128, ql.Scheme(4, 32, False))
    x, out = activations(1, 128), torch.empty(1, ROWS, device=DEVICE)
    gpu_launch.gemm_launch(out, x.to(DEVICE), on_device(weight)).run()
    assert_float_product(out, x, weight)


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("scheme", "columns"), CASES)
def test_products_of_integers_equal_the_definition_in_every_bit(scheme, columns, tokens):
    weight, x = random_weight(ROWS, columns, scheme), activations(tokens, columns)
    y = gpu.matmul(x.to(DEVICE), on_device(weight), activation_bits=8)
    assert y.cpu().equal(reference.matmul(x, weight, 8))


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integer_products_are_rounded_once_to_halves(dtype, tokens):
    weight = random_weight(20, 128, ql.Scheme(4, 32, False))
    x = activations(tokens, 128, dtype)
    y = gpu.matmul(x.to(DEVICE), on_device(weight), 8)
    assert y.cpu().equal(reference.matmul(x, weight, 8))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 2])
def test_the_largest_sums_of_a_long_row_are_exact(bits, tokens):
    columns, scheme = 8192, ql.Scheme(bits, None, symmetric=False)
    codes = torch.full((16, columns), 2**bits - 1, dtype=torch.uint8)
    weight = ql.QuantizedTensor(codes, torch.ones(16, 1), torch.zeros(16, 1), scheme).pack()
    x = torch.full((tokens, columns), 127.0, device=DEVICE)
    y = gpu.matmul(x, on_device(weight), 8)
    assert (y == np.float32(127 * (2**bits - 1) * columns)).all()


NUMBERS = st.one_of(
    st.floats(-10, 10, width=32),
    st.integers(-254, 254).map(lambda n: n / 2),  # ties, if the largest size is 127
    st.sampled_from([0.0, -0.0, 127.0, 2.0**-149, 150 * 2.0**-149, 2.0**-126, 3e38]),
)


@given(arrays(np.float32, (3, 24), elements=NUMBERS), st.sampled_from([None, 8, 24]))
@example(np.full((3, 24), 150 * 2.0**-149, np.float32), 8)  # of a rounded scale: code 150
@settings(max_examples=12)
def test_activations_are_rounded_as_defined(x, group_size):
    x = torch.from_numpy(x)
    codes, scale, sums = (t.cpu() for t in gpu.quantize_activations(x.to(DEVICE), group_size))
    wanted, wanted_scale = reference.quantize_activations(x, group_size)
    assert codes.equal(wanted)
    assert scale.equal(wanted_scale)
    assert sums.equal(codes.int().unflatten(1, (-1, group_size or 24)).sum(-1, dtype=torch.int32))


# ---------------------------------------------------------------- dequantization


@pytest.mark.parametrize(("scheme", "columns"), CASES)
def test_dequantized_weights_equal_the_packed_tensors_own(scheme, columns):
    weight = random_weight(ROWS, columns, scheme)
    tiles = on_device(weight)
    for dtype in FLOATS:
        assert gpu.dequantize(tiles, dtype).cpu().equal(weight.dequantize(dtype))


# ---------------------------------------------------------------- the door


def test_leading_axes_and_strides_are_kept_in_order():
    weight = random_weight(ROWS, 64, ql.Scheme(8, 32))
    tiles = on_device(weight)
    x = torch.randn(64, 3, 2, device=DEVICE).permute(2, 1, 0)
    for bits in (16, 8):
        y = gpu.matmul(x, tiles, bits)
        assert y.shape == (2, 3, ROWS)
        assert y.equal(gpu.matmul(x.contiguous(), tiles, bits))
        assert y[1].equal(gpu.matmul(x[1], tiles, bits))
        assert gpu.matmul(x[:0], tiles, bits).shape == (0, 3, ROWS)


def test_the_public_product_goes_to_the_gpu_when_asked_to():
    weight, x = random_weight(ROWS, 64, ql.Scheme(4, 32)), activations(2, 64)
    y = ql.int4_matmul(x.to(DEVICE), on_device(weight), activation_bits=8, backend="gpu")
    assert y.cpu().equal(reference.matmul(x, weight, 8))


@pytest.mark.parametrize(
    ("x", "bits", "message"),
    [
        (torch.zeros(2, 63), 16, r"x has shape \(2, 63\); the weight takes \(\.\.\., 64\)"),
        (torch.tensor(1.0), 16, r"x has shape \(\)"),
        (torch.zeros(64, dtype=torch.float64), 16, "x is torch.float64; the GPU kernels take"),
        (torch.zeros(64, device="meta"), 16, "x is on meta and the weight on"),
        (torch.zeros(64), 4, r"activation_bits is 4; choose 16 \(floats\) or 8"),
    ],
)
def test_a_product_that_cannot_be_is_refused_with_a_reason(x, bits, message):
    x = x if x.device.type == "meta" else x.to(DEVICE)
    with pytest.raises(ValueError, match=message):
        gpu.matmul(x, on_device(random_weight(ROWS, 64, ql.Scheme(4, 32))), bits)


def test_sums_that_could_overflow_are_refused():
    codes = torch.zeros(1, 66_312, dtype=torch.uint8)
    weight = ql.QuantizedTensor(codes, torch.ones(1, 1), torch.zeros(1, 1), ql.Scheme(8))
    with pytest.raises(ValueError, match="66312 products of 8 bits can overflow an int32"):
        gpu.matmul(torch.zeros(66_312, device=DEVICE), on_device(weight.pack()), 8)


def test_dequantizing_to_another_type_is_refused():
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; the GPU kernels take"):
        gpu.dequantize(on_device(random_weight(ROWS, 64, ql.Scheme(4, 32))), torch.int8)


def test_tensors_on_the_cpu_need_the_interpreter(monkeypatch):
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    weight = Tiles.of(random_weight(ROWS, 64, ql.Scheme(4, 32)))
    for call in (lambda: gpu.matmul(torch.zeros(64), weight), lambda: gpu.dequantize(weight)):
        with pytest.raises(ValueError, match=r"are on cpu; GPU kernels take CUDA tensors, or any"):
            call()
