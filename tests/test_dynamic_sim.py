"""Tokens are rounded one by one, the cache as well, and nothing stays behind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_rotation import round_tokens_slowly
from torch import nn

import quantlab as ql
from quantlab.models.llama import KVCache
from quantlab.scheme import Scheme
from quantlab.sim.dynamic import DynamicSim, RoundedCache, block_layers, round_tokens

SCHEMES = [Scheme(4), Scheme(8), Scheme(4, 4), Scheme(3, symmetric=False), Scheme(16, 2, False)]


@pytest.fixture(scope="module")
def storyteller():
    model, tokenizer = ql.load("storyteller")
    return model, ql.test_set(tokenizer, samples=2, length=32)


@given(st.sampled_from(SCHEMES), st.integers(0, 2**20))
def test_rounding_equals_the_slow_twin(scheme, seed):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)).double()
    x[0, 0] = 0
    assert torch.allclose(round_tokens(x, scheme), round_tokens_slowly(x, scheme), atol=1e-12)


@given(st.sampled_from(SCHEMES), st.integers(0, 2**20), st.integers(-20, 20))
def test_a_token_is_rounded_without_regard_to_the_others_and_scales_with_its_size(s, seed, power):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    alone = torch.stack([round_tokens(token, s) for token in x])
    assert torch.equal(round_tokens(x, s), alone)
    assert torch.equal(round_tokens(x * 2.0**power, s), alone * 2.0**power)


def test_the_gradient_passes_as_if_nothing_were_rounded():
    x = torch.randn(3, 8, requires_grad=True)
    round_tokens(x, Scheme(2)).square().sum().backward()
    assert torch.allclose(x.grad, 2 * round_tokens(x.detach(), Scheme(2)))


def test_half_precision_comes_back_as_half_precision():
    x = torch.randn(2, 8).bfloat16()
    assert round_tokens(x, Scheme(8)).dtype == torch.bfloat16


def test_every_linear_of_the_blocks_sees_rounded_inputs_and_the_head_does_not(storyteller):
    model, tokens = storyteller
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, __, n=name: seen.__setitem__(n, args[0]))
    DynamicSim(model, activations=Scheme(4))(tokens)
    assert len(seen) == len(block_layers(model)) == 28
    for x in seen.values():
        assert all(len(token.unique()) <= 16 for token in x.flatten(0, 1))


def test_quantized_linears_are_found_too_and_a_head_is_not(storyteller):
    model, _ = ql.load("storyteller")
    ql.rotate_(model)
    assert len(block_layers(model)) == 28
    ql.quantize_(model, ql.RTN(), Scheme(4))
    assert len(block_layers(model)) == 28


def test_nothing_stays_behind_not_even_after_an_error(storyteller):
    model, tokens = storyteller
    sim = DynamicSim(model, activations=Scheme(2), cache=Scheme(2))
    with torch.no_grad():
        before = model(tokens)
        assert not torch.allclose(sim(tokens), before, atol=0.1)
        with pytest.raises(IndexError):
            sim(tokens + 5000)
        assert torch.equal(model(tokens), before)


def test_without_schemes_it_is_the_model(storyteller):
    model, tokens = storyteller
    with torch.no_grad():
        assert torch.equal(DynamicSim(model)(tokens), model(tokens))


def test_the_cache_rounds_keys_and_values_head_by_head():
    key, value = torch.randn(2, 1, 2, 5, 8).double()
    scheme = Scheme(4, symmetric=False)
    cache = RoundedCache(1, scheme)
    got = cache.append(0, key[..., :3, :], value[..., :3, :])
    assert got[0].shape == (1, 2, 3, 8)
    got = cache.append(0, key[..., 3:, :], value[..., 3:, :])
    assert torch.allclose(got[0], round_tokens_slowly(key, scheme), atol=1e-12)
    assert torch.allclose(got[1], round_tokens_slowly(value, scheme), atol=1e-12)


def test_a_turned_key_meets_turned_queries_with_the_same_product():
    # A machine stores the rounded H k and multiplies it with H q: equal to what is returned here.
    scheme = Scheme(4, symmetric=False)
    key, query = torch.randn(2, 1, 2, 5, 8).double()
    cache = RoundedCache(1, scheme, rotate_keys=True)
    returned, _ = cache.append(0, key, key)
    H = ql.hadamard_matrix(8) / 8**0.5
    stored = round_tokens_slowly(key @ H.T, scheme)
    assert torch.allclose(query @ returned.mT, (query @ H.T) @ stored.mT, atol=1e-12)


def test_eight_bits_of_cache_hardly_show_and_two_do(storyteller):
    model, tokens = storyteller
    kl = [
        ql.evaluate(DynamicSim(model, cache=Scheme(bits)), tokens, reference=model).kl
        for bits in (8, 4, 2)
    ]
    assert kl[0] < 1e-3 < kl[1] < kl[2]


def test_models_it_does_not_know_are_refused():
    with pytest.raises(ql.UnsupportedModelError, match="Linear has no linear layer inside a Mod"):
        DynamicSim(nn.Linear(3, 3), activations=Scheme(4))
    other = nn.Module()
    other.layers = nn.ModuleList([nn.Linear(3, 3)])
    DynamicSim(other, activations=Scheme(4))
    with pytest.raises(ql.UnsupportedModelError, match="Module keeps its cache elsewhere"):
        DynamicSim(other, cache=Scheme(4))


def test_the_plain_cache_is_what_it_was():
    cache = KVCache(1)
    key = torch.randn(1, 2, 3, 8)
    assert cache.append(0, key, key)[0] is key
