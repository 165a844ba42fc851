"""Figures: sentences hold the right numbers, and the same numbers give the same bytes."""

import base64
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab import plot
from quantlab.floats import FP4_E2M1, FP8_E4M3
from quantlab.plot_style import PALETTE, short, size

WEIGHT = torch.linspace(-1, 1, 101)
ROWS = [
    {"name": "w4", "bits_per_weight": 4.5, "perplexity": 4.334, "perplexity_se": 0.1},
    {"name": "w2", "bits_per_weight": 2.5, "perplexity": 164.8},
]
CLIPS = np.array([1.0, 2.0, 3.0]), np.array([4.0, 1.0, 0.0]), np.array([1.0, 2.0, 4.0])
PICTURES = {
    "histogram": lambda: plot.weight_histogram(WEIGHT, [-0.5, 0.0, 0.5]),
    "histogram alone": lambda: plot.weight_histogram(WEIGHT),
    "ladder": lambda: plot.quality_ladder(ROWS, reference=3.952, highlight="w4"),
    "bytes": lambda: plot.bytes_bar({"float": 7_344_640, "w4": {"codes": 2e6, "scales": 1e5}}),
    "line": lambda: plot.number_line(FP8_E4M3.values(), 1.5, name="E4M3"),
    "clip": lambda: plot.clip_curve(*CLIPS, name="4 bits"),
    "panels": lambda: plot.clip_panels(WEIGHT, [0.0], CLIPS, position=2.0, name="4 bits"),
    "sqnr": lambda: plot.sqnr_bars({"RTN": 18.9, "GPTQ": 22.3}),
    "heat": lambda: plot.heat_map([[2.0, 1.0], [1.0, -4.0]]),
    "columns": lambda: plot.column_errors({"RTN": [1.0, 2.0], "GPTQ": [0.5, 1.0]}),
    "layers": lambda: plot.layer_errors({"RTN": {"a": 2, "b": 4}, "GPTQ": {"a": 1, "b": 1}}),
    "sweep": lambda: plot.sweep_panels(np.eye(3), {"RTN": [0, 1, 2], "GPTQ": [0, 1, 1.5]}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_titles_units_and_a_sentence(name):
    picture = PICTURES[name]()
    axes = [axes for axes in picture.figure.axes if axes.get_title(loc="left")]
    assert axes
    assert all(one.get_xlabel() for one in axes)
    assert picture.sentence.endswith(".")
    assert any(letter.isdigit() for letter in picture.sentence)
    assert repr(picture) == picture.sentence


@pytest.mark.parametrize("name", ["histogram", "layers"])
def test_the_same_numbers_give_the_same_bytes_whatever_the_user_s_style(name):
    first = PICTURES[name]().png()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10}):
        second = PICTURES[name]().png()
    assert first == second
    assert b"Software" not in first
    assert b"tIME" not in first


def test_drawing_leaves_the_user_s_style_and_pyplot_alone():
    before = dict(matplotlib.rcParams)
    PICTURES["ladder"]().png()
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_a_notebook_gets_the_image_and_the_sentence_as_text_and_as_alt():
    picture = PICTURES["sqnr"]()
    data, about = picture._repr_mimebundle_()
    assert data["text/plain"] == picture.sentence == about["image/png"]["alt"]
    png = base64.b64decode(data["image/png"])
    width = int.from_bytes(png[16:20], "big")
    assert width == 1.5 * about["image/png"]["width"]
    assert len(png) < 150_000


def test_the_histogram_counts_what_the_grid_spans():
    # 101 weights from -1 to 1; those from -0.5 to 0.5 are 51.
    assert "span 50.5 % of them" in PICTURES["histogram"]().sentence


def test_the_ladder_lists_rows_by_bits_and_draws_error_bars():
    picture = PICTURES["ladder"]()
    assert "w2 164.8 at 2.5, w4 4.334 at 4.5. The float model has 3.952." in picture.sentence
    assert len(picture.figure.axes[0].containers) == 1
    assert picture.figure.axes[0].get_yscale() == "log"


def test_the_bytes_of_parts_are_added():
    assert PICTURES["bytes"]().sentence == "Bytes: float 7.34 MB, w4 2.10 MB."


def test_the_number_line_counts_distinct_finite_values():
    # Both zeros are one value, and E4M3's two NaN are none.
    assert "E4M3 has 253 distinct finite values from -448 to 448" in PICTURES["line"]().sentence
    sentence = plot.number_line(FP4_E2M1.values(), name="E2M1").sentence
    assert sentence.startswith(
        "E2M1 has 15 distinct finite values from -6 to 6, with gaps from 0.5"
    )
    assert "marked" not in plot.number_line(FP8_E4M3.values(), float("nan")).sentence


def test_the_clip_curve_finds_the_least_sum():
    assert "is least, 3, at clip 2: 1 from clipping and 2 from rounding" in (
        PICTURES["clip"]().sentence
    )


def test_the_heat_map_names_its_largest_entry_and_the_diagonal_s_share():
    sentence = PICTURES["heat"]().sentence
    assert "largest entry -4 at row 1, column 1; the diagonal holds 75.0 %" in sentence


def test_layer_errors_compares_in_the_median_layer():
    # Ratios 1/2 and 1/4, whose median is 0.375.
    assert "GPTQ has 0.375 times the error of RTN" in PICTURES["layers"]().sentence


def test_layer_errors_takes_reports_and_falls_back_to_weight_errors():
    def report(*rows):
        return SimpleNamespace(
            rows=[SimpleNamespace(name=n, output_error=e, sqnr=s) for n, e, s in rows]
        )

    measured = report(("a", 0.02, 10.0), ("b", 0.01, 20.0))
    picture = plot.layer_errors({"GPTQ": measured})
    assert "GPTQ: largest error 0.02 in a" in picture.sentence
    assert picture.figure.axes[0].get_xlabel().startswith("output error")
    both = plot.layer_errors({"RTN": report(("a", None, 10.0)), "GPTQ": measured})
    assert "RTN: largest error 0.1 in a" in both.sentence
    assert both.figure.axes[0].get_xlabel().startswith("weight error")


def test_nothing_to_draw_is_said_so():
    with pytest.raises(ValueError, match="no numbers to draw"):
        plot.weight_histogram([])
    with pytest.raises(ValueError, match=r"shape \(3,\); pass two dimensions"):
        plot.heat_map([1.0, 2.0, 3.0])


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e300, 1e300))  # beyond, a third digit rounded up may be infinite
def test_short_keeps_three_significant_digits(value):
    read = float(short(value).replace(",", ""))
    # Half a unit of the third digit; from 1,000 on it is rounded to whole numbers.
    assert read == pytest.approx(value, rel=5.01e-3, abs=0.0)


def test_sizes_are_decimal():
    assert [size(n) for n in (999, 1000, 3_940_000_000)] == ["999 bytes", "1.00 kB", "3.94 GB"]


def test_the_palette_is_told_apart_by_brightness_too():
    # Neighbors in the cycle differ in luminance, so that gray prints keep them apart.
    def luminance(color):
        red, green, blue = (int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(luminance(PALETTE["blue"]) - luminance(PALETTE["orange"])) > 0.2
