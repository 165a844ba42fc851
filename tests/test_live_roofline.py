"""The live roofline: its numbers are the roof's, from bytes and limits alone."""

import json

import pytest

from quantlab.kernels.machine import Limits
from quantlab.plot_roofline import attainable
from quantlab.widgets import LiveRoofline
from quantlab.widgets.base import VIEW
from quantlab.widgets.live_roofline import BATCHES, CACHES, FORMATS

LIMITS = Limits(2, {"L2": 400e9, "L3": 200e9, "memory": 40e9}, 200e9, 900e9)


def test_at_batch_1_tokens_a_second_are_bandwidth_over_the_model_s_bytes():
    widget = LiveRoofline(LIMITS, parameters=10**9)
    for name, (bits, _) in FORMATS.items():
        widget.move(form=name)
        assert widget.state["tokens"] == pytest.approx(40e9 / (bits / 8 * 1e9), rel=0.02)
        assert widget.state["tokens"] < 40e9 / (bits / 8 * 1e9)  # activations move as well


def test_each_state_is_the_lower_of_two_limits_and_says_which():
    widget = LiveRoofline(LIMITS, size=1024)
    for name, (bits, kind) in FORMATS.items():
        for batch in BATCHES:
            for cache, level in CACHES.items():
                widget.move(form=name, batch=batch, cache=cache)
                moved = bits / 8 * 1024**2 + 4 * batch * 2048
                intensity = 2 * batch * 1024**2 / moved
                peak = getattr(LIMITS, kind)
                assert widget.state["intensity"] == pytest.approx(intensity)
                assert widget.state["speed"] == attainable(intensity, LIMITS.read[level], peak)
                word = "Bytes" if widget.state["speed"] < peak else "Operations"
                assert f"{word} are the limit" in widget.sentence


def test_a_machine_without_byte_products_multiplies_bytes_at_the_float_peak():
    plain = Limits(1, LIMITS.read, 200e9, None)
    widget = LiveRoofline(plain, form="W4A8 g32", batch=512)
    assert widget.state["speed"] == 200e9
    assert widget.picture().figure.axes


def test_the_reader_s_points_are_drawn_and_named():
    widget = LiveRoofline(LIMITS, {"mine": (3.5, 90e9)})
    assert widget.table["points"] == [["mine", 3.5, 90e9]]
    labels = [text.get_text() for text in widget.picture().figure.legends[0].get_texts()]
    assert "mine" in labels
    assert any(label.startswith("W4A16 g32, batch 1, cold") for label in labels)


@pytest.mark.parametrize("point", [(0, 1e9), (1.0, float("inf")), (1.0, -2.0)])
def test_a_point_off_the_paper_is_refused(point):
    with pytest.raises(ValueError, match="mine lies at"):
        LiveRoofline(LIMITS, {"mine": point})


def test_impossible_sizes_and_positions_are_refused():
    with pytest.raises(ValueError, match="parameters 0; both are above 0"):
        LiveRoofline(LIMITS, parameters=0)
    with pytest.raises(ValueError, match="batch is 3; choose one of 1, 2, 4"):
        LiveRoofline(LIMITS).move(batch=3)


def test_it_shows_as_view_image_and_sentence_in_a_small_table():
    widget = LiveRoofline(LIMITS, {"mine": (3.5, 90e9)})
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert len(json.dumps(widget.table, allow_nan=False)) < 100_000
