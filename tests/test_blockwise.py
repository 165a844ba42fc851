"""Blocks under a table of levels: equal to bitsandbytes and to the slow twin, bit for bit."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import reference_bnb
import torch
from hypothesis import given
from hypothesis import strategies as st

import quantlab as ql
from quantlab.blockwise import BINS, DYNAMIC8_UNSIGNED, dynamic_levels, level_of_point
from quantlab.double_quantization import DoubleScales, stored_bits
from quantlab.export.bitsandbytes import unpack_nibbles

with np.load(Path(__file__).with_name("bnb_vectors.npz")) as archive:
    VECTORS = dict(archive)  # made by labs/experiments/bnb_vectors.py
TABLES = {"nf4": ql.NF4, "fp4": ql.FP4_BNB}
DYNAMIC = {"signed": ql.DYNAMIC8, "unsigned": DYNAMIC8_UNSIGNED}
FOUR = sorted(name.removesuffix("/data") for name in VECTORS if name.endswith("/data"))
EIGHT = sorted(name.removesuffix("/codes") for name in VECTORS if name.endswith("/codes"))
EIGHT = [name for name in EIGHT if not name.startswith("int8")]
KINDS = pytest.mark.parametrize("kind", ["nf4", "fp4"])


def vector(name: str) -> torch.Tensor:
    """Return a committed array."""
    return torch.from_numpy(VECTORS[name])


def source(name: str) -> torch.Tensor:
    """Return the tensor that a case quantizes: "weight float16" is a part of "weight", rounded."""
    key, _, dtype = name.partition("/")[0].partition(" ")
    return vector(key)[:4].to(getattr(torch, dtype)) if dtype else vector(key)


def sha(floats: torch.Tensor) -> str:
    """Return the SHA-256 of some float32 numbers."""
    return hashlib.sha256(floats.contiguous().numpy().tobytes()).hexdigest()


def tricky(rows: int = 6, columns: int = 96) -> torch.Tensor:
    """Draw weights with zeros, a block of zeros, outliers and tiny numbers."""
    x = torch.randn(rows, columns)
    x[0, :32], x[1, 3], x[2] = 0, 40, x[2] * 1e-30
    x[3, ::3] = 0
    return x


# ------------------------------------------------------------------ 4 bits


@pytest.mark.parametrize("name", FOUR)
def test_four_bit_codes_and_scales_are_those_of_bitsandbytes(name):
    _, kind, block, scales = name.split("/")
    x = source(name)
    q = ql.quantize_blocks(x, TABLES[kind], int(block))
    assert q.codes.flatten().equal(unpack_nibbles(vector(f"{name}/data"), x.numel()))
    if scales == "plain":
        assert q.absmax.equal(vector(f"{name}/absmax"))
        return
    double = ql.double_quantize(q.absmax[None])
    # The mean is summed in another order on another processor: its last bits may differ, and with
    # them the code of a scale that lies in the middle between two of 65,536 points.
    assert torch.allclose(double.offset, vector(f"{name}/offset"), rtol=1e-6)
    assert torch.allclose(double.absmax, vector(f"{name}/second"), rtol=1e-5)
    wrong = double.codes.flatten() != vector(f"{name}/absmax")
    assert wrong.sum() <= 1


@pytest.mark.parametrize("name", [name for name in FOUR if f"{name}/decoded" in VECTORS])
def test_four_bit_weights_decode_to_the_same_floats(name):
    _, kind, block, scales = name.split("/")
    x, method = source(name), {"nf4": ql.nf4, "fp4": ql.fp4}[kind]
    q = method(x, block_size=int(block), double_quantize=scales == "double")
    if scales == "double":  # from the stored scales: see the test above
        codes, absmax, offset = (vector(f"{name}/{p}") for p in ("absmax", "second", "offset"))
        stored = DoubleScales(codes.view(q.scale.shape), absmax, offset)
        assert torch.allclose(q.scale, stored.values(), rtol=1e-5, atol=1e-5)
        q = type(q)(q.codes, stored, q.table, q.tile, q.scheme)
    assert sha(q.dequantize().to(x.dtype).float()) == str(VECTORS[f"{name}/decoded"])


@KINDS
@pytest.mark.parametrize("size", [1, 7, 32, 96, 1000])
def test_four_bit_blocks_agree_with_the_slow_twin(kind, size):
    x = tricky()
    q = ql.quantize_blocks(x, TABLES[kind], size)
    codes, absmax = reference_bnb.quantize_blocks(
        x.flatten().numpy(), list(TABLES[kind].levels), size
    )
    assert q.codes.flatten().tolist() == codes
    assert q.absmax.tolist() == absmax


@KINDS
@given(data=st.data())
def test_no_other_level_is_nearer(kind, data):
    table = TABLES[kind]
    x = torch.tensor(
        data.draw(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)),
    )
    size = data.draw(st.integers(1, 50))
    q = ql.quantize_blocks(x, table, size)
    absmax = q.absmax.double().repeat_interleave(size)[: x.numel(), None]
    distance = (x.double()[:, None] - table.values() * absmax).abs()
    mine = distance.gather(1, q.codes.long()[:, None])
    assert (mine <= distance.amin(1, keepdim=True) + 3e-7 * absmax).all()


@KINDS
def test_what_was_decoded_once_is_met_exactly_the_second_time(kind):
    once = ql.quantize_blocks(tricky(), TABLES[kind], 32)
    again = ql.quantize_blocks(once.dequantize(), TABLES[kind], 32)
    assert again.dequantize().equal(once.dequantize())
    assert again.absmax.equal(once.absmax)


@KINDS
def test_a_power_of_two_goes_into_the_scale_alone(kind):
    x = torch.randn(4, 64)
    one, eight = (ql.quantize_blocks(x * k, TABLES[kind], 16) for k in (1, 8))
    assert one.codes.equal(eight.codes)
    assert eight.absmax.equal(8 * one.absmax)


def test_the_largest_weight_of_a_block_is_met_and_zeros_stay_zeros():
    x = tricky()
    q = ql.nf4(x, block_size=32)
    largest = x.view(6, 3, 32).abs().argmax(-1, keepdim=True)
    back = q.dequantize().view(6, 3, 32)
    assert back.gather(-1, largest).equal(x.view(6, 3, 32).gather(-1, largest))
    assert (q.dequantize()[x == 0] == 0).all()


def test_fp4_codes_are_bit_patterns_whose_upper_bit_is_the_sign():
    values = ql.FP4_BNB.values()
    assert values[8:].equal(-values[:8])
    assert [round(192 * v) for v in values[:8].tolist()] == [0, 1, 128, 192, 64, 96, 32, 48]
    assert ql.FP4_BNB.encode(values[1:8].float()).tolist() == list(range(1, 8))


def test_both_zeros_of_fp4_decode_to_zero_and_the_lower_code_is_chosen_for_it():
    codes = ql.FP4_BNB.encode(torch.tensor([0.0, -0.0, 1e-9, -1e-9]))
    assert codes.tolist() == [0, 0, 8, 0]  # the tie between the two zeros lies at 0
    assert (ql.FP4_BNB.decode(codes) == 0).all()


def test_a_whole_block_is_multiplied_by_the_reciprocal_and_a_shorter_last_one_divided():
    midpoints = (ql.NF4.values()[1:] + ql.NF4.values()[:-1]) / 2
    x = (midpoints * torch.linspace(0.01, 3.7, 3000, dtype=torch.float64)[:, None]).float()
    x = torch.cat([x, torch.linspace(0.01, 3.7, 3000)[:, None]], 1)  # rows of 15 ties and a largest
    largest = x[:, -1:]
    multiplied, divided = ql.NF4.encode(x * (1 / largest)), ql.NF4.encode(x / largest)
    assert not multiplied.equal(divided)  # the order of operations does decide some of them
    assert ql.quantize_blocks(x, ql.NF4, 16).codes.equal(multiplied)
    for row, codes in zip(x[:200], divided[:200], strict=True):
        assert ql.quantize_blocks(row, ql.NF4, 17).codes.equal(codes)


# ------------------------------------------------------------------ 8 bits


@pytest.mark.parametrize("sign", DYNAMIC)
def test_the_dynamic_tables_are_those_of_bitsandbytes(sign):
    assert DYNAMIC[sign].values().float().equal(vector(f"dynamic/{sign}"))
    assert len(set(dynamic_levels(signed=sign == "signed").tolist())) == 256


def test_each_decade_of_the_dynamic_table_has_twice_the_levels_of_the_one_below():
    levels = dynamic_levels()
    counts = [((levels > 10.0**d / 10) & (levels < 10.0**d)).sum().item() for d in range(-6, 1)]
    assert counts == [1, 2, 4, 8, 16, 32, 64]
    mirrored = -levels[levels < 0].flip(0)
    assert mirrored.equal(levels[(levels > 0) & (levels < 1)])


@pytest.mark.parametrize("name", EIGHT)
def test_eight_bit_codes_and_floats_are_those_of_bitsandbytes(name):
    key, sign, block = name.split("/")
    x = vector(key) if sign == "signed" else vector(key).abs()
    q = ql.blockwise8(x, DYNAMIC[sign], block_size=int(block))
    assert q.codes.equal(vector(f"{name}/codes"))
    assert q.absmax.equal(vector(f"{name}/absmax"))
    assert sha(q.dequantize()) == str(VECTORS[f"{name}/decoded"])


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_eight_bit_blocks_agree_with_the_slow_twin(size):
    x = tricky(4, 50)
    q = ql.blockwise8(x, block_size=size)
    codes, absmax = reference_bnb.blockwise8(x.flatten().numpy(), list(ql.DYNAMIC8.levels), size)
    assert q.codes.flatten().tolist() == codes
    assert q.absmax.tolist() == absmax


def test_each_of_the_65536_points_has_its_nearest_level():
    points = 2 * torch.arange(BINS, dtype=torch.float64) / (BINS - 1) - 1
    for table in DYNAMIC.values():
        distance = (points - table.values()[level_of_point(table).long()]).abs()
        nearest = table.values()[torch.searchsorted(table.values(), points).clamp(max=255)]
        below = table.values()[(torch.searchsorted(table.values(), points) - 1).clamp(min=0)]
        best = torch.minimum((nearest - points).abs(), (below - points).abs())
        assert torch.allclose(distance, best, atol=1e-7)


def test_zero_is_a_level_but_comes_back_as_2e_5_of_absmax():
    q = ql.blockwise8(torch.tensor([0.0, 1.0]))
    assert ql.DYNAMIC8.levels[127] == 0
    assert q.codes.tolist() == [131, 255]
    assert q.dequantize()[0].item() == pytest.approx(2.1e-5, rel=0.02)
    assert (ql.blockwise8(torch.zeros(3)).dequantize() == 0).all()


NORMAL = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)  # a level of a subnormal is 0 or it


@given(st.lists(NORMAL, min_size=1, max_size=60), st.integers(1, 70))
def test_eight_bit_errors_are_within_the_table_s_gaps(values, size):
    x = torch.tensor(values)
    q = ql.blockwise8(x, block_size=size)
    absmax = q.absmax.repeat_interleave(size)[: x.numel()]
    widest = ql.DYNAMIC8.values().diff().max().item() / 2
    assert ((q.dequantize() - x).abs() <= (widest + 3.2e-5) * absmax).all()


# ------------------------------------------------------------------ scales in 8 bits


def test_double_quantization_costs_what_the_paper_says():
    assert stored_bits(4, 64, double=False) == 4.5
    assert stored_bits(4, 64, double=True) == pytest.approx(4.126953, abs=1e-6)
    weight = torch.randn(512, 512)
    plain, double = (ql.nf4(weight, double_quantize=d) for d in (False, True))
    assert plain.bits_per_weight == 4.5
    assert double.bits_per_weight == pytest.approx(stored_bits(4, 64, double=True), abs=2e-4)
    assert ql.sqnr(weight, plain.dequantize()) - ql.sqnr(weight, double.dequantize()) < 0.02


def test_scales_in_8_bits_are_read_back_within_a_hundredth_of_their_spread():
    absmax = 3 + torch.rand(7, 100)
    double = ql.double_quantize(absmax)
    assert double.codes.shape == absmax.shape
    assert double.absmax.shape == (3,)
    spread = (absmax - absmax.mean()).abs().max()
    assert (double.values() - absmax).abs().max() < 0.01 * spread


def test_a_block_of_zeros_survives_a_scale_that_is_not_quite_zero():
    weight = torch.randn(4, 64)
    weight[2] = 0
    q = ql.nf4(weight, block_size=64, double_quantize=True)
    assert q.scale[2, 0] != 0
    assert (q.dequantize()[2] == 0).all()


def test_one_huge_block_turns_the_scales_of_all_others_and_the_note_says_so():
    weight = torch.randn(8, 64)
    assert ql.nf4(weight, double_quantize=True).notes == ()
    weight[3] *= 1000
    plain, double = (ql.nf4(weight, double_quantize=d) for d in (False, True))
    assert (plain.scale > 0).all()
    assert (double.scale[[0, 1, 2, 4, 5, 6, 7]] < 0).all()
    assert plain.notes == ()
    assert double.notes == ("7 of 8 scales lost their sign; pass double_quantize=False",)


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("x", "size", "words"),
    [
        (torch.ones(4), 0, "block_size is 0; choose a positive integer"),
        (torch.ones(4), 2.5, "block_size is 2.5"),
        (torch.ones(0), 4, "0 elements"),
        (torch.ones(4, dtype=torch.int64), 4, "torch.int64"),
        (torch.tensor([1.0, torch.nan]), 4, "NaN or infinity"),
        (torch.tensor([1.0, -torch.inf]), 4, "NaN or infinity"),
    ],
)
def test_what_has_no_blocks_is_refused(x, size, words):
    with pytest.raises(ValueError, match=words):
        ql.quantize_blocks(x, ql.NF4, size)
    with pytest.raises(ValueError, match=words):
        ql.blockwise8(x, block_size=size)


@pytest.mark.parametrize("method", [ql.nf4, ql.fp4])
def test_a_block_that_does_not_divide_the_row_is_refused(method):
    with pytest.raises(ValueError, match=r"block_size is 64, in_features 96; choose .* 32, 48"):
        method(torch.ones(2, 96))
    with pytest.raises(ValueError, match="block_size is True"):
        method(torch.ones(2, 96), block_size=True)


def test_tables_in_any_order_still_need_finite_levels():
    from quantlab.blockwise_matrix import ShuffledCodebook

    with pytest.raises(ValueError, match="short has 1 levels"):
        ShuffledCodebook("short", (1.0,))
    with pytest.raises(ValueError, match="FP4_BNB has no NaN; x holds 1"):
        ql.FP4_BNB.encode(torch.tensor([torch.nan, 0]))


# ------------------------------------------------------------------ live, where it is installed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(96, 256), (5, 77), (1,), (3, 7, 11)], ids=str)
def test_all_of_it_equals_the_installed_bitsandbytes(shape, dtype):
    F = pytest.importorskip("bitsandbytes").functional
    x = torch.randn(shape).to(dtype)
    x.view(-1)[: x.numel() // 3] *= 1e-3
    x.view(-1)[: x.numel() // 9] = 0
    for kind in TABLES:
        for block in (32, 64, 4096):
            data, state = F.quantize_4bit(x, blocksize=block, quant_type=kind)
            q = ql.quantize_blocks(x, TABLES[kind], block)
            assert unpack_nibbles(data, x.numel()).equal(q.codes.flatten())
            assert state.absmax.equal(q.absmax)
            _, state = F.quantize_4bit(
                x, blocksize=block, quant_type=kind, compress_statistics=True
            )
            double = ql.double_quantize(q.absmax[None])
            assert double.codes.flatten().equal(state.absmax)
            assert double.absmax.equal(state.state2.absmax)
            assert double.offset.equal(state.offset)
    for block in (64, 256, 4096):
        codes, state = F.quantize_blockwise(x, blocksize=block)
        q = ql.blockwise8(x, block_size=block)
        assert q.codes.equal(codes)
        assert q.absmax.equal(state.absmax)
        assert q.dequantize().to(dtype).equal(F.dequantize_blockwise(codes, state))
