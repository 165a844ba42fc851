"""The block explorer: its map is the codec's, its formulas give the codec's floats, exactly."""

import json
import re

import numpy as np
import pytest

from quantlab.gguf.block_type import TYPES, BlockType
from quantlab.gguf.codec import dequantize, quantize
from quantlab.widgets import BlockExplorer
from quantlab.widgets.block_explorer import expand, feeds, sources
from quantlab.widgets.block_formula import FORMULAS, six_bits

NAMES = list(FORMULAS)
every_type = pytest.mark.parametrize("name", NAMES)


def weights(seed=0):
    return np.random.default_rng(seed).standard_normal(256).astype(np.float32)


def owners_q4_0(k, bit):
    return range(32) if k < 2 else [k - 2 + 16 * (bit > 3)]


def owners_q8_0(k, bit):
    return range(32) if k < 2 else [k - 2]


def owners_q4_k(k, bit):
    if k < 4:
        return range(256)
    if k < 12:  # scales and minima 0-3, with two bits of 4-7 on top
        group = k % 4 + 4 * (bit > 5)
        return range(32 * group, 32 * group + 32)
    if k < 16:
        return range(32 * (k - 8), 32 * (k - 8) + 32)
    return [64 * ((k - 16) // 32) + (k - 16) % 32 + 32 * (bit > 3)]


def owners_q6_k(k, bit):
    if k < 128:
        return [128 * (k // 64) + k % 64 + 64 * (bit > 3)]
    if k < 192:
        return [128 * ((k - 128) // 32) + (k - 128) % 32 + 32 * (bit // 2)]
    return range(16 * (k - 192), 16 * (k - 192) + 16) if k < 208 else range(256)


OWNERS = {"Q4_0": owners_q4_0, "Q8_0": owners_q8_0, "IQ4_NL": owners_q4_0,
          "Q4_K": owners_q4_k, "Q6_K": owners_q6_k}  # fmt: skip


@every_type
def test_flipping_bits_finds_the_layout_that_ggml_documents(name):
    found = feeds(name)
    for row, weights_fed in enumerate(found):
        assert set(np.flatnonzero(weights_fed)) == set(OWNERS[name](row // 8, row % 8)), row


def test_the_map_follows_the_codec_and_nothing_written_by_hand():
    class Odd(BlockType):
        """Two weights: the first reads bits 2 and 7 of byte 1, the second all of byte 0."""

        id, size, layout = 999, 2, np.dtype([("qs", "u1", 2)])

        @classmethod
        def decode(cls, blocks, rows):
            rows[:, 0] = (blocks["qs"][:, 0, 1] & 0b10000100) + 1
            rows[:, 1] = blocks["qs"][:, 0, 0] + 1

    del TYPES["Odd"]
    found = feeds(Odd)
    assert np.flatnonzero(found[:, 0]).tolist() == [8 + 2, 8 + 7]
    assert np.flatnonzero(found[:, 1]).tolist() == list(range(8))


@every_type
@pytest.mark.parametrize("seed", [0, 1])
def test_every_formula_gives_the_decoded_float_to_the_last_bit(name, seed):
    data = quantize(weights(seed)[: TYPES[name].size], name)
    if seed:  # any bytes, not only those that a quantizer writes
        scale = TYPES[name].layout.fields["d"][1]
        data = np.frombuffer(np.random.default_rng(seed).bytes(len(data)), np.uint8).copy()
        data[scale + 1] &= 0b10111111  # no infinite scale
        if name == "Q4_K":
            data[3] &= 0b10111111
    _, parts = FORMULAS[name](data.view(TYPES[name].layout)[0])
    for (_, text), value in zip(parts, dequantize(data, name), strict=True):
        # a point marks a float16, written with just enough digits; float32 throughout, as in C
        numbers = re.sub(r"\d+\.\d+", r"np.float32(np.float16('\g<0>'))", text)
        numbers = re.sub(r"(?<![\w.'])\d+(?![\w.'])", r"np.float32(\g<0>)", numbers)
        mine = eval(numbers.replace("×", "*"), {"np": np})
        assert np.float32(mine) == value, text


@every_type
def test_both_directions_are_one_relation(name):
    entry = BlockExplorer(weights(), [name]).entry
    forward = {
        (k, bit, i)
        for k, groups in enumerate(entry["feeds"])
        for bits, spans in groups
        for bit in bits
        for i in expand(spans)
    }
    backward = {
        (k, bit, i)
        for i in range(len(entry["codes"]))
        for k, bits in sources(entry["feeds"], i).items()
        for bit in bits
    }
    assert forward == backward
    assert forward == {(row // 8, row % 8, i) for row, i in np.argwhere(feeds(name)).tolist()}


def test_a_byte_of_codes_says_its_two_weights_and_their_values():
    explorer = BlockExplorer(np.linspace(-1, 1, 32), ["Q4_0"], byte=2)
    assert explorer.sentence == (
        "Q4_0 byte 2 of 18, in qs[0], is 0x80 = 10000000: bits 0-3 feed weight 0, bits 4-7 feed "
        "weight 16; weight 0 = 0.125 × (0 - 8) = -1, weight 16 = 0.125 × (8 - 8) = 0."
    )


def test_a_weight_names_every_bit_that_it_is_made_of():
    explorer = BlockExplorer(weights(), ["Q4_K"], weight=200)
    assert explorer.position["look"] == "weight"
    fed = explorer.sentence.split("it is fed by ")[1]
    assert fed == (
        "byte 0 (d), byte 1 (d), byte 2 (dmin), byte 3 (dmin), byte 6 (scales[2]) bits 6-7, "
        "byte 10 (scales[6]) bits 6-7, byte 14 (scales[10]), byte 120 (qs[104]) bits 0-3."
    )


def test_a_scale_byte_of_q4_k_feeds_a_sub_block_and_a_part_of_another():
    explorer = BlockExplorer(weights(), ["Q4_K"], byte=5)
    assert "bits 0-5 feed weights 32-63, bits 6-7 feed weights 160-191." in explorer.sentence


def test_moving_looks_from_what_was_named_and_a_new_type_starts_at_its_first_code():
    explorer = BlockExplorer(weights(), ["Q4_0", "Q4_K"])
    assert explorer.position == {"type": "Q4_0", "look": "byte", "byte": 2, "weight": 0}
    explorer.move(weight=3)
    assert explorer.position["look"] == "weight"
    explorer.move(byte=1)
    assert explorer.position == {"type": "Q4_0", "look": "byte", "byte": 1, "weight": 3}
    explorer.move(type="Q4_K")
    assert explorer.position == {"type": "Q4_K", "look": "byte", "byte": 16, "weight": 0}
    with pytest.raises(ValueError, match="byte is 144; choose one of"):
        explorer.move(byte=144)
    with pytest.raises(ValueError, match="type is 'Q9'; choose one of Q4_0, Q4_K"):
        explorer.move(type="Q9")


def test_the_explorer_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match=r"a Q4_K block holds 256 weights; the row has shape \(32"):
        BlockExplorer(np.ones(32), ["Q4_K"])
    with pytest.raises(ValueError, match="no formula of Q5_1 is known here; choose from Q4_0"):
        BlockExplorer(weights(), ["Q5_1"])


def test_the_table_is_small_plain_json_and_a_move_is_only_a_position():
    explorer = BlockExplorer()
    assert list(explorer.table["types"]) == NAMES
    assert len(json.dumps(explorer.table, allow_nan=False)) < 400_000
    before = json.dumps(explorer.table)
    explorer.move(type="Q6_K", weight=255)
    assert json.dumps(explorer.table) == before
    assert explorer.live().position == explorer.position


@pytest.mark.parametrize("look", ["byte", "weight"])
def test_the_picture_frames_both_ends_of_the_tie(look):
    explorer = BlockExplorer(weights(), ["Q4_0"], **{look: 5})
    patches = explorer.picture().figure.axes[0].patches
    lit = [k for k, patch in enumerate(patches) if patch.get_linewidth() > 1]
    assert lit == ([5, 18 + 3, 18 + 19] if look == "byte" else [0, 1, 7, 18 + 5])


def test_a_widget_shows_as_image_and_sentence_and_as_itself():
    explorer = BlockExplorer(weights(), ["Q8_0"], byte=9)
    data, about = explorer._repr_mimebundle_()
    assert data["text/plain"] == explorer.sentence == about["image/png"]["alt"]
    assert len(data) == 3


def test_six_bit_numbers_are_found_wherever_their_bits_lie():
    scales, minima = list(range(3, 63, 8)), list(range(60, 0, -8))
    data = [s % 64 | (t >> 4) << 6 for s, t in zip(scales[:4], scales[4:], strict=True)]
    data += [m % 64 | (t >> 4) << 6 for m, t in zip(minima[:4], minima[4:], strict=True)]
    data += [s % 16 | m % 16 << 4 for s, m in zip(scales[4:], minima[4:], strict=True)]
    assert six_bits(data) == (scales, minima)
