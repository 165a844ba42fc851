"""The nibble packer and the overflow meter: their numbers are the library's."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlab.accumulators import safe_terms, wrapped
from quantlab.export.bitsandbytes import pack_nibbles
from quantlab.packing import pack_codes
from quantlab.widgets import NibblePacker, OverflowMeter
from quantlab.widgets.base import VIEW
from quantlab.widgets.nibble_packer import ORDERS, pack_word
from quantlab.widgets.overflow_meter import OPERANDS, WIDTHS

CODES = st.lists(st.integers(0, 15), min_size=8, max_size=8)


@given(CODES)
def test_low_first_is_pack_codes_and_high_first_is_bitsandbytes(codes):
    tensor = torch.tensor([codes], dtype=torch.uint8)
    ours, theirs = pack_codes(tensor, 4), pack_nibbles(tensor)
    assert pack_word(codes).to_bytes(4, "little") == bytes(ours.flatten().tolist())
    high = pack_word(codes, "high nibble first").to_bytes(4, "little")
    assert high == bytes(theirs.flatten().tolist())


@given(CODES)
def test_the_awq_word_holds_codes_0_2_4_6_1_3_5_7_from_its_low_end(codes):
    nibbles = [pack_word(codes, "AWQ") >> 4 * n & 15 for n in range(8)]
    assert nibbles == [codes[k] for k in (0, 2, 4, 6, 1, 3, 5, 7)]


@given(CODES)
def test_halves_put_code_k_and_code_k_plus_4_into_byte_k(codes):
    data = pack_word(codes, "halves, as Q4_0").to_bytes(4, "little")
    assert [(byte & 15, byte >> 4) for byte in data] == list(zip(codes[:4], codes[4:], strict=True))


def test_every_order_gives_each_code_a_nibble_of_its_own():
    assert all(sorted(places) == list(range(8)) for places in ORDERS.values())


def test_the_packer_follows_code_and_order():
    widget = NibblePacker()
    widget.move(order="AWQ", code=3, c3=15)
    assert widget.codes == [1, 2, 3, 15, 5, 6, 7, 8]
    assert widget.sentence == (
        "Codes 1 2 3 15 5 6 7 8, AWQ: bytes 31 75 F2 86 in memory, the little-endian word 86F27531."
    )
    with pytest.raises(ValueError, match="c3 is 16; choose one of 0, 1"):
        widget.move(c3=16)
    with pytest.raises(ValueError, match="there are 7 codes"):
        NibblePacker([1] * 7)


def test_the_meter_s_sums_are_exact_and_what_is_left_is_wrapped():
    table = OverflowMeter().table["operands"]
    for name, (a, b) in OPERANDS.items():
        for bits in WIDTHS:
            here = table[name][str(bits)]
            assert here["safe"] == safe_terms(a, b, bits)
            assert here["held"] == wrapped(here["worst"], bits).tolist()
            fits = [total == held for total, held in zip(here["worst"], here["held"], strict=True)]
            assert fits == [terms <= here["safe"] for terms in here["terms"]]


def test_random_sums_of_short_lengths_are_those_of_the_seeded_codes():
    rng = np.random.default_rng(7)
    longest = 2**19
    a, b = rng.integers(-8, 8, longest), rng.integers(-8, 8, longest)
    here = OverflowMeter().table["operands"]["int4 × int4"]["16"]
    for terms, total in zip(here["terms"], here["random"], strict=True):
        if terms <= 4096:
            pairs = zip(a[:terms].tolist(), b[:terms].tolist(), strict=True)
            assert total == sum(x * y for x, y in pairs)


def test_other_codes_start_one_term_beyond_what_is_safe():
    widget = OverflowMeter()
    assert widget.sentence.startswith("int4 × int4 in int16, 512 terms (511 are safe)")
    assert "32,768, and -32,768 is what is left" in widget.sentence
    widget.move(operands="uint8 × int8", bits=32)
    assert widget.position["terms"] == 65_794
    widget.move(terms=65_793)
    assert OverflowMeter(bits=32).position["terms"] == 2**19  # 33,554,431 would be safe
    assert "-2,147,483,520, which fits" in widget.sentence
    with pytest.raises(ValueError, match="terms is 3; choose one of 1, 2, 4"):
        widget.move(terms=3)
    with pytest.raises(ValueError, match="bits is 24; choose one of 16, 32"):
        widget.move(bits=24)


@pytest.mark.parametrize("make", [NibblePacker, OverflowMeter])
def test_they_show_as_view_image_and_sentence_in_a_small_table(make):
    widget = make()
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert len(json.dumps(widget.table, allow_nan=False)) < 100_000
    assert widget.picture().figure.axes
