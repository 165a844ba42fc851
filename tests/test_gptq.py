"""GPTQ: equal to the textbook's column by column, whatever the blocks; then the laws it obeys."""

import importlib
import itertools

import pytest
import torch
from reference import gptq_original, obq
from torch import Tensor

from quantlab.block import Block
from quantlab.factor import factorize, inverse_cholesky
from quantlab.methods.gptq import GPTQ, gptq, solve
from quantlab.methods.rtn import rtn
from quantlab.native import compiled, share_rows
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, output_error

ROWS, COLUMNS = 12, 192  # more columns than a block of 128; groups of 32 and 64 lie inside one
EXACT = {"rtol": 0, "atol": 1e-12}


def layer(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make a weight and the second moment of correlated inputs, both float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    return weight, x.T @ x / len(x) / columns


def damped(moment: Tensor, damp: float = 0.01) -> Tensor:
    """Return H as the solver sees it."""
    return moment + damp * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equals_column_by_column_obq(bits, group_size, symmetric, act_order):
    weight, moment = layer(seed=bits)
    scheme = Scheme(bits, group_size, symmetric)
    expected, losses = obq(weight, moment, scheme, act_order=act_order)
    factor = factorize(moment, act_order=act_order)
    quantized, ours = solve(weight, factor, scheme)
    assert torch.allclose(quantized.dequantize(), expected, **EXACT)
    assert torch.allclose(ours, losses.sum(0)[factor.order], rtol=1e-9, atol=0)


@pytest.mark.parametrize("block_size", [1, 7, 64, 128, 1000])
@pytest.mark.parametrize("group_size", [1, 16, 96, 192, None])
@pytest.mark.parametrize("act_order", [False, True])
def test_block_size_does_not_change_the_answer(block_size, group_size, act_order):
    weight, moment = layer(seed=1)
    scheme = Scheme(3, group_size, symmetric=False)
    options = {"act_order": act_order}
    one = gptq(weight, moment, scheme, block_size=COLUMNS, **options).dequantize()
    other = gptq(weight, moment, scheme, block_size=block_size, **options).dequantize()
    assert torch.allclose(one, other, **EXACT)


@pytest.mark.parametrize("block_size", [16, 48, 64, 100, 128, 192])
@pytest.mark.parametrize("group_size", [32, 64, 96])
def test_original_groups_equal_the_original_algorithm(block_size, group_size):
    weight, moment = layer(seed=2)
    scheme = Scheme(3, group_size, symmetric=False)
    expected = gptq_original(weight, moment, scheme, block_size=block_size)
    ours = gptq(weight, moment, scheme, block_size=block_size, original_groups=True)
    assert torch.allclose(ours.dequantize(), expected, **EXACT)


def test_original_groups_are_stale_exactly_when_a_block_ends_inside_or_after_a_group():
    weight, moment = layer(seed=2)
    scheme = Scheme(3, 32)
    fresh = gptq(weight, moment, scheme)
    stale = gptq(weight, moment, scheme, block_size=128, original_groups=True)
    aligned = gptq(weight, moment, scheme, block_size=32, original_groups=True)
    assert (fresh.dequantize() - stale.dequantize()).abs().max() > 0.1
    assert torch.allclose(fresh.dequantize(), aligned.dequantize(), **EXACT)


@pytest.mark.parametrize("scheme", ["w4g64sym", "w3g32asym", "w8", "w2asym"])
@pytest.mark.parametrize("act_order", [False, True])
def test_white_inputs_give_the_codes_of_rtn(scheme, act_order):
    weight, _ = layer(columns=384)
    ours = gptq(weight, 3 * torch.eye(384).double(), Scheme.parse(scheme), act_order=act_order)
    plain = rtn(weight, Scheme.parse(scheme))
    assert ours.codes.equal(plain.codes)
    assert ours.scale.equal(plain.scale)
    assert ours.zero_point.equal(plain.zero_point)


@pytest.mark.parametrize("damp", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", ["w4g64sym", "w2g32asym", "w3"])
def test_losses_sum_to_half_the_damped_quadratic_form(scheme, act_order, damp):
    weight, moment = layer(seed=3)
    factor = factorize(moment, damp=damp, act_order=act_order)
    quantized, losses = solve(weight, factor, Scheme.parse(scheme))
    whole = output_error(weight, quantized.dequantize(), damped(moment, damp)) / 2
    assert losses.sum().item() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("act_order", [False, True])
def test_rows_are_independent(act_order):
    weight, moment = layer(rows=70, seed=4)  # more rows than a tile
    scheme = Scheme(4, 32)
    whole = gptq(weight, moment, scheme, act_order=act_order).dequantize()
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    shuffled = gptq(weight[order], moment, scheme, act_order=act_order).dequantize()
    alone = gptq(weight[69:], moment, scheme, act_order=act_order).dequantize()
    assert torch.allclose(whole[order], shuffled, **EXACT)
    assert torch.allclose(whole[69:], alone, **EXACT)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_rows_without_changing_the_answer(monkeypatch, threads):
    weight, moment = layer(rows=70, seed=4)
    expected = gptq(weight, moment, Scheme(4, 32)).dequantize()
    monkeypatch.setattr(importlib.import_module("quantlab.methods.gptq"), "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.allclose(gptq(weight, moment, Scheme(4, 32)).dequantize(), expected, **EXACT)


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_every_row_is_worked_on_once(rows):
    seen: list[int] = []
    share_rows(lambda low, high: seen.extend(range(low, high)), rows, threads=3)
    assert sorted(seen) == list(range(rows))


def test_act_order_is_a_permutation_of_the_columns():
    weight, moment = layer(seed=5)
    scheme = Scheme(3)  # a row's grid does not see the order of its columns
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    by_hand = torch.empty_like(weight)
    by_hand[:, order] = gptq(weight[:, order], moment[order][:, order], scheme).dequantize()
    assert torch.allclose(
        gptq(weight, moment, scheme, act_order=True).dequantize(), by_hand, **EXACT
    )


def test_act_order_keeps_groups_in_place():
    weight, moment = layer(seed=5)
    scheme = Scheme(4, 32)
    ours = gptq(weight, moment, scheme, act_order=True)
    assert ours.scale.equal(rtn(weight, scheme).scale)


@pytest.mark.parametrize("factor", [0.25, 1024.0])
def test_the_unit_of_the_hessian_does_not_matter(factor):
    weight, moment = layer(seed=6)
    one, other = (gptq(weight, H, Scheme(3, 64)) for H in (moment, factor * moment))
    assert one.codes.equal(other.codes)


def test_scaling_the_weight_by_a_power_of_two_scales_the_answer():
    weight, moment = layer(seed=6)
    one, other = (gptq(W, moment, Scheme(3, 64)) for W in (weight, -8 * weight))
    assert one.codes.equal(other.codes)
    assert torch.equal(-8 * one.scale, other.scale)


def test_float32_stays_close_to_float64():
    weight, moment = layer(rows=64, seed=7)
    scheme = Scheme(4, 64)
    double = gptq(weight, moment, scheme)
    single = gptq(weight.float(), moment.float(), scheme)
    assert single.scale.dtype == torch.float32
    assert double.scale.dtype == torch.float64
    # A weight within float32's rounding of a tie flips, and its flip moves the rest of its row.
    assert (double.codes == single.codes).double().mean() > 0.98
    errors = [output_error(weight, q.dequantize().double(), moment) for q in (double, single)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    weight, moment = layer(seed=7)
    half = weight.to(dtype)
    ours = gptq(half, moment, Scheme(4, 32))
    assert ours.codes.equal(gptq(half.float(), moment, Scheme(4, 32)).codes)
    assert ours.scale.dtype == torch.float32


@pytest.mark.parametrize("scheme", ["w2g32asym", "w3g64sym", "w4", "w8g32sym"])
def test_output_error_is_below_rtn_s(scheme):
    weight, moment = layer(rows=256, seed=8)
    ours = gptq(weight, moment, Scheme.parse(scheme)).dequantize()
    plain = rtn(weight, Scheme.parse(scheme)).dequantize()
    assert output_error(weight, ours, moment) < 0.8 * output_error(weight, plain, moment)


def test_rows_of_four_weights_are_optimal_more_often_than_rtn_s():
    generator = torch.Generator().manual_seed(0)
    scheme = Scheme(3)
    all_codes = torch.tensor(list(itertools.product(range(8), repeat=4)), dtype=torch.float64)
    hits = {"rtn": 0, "gptq": 0}
    for _ in range(300):
        weight = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
        moment = x.T @ x / 16
        answers = {"rtn": rtn(weight, scheme), "gptq": gptq(weight, moment, scheme, damp=0.0)}
        scale, zero = scheme.grid(weight)
        D = scale * (all_codes - zero) - weight
        best = torch.einsum("ni,ij,nj->n", D, moment, D).min().item()
        for name, answer in answers.items():
            error = output_error(weight, answer.dequantize(), moment)
            assert error >= best * (1 - 1e-12)
            hits[name] += error <= best * (1 + 1e-9)
    assert hits["gptq"] > hits["rtn"]


def test_the_last_of_two_columns_repairs_the_first():
    # By hand: 0.44 rounds to 0.4 on the grid 0.1 * k; the second weight takes the 0.04 over.
    weight = torch.tensor([[0.44, -0.8]], dtype=torch.float64)
    moment = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    U = inverse_cholesky(moment, damp=0.0)
    assert torch.allclose(U.T @ U, torch.linalg.inv(moment))
    _, losses = solve(weight, factorize(moment, damp=0.0), Scheme(4))
    # -0.8 + 0.04 * M_12 / M_22 = -0.78, which rounds back to -0.8: losses 0.04^2 / 4 and 0.02^2
    assert losses.tolist() == pytest.approx([0.04**2 / 4, 0.02**2])


def test_inverse_cholesky_is_the_factor_of_the_inverse():
    _, moment = layer()
    U = inverse_cholesky(moment)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.T @ U, torch.linalg.inv(damped(moment)), rtol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_inputs_are_rounded_to_nearest_and_reported(act_order):
    weight, moment = layer(seed=9)
    dead = [0, 31, 100, 191]
    moment[dead] = 0
    moment[:, dead] = 0
    ours = gptq(weight, moment, Scheme(4), act_order=act_order)
    assert ours.codes[:, dead].equal(rtn(weight, Scheme(4)).codes[:, dead])
    assert any("4 of 192 inputs are always 0" in note for note in ours.notes)
    # Dead inputs count as 0 in the mean that damping is a fraction of, as the twin's do.
    expected, _ = obq(weight, moment, Scheme(4), act_order=act_order)
    assert torch.allclose(ours.dequantize(), expected, **EXACT)


def test_fewer_tokens_than_columns_are_solved_without_raising_damp():
    weight, _ = layer(seed=10)
    x = torch.randn(20, COLUMNS, generator=torch.Generator().manual_seed(1)).double()
    moment = x.T @ x / 20
    ours = gptq(weight, moment, Scheme(4, 64))
    assert ours.notes == ()
    plain = rtn(weight, Scheme(4, 64)).dequantize()
    assert output_error(weight, ours.dequantize(), moment) < output_error(weight, plain, moment)


def test_damping_is_raised_tenfold_until_it_suffices_and_reported():
    weight, _ = layer()
    moment = torch.eye(COLUMNS).double()
    moment[0, 1] = moment[1, 0] = 1.05  # eigenvalue -0.05: damp 0.01 is too little, 0.1 enough
    ours = gptq(weight, moment, Scheme(4, 64))
    assert any("damping raised from 0.01 to 0.1" in note for note in ours.notes)
    expected, _ = obq(weight, moment, Scheme(4, 64), damp=0.1)
    assert torch.allclose(ours.dequantize(), expected, **EXACT)


def test_a_singular_hessian_without_damping_gets_a_little():
    weight, _ = layer()
    x = torch.ones(1, COLUMNS).double()
    assert "damping raised from 0 to" in gptq(weight, x.T @ x, Scheme(4), damp=0.0).notes[0]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_the_smallest_layers(rows, columns):
    weight, moment = layer(rows, columns)
    expected, _ = obq(weight, moment, Scheme(3))
    assert torch.allclose(gptq(weight, moment, Scheme(3)).dequantize(), expected, **EXACT)


def test_a_group_of_zeros_decodes_to_zeros_until_an_error_reaches_it():
    weight, moment = layer()
    zeros = torch.zeros_like(weight)
    assert gptq(zeros, moment, Scheme(4, 32)).dequantize().abs().max() == 0
    assert gptq(zeros, moment, Scheme(4, 32, symmetric=False)).dequantize().abs().max() == 0


def test_scales_of_both_signs_occur_and_decode():
    weight, moment = layer()
    ours = gptq(weight, moment, Scheme(4, 32))
    assert (ours.scale < 0).any()
    assert (ours.scale > 0).any()


def test_neither_weight_nor_hessian_is_changed():
    weight, moment = layer()
    copies = weight.clone(), moment.clone()
    for act_order in (False, True):
        gptq(weight, moment, Scheme(4, 32), act_order=act_order)
    assert weight.equal(copies[0])
    assert moment.equal(copies[1])


def test_a_trainable_weight_is_accepted():
    weight, moment = layer()
    assert not gptq(weight.requires_grad_(), moment, Scheme(4)).scale.requires_grad


def test_layers_that_read_the_same_inputs_share_one_factor(monkeypatch):
    module = importlib.import_module("quantlab.methods.gptq")
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return factorize(*args, **kwargs)

    monkeypatch.setattr(module, "factorize", counted)
    torch.manual_seed(0)
    net = torch.nn.Module()
    net.q, net.k, net.o = (torch.nn.Linear(32, 32, bias=False) for _ in range(3))
    net.forward = lambda x: net.o(torch.tanh(net.q(x) + net.k(x)))
    linears = {"q": net.q, "k": net.k, "o": net.o}
    block = Block(net, linears, inputs=[((torch.randn(2, 40, 32),), {})])
    answer = GPTQ().quantize_block(block, Scheme(4, 32))
    assert list(answer) == ["q", "k", "o"]
    assert len(calls) == 2


def test_a_block_s_error_names_the_layer():
    linear = torch.nn.Linear(8, 4, bias=False)
    dead = Block(linear, {"up": linear}, inputs=[((torch.zeros(5, 8),), {})], name="layers.3")
    with pytest.raises(CalibrationError, match=r"layers\.3\.up: all 8 inputs are 0"):
        GPTQ().quantize_block(dead, Scheme(4))


def test_the_inner_loop_compiles_where_no_cache_can_be_written():
    namespace: dict = {}
    exec("def double(x):\n    x *= 2\n", namespace)  # no file, so Numba finds no cache folder
    x = torch.ones(3).numpy()
    compiled(namespace["double"])(x)
    assert x.tolist() == [2, 2, 2]


def refuse(match, weight=None, hessian=None, scheme=None, error=ValueError, **options):
    """Expect one error from gptq on a good layer with something replaced."""
    good_weight, good_hessian = layer(2, 8)
    with pytest.raises(error, match=match):
        gptq(
            good_weight if weight is None else weight,
            good_hessian if hessian is None else hessian,
            scheme or Scheme(4),
            **options,
        )


def test_errors_name_the_value_and_the_way_out():
    good, moment = layer(2, 8)
    holed = good.clone()
    holed[1, 5] = torch.nan
    refuse(r"1 non-finite values, first NaN at \[1, 5\]", weight=holed)
    refuse("dtype torch.int64; pass a float tensor", weight=torch.ones(2, 8).long())
    refuse("in_features 8 is not a multiple of group_size 3", scheme=Scheme(4, 3))
    refuse("bits is 16; weights take 1..8", scheme=Scheme(16))
    refuse("block_size is 0; choose a positive integer", block_size=0)
    refuse("block_size is 2.5", block_size=2.5)
    refuse("choose one of the two", act_order=True, original_groups=True)
    for damp in (-0.1, 1.5, float("nan")):
        refuse(f"damp is {damp}; choose a fraction", damp=damp)
    refuse("hessian is 7 x 7 but weight has in_features 8", hessian=moment[:7, :7])
    refuse(r"shape \(8, 7\)", hessian=moment[:, :7])
    refuse("dtype torch.int64", hessian=torch.eye(8).long())
    refuse("not symmetric: H and H", hessian=moment + torch.ones(8, 8).triu(1))
    refuse("diagonal holds -1", hessian=-torch.eye(8))


def test_calibration_errors_name_the_cause():
    _, moment = layer(2, 8)
    holed = moment.clone()
    holed[3, 4] = torch.inf
    refuse(r"1 non-finite values, first at \[3, 4\]", hessian=holed, error=CalibrationError)
    refuse("all 8 inputs are 0", hessian=torch.zeros(8, 8), error=CalibrationError)
    indefinite = torch.ones(8, 8) * 4 - 3 * torch.eye(8)
    indefinite[0, 1] = indefinite[1, 0] = -4
    refuse("not positive definite even with damp 1", hessian=indefinite, error=CalibrationError)
