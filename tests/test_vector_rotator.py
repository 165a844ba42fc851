"""The vector rotator and its figures: exact turns, true numbers, a sentence that says them."""

import json

import pytest
import torch

from quantlab import plot
from quantlab.hadamard import hadamard_transform
from quantlab.scheme import Scheme
from quantlab.widgets import VectorRotator
from quantlab.widgets.base import VIEW
from quantlab.widgets.vector_rotator import ANGLES, measures, turned


def spike(size=8):
    x = torch.zeros(size, dtype=torch.float64)
    x[2] = 6
    return x


@pytest.fixture(scope="module")
def widget():
    noise = torch.randn(16, generator=torch.Generator().manual_seed(0)).double()
    return VectorRotator({"a spike": spike(16), "noise": noise})


def test_45_degrees_is_the_hadamard_transform_0_changes_signs_and_90_the_order():
    x = torch.randn(16, dtype=torch.float64)
    assert torch.allclose(turned(x, 45), hadamard_transform(x), atol=1e-12)
    assert torch.allclose(turned(x, 0).abs(), x.abs(), atol=1e-12)
    assert torch.allclose(turned(x, 90), x.flip(0), atol=1e-12)
    for angle in ANGLES:
        assert turned(x, angle).norm().item() == pytest.approx(x.norm().item())
    with pytest.raises(ValueError, match="a vector of 6 numbers; pass 2, 4, 8"):
        turned(x[:6], 45)


def test_a_turn_is_the_kronecker_power_of_one_2_by_2_matrix():
    T = torch.tensor([[0.8, 0.6], [0.6, -0.8]], dtype=torch.float64)
    angle = torch.rad2deg(torch.atan2(torch.tensor(0.6).double(), torch.tensor(0.8).double()))
    x = torch.randn(8, dtype=torch.float64)
    assert torch.allclose(turned(x, angle.item()), torch.kron(torch.kron(T, T), T) @ x, atol=1e-12)


def test_the_measures_of_a_spike_are_known_in_closed_form():
    largest, kurtosis, error = measures(spike(), Scheme(4))
    assert (largest, kurtosis, error) == (float(f"{8**0.5:.4g}"), 8, 0)
    even = torch.ones(8, dtype=torch.float64)
    even[0] = -1
    assert measures(even, Scheme(4))[:2] == [1, 1]
    x = torch.tensor([-8.0, 3.25, 0, 0], dtype=torch.float64)  # step 1: only 3.25 is off, by 0.25
    energy = 64 + 3.25**2
    assert measures(x, Scheme(4))[2] == pytest.approx(100 * 0.0625 / energy, rel=1e-3)


def test_position_sentence_and_picture_follow_each_other(widget):
    assert widget.position == {"vector": "a spike", "angle": 45}
    assert widget.sentence.startswith(
        "a spike: at 45 degrees the largest number is 1 times the root mean square, the kurtosis 1 "
        "(Gaussian: 3), and rounding costs "
    )
    widget.move(vector="noise", angle=30)
    assert widget.sentence.startswith("noise: at 30 degrees the largest number is ")
    assert widget.picture().sentence.startswith("At 30 degrees the largest of 16 numbers is ")
    with pytest.raises(ValueError, match="angle is 31; choose one of 0, 3, 6"):
        widget.move(angle=31)


def test_it_shows_as_view_image_and_sentence_in_a_small_table(widget):
    data, about = widget._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data["text/plain"] == widget.sentence == about["image/png"]["alt"]
    large = VectorRotator({name: torch.randn(256) for name in "abc"})
    assert len(json.dumps(large.table, allow_nan=False)) < 500_000


def test_the_figures_say_their_numbers():
    picture = plot.rotator_panels([3.0, -4.0, 0.0, 0.0], {0: 2.0, 45: 0.5, 90: 2.0}, 45)
    assert picture.sentence == (
        "At 45 degrees the largest of 4 numbers is 1.6 times their root mean square, and rounding "
        "costs 0.5 % of the energy; least 0.5 % at 45 degrees."
    )
    left, right = picture.figure.axes
    assert left.get_title(loc="left") == "Turned by 45°"
    assert right.get_yscale() == "log"
    picture = plot.channel_sizes({"before": [1.0, 64.0, 2.0], "after": [3.0, 2.0, 4.0]})
    assert picture.sentence == (
        "Largest size of the loudest and of the median channel. before: 64 to 2; after: 4 to 3."
    )
    assert picture.figure.axes[0].lines[0].get_ydata().tolist() == [64, 2, 1]
