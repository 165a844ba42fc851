"""Rotations are orthogonal, steps among them go downhill, and incoherence is what QuIP says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_rotation import cayley_iterated

from quantlab.hadamard import hadamard_matrix
from quantlab.orthogonal import KINDS, cayley_step, incoherence, rotation_matrix


def off(R):
    return (R @ R.T - torch.eye(len(R), dtype=R.dtype)).abs().max().item()


@given(st.sampled_from(KINDS), st.sampled_from([1, 2, 4, 12, 32, 48]), st.integers(0, 2**30))
def test_every_kind_is_orthogonal_and_the_seed_s_own(kind, size, seed):
    R = rotation_matrix(size, kind, seed=seed)
    assert R.dtype == torch.float64
    assert off(R) < 1e-12
    assert torch.equal(R, rotation_matrix(size, kind, seed=seed))


def test_a_hadamard_rotation_flips_signs_and_then_mixes():
    R = rotation_matrix(12, seed=4)
    signs = R * 12**0.5 / hadamard_matrix(12).T
    assert torch.allclose(signs.abs(), torch.ones(12, 12).double(), atol=1e-12)
    assert torch.allclose(signs, signs[:, :1].expand(12, 12), atol=1e-12)  # one sign a coordinate
    assert len(set(signs[:, 0].round().tolist())) == 2


def test_other_seeds_give_other_rotations():
    for kind in ("hadamard", "random"):
        assert not torch.equal(rotation_matrix(32, kind), rotation_matrix(32, kind, seed=1))


def test_uniform_rotations_point_everywhere_with_equal_weight():
    # Mean 0 and variance 1 / n of every entry. Without the signs of R's diagonal, QR's first entry
    # would always be negative. 400 draws: a mean is off by 0.5 / 20 on average, 5 times that never.
    draws = torch.stack([rotation_matrix(4, "random", seed=s) for s in range(400)])
    assert draws.mean(0).abs().max() < 5 * 0.5 / 20
    assert (draws.square().mean(0) - 1 / 4).abs().max() < 0.08


def test_an_unknown_kind_and_an_impossible_order_are_refused():
    with pytest.raises(ValueError, match="kind is 'spin'; choose 'hadamard', 'random', 'identity'"):
        rotation_matrix(8, "spin")
    with pytest.raises(ValueError, match="order 10 is known here"):
        rotation_matrix(10)


# ---------------------------------------------------------------- incoherence


@given(st.integers(1, 6), st.integers(1, 6), st.floats(-8, 8), st.integers(0, 2**20))
def test_incoherence_is_largest_over_rms_whatever_the_unit(rows, columns, power, seed):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double() + 1e-3
    entries = W.flatten().tolist()
    rms = math.sqrt(sum(w * w for w in entries) / len(entries))
    assert incoherence(W) == pytest.approx(max(map(abs, entries)) / rms, rel=1e-12)
    assert incoherence(W * 2.0**power) == pytest.approx(incoherence(W), rel=1e-12)
    assert 1 - 1e-12 <= incoherence(W) <= math.sqrt(len(entries)) + 1e-12


def test_incoherence_has_its_extremes_at_one_spike_and_at_equal_sizes():
    spike = torch.zeros(8, 8)
    spike[3, 5] = -7
    assert incoherence(spike) == 8
    assert incoherence(hadamard_matrix(8)) == 1
    with pytest.raises(ValueError, match="incoherence of zeros is undefined"):
        incoherence(torch.zeros(3))


# ---------------------------------------------------------------- Cayley


@given(st.integers(1, 8), st.floats(0, 100), st.integers(0, 2**20))
def test_a_step_of_any_length_stays_orthogonal(size, rate, seed):
    G = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    R = rotation_matrix(size, "random", seed=seed)
    assert off(cayley_step(R, G, rate)) < 1e-11


def test_a_step_equals_the_fixed_point_of_the_iteration():
    R = rotation_matrix(12, "random")
    G = torch.randn(12, 12, dtype=torch.float64)
    assert torch.allclose(cayley_step(R, G, 0.1), cayley_iterated(R, G, 0.1), atol=1e-12)


def test_a_small_step_lowers_a_linear_loss_by_rate_times_the_squared_gradient():
    R = rotation_matrix(12, "random")
    G = torch.randn(12, 12, dtype=torch.float64)
    S = G @ R.T
    A, rate = (S - S.T) / 2, 1e-6
    fallen = (G * (R - cayley_step(R, G, rate))).sum() / rate
    assert fallen.item() == pytest.approx(A.square().sum().item(), rel=1e-4)  # up to O(rate)


def test_a_gradient_along_the_rotation_itself_moves_nothing():
    # R^T G symmetric: no direction among rotations lowers the loss.
    R = rotation_matrix(8, "random")
    assert torch.allclose(cayley_step(R, 3 * R, 0.5), R, atol=1e-12)


def test_cayley_steps_find_the_nearest_rotation():
    # min |R - B|^2 over rotations of determinant 1 is the polar factor of B (Procrustes).
    target = rotation_matrix(6, "random", seed=5)
    target[0] *= torch.linalg.det(target).sign()
    B = target + 0.1 * torch.randn(6, 6, dtype=torch.float64)
    U, _, V = torch.linalg.svd(B)
    R = torch.eye(6, dtype=torch.float64)
    for _ in range(400):
        R = cayley_step(R, 2 * (R - B), 0.3)
    assert torch.allclose(R, U @ V, atol=1e-8)
