"""Fake quantization, observers, LSQ, PACT, distillation: values and gradients by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_integer import lsq_twin
from torch import nn

from quantlab.fake_quant import Quantizer, fake_quantize, stored_scale
from quantlab.methods.distillation import distillation_loss
from quantlab.methods.lsq import LearnedStep, lsq_gradient_scale, lsq_start
from quantlab.methods.pact import LearnedClip
from quantlab.observers import ObservedRange
from quantlab.tensor import CalibrationError

numbers = st.floats(-20, 20, allow_nan=False, width=32)
DOUBLE = torch.float64


# ---------------------------------------------------------------- the estimator


@given(
    st.lists(numbers, min_size=1, max_size=6),
    st.floats(0.01, 3),
    st.integers(2, 8).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, 2**b - 1))),
)
@settings(max_examples=150, deadline=None)
def test_values_and_gradients_equal_the_paper_number_by_number(x, scale, grid):
    bits, zero_point = grid
    values, to_x, to_scale = lsq_twin(x, scale, zero_point, bits)
    X = torch.tensor(x, dtype=DOUBLE, requires_grad=True)
    S = torch.full((len(x),), scale, dtype=DOUBLE, requires_grad=True)
    y = fake_quantize(X, S, torch.tensor(float(zero_point)), bits)
    G = torch.arange(1, len(x) + 1).double()
    y.backward(G)
    assert y.tolist() == pytest.approx(values, abs=1e-12)
    assert X.grad.tolist() == [g * m for g, m in zip(G.tolist(), to_x, strict=True)]
    wanted = [g * m for g, m in zip(G.tolist(), to_scale, strict=True)]
    assert S.grad.tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("x", [-3.0, -0.9, 0.26, 0.7, 5.0])
def test_the_scale_s_gradient_is_a_finite_difference_with_the_rounding_held_fixed(x):
    scale, zero, bits, h = 0.25, torch.tensor(4.0), 3, 1e-4
    S = torch.tensor(scale, dtype=DOUBLE, requires_grad=True)
    fake_quantize(torch.tensor(x, dtype=DOUBLE), S, zero, bits).backward()
    residue = round(x / scale) - x / scale

    def value(s):
        v = min(max(x / s, -4.0), 3.0)
        return s * (v + residue if -4 < v < 3 else v)

    assert S.grad.item() == pytest.approx((value(scale + h) - value(scale - h)) / (2 * h), abs=1e-9)


def test_gradients_of_a_shared_scale_add_up():
    x = torch.randn(5, 7, dtype=DOUBLE)
    S = torch.full((5, 1), 0.3, dtype=DOUBLE, requires_grad=True)
    fake_quantize(x, S, torch.tensor(8.0), 4).sum().backward()
    for row in range(5):
        slopes = lsq_twin(x[row].tolist(), 0.3, 8, 4)[2]
        assert S.grad[row].item() == pytest.approx(sum(slopes), abs=1e-12)


@given(st.floats(2**-14, 60000))
def test_a_stored_scale_is_a_float16_that_covers_the_scale_it_came_from(scale):
    stored = stored_scale(torch.tensor([scale, -scale], dtype=DOUBLE))
    assert torch.equal(stored.half().double(), stored)
    assert 1 <= (stored[0] / scale).item() <= 1 + 2**-10
    assert stored[1] == -stored[0]
    assert torch.equal(stored_scale(stored), stored)


def test_a_stored_scale_refuses_what_float16_cannot_hold():
    assert stored_scale(torch.tensor(0.0)).item() == 2**-14
    for bad in (70000.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="does not fit float16"):
            stored_scale(torch.tensor(bad))


def test_a_stored_scale_passes_its_share_of_the_gradient():
    scale = torch.tensor([0.1, 0.7], requires_grad=True)
    stored_scale(scale, 0.25).backward(torch.tensor([1.0, -2.0]))
    assert scale.grad.tolist() == [0.25, -0.5]


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_grids_take_two_to_eight_bits(bits):
    with pytest.raises(ValueError, match=r"choose 2\.\.8"):
        Quantizer(bits)


# ---------------------------------------------------------------- observers


def test_min_max_keeps_the_extremes_of_all_batches():
    one = ObservedRange(8)
    for low, high in ((-1.0, 2.0), (-0.5, 3.0)):
        one(torch.tensor([low, high]))
    assert one.freeze().range() == (-1.0, 3.0)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_moving_averages_equal_the_formula(batches, momentum):
    one = ObservedRange(8, momentum).double()
    low, high = None, None
    for a, b in batches:
        one(torch.tensor([a, b], dtype=DOUBLE))
        if low is None:
            low, high = min(a, b), max(a, b)
        else:
            low = momentum * low + (1 - momentum) * min(a, b)
            high = momentum * high + (1 - momentum) * max(a, b)
    assert one.range() == pytest.approx((min(low, 0), max(high, 0)), abs=1e-12)


def test_a_frozen_range_ignores_what_follows_and_a_following_one_does_not():
    one = ObservedRange(8)
    x = torch.tensor([0.0, 1.0])
    assert torch.equal(one(x), x)  # watching does not round
    one.freeze()
    one(torch.tensor([9.0]))
    assert one.range() == (0.0, 1.0)
    assert one(torch.tensor([9.0])).item() == pytest.approx(1.0, rel=1e-3)
    one.follow()
    one(torch.tensor([9.0]))
    assert one.freeze().range() == (0.0, 9.0)


@given(st.floats(-10, 10), st.floats(0.001, 10), st.integers(2, 8))
@settings(max_examples=80, deadline=None)
def test_a_grid_holds_zero_exactly_and_covers_the_range(low, width, bits):
    one = ObservedRange(bits).double()
    one(torch.tensor([low, low + width], dtype=DOUBLE))
    scale, zero_point = one.freeze().grid(one.low)
    assert zero_point == zero_point.round()
    assert 0 <= zero_point <= 2**bits - 1
    ends = torch.tensor([0.0, min(low, 0), max(low + width, 0)], dtype=DOUBLE)
    back = one(ends)
    assert back[0] == 0
    assert (back - ends).abs().max() <= scale.item() * (0.5 + 1e-3) + 1e-12


def test_observers_refuse_an_unseen_range_nan_and_a_bad_momentum():
    with pytest.raises(CalibrationError, match="no tensor was seen"):
        ObservedRange(8).freeze()
    one = ObservedRange(8)
    one(torch.tensor([1.0, math.nan]))
    with pytest.raises(CalibrationError, match="check the float model"):
        one.freeze()
    with pytest.raises(ValueError, match="momentum is 1"):
        ObservedRange(8, 1.0)


# ---------------------------------------------------------------- LSQ


def test_the_gradient_scale_and_the_start_are_the_paper_s():
    assert lsq_gradient_scale(576, 4) == pytest.approx(1 / math.sqrt(576 * 7))
    assert lsq_gradient_scale(576, 4, signed=False) == pytest.approx(1 / math.sqrt(576 * 15))
    w = torch.tensor([[1.0, -2.0], [0.5, 0.5]])
    assert lsq_start(w, 3).tolist() == pytest.approx([3 / math.sqrt(3), 1 / math.sqrt(3)])


@pytest.mark.parametrize("batched", [False, True])
def test_a_learned_step_gets_the_gradient_by_hand_times_g(batched):
    x = torch.randn(3, 8, dtype=DOUBLE)
    scale, bits = stored_scale(torch.tensor(0.2, dtype=DOUBLE)).item(), 3
    step = LearnedStep(torch.tensor(scale), torch.tensor(4.0), bits, batched=batched).double()
    step(x).sum().backward()
    count = 8 if batched else 24  # features of a sample, or weights
    slopes = lsq_twin(x.flatten().tolist(), scale, 4, bits)[2]
    assert step.scale.grad.item() == pytest.approx(sum(slopes) / math.sqrt(count * 3), abs=1e-12)


def test_a_learned_step_finds_the_best_step():
    """Descending the squared error ends at a step that no neighbor beats."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    step = LearnedStep(torch.tensor(0.3), torch.tensor(4.0), 3).double()
    for _ in range(300):
        (step(x) - x).square().sum().backward()
        with torch.no_grad():
            step.scale -= 0.002 * step.scale.grad
            step.scale.grad = None

    def error(s):
        return (fake_quantize(x, torch.tensor(s), torch.tensor(4.0), 3) - x).square().mean().item()

    best = min(error(0.3 + 0.01 * k) for k in range(80))
    assert error(step.scale.item()) <= 1.01 * best  # the estimator's slope is no true gradient


