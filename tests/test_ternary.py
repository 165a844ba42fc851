"""Ternary weights: the published rule, GGUF's bytes, and training that knows about the rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quantlab import gguf
from quantlab.data import test_set as held_out
from quantlab.evaluate import perplexity
from quantlab.methods.ternary import BitLinear, Ternary, pack_ternary, round_tokens, ternary
from quantlab.models.loading import load
from quantlab.pipeline import quantize_
from quantlab.tensor import sqnr


@settings(max_examples=30)
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 1000))
def test_every_weight_follows_the_published_rule(rows, columns, seed):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    gamma = sum(abs(w) for w in W.flatten().tolist()) / W.numel()
    q = ternary(W)
    for i in range(rows):
        for j in range(columns):
            expected = max(-1, min(1, round(W[i, j].item() / gamma))) * gamma
            assert q.dequantize()[i, j].item() == pytest.approx(expected, rel=1e-12)
    assert ternary(4 * W).codes.equal(q.codes)
    assert ternary(-W).codes.equal(2 - q.codes)


def test_gaussian_weights_keep_what_the_course_says():
    W = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    q = ternary(W)
    assert sqnr(W, q.dequantize()) == pytest.approx(5.81, abs=0.02)  # dB
    assert (q.codes == 1).double().mean().item() == pytest.approx(0.309, abs=0.002)
    assert q.bits_per_weight == 2 + (16 + 8) / 1000  # scale, and a zero point in a byte of its own


@pytest.mark.parametrize(("name", "bits"), [("TQ1_0", 1.6875), ("TQ2_0", 2.0625)])
def test_gguf_blocks_hold_the_same_codes(name, bits):
    W = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    W[2, 256:] = 0
    q = ternary(W)
    blocks = pack_ternary(q, name)
    assert 8 * blocks.numel() / W.numel() == bits
    decoded = torch.from_numpy(gguf.dequantize(blocks.numpy(), name, (6, 512)))
    assert decoded.equal(q.pack().dequantize())  # whose scale is the same float16


def test_only_ternary_tensors_of_whole_blocks_are_packed():
    q = ternary(torch.randn(2, 256))
    with pytest.raises(ValueError, match="type_name is 'Q4_0'; choose 'TQ1_0' or 'TQ2_0'"):
        pack_ternary(q, "Q4_0")
    q.codes[0, 0] = 3
    with pytest.raises(ValueError, match="codes must be 0, 1 or 2 about zero point 1"):
        pack_ternary(q)
    with pytest.raises(ValueError, match="256"):
        pack_ternary(ternary(torch.randn(2, 100)))


def test_a_layer_computes_what_integers_would():
    layer = BitLinear(48, 16).double()
    x = torch.randn(3, 7, 48, dtype=torch.float64)
    gamma = layer.weight.abs().mean()
    codes = torch.round(layer.weight / gamma).clamp(-1, 1).long()
    scale = x.abs().amax(-1, keepdim=True) / 127
    integers = torch.round(x / scale).long() @ codes.T
    assert torch.allclose(layer(x), integers * scale * gamma, rtol=0, atol=1e-12)
    assert torch.round(x / scale).abs().max() == 127
    free = BitLinear(48, 16, activation_bits=None).double()
    free.load_state_dict(layer.state_dict())
    assert torch.allclose(free(x), x @ (codes * gamma).T, rtol=0, atol=1e-12)


def test_gradients_pass_the_rounding_and_stop_at_the_clip():
    layer = BitLinear(3, 1, activation_bits=None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.3, -0.2, 2.5]]))  # gamma = 1
    x = torch.tensor([[2.0, 3.0, 5.0]], requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[2.0, 3.0, 0.0]]
    assert x.grad.tolist() == [[0.0, 0.0, 1.0]]
    y = torch.tensor([[0.3, -1.0, 0.77]], requires_grad=True)
    round_tokens(y).sum().backward()
    assert torch.allclose(y.grad, torch.ones(1, 3))


def teacher() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(512, 16)
    return net, x, net(x).detach()


def test_training_with_ternary_weights_works_where_rounding_afterwards_fails():
    net, x, y = teacher()
    after = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    after.load_state_dict(net.state_dict())
    with torch.no_grad():
        for layer in (after[0], after[2]):
            layer.weight.copy_(ternary(layer.weight).dequantize())
    trained = nn.Sequential(BitLinear(16, 64, True), nn.ReLU(), BitLinear(64, 4, True))
    trained.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(trained.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (trained(x) - y).square().mean().backward()
        optimizer.step()
    errors = [((m(x) - y).square().mean() / y.var()).item() for m in (after, trained)]
    assert errors[1] < errors[0] / 3


def test_the_story_model_does_not_survive_rounding_afterwards():
    model, tokenizer = load("storyteller")
    tokens = held_out(tokenizer, samples=4, length=128)
    before = perplexity(model, tokens)
    report = quantize_(model, Ternary(), None)
    assert report.bits_per_weight == 2 + 24 * 10240 / 3145728  # scale and zero point a row
    assert perplexity(model, tokens) > 3 * before


def test_refuses_activation_bits_without_a_grid():
    with pytest.raises(ValueError, match=r"activation_bits is 1; choose 2\.\.8 or None"):
        BitLinear(4, 4, activation_bits=1)
