"""A rotated model is the same function, block by block, and a quantized one loses less."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quantlab as ql
import quantlab.rotate as module_under_test
from quantlab.hadamard import hadamard_matrix
from quantlab.methods.rotation import OnlineHadamard, mix, reading_heads, writing, writing_heads
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.orthogonal import KINDS, rotation_matrix
from quantlab.rotate import Rotations, rotate_
from quantlab.scheme import Scheme

# Products of some hundred float64 numbers of size 1, in another order.
EXACT = {"atol": 1e-10, "rtol": 0}


def tiny(heads=4, kv_heads=2, *, inner=24, hidden=48, seed=0):
    """Return a random Llama with gains far from 1, and tokens, in float64."""
    generator = torch.Generator().manual_seed(seed)
    config = LlamaConfig(hidden, 2, heads, kv_heads, inner, 40)
    model = Llama(config).double().eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(4 * torch.rand(weight.shape, generator=generator) + 0.2)
        else:
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return model, torch.randint(40, (2, 9), generator=generator)


def outputs(model, tokens, *paths):
    """Return what the modules at these paths put out."""
    seen = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: seen.__setitem__(path, output)
        )
        for path in paths
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize("name", ["storyteller", "storyteller-outlier"])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_storyteller_keeps_its_logits(name, kind, online):
    model, tokenizer = ql.load(name)
    model.double()
    tokens = ql.test_set(tokenizer, samples=2, length=64)
    with torch.no_grad():
        before = model(tokens)
        rotate_(model, kind, online=online, seed=3)
        assert torch.allclose(model(tokens), before, **EXACT)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (2, 1), (1, 1)])
@given(seed=st.integers(0, 99), kind=st.sampled_from(KINDS), online=st.booleans())
def test_any_small_llama_keeps_its_logits(heads, kv_heads, seed, kind, online):
    model, tokens = tiny(heads, kv_heads, seed=seed)
    before = model(tokens)
    rotate_(model, kind, online=online, seed=seed)
    assert torch.allclose(model(tokens), before, **EXACT)


def test_the_stream_the_values_and_the_inner_activations_are_turned_as_told():
    model, tokens = tiny()
    turned = copy.deepcopy(model)
    rotations = rotate_(turned)
    R, R2 = rotations.residual, rotations.heads[1]
    block = "model.layers.1"
    before = outputs(model, tokens, block, f"{block}.self_attn.v_proj", f"{block}.mlp.up_proj")
    after = outputs(turned, tokens, block, f"{block}.self_attn.v_proj", f"{block}.mlp.up_proj")
    assert torch.allclose(after[0], before[0] @ R, **EXACT)
    heads = before[1].unflatten(-1, (2, 12)) @ R2
    assert torch.allclose(after[1], heads.flatten(-2), **EXACT)
    assert torch.allclose(after[2], before[2], **EXACT)  # no turn through SiLU
    assert not torch.allclose(after[0], before[0], atol=0.1)


def test_o_and_down_see_hadamard_transformed_inputs():
    model, tokens = tiny()
    turned = copy.deepcopy(model)
    R2 = rotate_(turned).heads[0]
    inputs = {}
    for name, one in (("before", model), ("after", turned)):
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            layer = one.get_submodule(f"model.layers.0.{path}")
            layer = layer.linear if isinstance(layer, OnlineHadamard) else layer
            layer.register_forward_pre_hook(
                lambda _, args, key=(name, path): inputs.__setitem__(key, args[0])
            )
        one(tokens)
    H = hadamard_matrix(24) / 24**0.5
    down = inputs["before", "mlp.down_proj"] @ H.T
    assert torch.allclose(inputs["after", "mlp.down_proj"], down, **EXACT)
    values = inputs["before", "self_attn.o_proj"].unflatten(-1, (4, 12)) @ R2
    mixed = torch.kron(hadamard_matrix(4) / 2, torch.eye(12).double())
    out = values.flatten(-2) @ mixed.T
    assert torch.allclose(inputs["after", "self_attn.o_proj"], out, **EXACT)


def test_norms_lose_their_gains_and_the_tied_head_takes_the_last_one():
    model, _ = tiny()
    embedding, gain = model.model.embed_tokens.weight.clone(), model.model.norm.weight.clone()
    R = rotate_(model).residual
    norms = [m.weight for n, m in model.named_modules() if n.endswith("norm")]
    assert len(norms) == 5
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in norms)
    assert torch.allclose(model.model.embed_tokens.weight, embedding @ R, **EXACT)
    assert torch.allclose(model.lm_head.weight, (embedding * gain) @ R, **EXACT)


def test_without_folding_the_gains_the_logits_would_change():
    # The gains taken out of the weights again, and put back into their norms.
    model, tokens = tiny()
    before, wrong = model(tokens), copy.deepcopy(model)
    R = rotate_(model, online=False).residual
    for ours, original in zip(model.blocks(), wrong.blocks(), strict=True):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            gain = original.get_submodule(norm).weight
            for path in module_under_test.READERS[norm]:
                weight = ours.get_submodule(path).weight
                weight.copy_(weight @ R.T / gain @ R)
            ours.get_submodule(norm).weight.copy_(gain)
    assert (model(tokens) - before).abs().max() > 1


def test_generation_with_a_cache_says_the_same_after_a_rotation():
    model, tokenizer = ql.load("storyteller")
    prompt = torch.tensor([tokenizer.encode("Once upon a time")])
    before = model.generate(prompt, 20)
    rotate_(model)
    assert torch.equal(model.generate(prompt, 20), before)


def test_the_model_keeps_its_dtype_and_float32_differs_by_rounding_only():
    model, tokens = tiny()
    model.float()
    before = model(tokens)
    rotate_(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (model(tokens) - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral"])
@pytest.mark.parametrize("tied", [True, False])
def test_models_of_transformers_keep_their_logits_biases_included(name, tied):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=40, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16 if name == "Qwen3" else 12,
        tie_word_embeddings=tied, max_position_embeddings=32,
        **({"attention_bias": True, "mlp_bias": True} if name == "Llama" else {}),
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(config).double().eval()
    model.requires_grad_(False)
    for path, weight in model.named_parameters():
        weight.copy_(torch.rand_like(weight) + 0.5 if "norm" in path else torch.randn_like(weight))
    tokens = torch.randint(40, (2, 8))
    before = model(tokens).logits
    rotate_(model, online=name != "Llama")
    # Their norms compute in float32 whatever the model's dtype is.
    assert (model(tokens).logits - before).abs().max() < 1e-4 * before.abs().max()
    assert not model.config.tie_word_embeddings


# ---------------------------------------------------------------- pieces


@given(st.sampled_from([(1, 4), (4, 1), (2, 6), (12, 2)]), st.integers(0, 2**20))
def test_mixing_is_a_hadamard_matrix_times_an_identity(shape, seed):
    pieces, width = shape
    x = torch.randn(3, pieces * width, generator=torch.Generator().manual_seed(seed)).double()
    H = torch.kron(hadamard_matrix(pieces) / pieces**0.5, torch.eye(width).double())
    assert torch.allclose(mix(x, width), x @ H.T, atol=1e-12)


def test_an_online_layer_with_a_mixed_weight_is_the_layer_itself():
    layer = nn.Linear(24, 5, dtype=torch.float64)
    x = torch.randn(7, 24, dtype=torch.float64)
    expected = layer(x)
    layer.weight.data = mix(layer.weight.data, 2)
    assert torch.allclose(OnlineHadamard(layer, 2)(x), expected, atol=1e-12)
    with pytest.raises(ValueError, match="order 3 is known here"):
        OnlineHadamard(nn.Linear(6, 2), 2)


def test_heads_turned_by_the_writer_are_turned_back_by_the_reader():
    R = rotation_matrix(4, "random")
    V, O = torch.randn(2, 12, 12, dtype=torch.float64)  # noqa: E741
    assert torch.allclose(reading_heads(O, R) @ writing_heads(V, R), O @ V, atol=1e-12)
    bias = torch.randn(12, dtype=torch.float64)
    assert torch.allclose(writing_heads(bias, R), writing_heads(bias[:, None], R)[:, 0])
    R = rotation_matrix(12, "random")
    assert torch.allclose(writing(bias, R), writing(bias[:, None], R)[:, 0])


# ---------------------------------------------------------------- afterwards


def test_every_linear_can_be_quantized_afterwards_with_gptq_and_awq():
    for method in (ql.GPTQ(), ql.AWQ()):
        model, tokens = tiny()
        before = model(tokens)
        rotate_(model)
        report = ql.quantize_(model, method, Scheme(8), tokens)
        assert len(report.rows) == 14
        assert {row.name for row in report.rows} >= {"model.layers.0.mlp.down_proj.linear"}
        assert (model(tokens) - before).std() < 0.1 * before.std()


def test_a_rotated_model_without_online_transforms_can_be_written_as_gguf(tmp_path):
    model, tokenizer = ql.load("storyteller")
    tokens = ql.test_set(tokenizer, samples=1, length=32)
    with torch.no_grad():
        before = model(tokens)
        rotate_(model, online=False)
        ql.export_gguf(model, tmp_path / "turned.gguf", "F32", tokenizer=tokenizer)
        back, _ = ql.load(tmp_path / "turned.gguf")
        logits = back(tokens)
    logits = logits if isinstance(logits, torch.Tensor) else logits.logits
    assert (logits - before).abs().max() < 1e-3


def test_formats_that_have_no_place_for_a_rotation_refuse(tmp_path):
    model, tokenizer = ql.load("storyteller")
    rotate_(model)
    with pytest.raises(ql.UnsupportedModelError, match="a rotated model has a head of its own"):
        ql.checkpoint.save(model, tokenizer, tmp_path / "out")
    with pytest.raises(ql.UnsupportedModelError, match="o_proj is a OnlineHadamard"):
        ql.export_gguf(model, tmp_path / "out.gguf", "F32")


# ---------------------------------------------------------------- refused, untouched


def refused(model, message, *, error=ValueError, **arguments):
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(error, match=message):
        rotate_(model, **arguments)
    assert state.keys() == model.state_dict().keys()
    assert all(weight.equal(model.state_dict()[name]) for name, weight in state.items())


def test_what_cannot_be_rotated_is_refused_and_stays_as_it_was():
    unsupported = {"error": ql.UnsupportedModelError}
    refused(nn.Linear(4, 4), "Linear cannot be rotated", **unsupported)
    model, _ = tiny()
    model.model.layers[1].input_layernorm = nn.LayerNorm(48)
    refused(model, "layers.1.input_layernorm is a LayerNorm; only RMSNorm", **unsupported)
    model, _ = tiny()
    del model.model.layers[0].mlp.gate_proj
    refused(model, "layers.0.mlp.gate_proj is missing", **unsupported)
    model, _ = tiny()
    ql.quantize_(model, ql.RTN(), Scheme(8))
    refused(model, "no blocks with linears", **unsupported)
    model, _ = tiny()
    rotate_(model)
    refused(model, "self_attn.o_proj is rotated already", **unsupported)
    model, _ = tiny(2, 1, inner=10)
    refused(model, "no Hadamard matrix of order 10")
    rotate_(model, "random", online=False)  # which needs none for the inner width


def test_wrong_rotations_are_refused():
    model, _ = tiny()
    refused(model, "kind is 'quarot'; choose 'hadamard'", kind="quarot")
    refused(model, "kind='spin' learns from text", kind="spin")
    eye = torch.eye(48).double()
    good = Rotations(eye, (torch.eye(12).double(),) * 2, True, "mine")
    refused(model, "off orthogonal by 3", kind=Rotations(2 * eye, good.heads, True, "mine"))
    nan = Rotations(eye * torch.nan, good.heads, True, "mine")
    refused(model, "off orthogonal by nan", kind=nan)
    refused(model, "has width 48 and 2 blocks", kind=Rotations(eye, good.heads[:1], True, "mine"))
    refused(model, "have online=True; pass the same", kind=good, online=False)
    assert rotate_(model, good) is good


# ---------------------------------------------------------------- what it is for


def test_w4a4kv4_of_the_outlier_model_collapses_without_and_survives_with_a_rotation():
    float_model, tokenizer = ql.load("storyteller")
    tokens = ql.test_set(tokenizer, samples=2)
    exact = ql.perplexity(float_model, tokens)
    ratio = {}
    for kind in (None, "identity", "hadamard"):
        model, _ = ql.load("storyteller-outlier")
        if kind:
            rotate_(model, kind, online=kind == "hadamard")
        ql.quantize_(model, ql.RTN(), Scheme(4))
        sim = ql.DynamicSim(
            model,
            activations=Scheme(4),
            cache=Scheme(4, symmetric=False),
            rotate_keys=kind == "hadamard",
        )
        ratio[kind] = ql.perplexity(sim, tokens) / exact
    assert ratio[None] > 100
    assert 1.2 < ratio["identity"] < 2  # folding undoes what was planted in gains, not in keys
    assert ratio["hadamard"] < 1.1