def test_a_step_that_went_below_zero_still_rounds_and_can_come_back():
    step = LearnedStep(torch.tensor(0.5), torch.tensor(2.0), 2)
    with torch.no_grad():
        step.scale.fill_(-0.1)
    step(torch.tensor([1.0])).sum().backward()
    assert step.grid(torch.ones(1))[0].item() == 2**-14
    assert step.scale.grad.item() > 0  # clipped from above: a longer step brings more
    with pytest.raises(ValueError, match="positive step"):
        LearnedStep(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]), 2)


# ---------------------------------------------------------------- PACT


@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0.1, 10), st.integers(2, 8))
@settings(max_examples=80, deadline=None)
def test_pact_equals_its_paper(x, alpha, bits):
    clip = LearnedClip(alpha, bits).double()
    alpha = clip.alpha.item()  # as float32
    X = torch.tensor(x, dtype=DOUBLE, requires_grad=True)
    y = clip(X)
    y.sum().backward()
    clipped = [min(max(v, 0.0), alpha) for v in x]  # Eq. 1
    step = alpha / (2**bits - 1)
    # Eq. 2, on a step that float16 can hold: up to 2^-10 longer.
    assert y.tolist() == pytest.approx(clipped, abs=step * 0.5 * (1 + 2**-9) + 1e-12)
    assert X.grad.tolist() == [float(0 <= v <= alpha) for v in x]
    assert clip.alpha.grad.item() == sum(v > alpha for v in x)  # Eq. 3
    levels = y.detach() / clip.grid(X)[0]
    assert torch.equal(levels, levels.round())


