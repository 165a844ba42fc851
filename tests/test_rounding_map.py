"""The rounding map: its path from nearest to learned rounding, its numbers and its picture."""

import itertools
import json

import pytest
import torch
from learned_problem import correlated, linear_block, matrix

from quantlab.block import second_moment
from quantlab.methods.adaround import AdaRound
from quantlab.methods.rtn import rtn
from quantlab.plot_rounding import rounding_panels
from quantlab.scheme import Scheme
from quantlab.tensor import output_error
from quantlab.widgets import RoundingMap, base
from quantlab.widgets.rounding_map import turn


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(3)
    W, x = matrix(5, 16), correlated(100, 16)
    kept = AdaRound(iterations=150).quantize_block(linear_block(W, x), Scheme(3, 8))["0"]
    return W, kept, second_moment(x)


def test_the_path_goes_from_nearest_to_learned_one_weight_at_a_time(problem):
    W, kept, M = problem
    near = kept.scheme.decode(
        kept.scheme.encode(W, kept.scale, kept.zero_point), kept.scale, kept.zero_point
    )
    order, errors = turn(W, near, kept.dequantize(), M)
    Q = near.clone()
    assert errors[0] == pytest.approx(output_error(W, near, M), rel=1e-9)
    for (row, column), error in zip(order, errors[1:], strict=True):
        Q[row, column] = kept.dequantize()[row, column]
        assert error == pytest.approx(output_error(W, Q, M), rel=1e-9)
    assert Q.equal(kept.dequantize())
    assert errors[-1] < errors[0]


def test_the_first_turned_weight_saves_most():
    W, x = matrix(2, 6), correlated(50, 6)
    M = second_moment(x)
    near, end = torch.zeros_like(W), W.sign()
    order, errors = turn(W, near, end, M)
    alone = []
    for row, column in itertools.product(range(2), range(6)):
        Q = near.clone()
        Q[row, column] = end[row, column]
        alone.append(output_error(W, Q, M))
    assert errors[1] == pytest.approx(min(alone))
    assert sorted(order) == list(itertools.product(range(2), range(6)))


def test_the_widget_says_and_draws_each_position(problem):
    W, kept, M = problem
    widget = RoundingMap(W, kept, M)
    turned = len(widget.table["order"])
    assert turned > 0
    assert widget.position == {"step": turned}
    assert f"{turned} of 80 weights" in widget.sentence
    assert f"{turned} of 80 weights turned" in widget.picture().sentence
    widget.move(step=0)
    assert widget.sentence.startswith("All 80 weights at their nearest level: output error")
    data, about = widget._repr_mimebundle_()
    assert set(data) == {base.VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert len(json.dumps(widget.table, allow_nan=False)) < 20_000


def test_each_turned_weight_lies_one_level_up_or_down_from_its_nearest(problem):
    W, kept, M = problem
    nearest = kept.scheme.encode(W, kept.scale, kept.zero_point).int()
    for row, column, direction in RoundingMap(W, kept, M).table["order"]:
        change = (kept.codes[row, column].int() - nearest[row, column]).item()
        group = column // kept.scheme.group_size
        assert change * kept.scale[row, group].sign().item() == direction
        assert abs(change) == 1


def test_a_method_that_turned_nothing_has_one_position():
    W, M = matrix(3, 8), torch.eye(8)
    widget = RoundingMap(W, rtn(W, Scheme(3)), M)
    assert widget.table["choices"] == {"step": [0]}
    assert widget.picture().sentence.startswith("0 of 24 weights turned")


def test_the_same_numbers_give_the_same_picture():
    arguments = ([[0.1, 0.5], [0.0, 0.3]], [(0, 1, 1), (1, 1, -1)], [3.0, 2.0, 1.5], 2)
    assert rounding_panels(*arguments).png() == rounding_panels(*arguments).png()
    assert "from 3 to 1.5" in rounding_panels(*arguments).sentence
