"""The module tree: every layer once, bytes and products counted, and what was reached."""

import json

import pytest
import torch

import quantlab as ql
from quantlab import plot
from quantlab.layer_table import LayerCost, layer_costs
from quantlab.widgets import ModuleTree
from quantlab.widgets.base import VIEW
from quantlab.widgets.module_tree import tree

X = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def widget():
    net = ql.digits_net().eval()
    twin = ql.calibrate(ql.prepare(net, weight_bits=4), X)
    versions = {"float": net, "dynamic": ql.quantize_dynamic(net), "static W4A8": ql.convert(twin)}
    return ModuleTree(versions, X)


def test_layers_stand_below_the_modules_that_hold_them():
    costs = [
        LayerCost("stem.conv", "conv", 9, 60, 36, "float32"),
        LayerCost("blocks.0.body.widen.conv", "conv", 4, 30, 16, "int8"),
        LayerCost("blocks.0.body.narrow.conv", "conv", 4, 30, 16, "int8"),
    ]
    rows = tree(costs)
    told = [(row["depth"], row["label"], row["stored"], row["nbytes"], row["macs"]) for row in rows]
    assert told == [
        (0, "stem", "float32", 36, 50.0),
        (0, "blocks", "", 32, 50.0),
        (1, "0", "", 32, 50.0),
        (2, "widen", "int8", 16, 25.0),
        (2, "narrow", "int8", 16, 25.0),
    ]


def test_each_version_says_what_it_reached(widget):
    assert widget.position == {"version": 1}
    assert widget.sentence.startswith("float: 0 of 14 layers hold integers, 0.0 % of all products;")
    widget.move(version=2)
    costs = layer_costs(ql.quantize_dynamic(ql.digits_net()), X)
    share = 100 * costs[-1].macs / sum(cost.macs for cost in costs)
    assert f"dynamic: 1 of 14 layers hold integers, {share:.1f} % of all" in widget.sentence
    widget.move(version=3)
    assert widget.sentence.startswith("static W4A8: 14 of 14 layers hold integers, 100.0 % of all")
    widget.move(version=1)
    with pytest.raises(ValueError, match="version is 4"):
        widget.move(version=4)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    assert len(json.dumps(widget.table, allow_nan=False)) < 20_000


def test_bars_are_as_long_as_their_numbers_and_kinds_differ_by_hatch():
    rows = [
        {"label": "a", "depth": 0, "stored": "float32", "macs": 60.0, "nbytes": 2000},
        {"label": "b", "depth": 1, "stored": "int8", "macs": 40.0, "nbytes": 500},
    ]
    picture = plot.module_tree(rows, title="two", most=2)
    assert picture.sentence == (
        "two: 1 of 2 layers hold integers; they are 40.0 % of the products; 2.5 kB in all."
    )
    left, right = picture.figure.axes
    assert [bar.get_width() for bar in left.patches][:2] == [2.0, 0.5]
    assert [bar.get_width() for bar in right.patches][:2] == [60.0, 40.0]
    assert len({bar.get_hatch() for bar in right.patches}) == 2


def test_a_tree_without_versions_or_with_too_many_rows_is_refused():
    with pytest.raises(ValueError, match="no version to draw"):
        ModuleTree({}, X)
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(41)))
    with pytest.raises(ValueError, match="41 rows, more than 40"):
        ModuleTree({"deep": layers}, torch.zeros(1, 2))
