"""The migration slider: its ranges and errors are those of the formula, and it shows anywhere."""

import json

import pytest
import torch
from reference_smoothquant import slow_scales, slow_w8a8

from quantlab import plot
from quantlab.widgets import MigrationSlider
from quantlab.widgets.base import VIEW


def layer(columns=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, columns, generator=generator)
    x[:, 3] *= 50
    return x, torch.randn(4, columns, generator=generator)


@pytest.fixture(scope="module")
def widget():
    return MigrationSlider(*layer(), weight_bits=4, activation_bits=4)


def test_ranges_and_errors_are_those_of_the_slow_twin(widget):
    x, W = (t.double() for t in layer())
    exact = x @ W.T
    order = x.abs().amax(0).argsort(descending=True)
    for place in (0, 10, 20):
        s = torch.tensor(slow_scales(x.tolist(), [W.tolist()], place / 20)).double()
        y = torch.tensor(slow_w8a8((x / s).tolist(), (W * s).tolist(), 4, per_token=False))
        error = 100 * ((y - exact).norm() / exact.norm()).item()
        assert widget.table["errors"][place] == pytest.approx(error, rel=0.01)
        inputs = ((x / s).abs().amax(0))[order].tolist()
        weights = ((W * s).abs().amax(0))[order].tolist()
        assert widget.table["inputs"][place] == pytest.approx(inputs, rel=1e-4)
        assert widget.table["weights"][place] == pytest.approx(weights, rel=1e-4)


def test_it_starts_at_the_least_error_which_lies_between_the_ends(widget):
    table = widget.table
    best = table["choices"]["alpha"].index(widget.position["alpha"])
    assert table["errors"][best] == min(table["errors"]) < table["before"] / 2
    assert 0 < best < 20
    widget.move(alpha=1.0)
    assert widget.sentence.startswith("Alpha 1: the widest input channel has 1 times the range")
    widget.move(alpha=0.5)
    with pytest.raises(ValueError, match=r"alpha is 0\.51; choose one of 0"):
        widget.move(alpha=0.51)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    assert widget.picture().figure.axes[1].get_title(loc="left") == "What W4A4 costs"
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    large = MigrationSlider(*layer(768))
    assert len(json.dumps(large.table, allow_nan=False)) < 80_000


def test_the_panels_say_their_numbers():
    picture = plot.migration_panels([8.0, 1.0], [2.0, 1.0], {0.0: 9.0, 1.0: 4.0}, alpha=1, before=9)
    assert str(picture) == (
        "At alpha 1 inputs span 1 to 8, weights 1 to 2; output error 4 %, 9 % without scales; "
        "least 4 % at alpha 1."
    )
