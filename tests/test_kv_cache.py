"""Caches in few bits: exact when off, real bytes when on, and the axis matters with outliers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantlab.data import test_set as held_out
from quantlab.evaluate import evaluate
from quantlab.methods.kv_cache import pack_states
from quantlab.models.kv_cache import QuantizedKVCache, Store, TokenByToken, cache_bytes
from quantlab.models.llama import KVCache, Llama, LlamaConfig, rotate
from quantlab.models.loading import load

CONFIG = LlamaConfig(64, 2, 4, 2, 96, 50)  # head_dim 16, two key heads


def llama() -> tuple[Llama, Tensor]:
    torch.manual_seed(0)
    model = Llama(CONFIG).eval().double()
    return model, torch.randint(1, 50, (2, 45))


def small(**options) -> QuantizedKVCache:
    return QuantizedKVCache(CONFIG, **({"group": 8, "residual": 12} | options))


def off(**options) -> QuantizedKVCache:
    return small(key_bits=None, value_bits=None, **options)


def in_parts(model: Llama, tokens: Tensor, cache: KVCache, sizes) -> Tensor:
    """Read tokens in chunks of the given sizes through a cache."""
    with torch.no_grad():
        return torch.cat([model(part, cache) for part in tokens.split(sizes, dim=1)], 1)


# ------------------------------------------------------------------ states


@settings(max_examples=30)
@given(
    bits=st.integers(1, 8),
    axis=st.sampled_from(["channel", "token"]),
    group=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 1000),
)
def test_states_equal_the_loop_over_single_groups(bits, axis, group, seed):
    x = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    packed = pack_states(x, bits, axis=axis, group=group)
    Q = packed.dequantize(torch.float64)
    assert Q.shape == x.shape
    for head in range(3):
        for i in range(8 // group if axis == "channel" else 8):
            for j in range(16 if axis == "channel" else 16 // group):
                rows = slice(group * i, group * i + group) if axis == "channel" else i
                columns = j if axis == "channel" else slice(group * j, group * j + group)
                w = x[1, head, rows, columns]
                low = w.min().half().double()
                step = ((w.max() - w.min()) / (2**bits - 1)).half().double()
                code = torch.round((w - low) / (step if step else 1)).clamp(0, 2**bits - 1)
                assert torch.allclose(Q[1, head, rows, columns], low + step * code, atol=1e-12)


def test_no_number_is_off_by_more_than_half_a_step_and_float16():
    x = torch.randn(1, 2, 32, 16)
    packed = pack_states(x, 4, axis="channel", group=32)
    step = packed.scale.float()[:, :, :, :].amax()
    # Half a step, plus what the float16 grid moves its ends by: 2^-11 of 4 on either side.
    assert (packed.dequantize() - x).abs().max() <= step / 2 + 4 * 2.0**-10


def test_states_that_are_constant_along_a_group_come_back_in_float16():
    x = torch.randn(1, 1, 1, 16).expand(1, 1, 8, 16)
    assert pack_states(x, 2, axis="channel", group=8).dequantize().equal(x.half().float())


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_tokens_may_be_packed_at_once_or_in_parts(axis):
    x = torch.randn(2, 2, 24, 16)
    whole = pack_states(x, 3, axis=axis, group=8)
    parts = [pack_states(part, 3, axis=axis, group=8) for part in x.split(8, dim=2)]
    joined = parts[0].joined(parts[1]).joined(parts[2])
    assert joined.dequantize().equal(whole.dequantize())
    assert joined.tokens == whole.tokens == 24
    assert joined.nbytes == whole.nbytes == 2 * 2 * 24 * 16 * 3 // 8 + 2 * 2 * 24 * 2 * 2 * 2


# ------------------------------------------------------------------ the cache


@pytest.mark.parametrize("sizes", [1, 7, 44, [30, 1, 1, 13]])
def test_without_bits_it_gives_what_the_float_cache_gives(sizes):
    model, tokens = llama()
    expected = in_parts(model, tokens, KVCache(2), sizes)
    assert in_parts(model, tokens, off(), sizes).equal(expected)
    with torch.no_grad():
        prefill = model(tokens)
    assert torch.allclose(expected, prefill, rtol=0, atol=1e-11)
    # Cosines and sines are float32 numbers: turning there and back is off by some 1e-7.
    turned = in_parts(model, tokens, off(before_rope=True), sizes)
    assert torch.allclose(turned, prefill, rtol=0, atol=1e-4)


def test_nothing_is_lost_while_all_tokens_are_recent():
    model, tokens = llama()
    expected = in_parts(model, tokens, KVCache(2), 1)
    assert in_parts(model, tokens, small(residual=45), 1).equal(expected)
    assert not in_parts(model, tokens, small(residual=36), 1).equal(expected)


@pytest.mark.parametrize("residual", [0, 5, 12])
def test_the_latest_tokens_are_floats_and_the_others_are_packed(residual):
    model, tokens = llama()
    cache = small(residual=residual)
    for length, token in enumerate(tokens.split(1, dim=1), 1):
        model(token, cache)
        assert cache.length == length
        keys, values = cache.key_stores[1], cache.value_stores[1]
        assert values.recent.shape[-2] == min(length, residual)
        assert min(length, residual) <= keys.recent.shape[-2] <= residual + 7
        assert (keys.tokens - keys.recent.shape[-2]) % 8 == 0
        assert keys.tokens == values.tokens == length


def test_a_store_returns_old_tokens_as_packed_and_recent_ones_as_they_came():
    x = torch.randn(1, 2, 20, 16)
    store = Store(4, "channel", 8, 3)
    for token in x.split(1, dim=2):
        last = store.append(token)
    packed = pack_states(x[..., :16, :], 4, axis="channel", group=8).dequantize()
    assert last.shape == x.shape
    assert store.all().equal(torch.cat([packed, x[..., 16:, :]], 2))
    assert last.equal(torch.cat([packed, x[..., 16:, :]], 2))


def test_the_tokens_of_a_call_are_met_as_they_are_and_packed_behind_it():
    x = torch.randn(1, 2, 16, 16)
    store = Store(2, "channel", 8, 0)
    assert store.append(x).equal(x)
    assert store.all().equal(pack_states(x, 2, axis="channel", group=8).dequantize())
    again = store.append(x)
    assert again[..., 16:, :].equal(x)
    assert not again[..., :16, :].equal(x)


def test_keys_before_rotation_are_what_the_projection_made():
    model, tokens = llama()
    cache = small(before_rope=True, residual=45)
    with torch.no_grad():
        model(tokens, cache)
        layer = model.blocks()[0]
        x = layer.input_layernorm(model.model.embed_tokens(tokens))
        K = layer.self_attn.heads(layer.self_attn.k_proj(x))
    assert torch.allclose(cache.key_stores[0].all(), K, atol=1e-6)
    plain = small(residual=45)
    with torch.no_grad():
        model(tokens, plain)
    rotated = rotate(K, *cache.rotary(0, 45, K.dtype))
    assert torch.allclose(plain.key_stores[0].all(), rotated, atol=1e-6)


def test_the_bytes_are_those_of_all_tensors():
    model, tokens = llama()
    cache, plain = small(key_bits=2, value_bits=4), KVCache(2)
    for each in (cache, plain):
        in_parts(model, tokens, each, 1)
    heads = 2 * 2  # texts x key heads
    keys, values = 32, 45 - 12  # packed: whole groups beyond the residual, and all beyond it
    packed = heads * (16 * keys * 2 // 8 + 16 * values * 4 // 8)
    grids = heads * (keys // 8 * 16 + values * 2) * 4
    floats = heads * 16 * 8 * (45 - keys + 45 - values)
    assert cache.nbytes == cache_bytes(cache) == 2 * (packed + grids + floats)
    assert cache_bytes(plain) == 2 * heads * 16 * 8 * 2 * 45


def test_generation_takes_a_cache_and_tells_the_same_story_without_bits():
    model, tokens = llama()
    prompt = tokens[:1, :5]
    story = model.generate(prompt, 30)
    cache = off()
    assert model.generate(prompt, 30, cache=cache).equal(story)
    assert cache.length == story.shape[1] - (story.shape[1] == 35)
    with pytest.raises(ValueError, match=r"the cache holds \d+ tokens; pass an empty one"):
        model.generate(prompt, 30, cache=cache)


# ------------------------------------------------------------------ the story model


def losses(name: str, options: dict[str, dict], samples: int = 2) -> dict[str, float]:
    model, tokenizer = load(name)
    tokens = held_out(tokenizer, samples=samples, length=96)
    with torch.no_grad():
        reference = torch.log_softmax(model(tokens)[:, :-1], -1)

    def kl(settings: dict) -> float:
        def make() -> QuantizedKVCache:
            return QuantizedKVCache(model.config, **({"residual": 0} | settings))

        result = evaluate(TokenByToken(model, make), tokens, reference=reference)
        assert result.kl is not None
        return result.kl

    return {key: kl(value) for key, value in options.items()}


def test_with_planted_outliers_keys_need_their_own_scale_a_channel():
    axes = {"channel": {"key_axis": "channel"}, "token": {"key_axis": "token"}}
    planted = losses("storyteller-outlier", axes)
    assert planted["token"] > 10 * planted["channel"]
    plain = losses("storyteller", axes)
    assert 1 < plain["token"] / plain["channel"] < 8  # trained keys have outliers, smaller ones


def test_more_bits_and_a_residual_window_lose_less():
    kl = losses(
        "storyteller",
        {
            "2": {"key_bits": 2, "value_bits": 2},
            "2, recent": {"key_bits": 2, "value_bits": 2, "residual": 48},
            "4": {},
            "off": {"key_bits": None, "value_bits": None},
        },
    )
    assert kl["2"] > 5 * kl["2, recent"] > 0
    assert kl["2"] > 5 * kl["4"] > 0
    assert abs(kl["off"]) < 1e-6


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_bits": 9}, "key_bits is 9; choose 1..8, or None"),
        ({"value_bits": 0}, "value_bits is 0"),
        ({"group": 24}, "group is 24; choose a divisor of head_dim 16"),
        ({"residual": -1}, "residual is -1"),
    ],
)
def test_refuses_what_no_cache_has(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_refuses_states_it_cannot_pack():
    x = torch.zeros(1, 1, 8, 16)
    with pytest.raises(ValueError, match="axis is 'head'"):
        pack_states(x, 4, axis="head", group=8)
    with pytest.raises(ValueError, match="group 3 does not divide 8 tokens"):
        pack_states(x, 4, axis="channel", group=3)
    with pytest.raises(ValueError, match="group 3 does not divide 16 channels of a head"):
        pack_states(x, 4, axis="token", group=3)
    with pytest.raises(ValueError, match="exceed float16"):
        pack_states(x + 1e6, 4, axis="token", group=8)
