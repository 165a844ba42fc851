"""The small Llama, the embedded storyteller, and its twin with planted outliers."""

import json
import shutil

import pytest
import torch

import quantlab as ql
from quantlab.models.families import FAMILIES
from quantlab.models.llama import KVCache, Llama, LlamaConfig, rotary_table, rotate
from quantlab.models.loading import EMBEDDED

TINY = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
)


def tiny(seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    return Llama(TINY).eval()


@pytest.fixture(scope="module")
def storyteller():
    return ql.load("storyteller")


def some_tokens(model, shape=(2, 24), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


def test_rotating_two_vectors_keeps_their_product_a_function_of_the_distance():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 8, generator=generator, dtype=torch.float64)

    def product(i, j):
        cos, sin = rotary_table(torch.tensor([i, j]), 8, 10000.0, torch.float64)
        return (rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum().item()

    # The table's angles are float32, so equality holds to their rounding.
    assert product(3, 1) == pytest.approx(product(12, 10), abs=1e-5)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


@pytest.mark.parametrize("chunks", [[24], [1] * 24, [10, 1, 13]])
def test_a_cache_changes_no_logit(chunks):
    model = tiny()
    tokens = some_tokens(model, (1, 24))
    with torch.no_grad():
        whole, cache = model(tokens), KVCache(TINY.num_hidden_layers)
        parts = torch.cat([model(piece, cache) for piece in tokens.split(chunks, dim=1)], dim=1)
    # Attention sums in another order with a cache: float32 rounding only.
    assert torch.allclose(whole, parts, atol=1e-5)


def test_a_token_never_sees_its_future():
    model = tiny()
    tokens = some_tokens(model, (1, 16))
    changed = tokens.clone()
    changed[0, 10:] = (changed[0, 10:] + 1) % TINY.vocab_size
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :10], model(changed)[:, :10])


def test_generation_is_greedy_at_temperature_zero_and_seeded_above():
    model = tiny()
    prompt = torch.tensor([[5, 9]])
    with torch.no_grad():
        assert model.generate(prompt, 1)[0, -1] == model(prompt)[0, -1].argmax()
    first = model.generate(prompt, 20, temperature=2.0, seed=3)
    assert torch.equal(first, model.generate(prompt, 20, temperature=2.0, seed=3))
    assert not torch.equal(first, model.generate(prompt, 20, temperature=2.0, seed=4))


@pytest.mark.parametrize(
    ("prompt", "new", "match"),
    [
        (torch.zeros(2, 3, dtype=torch.long), 1, r"\(2, 3\)"),
        (torch.zeros(1, 0, dtype=torch.long), 1, "length >= 1"),
        (torch.zeros(1, 500, dtype=torch.long), 20, "at most 12"),
    ],
)
def test_a_bad_prompt_is_named(prompt, new, match):
    with pytest.raises(ValueError, match=match):
        tiny().generate(prompt, new)


def test_the_storyteller_has_the_size_that_the_course_computes_with(storyteller):
    model, tokenizer = storyteller
    assert sum(weight.numel() for weight in model.parameters()) == 3_672_320
    assert len(tokenizer) == 2048
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 8_000_000


def test_text_survives_the_tokenizer(storyteller):
    _, tokenizer = storyteller
    for text in ["Once upon a time", " two  spaces ", "tab\tand\nline", "naïve 你好 🦆", ""]:
        ids = tokenizer.encode(text)
        assert ids[0] == 0
        assert tokenizer.decode(ids) == text


def test_the_storyteller_tells_a_story(storyteller):
    model, tokenizer = storyteller
    prompt = torch.tensor([tokenizer.encode("Once upon a time, there was a little")])
    written = tokenizer.decode(model.generate(prompt, 60))
    words = [word.strip('.,!?"').lower() for word in written.split()]
    assert len(words) > 30
    assert {"the", "was", "and"} <= set(words)


def test_the_training_log_says_how_good_the_model_is():
    log = json.loads((EMBEDDED / "training_log.json").read_text())
    assert log["parameters"] == 3_672_320
    assert log["curve"][-1]["valid_bits_per_byte_512"] <= 0.83


def test_planted_outliers_leave_every_logit_bit_identical(storyteller):
    model, tokenizer = storyteller
    twin, _ = ql.load("storyteller-outlier")
    tokens = ql.test_set(tokenizer, samples=4)
    with torch.no_grad():
        assert torch.equal(model(tokens), twin(tokens))
    plain, planted = (m.model.layers[0].input_layernorm.weight for m in (model, twin))
    ratio = (planted / plain).unique().tolist()
    assert ratio == [1.0, 32.0, 64.0]


def test_planted_outliers_enlarge_the_activations_and_the_keys(storyteller):
    def largest(model):
        seen = {}
        attention = model.model.layers[1].self_attn
        for name in ("q_proj", "k_proj"):
            attention.get_submodule(name).register_forward_hook(
                lambda m, args, y, name=name: seen.update(
                    {name: (args[0].abs().max(), y.abs().max())}
                )
            )
        with torch.no_grad():
            model(ql.test_set(storyteller[1], samples=2))
        return seen

    plain, planted = largest(ql.load("storyteller")[0]), largest(ql.load("storyteller-outlier")[0])
    assert planted["q_proj"][0] > 8 * plain["q_proj"][0]
    assert planted["k_proj"][1] > 2 * plain["k_proj"][1]


def test_transformers_opens_the_same_folder_with_the_same_logits(storyteller):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = storyteller
    theirs = transformers.LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    tokens = ql.test_set(tokenizer, samples=2)
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-4  # the bound


@pytest.mark.parametrize("model_type", [kind for f in FAMILIES for kind in f.model_types])
def test_blocks_of_each_known_architecture_are_found_and_quantized(model_type):
    transformers = pytest.importorskip("transformers")
    if model_type not in transformers.models.auto.configuration_auto.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config = transformers.AutoConfig.for_model(
        model_type,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        ffn_dim=64,
        word_embed_proj_dim=32,
        head_dim=8,
        vocab_size=96,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(2, 96, (4, 16), generator=torch.Generator().manual_seed(0))
    before = ql.log_probabilities(model, tokens)
    report = ql.quantize_(model, ql.GPTQ(), ql.Scheme(bits=8, group_size=16), tokens)
    assert len(report.rows) >= 2 * 4
    assert (ql.log_probabilities(model, tokens) - before).abs().max() < 0.1
    assert any("lm_head" in name or "embed" in name for name in report.left_in_float)


def test_a_model_without_known_blocks_is_refused_with_the_way_out():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ql.UnsupportedModelError, match="blocks='path"):
        ql.quantize_(model, ql.RTN(), ql.Scheme())


def resize(folder, **sizes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | sizes))


def test_an_unknown_name_is_refused_at_once_and_without_the_network(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.delenv("QUANTLAB_ONLINE", raising=False)
    with pytest.raises(ql.UnsupportedModelError, match=r"no folder 'story-w3'.*QUANTLAB_ONLINE=1"):
        ql.load("story-w3")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: resize(d, num_attention_heads=0), "fits no Llama"),
        (lambda d: resize(d, hidden_size="wide"), "fits no Llama"),
        (lambda d: resize(d, hidden_size=128), "has shape"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "cannot read"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 40), "cannot read"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot read"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, spoil, match):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    spoil(folder)
    with pytest.raises(ql.UnsupportedModelError, match=match):
        ql.load(folder)
