"""The preset rules against a literal reading of llama-quantize's table, and its published sizes."""

import itertools

import pytest

from quantlab.gguf.codec import TYPES
from quantlab.gguf.mixes import (
    PRESETS,
    Sizes,
    find_preset,
    fitting_type,
    is_quantized,
    wanted_type,
)

NAMED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# file_type of llama.h; MXFP4's is that of the mixture of experts
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37,
    "MXFP4": 38,
}  # fmt: skip
# Bits per weight of Llama-3.1-8B, from the README of llama-quantize.
PUBLISHED = {
    "IQ4_XS": 4.4597, "IQ4_NL": 4.6818, "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_L": 4.2979,
    "Q4_K_S": 4.6672, "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633,
    "Q8_0": 8.5008, "F16": 16.0005,
}  # fmt: skip


def literal(preset, kind, i, n, heads, kv_heads, imatrix):
    """Give the type of one matrix of a block, row by row as the table reads."""
    g = heads / kv_heads
    more = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
    base = {"Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K"}.get(preset)
    base = base or {"Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"}.get(preset, preset)
    got = base
    if kind == "attn_v":
        if preset == "Q2_K":
            got = "Q4_K" if g >= 4 else "Q3_K"
        if preset == "Q3_K_M":
            got = "Q5_K" if i < 2 else "Q4_K"
        if preset == "Q3_K_L":
            got = "Q5_K"
        if preset == "Q4_K_S" and i < 4:
            got = "Q5_K"
        if preset in ("Q4_K_M", "Q5_K_M") and more:
            got = "Q6_K"
        if preset in ("IQ4_NL", "IQ4_XS") and g >= 4:
            got = "Q5_K"
        if n == 80 and heads > kv_heads and got in ("Q3_K", "Q4_K"):
            got = "Q5_K"
    if kind == "ffn_down":
        if preset in ("Q4_0", "Q5_0") and imatrix and i < n // 8:
            got = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[preset]
        if preset == "Q2_K":
            got = "Q3_K"
        if preset == "Q3_K_M":
            got = "Q5_K" if i < n // 16 else "Q4_K"
        if preset == "Q3_K_L":
            got = "Q5_K"
        if preset == "Q4_K_S" and i < n // 8:
            got = "Q5_K"
        if preset in ("Q4_K_M", "Q5_K_M") and more:
            got = "Q6_K"
        if preset in ("IQ4_NL", "IQ4_XS") and i < n // 8 and not imatrix:
            got = "Q5_K"
    if kind == "attn_output":
        got = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(preset, got)
    return got


@pytest.mark.parametrize("preset", PRESETS)
def test_every_matrix_of_every_layer_gets_the_type_of_the_table(preset):
    rules = PRESETS[preset]
    for n, (heads, kv_heads), imatrix in itertools.product(
        [*range(1, 34), 48, 64, 80], [(8, 8), (8, 4), (9, 3), (8, 2), (6, 1)], (False, True)
    ):
        sizes = Sizes(n, heads, kv_heads, tied=True, imatrix=imatrix)
        for i, kind in itertools.product(range(n), NAMED):
            expected = literal(preset, kind, i, n, heads, kv_heads, imatrix)
            assert wanted_type(f"blk.{i}.{kind}.weight", rules, sizes) == expected, (n, i, kind)


@pytest.mark.parametrize("preset", PRESETS)
def test_head_and_embedding_get_the_types_of_the_table(preset):
    rules = PRESETS[preset]
    plain = preset in ("F32", "F16", "BF16")
    head = preset if plain else "Q8_0" if preset in ("Q8_0", "MXFP4") else "Q6_K"
    special = {"TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "MXFP4": "Q8_0"}
    for tied in (False, True):
        sizes = Sizes(4, 4, 4, tied=tied)
        assert wanted_type("output.weight", rules, sizes) == head
        embedding = head if tied else special.get(preset, rules.base)
        assert wanted_type("token_embd.weight", rules, sizes) == embedding


def test_presets_have_llama_cpps_numbers():
    assert {name: preset.file_type for name, preset in PRESETS.items()} == FILE_TYPES


def llama_8b(preset):
    """Return weights and bits of Llama-3.1-8B under a preset."""
    rules, sizes = PRESETS[preset], Sizes(32, 32, 8, tied=False)
    shapes = {"token_embd.weight": (128256, 4096), "output.weight": (128256, 4096)}
    block = dict.fromkeys(("attn_q", "attn_output"), (4096, 4096))
    block |= dict.fromkeys(("attn_k", "attn_v"), (1024, 4096))
    block |= dict.fromkeys(("ffn_gate", "ffn_up"), (14336, 4096)) | {"ffn_down": (4096, 14336)}
    for i in range(32):
        shapes |= {f"blk.{i}.{kind}.weight": shape for kind, shape in block.items()}
    weights = norms = 65 * 4096
    bits = 32 * norms
    for name, (rows, columns) in shapes.items():
        assert is_quantized(name, (rows, columns))
        kind, reason = fitting_type(wanted_type(name, rules, sizes), columns)
        assert reason == ""
        weights += rows * columns
        bits += rows * columns * TYPES[kind].bits_per_weight()
    return weights, bits


@pytest.mark.parametrize(("preset", "published"), PUBLISHED.items())
def test_llama_3_1_8b_takes_the_bits_that_llama_quantize_publishes(preset, published):
    weights, bits = llama_8b(preset)
    assert weights == 8_030_261_248
    assert bits / weights == pytest.approx(published, abs=1e-4)


FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0",
    "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL",
}  # fmt: skip


@pytest.mark.parametrize("wanted", sorted({preset.base for preset in PRESETS.values()}))
def test_rows_that_do_not_fill_blocks_fall_back_with_a_reason(wanted):
    for columns in range(1, 1025):
        got, reason = fitting_type(wanted, columns)
        assert columns % TYPES[got].size == 0
        if columns % TYPES[wanted].size == 0:
            assert (got, reason) == (wanted, "")
            continue
        assert got == (FALLBACKS.get(wanted, "F16") if columns % 32 == 0 else "F16")
        assert f"rows of {columns} weights" in reason
        assert wanted in reason


def test_norms_biases_and_tables_are_not_quantized():
    for name, shape in [
        ("blk.0.attn_norm.weight", (8, 8)),
        ("output_norm.weight", (8,)),
        ("blk.0.attn_q.bias", (8,)),
        ("rope_freqs.weight", (8,)),
        ("position_embd.weight", (8, 8)),
        ("blk.0.ffn_gate_inp.weight", (8, 8)),
        ("blk.0.attn_q.weight", (2, 2, 2, 2)),
    ]:
        assert not is_quantized(name, shape), name
    assert is_quantized("blk.0.attn_q.weight", (2, 2, 2))


def test_an_unknown_preset_names_the_nearest():
    for wrong, right in [
        ("Q4_KM", "Q4_K_M"),
        ("q4km", "Q4_K_M"),
        ("fp16", "F16"),
        ("Q5_0_", "Q5_0"),
    ]:
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            find_preset(wrong)
    assert find_preset("q4_k_m")[0] == "Q4_K_M"
