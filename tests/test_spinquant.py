"""Learned rotations stay rotations, follow the true gradient, and lower the quantized loss."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_rotation import tiny

import quantlab as ql
from quantlab.rotate import Parts, rotate_
from quantlab.scheme import Scheme
from quantlab.sim.dynamic import DynamicSim, round_tokens
from quantlab.spinquant import divergence, learn_rotations, next_token, quantized_output

W4 = Scheme(4)


def loss_of(model, tokens):
    logits = model(tokens)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()


def test_learned_rotations_are_orthogonal_and_leave_the_function_alone():
    model, tokens = tiny()
    state, before = copy.deepcopy(model.state_dict()), model(tokens)
    rotations = learn_rotations(model, tokens, steps=5, batch_size=1)
    assert all(weight.equal(state[name]) for name, weight in model.state_dict().items())
    assert len(rotations.losses) == 5
    for R in (rotations.residual, *rotations.heads):
        assert (R @ R.T - torch.eye(len(R)).double()).abs().max() < 1e-12
    rotate_(model, rotations)
    assert torch.allclose(model(tokens), before, atol=1e-10, rtol=0)


def test_the_loss_is_that_of_the_rotated_rounded_model():
    model, tokens = tiny()
    rotations = learn_rotations(model, tokens, weights=W4, steps=1, batch_size=2)
    turned = copy.deepcopy(model)
    ready = ql.rotate_(turned, "hadamard")  # where the training starts
    for path, layer in turned.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.copy_(round_tokens(layer.weight, W4))
            assert path
    expected = loss_of(DynamicSim(turned, activations=W4), tokens)
    assert rotations.losses[0] == pytest.approx(expected, rel=1e-12)
    assert ready.kind == "hadamard"


def test_without_rounding_no_rotation_is_better_than_another():
    model, tokens = tiny()
    parts = Parts(twin := copy.deepcopy(model), online=True)
    drawn = parts.draw("random", 1)
    leaves = [R.requires_grad_() for R in (drawn.residual, *drawn.heads)]
    parts.prepare_()
    loss = next_token(quantized_output(DynamicSim(twin), parts, leaves, None, tokens), tokens)
    assert loss.item() == pytest.approx(loss_of(model, tokens), rel=1e-12)
    for R, G in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        S = G @ R.T
        assert (S - S.T).abs().max() < 1e-10  # no slope along the rotations


def test_distilling_descends_on_the_divergence_from_the_float_model():
    model, tokens = tiny()
    rotations = learn_rotations(model, tokens, distill=True, steps=2)
    turned = copy.deepcopy(model)
    rotate_(turned)
    log_p, log_q = model(tokens).log_softmax(-1), DynamicSim(turned, activations=W4)(tokens)
    expected = (log_p.exp() * (log_p - log_q.log_softmax(-1))).sum(-1).mean().item()
    assert rotations.losses[0] == pytest.approx(expected, rel=1e-12)
    assert divergence(model, model(tokens), tokens).item() == pytest.approx(0, abs=1e-12)
    other = learn_rotations(model, tokens, steps=2)
    assert not torch.allclose(rotations.residual, other.residual, atol=1e-3)


def test_learning_beats_the_rotation_it_started_from_on_text_it_has_not_seen():
    model, tokenizer = ql.load("storyteller")
    data = ql.calibration_set(tokenizer, samples=24, length=128)
    test = ql.test_set(tokenizer, samples=4)
    learned = learn_rotations(
        model, data, weights=Scheme(3), start="identity", steps=12, rate=2, online=False
    )
    perplexity = {}
    for name, kind in (("start", "identity"), ("learned", learned)):
        model, _ = ql.load("storyteller")
        rotate_(model, kind, online=False)
        ql.quantize_(model, ql.RTN(), Scheme(3))
        perplexity[name] = ql.perplexity(DynamicSim(model, activations=W4), test)
    assert perplexity["learned"] < 0.97 * perplexity["start"]


def test_the_same_seed_gives_the_same_rotations_and_rate_zero_the_start():
    model, tokens = tiny()
    one, other = (learn_rotations(model, tokens, steps=2) for _ in range(2))
    assert torch.equal(one.residual, other.residual)
    still = learn_rotations(model, tokens, steps=2, rate=0.0, start="random", seed=4)
    assert torch.allclose(still.residual, Parts(model, online=True).draw("random", 4).residual)
    assert still.losses[0] == pytest.approx(still.losses[1])
    assert str(still).startswith("spin from random: residual 48 x 48, 2 x heads of 12;")


def test_rotate_learns_with_kind_spin():
    model, tokens = tiny()
    before = model(tokens)
    rotations = rotate_(model, "spin", data=tokens)
    assert len(rotations.losses) == 100
    assert math.isfinite(sum(rotations.losses))
    assert torch.allclose(model(tokens), before, atol=1e-10, rtol=0)


def test_wrong_numbers_are_refused():
    model, tokens = tiny()
    with pytest.raises(ValueError, match="steps is 0; choose a positive integer"):
        learn_rotations(model, tokens, steps=0)
    with pytest.raises(ValueError, match=r"batch_size is 1\.5; choose"):
        learn_rotations(model, tokens, batch_size=1.5)
    with pytest.raises(ValueError, match="vocabulary"):
        learn_rotations(model, tokens + 100)
