"""The simulation's steps in a wrong order, and what it refuses: nothing happens in silence."""

import pytest
import torch
from nets import A8, BLOCKS, W4, llama, pictures, same, state
from torch import nn

from quantlab.methods.adascale import AdaScale
from quantlab.methods.rtn import RTN
from quantlab.models.families import UnsupportedModelError
from quantlab.scheme import Scheme
from quantlab.sim import QuantSim
from quantlab.tensor import CalibrationError


def test_running_before_the_ranges_are_known_names_tensors():
    model, tokens = llama()
    sim = QuantSim(model, weights=W4, activations=A8)
    words = r"model\.layers\.0\.self_attn\.q_proj\.input.* and \d+ more; call sim\.compute_enc"
    for step in (lambda: sim(tokens), lambda: sim.export("nowhere", "x")):
        with pytest.raises(CalibrationError, match=words):
            step()


def test_apply_drops_activation_ranges_and_calibration_leaves_weight_ranges():
    model, tokens = llama()
    sim = QuantSim(model, weights=W4, activations=A8)
    sim.compute_encodings(tokens)
    sim(tokens)
    sim.apply(AdaScale(iterations=3), tokens)
    with pytest.raises(CalibrationError, match="no range for"):
        sim(tokens)
    weights, grids = state(sim), {n: e.scale.clone() for n, e in sim.encodings().items()}
    sim.compute_encodings(tokens)
    assert same(weights, state(sim))
    assert all(sim.encodings()[name].scale.equal(scale) for name, scale in grids.items())


def test_a_second_method_is_refused():
    model, tokens = llama()
    sim = QuantSim(model, weights=W4)
    sim.apply(RTN(), tokens)
    with pytest.raises(ValueError, match=r"RTN was applied already.*make a new QuantSim"):
        sim.apply(AdaScale(iterations=2), tokens)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), pictures()[0]]
)
def test_a_model_without_known_blocks_is_never_passed_over_in_silence(model):
    data = torch.randn(3, 4)
    sim = QuantSim(model, weights=W4)
    before = state(sim)
    with pytest.raises(UnsupportedModelError, match=r"(Sequential|Pictures) has no.*blocks=\["):
        sim.apply(AdaScale(iterations=2), data)
    assert same(before, state(sim))
    assert sim.applied is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": ["0"]}, "'0' is itself a layer"),
        ({"blocks": ["1"]}, "'1' holds no Linear or Conv2d"),
        ({"blocks": ["9"]}, "has no module '9'"),
        ({"blocks": []}, "names no block"),
        ({"blocks": ["2", "2.0"]}, "'2.0' lies inside '2'"),
        ({"blocks": ["2", "2"]}, "'2' is named twice"),
    ],
)
def test_names_that_are_no_blocks_are_refused(arguments, words):
    inner = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    sim = QuantSim(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), inner), weights=W4)
    with pytest.raises(UnsupportedModelError, match=words):
        sim.apply(AdaScale(iterations=2), torch.randn(3, 4), **arguments)


def test_schemes_that_do_not_fit_are_refused():
    model, images = pictures()
    for bits in (1, 16):
        with pytest.raises(ValueError, match=f"2..8 bits here, the scheme says {bits}"):
            QuantSim(model, weights=Scheme(bits))
    with pytest.raises(ValueError, match=r"stem\.conv: a Conv2d has no groups"):
        QuantSim(model, weights=Scheme(4, 3))
    with pytest.raises(ValueError, match=r"0: in_features 6 is not a multiple of group_size 4"):
        QuantSim(nn.Sequential(nn.Linear(6, 2)), weights=Scheme(4, 4))
    with pytest.raises(UnsupportedModelError, match="ReLU has no Linear and no Conv2d"):
        QuantSim(nn.ReLU(), weights=W4)
    sim = QuantSim(model, weights=Scheme(4, symmetric=False))
    with pytest.raises(ValueError, match=r"stem\.\w+: AdaScale needs symmetric=True"):
        sim.apply(AdaScale(iterations=2), images, blocks=BLOCKS)


def test_a_weight_that_is_not_finite_is_named():
    model, _ = pictures()
    with torch.no_grad():
        model.stem.mix.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"stem\.mix.*non-finite"):
        QuantSim(model, weights=W4)


def test_data_that_hold_nothing_or_nan_are_refused_and_change_nothing():
    model, images = pictures()
    sim = QuantSim(model, weights=W4, activations=A8)
    before = state(sim)
    for data in (images[:0], images * torch.nan):
        for step in (sim.compute_encodings, lambda x: sim.apply(AdaScale(2), x, blocks=BLOCKS)):
            with pytest.raises(CalibrationError, match="at least one sample, all finite"):
                step(data)
    with pytest.raises(CalibrationError, match="needs calibration data"):
        sim.apply(AdaScale(2), None, blocks=BLOCKS)
    with pytest.raises(CalibrationError, match=r"stem\.conv\.input saw NaN"):
        sim.compute_encodings(lambda net: net(images * torch.nan))
    with pytest.raises(CalibrationError, match=r"stem\.conv\.input saw nothing but zeros, or was"):
        sim.compute_encodings(lambda net: None)
    assert same(before, state(sim))


def test_a_function_can_call_the_model_itself():
    model, images = pictures()
    one, other = (QuantSim(model, weights=W4, activations=A8) for _ in range(2))
    one.compute_encodings(images)
    other.compute_encodings(lambda net: [net(half) for half in images.split(4)])
    assert one(images).equal(other(images))


def test_weights_only_is_a_copy_that_leaves_the_simulation_as_it_is():
    model, images = pictures()
    sim = QuantSim(model, weights=W4, activations=A8)
    sim.compute_encodings(images)
    answer = sim(images)
    weights = sim.weights_only()
    assert not weights(images).equal(answer)
    with torch.no_grad():
        weights.head[1].weight.zero_()
    assert sim(images).equal(answer)


def test_apply_drops_the_ranges_of_layers_outside_the_blocks_too():
    model, images = pictures()
    sim = QuantSim(model, weights=W4, activations=A8)
    sim.compute_encodings(images)
    sim.apply(AdaScale(iterations=2), images, blocks=["stem"])
    with pytest.raises(CalibrationError, match=r"and 5 more; call"):
        sim(images)
    assert sim.model.head[1].input.encoding is None
