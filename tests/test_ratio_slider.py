"""The ratio slider and AWQ's figures: their numbers are the library's, their sentences say them."""

import json

import pytest
import torch

from quantlab import plot
from quantlab.methods.awq import awq, input_scale
from quantlab.scheme import Scheme
from quantlab.widgets import RatioSlider
from quantlab.widgets.base import VIEW
from quantlab.widgets.ratio_slider import DRAWN, LOUDEST, column_steps, drawn_columns

SCHEME = Scheme(3, 8)


def layer(columns=16):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(100, columns, generator=generator, dtype=torch.float64)
    x *= torch.logspace(0, 2, columns, dtype=torch.float64)
    return weight, x.T @ x / 100, x.abs().mean(0)


@pytest.fixture(scope="module")
def widget():
    return RatioSlider(*layer(), SCHEME)


def test_the_losses_are_those_of_the_search_and_the_slider_starts_at_the_best(widget):
    _, found = awq(*layer(), SCHEME)
    assert widget.table["losses"] == pytest.approx(found.losses, rel=1e-5)  # 6 digits are sent
    assert widget.position == {"ratio": found.ratio}
    assert RatioSlider(*layer(), SCHEME, ratio=0.5).position == {"ratio": 0.5}


def test_columns_come_loudest_first_divided_and_multiplied_by_the_scale(widget):
    weight, _, sizes = layer()
    order = sizes.argsort(descending=True)
    for step in (0, 7, 19):
        s = input_scale(sizes, step / 20)
        inputs, weights = (widget.table[name][step] for name in ("inputs", "weights"))
        assert inputs == pytest.approx((sizes / s)[order].tolist(), rel=1e-4)
        assert weights == pytest.approx((weight.abs().amax(0) * s)[order].tolist(), rel=1e-4)


def test_the_sentence_names_error_spread_and_step(widget):
    widget.move(ratio=0.0)
    assert widget.sentence.startswith("Ratio 0: the output error is 100 % of rounding to nearest;")
    assert widget.sentence.endswith(
        "1 times as coarse as at ratio 0, for the median column 1 times."
    )
    widget.move(ratio=0.95)
    assert widget.sentence.startswith("Ratio 0.95: the output error is ")
    with pytest.raises(ValueError, match=r"ratio is 1\.0; choose one of 0\.0, 0\.05"):
        widget.move(ratio=1.0)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    large = RatioSlider(*layer(768), SCHEME)
    assert len(json.dumps(large.table, allow_nan=False)) < 100_000


def test_of_many_columns_the_loudest_and_a_sample_are_drawn():
    shown = drawn_columns(torch.arange(767, -1, -1))
    assert len(shown) == len(set(shown.tolist())) == DRAWN
    assert shown[:LOUDEST].tolist() == list(range(767, 767 - LOUDEST, -1))
    assert shown[-1] == 0
    assert drawn_columns(torch.tensor([1, 2, 0])).tolist() == [1, 2, 0]


def test_a_column_s_grid_gets_finer_by_its_scale_while_the_step_stands():
    W = torch.tensor([[0.5, 4.0, 1.0, 2.0], [0.25, -4.0, 1.0, 2.0]]).double()
    s = torch.tensor([2.0, 1.0, 1.0, 1.0]).double()
    relative = column_steps(W * s, Scheme(3)) / s / column_steps(W, Scheme(3))
    assert relative.tolist() == [0.5, 1, 1, 1]


def test_a_weight_on_its_grid_and_a_silent_input_are_drawn_too():
    weight = torch.tensor([[-4.0, 3.0, 0.0, 1.0]]).double()
    exact = RatioSlider(weight, torch.eye(4), torch.tensor([1.0, 1, 0, 1]), Scheme(3))
    assert exact.table["percent"] == [100.0] * 20
    assert exact.picture().sentence


def test_the_panels_mark_the_ratio_in_force_and_the_best():
    picture = plot.ratio_panels([8.0, 1.0], [2.0, 4.0], {0.0: 2.0, 0.5: 1.0, 0.9: 3.0}, 0.9)
    assert picture.sentence == (
        "At ratio 0.9 inputs span 1 to 8, largest weights 2 to 4; output error 150 % of ratio 0; "
        "least 50 % at ratio 0.5."
    )
    left, right = picture.figure.axes
    assert left.get_xlabel()
    assert right.get_ylabel() == "output error, % of ratio 0"
    assert left.get_yscale() == "log"


def test_the_bars_say_each_share():
    saved = {"plain": {"salient": 3.3, "random": 0.9}, "outlier": {"salient": 27.5, "random": 1.2}}
    picture = plot.saved_bars(saved)
    assert picture.sentence == (
        "Share of the output error that goes away. plain: salient 3.3 %, random 0.9 %; "
        "outlier: salient 28 %, random 1.2 %."
    )
    axes = picture.figure.axes[0]
    assert [round(bar.get_width(), 1) for bar in axes.patches] == [3.3, 0.9, 27.5, 1.2]
    assert axes.get_title(loc="left") == "salient: 3.3 % and 28 %"
