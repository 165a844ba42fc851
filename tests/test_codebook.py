"""K-means tables and the lattice E8: nothing is nearer, nothing can be moved for the better."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlab.lattice_e8 import decode_e8, encode_e8, nearest_d8, nearest_e8, patterns
from quantlab.methods.codebook import KMeans, kmeans, lattice, means, nearest, start_levels
from quantlab.methods.rtn import rtn
from quantlab.models.loading import load
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, sqnr


def weights(rows: int = 4, columns: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------ k-means


def best_split(w: list[float], h: list[float], count: int) -> float:
    """Return the least weighted error of ``count`` levels: all ways to cut the sorted weights."""
    pairs = sorted(zip(w, h, strict=True))
    best = float("inf")
    for cuts in itertools.combinations(range(1, len(w)), count - 1):
        error = 0.0
        for a, b in itertools.pairwise((0, *cuts, len(w))):
            total = sum(weight for _, weight in pairs[a:b])
            mean = sum(x * weight for x, weight in pairs[a:b]) / total
            error += sum(weight * (x - mean) ** 2 for x, weight in pairs[a:b])
        best = min(best, error)
    return best


@pytest.mark.parametrize("bits", [1, 2])
def test_levels_come_near_the_best_of_all_cuts(bits):
    W, h = weights(20, 11), torch.rand(20, 11, dtype=torch.float64) + 0.1
    found = 0
    for row in range(20):
        q = kmeans(W[row : row + 1], bits=bits, importance=h[row : row + 1])
        error = (h[row] * (q.dequantize()[0] - W[row]).square()).sum().item()
        least = best_split(W[row].tolist(), h[row].tolist(), 2**bits)
        assert error >= least * (1 - 1e-9)
        found += error <= least * 1.001  # float16 levels
    assert found >= 5  # Lloyd's algorithm stops in a local minimum: often, not always, the best


@settings(max_examples=20)
@given(bits=st.integers(1, 4), seed=st.integers(0, 1000))
def test_no_iteration_makes_the_weighted_error_larger(bits, seed):
    W = weights(3, 40, seed)
    h = torch.rand(3, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    levels, last = start_levels(W, h, 2**bits), float("inf")
    for _ in range(8):
        codes = nearest(W, levels)
        distance = (W[..., None] - levels[:, None]).abs()
        assert torch.allclose((W - levels.gather(1, codes)).abs(), distance.amin(-1), atol=1e-15)
        levels = means(W, h, codes, levels)
        assert (levels.diff() >= 0).all()
        error = (h * (W - levels.gather(1, codes)).square()).sum().item()
        assert error <= last * (1 + 1e-12)
        last = error


def test_a_level_is_the_weighted_mean_of_its_weights():
    W, h = weights(), torch.rand(4, 64, dtype=torch.float64)
    q = kmeans(W, bits=3, importance=h, iterations=200)
    for row in range(4):
        for code in range(8):
            mine = q.codes[row] == code
            mean = (h[row][mine] * W[row][mine]).sum() / h[row][mine].sum()
            assert q.levels[row, code].item() == pytest.approx(mean.item(), rel=2**-10, abs=1e-6)


def test_few_values_come_back_and_ties_of_rows_do_no_harm():
    W = torch.tensor([[0.5, -0.25, 0.5, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert kmeans(W, bits=2).dequantize().equal(W)


def test_a_table_beats_a_grid_and_importance_moves_it():
    long = weights(1, 2**15)  # in short rows, tables fit chance as well
    assert sqnr(long, kmeans(long, bits=2).dequantize()) == pytest.approx(9.31, abs=0.06)
    W = weights(64, 256)
    q = kmeans(W, bits=2)
    assert sqnr(W, rtn(W, Scheme(2), clip="mse").dequantize()) < sqnr(W, q.dequantize())
    h = torch.full((256,), 1e-3, dtype=torch.float64)
    h[:32] = 1
    aware = kmeans(W, bits=2, importance=h).dequantize()
    assert sqnr(W[:, :32], aware[:, :32]) > sqnr(W[:, :32], q.dequantize()[:, :32]) + 1
    assert kmeans(W, bits=2, importance=7 * h).codes.equal(
        kmeans(W, bits=2, importance=h.expand(64, 256)).codes
    )


def test_tables_cost_what_they_cost():
    q = kmeans(weights(6, 256), bits=4)
    assert q.nbytes == q.pack().nbytes == 6 * (128 + 32)
    assert q.bits_per_weight == 5  # 16 levels of 16 bits weigh a bit each in a row of 256
    assert kmeans(weights(1, 4096), bits=4).bits_per_weight == 4.0625


def test_refuses_what_no_table_can_be_made_of():
    W = weights()
    with pytest.raises(ValueError, match=r"bits is 9; choose 1\.\.8"):
        kmeans(W, bits=9)
    with pytest.raises(ValueError, match="bits is 0"):
        KMeans(bits=0)
    with pytest.raises(
        ValueError, match=r"importance has shape \(63,\); pass \(4, 64\) or \(64,\)"
    ):
        kmeans(W, importance=torch.ones(63))
    with pytest.raises(ValueError, match="importance holds NaN"):
        kmeans(W, importance=-torch.ones(64))
    with pytest.raises(ValueError, match="levels do not fit float16"):
        kmeans(1e6 * W)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        quantize_(load("storyteller")[0], KMeans(), None)


# ------------------------------------------------------------------ the lattice


def brute_d8(x: Tensor) -> Tensor:
    """Try floor and ceil of each number, in all 2^8 combinations with an even sum."""
    corners = torch.tensor(list(itertools.product((0, 1), repeat=8)), dtype=x.dtype) + x.floor()
    corners = corners[corners.sum(-1) % 2 == 0]
    return corners[(corners - x).square().sum(-1).argmin()]


def test_the_nearest_point_of_e8_is_that_of_a_search():
    for x in 3 * weights(200, 8):
        whole, half = brute_d8(x), brute_d8(x - 0.5) + 0.5
        least = min((x - whole).square().sum(), (x - half).square().sum())
        found = nearest_e8(x)
        assert (x - found).square().sum() == pytest.approx(least.item(), rel=1e-12)
        assert found.sum() % 2 == 0
        assert (2 * found == (2 * found).round()).all()
        assert len((found % 1).unique()) == 1  # all whole, or all half-odd
        assert torch.allclose((x - nearest_d8(x)).square().sum(), (x - whole).square().sum())


def test_points_of_the_lattice_are_their_own_nearest():
    roots = [torch.zeros(8), torch.full((8,), 0.5), torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0])]
    for point in [*roots, 3 * roots[1] - roots[2]]:
        assert nearest_e8(point).equal(point)


def test_the_lattice_has_the_known_second_moment():
    x = 100 * torch.rand(40000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = (x - nearest_e8(x)).square().mean().item()
    assert moment == pytest.approx(929 / 12960, rel=0.01)  # Conway and Sloane: 0.07168; a grid 1/12


def test_the_codebook_has_65536_different_points_of_the_shifted_lattice():
    points = decode_e8(torch.arange(65536), torch.float64)
    assert len(points.unique(dim=0)) == 65536
    for shift in (0.25, -0.25):
        mine = points[(points - shift) % 1 == 0.5].view(-1, 8)
        assert len(mine) == 32768
        assert ((mine - shift).sum(-1) % 2 == 0).all()
    assert nearest_e8(points[:200] - 0.25).equal(points[:200] - 0.25)
    assert (patterns()[:227].square().sum(-1) <= 10).all()
    assert (patterns()[227:].square().sum(-1) == 12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [0.3, 1.0, 4.0])
def test_no_point_of_the_codebook_is_nearer(dtype, unit):
    x = unit * weights(60, 8).to(dtype)
    points = decode_e8(torch.arange(65536), torch.float64)
    distance = torch.cdist(x.double(), points, compute_mode="donot_use_mm_for_euclid_dist")
    found = distance.gather(1, encode_e8(x)[:, None].long())[:, 0]
    assert torch.allclose(found, distance.amin(1), rtol=1e-6)


def test_eight_weights_at_once_beat_single_ones_at_two_bits():
    W = weights(64, 512)
    q = lattice(W)
    assert 10.2 < sqnr(W, q.dequantize()) < 12.04  # the bound for a Gaussian: 6.02 dB a bit
    assert sqnr(W, q.dequantize()) > sqnr(W, kmeans(W, bits=2).dequantize()) + 0.8
    assert q.bits_per_weight == 2 + 16 / 512
    better = [sqnr(W, q.dequantize() * factor) for factor in (0.99, 1.01)]
    assert max(better) < sqnr(W, q.dequantize())  # the stored scale is the best one


def test_lattice_codes_survive_packing():
    q = lattice(weights(3, 32))
    packed = q.pack()
    assert packed.data.shape == (3, 8)
    assert packed.nbytes == q.nbytes == 3 * (8 + 2)
    assert packed.dequantize().equal(q.dequantize())
    assert lattice(torch.zeros(2, 16)).dequantize().abs().max() == 0
    with pytest.raises(ValueError, match="in_features 12 is not a multiple of 8"):
        lattice(torch.ones(2, 12))
    with pytest.raises(ValueError, match="scales do not fit float16"):
        lattice(1e6 * weights(2, 16))
