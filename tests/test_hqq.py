"""HQQ: each half of the split is solved exactly, and no group is worse than plain rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_formats import half_quadratic as slow
from reference_formats import soft
from torch import Tensor

from quantlab.data import test_set
from quantlab.evaluate import evaluate, log_probabilities
from quantlab.export.encodings import Encoding
from quantlab.float_zero import FloatZeroTensor
from quantlab.methods.hqq import HQQ, half_quadratic, hqq, shrink
from quantlab.methods.rtn import RTN, rtn
from quantlab.models.loading import load
from quantlab.nn_codebook import CodebookLinear
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.sim import QuantSim
from quantlab.tensor import QuantizedTensor, sqnr

schemes = st.builds(
    Scheme, st.integers(1, 8), st.sampled_from([1, 4, 16, None]), symmetric=st.booleans()
)


def heavy(rows: int, columns: int, seed: int = 0, unit: float = 1.0) -> Tensor:
    """Draw weights from Student's t with 3 degrees of freedom: outliers in each group."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, rows, columns, generator=generator, dtype=torch.float64)
    return unit * z[0] / (z[1:].square().sum(0) / 3).sqrt()


# ------------------------------------------------------------------ the two halves


@settings(max_examples=30)
@given(scheme=schemes, seed=st.integers(0, 1000), unit=st.sampled_from([0.02, 1.0, 30.0]))
def test_every_step_equals_the_loop_over_single_weights(scheme, seed, unit):
    W = heavy(2, 16, seed, unit)
    groups = scheme.group(W)
    scale, zero = scheme.grid(groups)
    steps = list(half_quadratic(groups, scheme, 6))
    for row in range(2):
        for g in range(groups.shape[1]):
            start = scale[row, g].item(), zero[row, g].item()
            options = {"symmetric": scheme.symmetric, "steps": 6}
            twin = slow(groups[row, g].tolist(), *start, scheme.levels, **options)
            for step, (s, z, codes, kept) in zip(steps, twin, strict=True):
                assert step.scale[row, g].item() == pytest.approx(s, rel=1e-12)
                assert step.zero_point[row, g].item() == pytest.approx(z, rel=1e-12, abs=1e-12)
                assert step.codes[row, g].tolist() == codes
                assert step.kept[row, g].tolist() == pytest.approx(kept, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_new_grid_is_the_best_for_fixed_codes_and_kept_errors(symmetric):
    scheme = Scheme(3, 16, symmetric)
    groups = scheme.group(heavy(4, 64))
    first, second = half_quadratic(groups, scheme, 2)

    def rest(scale: Tensor, zero: Tensor) -> Tensor:
        Q = scale[..., None] * (first.codes - zero[..., None])
        return (groups - first.kept - Q).square().sum(-1)

    best = rest(second.scale, second.zero_point)
    for shift in (-0.1, -1e-4, 1e-4, 0.1):
        scale = second.scale * (1 + shift) if symmetric else second.scale
        zero = second.zero_point if symmetric else second.zero_point + shift
        assert (rest(scale, zero) > best).all()


def test_shrinking_sets_small_errors_to_zero_and_moves_large_ones_a_little():
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    y = shrink(x, 10.0, 0.7)
    assert y.tolist() == pytest.approx([soft(v, 10.0) for v in x.tolist()], abs=1e-15)
    border = 10 ** (-1 / 1.3)  # |x| = |x|^(p-1) / beta
    assert ((y == 0) == (x.abs() < border)).all()
    assert (y * x >= 0).all()
    assert (y.abs() <= x.abs()).all()
    assert (x - y)[-1] < (x - y)[350]  # the larger the error, the less is taken off
    lasso = torch.sign(x) * (x.abs() - 0.1).clamp(min=0)
    assert torch.allclose(shrink(x, 10.0, 1.0), lasso, atol=1e-15)


# ------------------------------------------------------------------ the whole


@settings(max_examples=40)
@given(scheme=schemes, seed=st.integers(0, 1000), whole=st.booleans())
def test_no_group_has_a_larger_mean_absolute_error_than_plain_rounding(scheme, seed, whole):
    W = heavy(3, 16, seed)

    def errors(q) -> Tensor:
        return scheme.group((q.dequantize() - W).abs()).mean(-1)

    ours = errors(hqq(W, scheme, whole_zeros=whole))
    assert (ours <= errors(rtn(W, scheme)) * (1 + 1e-12) + 1e-300).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_lie_on_a_grid_come_back(symmetric):
    scheme = Scheme(3, 8, symmetric)
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [7, 7, 0, 0, 1, 6, 3, 3]]).double()
    W = 0.25 * (codes - 4)
    assert hqq(W, scheme).dequantize().equal(W)


def test_zero_points_that_are_swapped_between_groups_lose():
    W = heavy(64, 128)
    q = hqq(W, Scheme(4, 64, symmetric=False))
    swapped = FloatZeroTensor(q.codes, q.scale, q.zero_point.flip(1), q.scheme)
    assert sqnr(W, swapped.dequantize()) < sqnr(W, q.dequantize()) - 3


