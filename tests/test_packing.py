"""Packing: a dense little-endian bit stream a row, for 1 to 8 bits and any count."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import bit_stream

from quantlab.packing import pack_codes, packed_bytes, unpack_codes

ALL_BITS = range(1, 9)


def uint8(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def random_codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


def test_three_bit_bytes_equal_those_computed_by_hand():
    # The diagram in packing.py with a .. h = 1 .. 7, 0.
    packed = pack_codes(uint8(1, 2, 3, 4, 5, 6, 7, 0), 3)
    assert packed.tolist() == [0b11_010_001, 0b0_101_100_0, 0b000_111_11]


def test_four_bit_bytes_have_the_low_nibble_first_and_a_zero_behind_an_odd_count():
    assert pack_codes(uint8(0x1, 0x2, 0xA, 0xF, 0x7), 4).tolist() == [0x21, 0xFA, 0x07]


def test_one_two_and_eight_bit_bytes_equal_those_computed_by_hand():
    assert pack_codes(uint8(1, 0, 0, 0, 1, 1, 0, 1, 1), 1).tolist() == [0b1011_0001, 1]
    assert pack_codes(uint8(3, 0, 1, 2), 2).tolist() == [0b10_01_00_11]
    assert pack_codes(uint8(7, 255, 0), 8).tolist() == [7, 255, 0]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_short_row_equals_the_big_integer_twin_and_comes_back(bits):
    for count in range(1, 10 // bits + 1):  # every row of at most 10 bits
        rows = torch.tensor(list(product(range(2**bits), repeat=count)), dtype=torch.uint8)
        packed = pack_codes(rows, bits)
        assert [bytes(row) for row in packed.tolist()] == [
            bit_stream(row, bits) for row in rows.tolist()
        ]
        assert unpack_codes(packed, bits, count).equal(rows)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_count_up_to_forty_equals_the_big_integer_twin_and_comes_back(bits):
    for count in range(41):
        codes = random_codes(bits, 3, count)
        packed = pack_codes(codes, bits)
        assert packed.shape == (3, packed_bytes(count, bits))
        assert [bytes(row) for row in packed.tolist()] == [
            bit_stream(row, bits) for row in codes.tolist()
        ]
        assert unpack_codes(packed, bits, count).equal(codes)


@given(st.data(), st.integers(1, 8), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 70))
def test_any_shape_comes_back(data, bits, leading, count):
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*leading, count), dtype=torch.uint8, generator=generator)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*leading, packed_bytes(count, bits))
    assert unpack_codes(packed, bits, count).equal(codes)


@given(st.integers(1, 8), st.integers(0, 60), st.integers(0, 60))
def test_a_code_reaches_no_byte_but_its_own(bits, place, count):
    codes = torch.zeros(count + place + 1, dtype=torch.uint8)
    codes[place] = 2**bits - 1
    stream = int.from_bytes(bytes(pack_codes(codes, bits).tolist()), "little")
    assert stream == (2**bits - 1) << (place * bits)


def test_a_strided_view_packs_like_its_copy():
    codes = random_codes(3, 6, 20)
    assert pack_codes(codes.T, 3).equal(pack_codes(codes.T.contiguous(), 3))
    packed = pack_codes(codes, 3)
    assert unpack_codes(packed.T.contiguous().T, 3, 20).equal(codes)


def test_bytes_behind_a_row_are_not_read_and_the_padding_is_zero():
    packed = pack_codes(uint8(7, 7, 7), 3)
    assert packed.tolist() == [0xFF, 0x01]
    assert unpack_codes(torch.cat([packed, uint8(99)]), 3, 3).tolist() == [7, 7, 7]


def test_inputs_are_not_modified():
    codes = random_codes(5, 4, 16)
    before = codes.clone()
    packed = pack_codes(codes, 5)
    packed_before = packed.clone()
    unpack_codes(packed, 5, 16)
    assert codes.equal(before)
    assert packed.equal(packed_before)


@pytest.mark.parametrize("bits", [0, 9, 16, -1, 2.5, 4.0, True])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits is .*; packing takes 1\.\.8"):
        packed_bytes(8, bits)
    with pytest.raises(ValueError, match=r"packing takes 1\.\.8"):
        pack_codes(uint8(0), bits)
    with pytest.raises(ValueError, match=r"packing takes 1\.\.8"):
        unpack_codes(uint8(0), bits, 1)


def test_a_code_that_needs_more_bits_is_named_with_its_place():
    codes = torch.zeros(2, 5, dtype=torch.uint8)
    codes[1, 3] = 8
    with pytest.raises(ValueError, match=r"code 8 at \[1, 3\] does not fit 3 bits; .* up to 7"):
        pack_codes(codes, 3)


def test_other_dtypes_scalars_short_data_and_negative_counts_are_refused():
    with pytest.raises(ValueError, match=r"codes has dtype torch\.int64; .*\.to\(torch\.uint8\)"):
        pack_codes(torch.tensor([1, 2]), 4)
    with pytest.raises(ValueError, match=r"data has dtype torch\.float32"):
        unpack_codes(torch.zeros(3), 4, 2)
    with pytest.raises(ValueError, match=r"codes is a scalar"):
        pack_codes(torch.tensor(1, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match=r"data has 2 bytes a row, but 6 codes of 3 bits take 3"):
        unpack_codes(uint8(0, 0), 3, 6)
    with pytest.raises(ValueError, match=r"count is -1"):
        packed_bytes(-1, 3)
