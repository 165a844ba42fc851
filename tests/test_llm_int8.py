"""LLM.int8(): codes equal to bitsandbytes', products to the slow twin, and what is gained."""

from pathlib import Path

import numpy as np
import pytest
import reference_bnb
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quantlab as ql
from quantlab.checkpoint import save
from quantlab.methods.llm_int8 import exact_product

with np.load(Path(__file__).with_name("bnb_vectors.npz")) as archive:
    VECTORS = {name: archive[name] for name in archive if name[:4] in ("int8", "weig", "x", "bias")}
THRESHOLDS = pytest.mark.parametrize("threshold", [0.0, 6.0])


def vector(name: str) -> torch.Tensor:
    """Return a committed array."""
    return torch.from_numpy(VECTORS[name])


def outlier_inputs(tokens: int = 40, columns: int = 64) -> torch.Tensor:
    """Draw inputs of which two channels are far larger than the others."""
    x = torch.randn(tokens, columns)
    x[:, 5] *= 60
    x[:, 31] *= 30
    return x


# ------------------------------------------------------------------ codes


def test_weight_codes_are_those_of_bitsandbytes():
    q = ql.int8_rows(vector("weight"))
    assert q.codes.equal(vector("int8/weight/codes"))
    assert q.absmax.equal(vector("int8/weight/absmax"))
    assert not q.outliers.any()


@THRESHOLDS
def test_activation_codes_and_outlier_columns_are_those_of_bitsandbytes(threshold):
    q = ql.int8_rows(vector("x"), threshold=threshold)
    name = f"int8/{threshold:g}"
    assert q.codes.equal(vector(f"{name}/codes"))
    assert q.absmax.equal(vector(f"{name}/absmax"))
    if threshold:
        assert q.outliers.nonzero().flatten().equal(vector(f"{name}/columns"))
        assert {7, 100} <= set(q.outliers.nonzero().flatten().tolist())  # 100 holds exactly -6


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, 1e9])
def test_codes_agree_with_the_slow_twin(threshold):
    x = outlier_inputs(9, 50)
    x[4] = 0
    q = ql.int8_rows(x, threshold=threshold)
    codes, absmax, columns = reference_bnb.int8_rows(x.numpy(), threshold)
    assert q.codes.tolist() == codes
    assert q.absmax.tolist() == absmax
    assert q.outliers.nonzero().flatten().tolist() == columns


def test_the_scale_is_the_reciprocal_times_127_in_this_order():
    x = torch.randn(20_000, 8).half().float()
    absmax = x.abs().amax(1, keepdim=True)
    there, other = torch.round(x * ((1 / absmax) * 127)), torch.round(x * 127 / absmax)
    assert not there.equal(other)  # the order does decide some codes
    assert ql.int8_rows(x).codes.equal(there.to(torch.int8))


def test_a_row_of_zeros_gets_codes_of_zero():
    q = ql.int8_rows(torch.zeros(2, 3))
    assert (q.codes == 0).all()
    assert (q.dequantize() == 0).all()


@given(st.integers(0, 2**31), st.floats(0.5, 40))
def test_no_code_is_off_by_more_than_half_a_step(seed, threshold):
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)) * 10
    q = ql.int8_rows(x, threshold=threshold)
    inside = ~q.outliers
    step = q.absmax[:, None] / 127
    rounding = x.half().float()[:, inside] - q.dequantize()[:, inside]
    assert (rounding.abs() <= step * 0.5001).all()
    assert q.codes[:, inside].abs().max() <= 127 if inside.any() else True
    assert (x.half().abs() < threshold)[:, inside].all()
    assert (x.half().abs() >= threshold).any(0)[q.outliers].all()


# ------------------------------------------------------------------ products


@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0])
def test_products_agree_with_the_slow_twin(threshold):
    x, weight = outlier_inputs(6, 40), torch.randn(7, 40)
    y = ql.llm_int8(x, ql.int8_rows(weight), threshold=threshold)
    slow = torch.from_numpy(reference_bnb.llm_int8(x.numpy(), weight.numpy(), threshold))
    assert torch.allclose(y.double(), slow, rtol=1e-5, atol=1e-5)


@THRESHOLDS
def test_products_are_those_of_linear8bitlt_but_for_its_constant(threshold):
    # bitsandbytes multiplies by 6.200124e-05, which is 1.8e-5 more than 1 / 127^2.
    x, weight, bias = vector("x"), vector("weight"), vector("bias")
    y = ql.llm_int8(x, ql.int8_rows(weight), bias, threshold=threshold)
    theirs = vector(f"int8/{threshold:g}/y")
    assert (y - theirs).norm() < 3e-5 * theirs.norm()
    rescaled = ql.llm_int8(x, ql.int8_rows(weight), threshold=0.0) * (6.200124e-05 * 127**2) + bias
    if not threshold:
        assert (rescaled - theirs).norm() < 1e-6 * theirs.norm()


def test_a_threshold_above_all_inputs_is_plain_int8_to_the_last_bit():
    x, weight = outlier_inputs(), ql.int8_rows(torch.randn(8, 64))
    plain = ql.llm_int8(x, weight, threshold=0.0)
    assert ql.llm_int8(x, weight, threshold=x.abs().max().item() + 1).equal(plain)
    assert not ql.llm_int8(x, weight, threshold=6.0).equal(plain)