def test_a_moving_float_zero_point_gains_at_four_bits_and_a_whole_one_does_not():
    W = torch.randn(512, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheme = Scheme(4, 64, symmetric=False)
    plain = sqnr(W, rtn(W, scheme).dequantize())
    # 0.38 dB on 4,000 groups: a step of the grid lies anywhere, not only where 0 is a level.
    assert sqnr(W, hqq(W, scheme).dequantize()) == pytest.approx(plain + 0.38, abs=0.05)
    assert abs(sqnr(W, hqq(W, scheme, whole_zeros=True).dequantize()) - plain) < 0.02


def test_errors_of_small_weights_never_outlive_the_shrinking_at_the_published_beta():
    scheme = Scheme(4, 64, symmetric=False)
    groups = scheme.group(heavy(64, 64, unit=0.02))
    first, second = half_quadratic(groups, scheme, 2)
    assert (first.kept == 0).all()
    # What is left of the step: the zero point that makes the mean error zero.
    Q = second.scale[..., None] * (first.codes - second.zero_point[..., None])
    assert (Q - groups).mean(-1).abs().max() < 1e-15
    assert (next(half_quadratic(groups * 50, scheme, 1)).kept != 0).any()


def test_beta_has_the_unit_of_the_weights():
    W, scheme = heavy(16, 32)[:, None], Scheme(2, 32, symmetric=False)
    one = list(half_quadratic(W, scheme))[-1]
    other = list(half_quadratic(W / 64, scheme, beta=10 * 64**1.3))[-1]  # c^(p-2), c = 1/64
    assert one.codes.equal(other.codes)
    assert torch.allclose(one.zero_point, other.zero_point, rtol=1e-9)
    unchanged = list(half_quadratic(W / 64, scheme))[-1]
    assert not torch.allclose(one.zero_point, unchanged.zero_point, rtol=1e-2)


def test_without_iterations_it_is_plain_rounding():
    W = heavy(8, 64)
    for scheme in (Scheme(3, 16), Scheme(3, 16, symmetric=False)):
        assert hqq(W, scheme, iterations=0).dequantize().equal(rtn(W, scheme).dequantize())


# ------------------------------------------------------------------ stored


def test_the_packed_form_has_the_bytes_it_claims():
    q = hqq(heavy(6, 96).float(), Scheme(3, 32, symmetric=False))
    packed = q.pack()
    assert packed.nbytes == q.nbytes == 6 * (36 + 3 * 2 + 3 * 2)
    assert packed.unpack().codes.equal(q.codes)
    assert packed.dequantize().equal(
        FloatZeroTensor(
            q.codes, q.scale.half().float(), q.zero_point.half().float(), q.scheme
        ).dequantize()
    )
    whole = hqq(heavy(6, 96), Scheme(3, 32, symmetric=False), whole_zeros=True)
    assert isinstance(whole, QuantizedTensor)
    assert isinstance(hqq(heavy(6, 96), Scheme(3, 32)), QuantizedTensor)


def test_scales_that_do_not_fit_float16_are_refused():
    scheme = Scheme(4, symmetric=False)
    for unit in (1e9, 1e-12):
        with pytest.raises(ValueError, match="do not fit float16"):
            hqq(heavy(2, 16, unit=unit), scheme).pack()


def test_a_killed_run_goes_on_with_its_float_zero_points(tmp_path):
    models = [load("storyteller")[0] for _ in range(2)]
    for model in models:  # the second reads what the first one wrote
        quantize_(model, HQQ(iterations=2), Scheme(4, 64, symmetric=False), checkpoint=tmp_path)
        layer = model.model.layers[1].mlp.down_proj
        assert isinstance(layer, CodebookLinear)
    one, other = (model.state_dict() for model in models)
    assert all(one[name].equal(other[name]) for name in one)


def test_the_story_model_keeps_more_than_with_plain_rounding():
    model, tokenizer = load("storyteller")
    tokens = test_set(tokenizer, samples=8)
    reference, scheme = log_probabilities(model, tokens), Scheme(3, 64, symmetric=False)
    kl = []
    for method in (RTN(), HQQ()):
        twin, _ = load("storyteller")
        quantize_(twin, method, scheme)
        kl.append(evaluate(twin, tokens, reference=reference))
    assert kl[1].kl + 2 * (kl[0].kl_se + kl[1].kl_se) < kl[0].kl


def test_a_simulation_refuses_float_zero_points():
    model, _ = load("storyteller")
    sim = QuantSim(model, weights=Scheme(4, symmetric=False), activations=Scheme(16, None, False))
    with pytest.raises(ValueError, match="whole zero points, not the FloatZeroTensor of HQQ"):
        sim.apply(HQQ(iterations=1))
    sim.apply(HQQ(iterations=1, whole_zeros=True))
    layer = next(iter(sim.simulated_layers().values()))
    assert isinstance(layer.weight_encoding, Encoding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations is -1"),
        ({"lp_norm": 0}, "lp_norm is 0; choose above 0, at most 1"),
        ({"lp_norm": 1.1}, "lp_norm is 1.1"),
        ({"beta": 0}, "beta is 0"),
        ({"kappa": 0.9}, "kappa 0.9"),
    ],
)
def test_refuses_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HQQ(**options)
    with pytest.raises(ValueError, match=message):
        hqq(torch.ones(1, 4), Scheme(), **options)


def test_refuses_sixteen_bits():
    with pytest.raises(ValueError, match="bits is 16"):
        hqq(torch.ones(1, 4), Scheme(16))