def test_pact_refuses_a_clip_at_zero_and_decays_by_its_square():
    with pytest.raises(ValueError, match="positive clip"):
        LearnedClip(0.0, 4)
    clip = LearnedClip(3.0, 4)
    assert clip.penalty().item() == 9
    assert Quantizer(4).penalty().item() == 0


# ---------------------------------------------------------------- distillation


def test_distillation_is_cross_entropy_at_share_0_and_scaled_divergence_at_share_1():
    student = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]], dtype=DOUBLE)
    teacher = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=DOUBLE)
    labels = torch.tensor([0, 1])

    def softmax(row, T):
        powers = [math.exp(v / T) for v in row]
        return [p / sum(powers) for p in powers]

    T, divergence, entropy = 3.0, 0.0, 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, T), softmax(s, T)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
        entropy -= math.log(softmax(s, 1.0)[label]) / 2
    for share in (0.0, 0.3, 1.0):
        loss = distillation_loss(student, teacher, labels, temperature=T, share=share)
        wanted = (1 - share) * entropy + share * T * T * divergence
        assert loss.item() == pytest.approx(wanted, abs=1e-12)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(2, 3, requires_grad=True)
    student = torch.randn(2, 3, requires_grad=True)
    distillation_loss(student, teacher, torch.tensor([0, 1])).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"share": 1.5}, "share from 0 to 1"),
        ({"teacher": torch.zeros(2, 4)}, "same samples and classes"),
    ],
)
def test_distillation_refuses_what_it_cannot_mean(wrong, match):
    keywords = {"teacher": torch.zeros(2, 3)} | wrong
    with pytest.raises(ValueError, match=match):
        distillation_loss(torch.zeros(2, 3), labels=torch.tensor([0, 1]), **keywords)


def test_a_quantizer_without_a_grid_says_so():
    with pytest.raises(TypeError, match="defines no grid"):
        nn.Sequential(Quantizer(4))(torch.ones(1))
