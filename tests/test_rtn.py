"""Round to nearest: no level is nearer, and no searched grid is worse than the unsearched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlab.block import Block
from quantlab.grid_search import FACTORS, candidates
from quantlab.methods.rtn import RTN, rtn
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError


def matrix(rows: int = 6, columns: int = 96, seed: int = 0) -> Tensor:
    """Make a heavy-tailed weight: rows of float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight * weight.abs().sqrt()


def group_errors(weight: Tensor, scheme: Scheme, importance: Tensor | None = None, **options):
    """Return rtn's weighted squared error of each group, (out, groups)."""
    rounded = rtn(weight, scheme, **options).dequantize()
    importance = torch.ones_like(weight[0]) if importance is None else importance
    return scheme.group((rounded - weight).square() * importance).sum(-1)


schemes = st.builds(
    Scheme, st.integers(1, 8), st.sampled_from([1, 8, 32, None]), symmetric=st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(scheme=schemes, seed=st.integers(0, 1000))
def test_no_level_is_nearer_than_the_chosen_one(scheme, seed):
    weight = matrix(seed=seed)
    q = rtn(weight, scheme)
    chosen = (q.dequantize() - weight).abs()
    for code in range(scheme.levels):
        other = scheme.decode(torch.full_like(q.codes, code), q.scale, q.zero_point)
        assert (chosen <= (other - weight).abs() + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(scheme=schemes, seed=st.integers(0, 1000), weighted=st.booleans())
def test_the_search_is_never_worse_than_absmax_in_any_group(scheme, seed, weighted):
    weight = matrix(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    power = torch.rand(96, generator=generator, dtype=torch.float64) ** 4
    options = {"imatrix": power} if weighted else {"clip": "mse"}
    importance = power if weighted else torch.ones(96, dtype=torch.float64)
    plain = group_errors(weight, scheme, importance)
    # Both sums are of the same numbers; summing groups in another order costs an ulp or two.
    assert (group_errors(weight, scheme, importance, **options) <= plain * (1 + 1e-12)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_search_equals_trying_every_candidate_one_by_one(bits, symmetric):
    weight, scheme = matrix(2, 64), Scheme(bits, 32, symmetric)
    power = torch.linspace(0, 3, 64, dtype=torch.float64)
    ours = rtn(weight, scheme, imatrix=power)
    for row in range(2):
        for group in range(2):
            columns = slice(32 * group, 32 * group + 32)
            w = weight[row, columns]
            best = None
            for scale, zero in candidates(w, scheme):
                codes = torch.clamp(torch.round(w / scale) + zero, 0, scheme.levels - 1)
                error = (((codes - zero) * scale - w) ** 2 * power[columns]).sum().item()
                if best is None or error < best[0]:
                    best = error, codes, scale
            assert ours.codes[row, columns].tolist() == best[1].tolist()
            assert ours.scale[row, group].item() == best[2].item()


def test_the_first_candidate_is_the_unclipped_grid():
    weight = matrix()
    for scheme in (Scheme(3), Scheme(3, symmetric=False)):
        first = next(candidates(weight, scheme))
        assert all(a.equal(b) for a, b in zip(first, scheme.grid(weight), strict=True))
    assert FACTORS[0] == 1


@pytest.mark.parametrize(
    ("name", "bar"), [("w2g128sym", 0.75), ("w2g128asym", 0.6), ("w3g128sym", 0.85)]
)
def test_the_search_lowers_the_error_of_few_bits(name, bar):
    weight, scheme = matrix(64, 128), Scheme.parse(name)
    searched = group_errors(weight, scheme, clip="mse").sum()
    assert searched < bar * group_errors(weight, scheme).sum()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_search_comes_within_one_percent_of_the_best_scale(bits):
    weight, scheme = matrix(16, 128), Scheme(bits)
    best = torch.full((16,), torch.inf, dtype=torch.float64)
    for step in torch.linspace(0.05, 1.6, 500).double() / scheme.middle:
        for sign in (1, -1):
            scale = sign * step * weight.abs().amax(-1, keepdim=True)
            middle = torch.full_like(scale, scheme.middle)
            rounded = scheme.decode(scheme.encode(weight, scale, middle), scale, middle)
            best = torch.minimum(best, (rounded - weight).square().sum(-1))
    assert group_errors(weight, scheme, clip="mse").sum() < 1.01 * best.sum()


def test_the_other_sign_of_the_scale_is_used_where_it_is_better():
    # 7 levels below zero and the extreme on the positive side: met from both ends it fits exactly.
    weight = torch.tensor([[8.0, 7.0, 1.0, -7.0], [7.0, -7.0, -8.0, 1.0]])
    assert rtn(weight, Scheme(4), clip="mse").dequantize().equal(weight)
    weight = torch.tensor([[7.0, -6.9, 3.0, 1.0, 5.0, -2.0]])
    assert rtn(weight, Scheme(4)).scale.item() < 0
    assert rtn(weight, Scheme(4), clip="mse").scale.item() > 0


def test_an_imatrix_implies_the_weighted_search():
    weight, power = matrix(), torch.rand(96, dtype=torch.float64) + 0.1
    scheme = Scheme(2, 32)
    implied = rtn(weight, scheme, imatrix=power)
    assert implied.scale.equal(rtn(weight, scheme, clip="mse", imatrix=power).scale)
    assert not implied.scale.equal(rtn(weight, scheme).scale)


def test_an_imatrix_of_equal_numbers_is_the_plain_search():
    weight, scheme = matrix(), Scheme(3, 32)
    equal = rtn(weight, scheme, imatrix=torch.full((96,), 4.0))
    assert equal.codes.equal(rtn(weight, scheme, clip="mse").codes)


def test_an_imatrix_of_zeros_keeps_the_unclipped_grid():
    weight, scheme = matrix(), Scheme(3, 32)
    assert rtn(weight, scheme, imatrix=torch.zeros(96)).codes.equal(rtn(weight, scheme).codes)


def test_rows_are_searched_independently_however_they_are_chunked(monkeypatch):
    weight, scheme = matrix(9), Scheme(3, 32)
    whole = rtn(weight, scheme, clip="mse")
    monkeypatch.setattr("quantlab.grid_search.CHUNK", 2 * 96)
    assert rtn(weight, scheme, clip="mse").scale.equal(whole.scale)
    assert rtn(weight[4:5], scheme, clip="mse").scale.equal(whole.scale[4:5])


@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_scaling_by_a_power_of_two_scales_the_answer(clip):
    weight, scheme = matrix(), Scheme(3, 32)
    one, other = rtn(weight, scheme, clip=clip), rtn(-16 * weight, scheme, clip=clip)
    assert torch.equal(-16 * one.dequantize(), other.dequantize())


@pytest.mark.parametrize("clip", ["absmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_exactly_zero(clip, symmetric):
    answer = rtn(torch.zeros(2, 64), Scheme(4, 32, symmetric), clip=clip)
    assert answer.dequantize().abs().max() == 0
    assert torch.isfinite(answer.scale).all()
    assert (answer.scale != 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_is_not_clipped(symmetric, sign):
    # A known fault elsewhere: a group without negative weights got half its scale.
    weight = sign * (matrix().abs() + 0.1)
    q = rtn(weight, Scheme(4, 32, symmetric))
    step = q.scale.abs().repeat_interleave(32, dim=1)
    assert ((q.dequantize() - weight).abs() <= step * (0.5 + 1e-9)).all()


def test_no_extreme_weight_lies_on_a_rounding_tie():
    # Under the rule absmax / 7.5 float32 and float64 disagree in one group of eight.
    single = matrix(256, 256).float()
    codes = [rtn(weight, Scheme(4, 32)).codes for weight in (single, single.double())]
    assert codes[0].equal(codes[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half = matrix().to(dtype)
    assert rtn(half, Scheme(4, 32)).codes.equal(rtn(half.float(), Scheme(4, 32)).codes)
    assert rtn(half, Scheme(4, 32)).scale.dtype == torch.float32


def test_one_column_and_a_trainable_weight_are_accepted():
    weight = torch.tensor([[0.5], [-2.0]], requires_grad=True)
    answer = rtn(weight, Scheme(4), clip="mse")
    assert answer.dequantize().tolist() == [[0.5], [-2.0]]
    assert not answer.scale.requires_grad


def block_of(linear: torch.nn.Linear, *batches: Tensor) -> Block:
    """Wrap one linear as a block that sees the batches."""
    return Block(linear, {"only": linear}, inputs=[((x,), {}) for x in batches])


def test_only_the_imatrix_clip_asks_for_data():
    linear = torch.nn.Linear(96, 4, bias=False)
    for clip in ("absmax", "mse"):
        answer = RTN(clip).quantize_block(block_of(linear), Scheme(3, 32))["only"]
        assert answer.codes.equal(rtn(linear.weight, Scheme(3, 32), clip=clip).codes)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        RTN("imatrix").quantize_block(block_of(linear), Scheme(3, 32))
    x = torch.randn(2, 50, 96) * torch.linspace(0, 5, 96)
    answer = RTN("imatrix").quantize_block(block_of(linear, x), Scheme(3, 32))["only"]
    power = x.flatten(0, 1).square().mean(0)
    assert answer.codes.equal(rtn(linear.weight, Scheme(3, 32), imatrix=power).codes)


def test_errors_name_the_value_and_the_way_out():
    weight = torch.ones(2, 8)
    holed = weight.clone()
    holed[1, 3] = torch.inf
    cases = [
        (r"first Inf at \[1, 3\]; repair the checkpoint", holed, Scheme(4), {}),
        ("dtype torch.int64; pass a float tensor", weight.long(), Scheme(4), {}),
        (r"shape \(8,\); pass a matrix", weight[0], Scheme(4), {}),
        ("in_features 8 is not a multiple of group_size 3; choose 2, 4", weight, Scheme(4, 3), {}),
        ("bits is 16; weights take 1..8", weight, Scheme(16), {}),
        ("clip is 'best'; choose 'absmax' or 'mse'", weight, Scheme(4), {"clip": "best"}),
        (r"imatrix has shape \(7,\)", weight, Scheme(4), {"imatrix": torch.ones(7)}),
        ("dtype torch.int64; pass 8 floats", weight, Scheme(4), {"imatrix": weight[0].long()}),
        ("holds nan at input 0", weight, Scheme(4), {"imatrix": torch.full((8,), torch.nan)}),
        ("holds -1.0 at input 0", weight, Scheme(4), {"imatrix": -torch.ones(8)}),
    ]
    for match, bad, scheme, options in cases:
        with pytest.raises(ValueError, match=match):
            rtn(bad, scheme, **options)
    with pytest.raises(ValueError, match="choose 'absmax', 'mse' or 'imatrix'"):
        RTN("median")
