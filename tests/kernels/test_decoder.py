"""Decoding in one compiled step: the model's own logits, token by token."""

import pytest
import torch
from torch import nn

import quantlab as ql
from quantlab.kernels import reference
from quantlab.kernels.exponential import exponential
from quantlab.kernels.tiles import Tiles
from quantlab.kernels.versions import VERSIONS
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama, LlamaConfig


def tiny(seed=0, **sizes):
    torch.manual_seed(seed)
    fields = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 50,
        "max_position_embeddings": 24,
    }
    return Llama(LlamaConfig(**fields | sizes)).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 50, (1, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}])
@torch.no_grad()
def test_a_float_model_gives_the_models_own_logits(tokens, sizes):
    model = tiny(**sizes)
    fast = ql.FastDecoder(model, head_bits=32)
    torch.testing.assert_close(fast.logits(tokens[0]), model(tokens)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["w4g32sym", "w4g32asym", "w8g32sym"])
@pytest.mark.parametrize("activation_bits", [16, 8])
@torch.no_grad()
def test_a_quantized_model_gives_its_layers_products(tokens, scheme, activation_bits):
    model = tiny()
    ql.quantize_(model, ql.RTN(), ql.Scheme.parse(scheme))
    ql.activation_bits_(model, activation_bits)
    before = model(tokens)[0]
    fast = ql.FastDecoder(model, activation_bits, head_bits=32)
    # the same rounded activations but for ties that the last bit of a norm decides
    tolerance = 1e-4 if activation_bits == 16 else 5e-3
    torch.testing.assert_close(fast.logits(tokens[0]), before, rtol=tolerance, atol=tolerance)
    assert torch.equal(model(tokens)[0], before)  # the layers now share the decoder's memory


@torch.no_grad()
def test_weights_exist_once(tokens):
    model = tiny()
    ql.quantize_(model, ql.RTN(), ql.Scheme(4, 32))
    fast = ql.FastDecoder(model)
    layer = model.model.layers[1].mlp.down_proj
    words = torch.from_numpy(fast.layout[1][0])
    assert layer.codes.untyped_storage().data_ptr() == words.untyped_storage().data_ptr()


@torch.no_grad()
def test_stories_are_the_same_as_the_models():
    model, tokenizer = ql.load("storyteller")
    prompt = torch.tensor([tokenizer.encode("The little dog")])
    ql.quantize_(model, ql.RTN(), ql.Scheme(4, 64))
    fast = ql.FastDecoder(model, head_bits=32)
    assert torch.equal(fast.generate(prompt, 40), model.generate(prompt, 40))
    again = [fast.generate(prompt, 20, temperature=0.8, seed=5) for _ in range(2)]
    assert torch.equal(*again)


def test_the_head_may_be_rounded(tokens):
    model = tiny()
    exact = ql.FastDecoder(model, head_bits=32).logits(tokens[0])
    errors = [
        (ql.FastDecoder(model, head_bits=bits).logits(tokens[0]) - exact).square().mean()
        for bits in (8, 4)
    ]
    assert 0 < errors[0] < errors[1] / 50


def test_what_it_cannot_decode_is_refused():
    mixed = tiny()
    ql.quantize_(mixed, ql.RTN(), ql.Scheme(4, 32))
    mixed.model.layers[0].mlp.up_proj = nn.Linear(64, 96, bias=False)
    with pytest.raises(UnsupportedModelError, match="the linears are float, w4g32sym; FastDecoder"):
        ql.FastDecoder(mixed)
    three = tiny()
    ql.quantize_(three, ql.RTN(), ql.Scheme(3, 32))
    with pytest.raises(UnsupportedModelError, match="takes one scheme of 4 or 8 bits"):
        ql.FastDecoder(three)
    biased = tiny()
    biased.model.layers[0].mlp.up_proj = nn.Linear(64, 96)
    with pytest.raises(UnsupportedModelError, match="linears without bias"):
        ql.FastDecoder(biased)
    with pytest.raises(ValueError, match="activation_bits is 4"):
        ql.FastDecoder(tiny(), 4)
    with pytest.raises(ValueError, match="exceeds the context of 24"):
        ql.FastDecoder(tiny(), head_bits=32).generate(torch.ones(1, 20, dtype=torch.long), 10)


def test_the_polynomial_is_exp():
    x = torch.linspace(-87, 88, 20001)
    values = torch.tensor([float(exponential(v)) for v in x.numpy()], dtype=torch.float64)
    assert (values / x.double().exp() - 1).abs().max() < 3e-7
    assert exponential(x.numpy()[0] - 50) < 2e-38
    assert exponential(x.numpy()[10000] * 0) == 1


@pytest.mark.parametrize("name", VERSIONS)
def test_every_version_is_the_same_product(name):
    product, tiled = VERSIONS[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(80, 128, generator=generator)
    packed = ql.rtn(weight, ql.Scheme(4, 32)).pack()
    x = torch.randn(128, generator=generator)
    y = product(x, Tiles.of(packed) if tiled else packed)
    if name in ("unpack", "loop", "hoisted_scale"):
        torch.testing.assert_close(y, reference.matmul(x, packed), rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(y, reference.matmul(x, packed, 8))
