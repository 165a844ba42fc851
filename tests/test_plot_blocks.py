"""Figures of blocks: every byte, bit and error that was given is drawn and said, and no other."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from quantlab import plot
from quantlab.plot_blocks import COLUMNS, pale, span

FIELDS = {"d": (0, 2), "qs": (2, 40)}
ROWS = [
    {"name": "Q4_0", "bits_per_weight": 4.5, "error": 0.012, "imatrix": 0.009},
    {"name": "Q8_0", "bits_per_weight": 8.5, "error": 0.0001},
    {"name": "Q2_K", "bits_per_weight": 2.625, "error": 0.08, "imatrix": 0.04},
]


def cells(picture):
    boxes = [p for p in picture.figure.axes[0].patches if isinstance(p, Rectangle)]
    labels = [t.get_text() for t in picture.figure.axes[0].texts]
    return boxes, labels


def test_a_block_map_draws_each_byte_in_its_field_s_color_and_each_code():
    data, codes = list(range(40)), list(range(-3, 61))
    picture = plot.block_map(data, FIELDS, codes, name="toy")
    boxes, labels = cells(picture)
    assert len(boxes) == 40 + 64
    assert [text for text in labels if text != "codes of the weights"] == [
        *(f"{byte:02X}" for byte in data),
        *map(str, codes),
    ]
    assert to_hex(boxes[1].get_facecolor()) == to_hex(pale("#0072B2"))
    assert to_hex(boxes[2].get_facecolor()) == to_hex(pale("#E69F00"))
    assert boxes[COLUMNS].get_x() == boxes[0].get_x()  # the next line begins at the left
    assert picture.sentence == "toy: 40 bytes (d 0-1, qs 2-39) hold 64 weights."


def test_only_lit_cells_have_a_thick_frame():
    picture = plot.block_map([0] * 40, FIELDS, [0] * 64, lit_bytes=[3], lit_weights={1, 63})
    boxes, _ = cells(picture)
    lit = [k for k, box in enumerate(boxes) if box.get_linewidth() > 1]
    assert lit == [3, 40 + 1, 40 + 63]


def test_bits_add_up_to_the_type_s_bits_per_weight():
    parts = {
        "Q4_0": {"codes": 4.0, "scales": 0.5},
        "Q4_1": {"codes": 4.0, "scales": 0.5, "minima": 0.5},
    }
    picture = plot.bits_by_field(parts)
    bars = [bar for group in picture.figure.axes[0].containers for bar in group]
    for row, wanted in enumerate([4.5, 5.0]):
        ends = [bar.get_x() + bar.get_width() for bar in bars if round(bar.get_y() + 0.4) == row]
        assert max(ends) == wanted
    assert picture.figure.axes[0].get_title(loc="left").startswith("1 of these 2 types takes")
    assert "Q4_1 5 (codes 4, scales 0.5, minima 0.5)" in picture.sentence


def test_every_type_is_a_point_at_its_bits_and_its_error():
    axes = plot.error_by_bits(ROWS).figure.axes[0]
    order = np.argsort([row["bits_per_weight"] for row in ROWS])
    assert axes.lines[0].get_xdata().tolist() == [ROWS[k]["bits_per_weight"] for k in order]
    assert axes.lines[0].get_ydata().tolist() == [ROWS[k]["error"] for k in order]
    assert sorted(text.get_text() for text in axes.texts) == ["Q2_K", "Q4_0", "Q8_0"]
    assert axes.get_yscale() == "log"


def test_a_bar_shows_what_the_imatrix_leaves_and_types_without_one_have_none():
    _, axes = plot.error_by_bits(ROWS).figure.axes
    widths = [bar.get_width() for bar in axes.containers[0]]
    assert widths == pytest.approx([50, 75])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Q2_K", "Q4_0"]
    assert [text.get_text() for text in axes.texts] == ["50 %", "75 %"]


def test_the_title_names_the_largest_gain_and_the_sentence_all_numbers():
    picture = plot.error_by_bits(ROWS, what="weighted error")
    assert picture.figure.get_suptitle() == "The imatrix takes up to 50 % off the error (Q2_K)"
    assert picture.sentence == (
        "weighted error: Q2_K 0.08 at 2.625 bits, 0.04 with imatrix; "
        "Q4_0 0.012 at 4.5 bits, 0.009 with imatrix; Q8_0 0.0001 at 8.5 bits."
    )


def test_without_an_imatrix_there_is_one_panel_and_the_title_compares_the_ends():
    rows = [{k: v for k, v in row.items() if k != "imatrix"} for row in ROWS]
    figure = plot.error_by_bits(rows).figure
    assert len(figure.axes) == 1
    assert figure.get_suptitle() == "Q8_0 has 800 times less error than Q2_K"


def test_types_of_nearly_equal_bits_share_one_list_of_names_the_worst_on_top():
    rows = [
        {"name": name, "bits_per_weight": bits, "error": error}
        for name, bits, error in (("a", 4.5, 1.0), ("b", 4.5, 2.0), ("c", 4.25, 1.5), ("d", 5, 0.1))
    ]
    names = [text.get_text() for text in plot.error_by_bits(rows).figure.axes[0].texts]
    assert names == ["b\nc\na", "d"]


def test_the_same_numbers_give_the_same_bytes():
    first, second = (plot.error_by_bits(ROWS).png() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("first", "stop", "text"), [(4, 16, "4-15"), (7, 8, "7")])
def test_a_span_is_written_with_both_ends(first, stop, text):
    assert span(first, stop) == text
