"""The AdaScale sliders and the module's pictures: their numbers are the library's own."""

import itertools
import json
import random

import pytest
import torch

from quantlab import plot
from quantlab.methods.adascale import AdaScaleWeight
from quantlab.scheme import Scheme
from quantlab.widgets import AdaScaleSliders
from quantlab.widgets.adascale_sliders import NAMES, VALUES
from quantlab.widgets.base import VIEW

ROW = torch.tensor([0.50, -0.30, 0.11, -0.62], dtype=torch.float64)
MOMENT = torch.full((4, 4), 0.8, dtype=torch.float64).fill_diagonal_(1)


@pytest.fixture(scope="module")
def widget():
    return AdaScaleSliders(ROW, Scheme(4), MOMENT, element=1)


def twin(position) -> AdaScaleWeight:
    weight = AdaScaleWeight(ROW[None], Scheme(4))
    for name, value in position.items():
        parameter = weight.get_parameter(name).data
        if name == "s2":
            parameter[0, 1] = value
        else:
            parameter.fill_(value)
    return weight.requires_grad_(False)


def test_every_position_has_the_codes_step_and_error_of_the_library(widget):
    chosen = random.Random(0).sample(list(itertools.product(VALUES, repeat=4)), 200)
    for values in chosen:
        position = dict(zip(NAMES, values, strict=True))
        widget.move(**position)
        weight = twin(position)
        assert widget.codes == weight.codes()[0].tolist()
        D = weight()[0] - ROW
        step, codes, error = widget.sentence.split(";")[0].split(", ")
        assert step == f"Step {weight.scale().item():.4f}"
        assert codes == "codes " + " ".join(map(str, widget.codes))
        assert float(error.split()[1]) == pytest.approx((D @ MOMENT @ D).item(), rel=5e-3)


def test_all_parameters_at_zero_are_plain_rounding(widget):
    widget.move(**dict.fromkeys(NAMES, 0.0))
    assert widget.sentence == (
        "Step 0.0775, codes 6 -4 1 -8, error 0.00528; plain rounding has 0.00528."
    )
    assert AdaScaleSliders(ROW, Scheme(4)).position == dict.fromkeys(NAMES, 0.0)


def test_a_control_takes_listed_values_only(widget):
    with pytest.raises(ValueError, match=r"gamma is 0\.5; choose one of -0\.3"):
        widget.move(gamma=0.5)
    with pytest.raises(ValueError, match="there is no control 'delta'"):
        AdaScaleSliders(ROW, Scheme(4), delta=0.1)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert len(json.dumps(widget.table, allow_nan=False)) < 100_000


def test_the_picture_draws_weights_divided_weights_and_levels():
    picture = plot.row_on_grid([0.5, -0.3], [0.4, -0.3], 0.1, [3, -3], 3)
    assert picture.sentence == "Step 0.1, codes 3 -3."
    (axes,) = picture.figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [
        pytest.approx([0.5, 0.4, 0.3]),
        pytest.approx([-0.3, -0.3, -0.3]),
    ]
    assert [text.get_text() for text in axes.texts] == [str(code) for code in range(-4, 4)]


def test_the_factors_start_where_each_method_starts():
    picture = plot.range_factors()
    (axes,) = picture.figure.axes
    starts = [line for line in axes.lines if len(line.get_xdata()) == 1]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in starts]
    assert points == [(0, 1), (4, pytest.approx(0.982, abs=1e-3))]
    assert "stays below 1" in picture.sentence


def test_the_budgets_name_what_beats_the_search():
    errors = {"4 bits": {0: 3.0, 96: 1.0, 320: 0.5}, "2 bits": {0: 9.0, 96: 8.0, 320: 7.0}}
    picture = plot.budgets(errors, {"4 bits": 2.0, "2 bits": 5.0})
    assert picture.sentence == (
        "Iterations that beat the clip search. 4 bits: 96 and 320; 2 bits: none."
    )
    assert len(picture.figure.axes) == 2


@pytest.mark.parametrize(
    ("last", "words"),
    [(0.19, "a quarter"), (0.4, "a half"), (0.8, "its start"), (0.05, "a tenth"), (1.2, "not")],
)
def test_the_folded_error_is_told_in_words(last, words):
    picture = plot.loss_and_folded([2.0] * 40, {0: 1.0, 40: last})
    end = "not below its start" if words == "not" else f"below {words}"
    assert picture.sentence == f"The folded block's error begins at 1 and ends {end}."
