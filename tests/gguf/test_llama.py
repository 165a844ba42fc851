"""Names, the order of rotary rows, and Llama 3's divisors, against loops that are plainly right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlab.gguf.llama import (
    Architecture,
    gguf_name,
    llama3_divisors,
    model_name,
    to_halves,
    to_pairs,
)
from quantlab.models.llama import rotary_table, rotate
from tests.gguf.tiny import hugging_face, small

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.11.self_attn.q_proj.weight": "blk.11.attn_q.weight",
    "model.layers.1.self_attn.k_proj.bias": "blk.1.attn_k.bias",
    "model.layers.2.self_attn.v_proj.weight": "blk.2.attn_v.weight",
    "model.layers.3.self_attn.o_proj.weight": "blk.3.attn_output.weight",
    "model.layers.4.post_attention_layernorm.weight": "blk.4.ffn_norm.weight",
    "model.layers.5.mlp.gate_proj.weight": "blk.5.ffn_gate.weight",
    "model.layers.6.mlp.up_proj.weight": "blk.6.ffn_up.weight",
    "model.layers.77.mlp.down_proj.bias": "blk.77.ffn_down.bias",
}
heads_and_halves = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize(("ours", "theirs"), NAMES.items())
def test_names_go_there_and_back(ours, theirs):
    assert gguf_name(ours) == theirs
    assert model_name(theirs) == ours


def test_other_names_have_no_counterpart():
    for name in ("model.layers.0.mlp.router.weight", "transformer.h.0.attn.weight", "x", ""):
        assert gguf_name(name) is None
    for name in ("blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.attn_q.weight", "x"):
        assert model_name(name) is None


def test_every_parameter_of_a_llama_has_a_name_and_a_shape():
    model = small()
    found = {gguf_name(name): tuple(w.shape) for name, w in model.named_parameters()}
    sizes = Architecture(2, 256, 4, 2, 64, 512, 160, 128, 1e-5)
    assert found == sizes.shapes()


@given(heads_and_halves)
def test_rows_change_places_as_a_slow_loop_says(sizes):
    heads, half = sizes
    rows = np.arange(heads * 2 * half * 3).reshape(-1, 3)
    expected = np.empty_like(rows)
    for head in range(heads):
        for i in range(half):
            start = head * 2 * half
            expected[start + 2 * i] = rows[start + i]  # pair i: 2i and 2i + 1 there,
            expected[start + 2 * i + 1] = rows[start + i + half]  # i and i + d/2 here
    assert np.array_equal(to_pairs(rows, heads), expected)
    assert np.array_equal(to_halves(expected, heads), rows)
    assert np.array_equal(to_pairs(rows[:, 0], heads), expected[:, 0])  # a bias
    assert torch.from_numpy(expected).equal(to_pairs(torch.from_numpy(rows), heads))


def test_turning_neighbors_after_the_change_equals_turning_halves_before():
    """Rotate q both ways by hand: the scores of attention may not care which."""
    heads, size, positions = 3, 8, 5
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(positions, heads * size, generator=generator)
    cos, sin = rotary_table(torch.arange(positions), size, 10000.0)
    halves = rotate(q.unflatten(-1, (heads, size)).transpose(0, 1), cos, sin)
    neighbors = to_pairs(q.T, heads).T.unflatten(-1, (heads, size)).transpose(0, 1).clone()
    for position in range(positions):
        for i in range(size // 2):
            angle = position * 10000.0 ** (-2 * i / size)
            a, b = neighbors[:, position, 2 * i].clone(), neighbors[:, position, 2 * i + 1].clone()
            neighbors[:, position, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            neighbors[:, position, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    turned = to_pairs(halves.transpose(1, 2).reshape(heads * size, positions), heads)
    assert torch.allclose(turned, neighbors.transpose(1, 2).reshape(turned.shape), atol=1e-5)


@pytest.mark.parametrize("original", [32, 64, 8192])
def test_divisors_are_those_of_transformers(original):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = scaling | {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "original_max_position_embeddings": original,
    }
    model = hugging_face(rope_parameters=rope)
    plain = 5e5 ** (-np.arange(0, 64, 2) / 64)
    divisors = np.array(llama3_divisors(5e5, 64, original, scaling))
    assert np.allclose(plain / divisors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert divisors.max() == 8
    assert divisors.min() == 1