def test_a_threshold_below_all_inputs_multiplies_everything_in_float():
    x, weight = outlier_inputs().abs() + 1, ql.int8_rows(torch.randn(8, 64))
    y = ql.llm_int8(x, weight, threshold=0.5)
    assert torch.allclose(y, x @ weight.dequantize().T, rtol=1e-5, atol=1e-4)


def test_two_outlier_channels_in_float_cut_the_error_to_a_fifth():
    x, weight = outlier_inputs(), torch.randn(32, 64)
    exact, rows = x @ weight.T, ql.int8_rows(weight)
    plain, mixed = (
        (ql.llm_int8(x, rows, threshold=t) - x @ rows.dequantize().T).norm() for t in (0.0, 6.0)
    )
    assert mixed < plain / 5
    # The control: without outliers there is nothing to gain.
    ordinary = x.clamp(-5, 5)
    one, other = (ql.llm_int8(ordinary, rows, threshold=t) for t in (0.0, 6.0))
    assert one.equal(other)
    assert (one - ordinary @ weight.T).norm() < 0.02 * exact.norm()


def test_sums_of_int8_products_are_exact_where_float32_s_are_not():
    a = torch.full((1, 4097), 127, dtype=torch.int8)
    b = a.clone()
    b[0, 0] = 126
    total = 4096 * 127**2 + 127 * 126
    assert exact_product(a, b).item() == float(np.float32(total))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_answer_has_the_inputs_dtype(dtype):
    x, weight = outlier_inputs().to(dtype), torch.randn(8, 64)
    y = ql.llm_int8(x, ql.int8_rows(weight))
    assert y.dtype == dtype
    exact = x.float() @ weight.T
    assert (y.float() - exact).norm() < 0.02 * exact.norm()


# ------------------------------------------------------------------ layers and models


def test_a_layer_takes_batches_and_finds_outliers_in_all_their_tokens():
    linear = nn.Linear(64, 8)
    layer = ql.Int8Linear.of(linear, threshold=6.0)
    x = outlier_inputs().unflatten(0, (4, 10))
    assert layer(x).shape == (4, 10, 8)
    assert layer(x).flatten(0, 1).equal(layer(x.flatten(0, 1)))
    assert ql.is_quantized(layer)
    assert "64, 8, threshold=6.0" in repr(layer)
    assert layer.nbytes == 64 * 8 + 4 * 8 + 4 * 8


def test_a_model_s_state_goes_to_a_file_and_back():
    layer = ql.Int8Linear.of(nn.Linear(64, 8))
    other = ql.Int8Linear.of(nn.Linear(64, 8))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 64)
    assert other(x).equal(layer(x))


def test_the_story_model_loses_almost_nothing_and_its_outlier_twin_needs_the_threshold():
    kept = {}
    for threshold in (0.0, 6.0):
        for name in ("storyteller", "storyteller-outlier"):
            model, tokenizer = ql.load(name)
            tokens = ql.test_set(tokenizer, samples=2)
            before = ql.perplexity(model, tokens)
            report = ql.llm_int8_(model, threshold=threshold)
            kept[name, threshold] = ql.perplexity(model, tokens) / before
            assert len(report.rows) == 28
            assert 8 < report.bits_per_weight < 8.2
    assert kept["storyteller", 6.0] == pytest.approx(1, abs=0.01)
    assert kept["storyteller-outlier", 6.0] == pytest.approx(1, abs=0.02)
    assert kept["storyteller-outlier", 0.0] > kept["storyteller-outlier", 6.0] + 0.01


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("x", "threshold", "words"),
    [
        (torch.ones(2, 3), -1.0, "threshold is -1.0; choose 0"),
        (torch.ones(2, 3), float("nan"), "threshold is nan"),
        (torch.ones(3), 0.0, r"shape \(3,\)"),
        (torch.ones(2, 3, dtype=torch.int8), 0.0, "torch.int8"),
        (torch.full((2, 3), 7e4), 0.0, "beyond float16's 65504"),
        (torch.full((2, 3), torch.nan), 0.0, "holds NaN"),
    ],
)
def test_what_has_no_rows_is_refused(x, threshold, words):
    with pytest.raises(ValueError, match=words):
        ql.int8_rows(x, threshold=threshold)


def test_inputs_of_another_width_and_models_with_nan_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5\); the weight takes \(tokens, 3\)"):
        ql.llm_int8(torch.ones(2, 5), ql.int8_rows(torch.ones(4, 3)))
    model, _ = ql.load("storyteller")
    with pytest.raises(ValueError, match="threshold is -6; choose"):
        ql.llm_int8_(model, threshold=-6)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj holds 1 non-finite"):
        ql.llm_int8_(model)
    assert not ql.is_quantized(model)  # nothing was replaced


def test_a_folder_that_could_not_be_read_back_is_not_written(tmp_path):
    for quantize in (ql.llm_int8_, lambda model: ql.quantize_(model, ql.NormalFloat(), None)):
        model, tokenizer = ql.load("storyteller")
        quantize(model)
        with pytest.raises(ValueError, match=r"layers.0.*Linear; this folder format holds grids"):
            save(model, tokenizer, tmp_path / "out")
        assert not list(tmp_path.iterdir())
