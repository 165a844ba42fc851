"""The threshold slider and the figures of module 8: their numbers are the library's."""

import json

import pytest
import torch

import quantlab as ql
from quantlab import plot
from quantlab.widgets import ThresholdSlider
from quantlab.widgets.base import VIEW
from quantlab.widgets.threshold_slider import candidates


def layer(columns=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, columns, generator=generator)
    x[:, 3] *= 50
    x[7, 9] = -6.0
    return x, torch.randn(8, columns, generator=generator)


@pytest.fixture(scope="module")
def widget():
    return ThresholdSlider(*layer())


def test_columns_errors_and_bytes_are_the_library_s(widget):
    x, W = layer()
    exact = x.double() @ W.double().T
    for place, threshold in enumerate(widget.table["choices"]["threshold"]):
        y = ql.llm_int8(x, ql.int8_rows(W), threshold=threshold).double()
        error = 100 * ((y - exact).norm() / exact.norm()).item()
        loud = int((x.abs() >= threshold).any(0).sum())
        assert widget.table["errors"][place] == pytest.approx(error, rel=0.01)
        assert widget.table["kept"][place] == loud
        assert widget.table["bytes"][place] == 8 * (24 - loud) + 2 * 8 * loud + 4 * 8
    assert widget.table["half"] == 2 * 8 * 24


def test_it_starts_at_six_where_a_magnitude_of_six_counts(widget):
    assert widget.position == {"threshold": 6.0}
    assert widget.sentence.startswith("Threshold 6: 2 of 24 input channels are multiplied in float")
    widget.move(threshold=8.0)
    assert widget.sentence.startswith("Threshold 8: 1 of 24 ")
    widget.move(threshold=6.0)


def test_the_last_threshold_keeps_none_and_the_channels_come_largest_first(widget):
    assert widget.table["kept"][-1] == 0
    assert widget.table["kept"] == sorted(widget.table["kept"], reverse=True)
    assert widget.table["sizes"] == sorted(widget.table["sizes"], reverse=True)
    assert widget.table["errors"][-1] == max(widget.table["errors"])


def test_a_threshold_that_is_not_in_the_table_is_refused_by_name(widget):
    with pytest.raises(ValueError, match=r"threshold is 7; choose one of 0\."):
        widget.move(threshold=7)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    large = ThresholdSlider(*layer(768))
    assert len(json.dumps(large.table, allow_nan=False)) < 50_000
    assert len(large.table["sizes"]) == 96


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_six_is_always_a_choice_and_the_last_lies_above_every_input(scale):
    sizes = scale * torch.tensor([1.0, 2.0, 3.0])
    found = candidates(sizes)
    assert found == sorted(set(found))
    assert 6.0 in found
    assert found[-1] > sizes.max()


def test_the_panels_mark_the_threshold_in_force():
    picture = plot.threshold_panels(
        [50.0, 6.0, 2.0], [1.0, 6.0, 60.0], [0.5, 1.0, 8.0], [3, 2, 0], 1
    )
    assert picture.sentence == (
        "Threshold 6 keeps 2 channels in float; the output's error is 1 %, 8 % where none is kept."
    )
    left, right = picture.figure.axes
    assert [len(line.get_xdata()) for line in left.lines[:2]] == [2, 1]
    assert right.get_title(loc="left") == "What it costs: 1 %"


def test_the_parts_of_the_density_meet_and_every_level_has_one():
    picture = plot.equal_areas([-1.0, 0.0, 1.0], [-torch.inf, -0.5, 0.5, torch.inf])
    assert picture.sentence == (
        "3 levels from -1 to 1 standard deviations; neighbors 1 to 1 apart."
    )
    assert len(picture.figure.axes[0].collections) == 3


def test_formats_are_drawn_over_their_stored_bits():
    picture = plot.sqnr_by_bits({"one": {4.5: 20.7, 4.25: 20.4}, "other": {4.5: 21.3}})
    assert picture.sentence == (
        "SQNR over stored bits. one: 20.7 dB at 4.5, 20.4 dB at 4.25; other: 21.3 dB at 4.5."
    )
    axes = picture.figure.axes[0]
    assert axes.get_title(loc="left") == "Compare at equal bits; highest: other"
    assert [line.get_marker() for line in axes.lines] == ["o", "s"]
