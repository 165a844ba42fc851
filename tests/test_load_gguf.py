"""A model file that contradicts itself is refused in one line, before a model is made of it."""

import numpy as np
import pytest

import quantlab as ql
from quantlab import gguf
from quantlab.export.gguf import export_gguf
from quantlab.export.gguf_load import load_gguf
from quantlab.gguf import FormatError
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama
from tests.gguf import test_llama_cpp as llama_cpp_tests
from tests.gguf.strings import gpt2_tokenizer, sentencepiece_tokenizer
from tests.gguf.tiny import hugging_face, lively, small

TOKENIZER = "tokenizer.ggml."


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return tensors, metadata and types of a good file: heads 4 and 2, GPT-2's kind of tokens."""
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    tokenizer = gpt2_tokenizer()
    model = small(hidden_size=64, intermediate_size=96, vocab_size=tokenizer.get_vocab_size())
    export_gguf(model, path, "Q8_0", tokenizer=tokenizer)
    load_gguf(path)
    file = gguf.read(path, copy=True)
    return dict(file.tensors), file.metadata, file.types


def rewritten(parts, path, metadata=None, tensors=None, types=None):
    """Write a good file with some entries changed, or left out where the change is None."""
    old_tensors, old_metadata, old_types = parts
    merged = [old_tensors | (tensors or {}), old_metadata | (metadata or {})]
    kept = [{key: value for key, value in part.items() if value is not None} for part in merged]
    gguf.write(path, *kept, types=old_types | (types or {}))
    return path


ZEROS = np.zeros((1, 64), np.float32)
METADATA = {
    "no architecture": ({"general.architecture": None}, "lacks general.architecture"),
    "no block count": ({"llama.block_count": None}, "lacks llama.block_count"),
    "no context": ({"llama.context_length": None}, "lacks llama.context_length"),
    "no eps": ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks llama.attention"),
    "no heads": ({"llama.attention.head_count": 0}, "head_count is 0; it must lie in 1"),
    "no key heads": ({"llama.attention.head_count_kv": 0}, "head_count_kv is 0"),
    "three key heads": ({"llama.attention.head_count_kv": 3}, "4 heads cannot share 3"),
    "no layers": ({"llama.block_count": 0}, r"block_count is 0; it must lie in 1\.\.512"),
    "2^31 layers": ({"llama.block_count": 2**31}, "block_count is 2147483648"),
    "513 layers": ({"llama.block_count": 513}, "block_count is 513"),
    "a third layer": ({"llama.block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
    "one layer": ({"llama.block_count": 1}, "tensor blk.1.* is none of a llama of 1 layers"),
    "wide stream": ({"llama.embedding_length": 128}, r"has shape .* the metadata says"),
    "odd heads": ({"llama.attention.key_length": 15}, "heads of 15 numbers cannot be turned"),
    "other value heads": ({"llama.attention.value_length": 8}, "value_length is 8"),
    "half turned": ({"llama.rope.dimension_count": 8}, "dimension_count is 8"),
    "negative eps": ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "must be positive"),
    "nan theta": ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
    "linear, no factor": ({"llama.rope.scaling.type": "linear"}, "lacks llama.rope.scaling.factor"),
    "no tokenizer": ({f"{TOKENIZER}model": None}, "lacks tokenizer.ggml.model"),
    "no tokens": ({f"{TOKENIZER}tokens": None}, "lacks tokenizer.ggml.tokens"),
    "no merges": ({f"{TOKENIZER}merges": None}, "lacks tokenizer.ggml.merges"),
    "begin token out of range": ({f"{TOKENIZER}bos_token_id": 400}, "ends at 399"),
    "any token out of range": ({f"{TOKENIZER}padding_token_id": 2**32 - 1}, "padding_token_id is"),
}
TYPES = {
    "architecture a number": (
        {"general.architecture": 7},
        "u32",
        "stored as u32; llama.cpp reads str",
    ),
    "u64 for u32": ({"llama.block_count": 2}, "u64", "stored as u64; llama.cpp reads u32"),
    "i32 for u32": ({f"{TOKENIZER}bos_token_id": 0}, "i32", "stored as i32"),
    "f64 for f32": ({"llama.rope.freq_base": 1e4}, "f64", "stored as f64; llama.cpp reads f32"),
    "heads per layer": ({"llama.attention.head_count": [4, 4]}, "[u32]", r"stored as \[u32\]"),
    "tokens numbers": ({f"{TOKENIZER}tokens": [1, 2]}, "[i32]", r"reads \[str\]"),
    "tokens one number": ({f"{TOKENIZER}tokens": 3}, "u32", r"reads \[str\]"),
    "model a number": ({f"{TOKENIZER}model": 3}, "u32", "reads str"),
    "flag a number": ({f"{TOKENIZER}add_bos_token": 1}, "u32", "reads bool"),
}


def check_refused(path, error, match):
    with pytest.raises(error, match=match) as caught:
        load_gguf(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "match"), METADATA.values(), ids=METADATA)
def test_wrong_metadata_is_refused(changes, match, parts, tmp_path):
    check_refused(rewritten(parts, tmp_path / "m.gguf", changes), FormatError, match)


@pytest.mark.parametrize(("changes", "kind", "match"), TYPES.values(), ids=TYPES)
def test_metadata_of_a_wrong_type_is_refused(changes, kind, match, parts, tmp_path):
    path = rewritten(parts, tmp_path / "m.gguf", changes, types=dict.fromkeys(changes, kind))
    check_refused(path, FormatError, match)


def test_tokens_must_fit_each_other(parts, tmp_path):
    tokens = parts[1][f"{TOKENIZER}tokens"]
    for changes, match in [
        ({"tokens": [*tokens[:-1], tokens[5]]}, "stands twice in the vocabulary"),
        ({"token_type": np.ones(399, np.int32)}, "token_type has 399 values for 400 tokens"),
        ({"scores": np.ones(3, np.float32)}, "scores has 3 values for 400 tokens"),
        ({"tokens": tokens[:-1], "token_type": None}, "has shape .* the metadata says"),
        ({"tokens": []}, "token_type has 400 values for 0 tokens"),
        ({"token_type": np.full(400, 6, np.int32)}, "is not of the form <0x0A>"),
    ]:
        changes = {TOKENIZER + key: value for key, value in changes.items()}
        check_refused(rewritten(parts, tmp_path / "m.gguf", changes), FormatError, match)


def test_a_byte_token_is_exactly_two_hex_digits(tmp_path):
    tokenizer = sentencepiece_tokenizer()
    model = small(hidden_size=64, intermediate_size=96, vocab_size=tokenizer.get_vocab_size())
    export_gguf(model, tmp_path / "m.gguf", "Q8_0", tokenizer=tokenizer)
    file = gguf.read(tmp_path / "m.gguf", copy=True)
    tokens = file.metadata[f"{TOKENIZER}tokens"]
    for bad in ("<0x-1>", "<0x100>", "<0x0G>", "0x41", "<0x41>x", "<0x4>"):
        changed = [bad if token == "<0x41>" else token for token in tokens]
        parts = dict(file.tensors), file.metadata, file.types
        path = rewritten(parts, tmp_path / "n.gguf", {f"{TOKENIZER}tokens": changed})
        check_refused(path, FormatError, f"byte token '{bad}'")


def test_special_ids_of_a_file_without_vocabulary_are_checked(tmp_path):
    export_gguf(small(), tmp_path / "m.gguf", "F16")
    file = gguf.read(tmp_path / "m.gguf", copy=True)
    parts = dict(file.tensors), file.metadata, file.types
    key = f"{TOKENIZER}eos_token_id"
    for value, kind, match in [
        (160, "u32", "is 160; the vocabulary ends at 159"),
        ("x", "str", "u32"),
    ]:
        path = rewritten(parts, tmp_path / "n.gguf", {key: value}, types={key: kind})
        check_refused(path, FormatError, match)


TENSORS = {
    "missing": ({"output_norm.weight": None}, "output_norm.weight is missing"),
    "no embedding": ({"token_embd.weight": None}, "token_embd.weight is missing"),
    "misshapen": ({"blk.0.attn_k.weight": ZEROS}, r"has shape \(1, 64\); .* says \(32, 64\)"),
    "unknown": ({"blk.0.extra.weight": ZEROS}, "blk.0.extra.weight is none of a llama"),
    "a layer too many": ({"blk.2.attn_q.weight": ZEROS}, "blk.2.attn_q.weight is none"),
    "a misshapen bias": ({"blk.0.attn_k.bias": ZEROS}, "blk.0.attn_k.bias has shape"),
    "divisors of a wrong length": ({"rope_freqs.weight": np.ones(7, np.float32)}, "must be F32"),
    "divisors of zero": ({"rope_freqs.weight": np.zeros(8, np.float32)}, "divisors are positive"),
    "nan": ({"output_norm.weight": np.full(64, np.nan, np.float32)}, "output_norm.weight holds"),
}


@pytest.mark.parametrize(("changes", "match"), TENSORS.values(), ids=TENSORS)
def test_wrong_tensors_are_refused(changes, match, parts, tmp_path):
    check_refused(rewritten(parts, tmp_path / "m.gguf", tensors=changes), FormatError, match)


UNSUPPORTED = {
    "another architecture": ({"general.architecture": "qwen2"}, {}, "'qwen2'; only 'llama'"),
    "experts": ({"llama.expert_count": 8}, {}, "mixture of experts"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, {}, "'yarn' cannot be opened"),
    "unknown split": ({f"{TOKENIZER}pre": "qwen2"}, {}, "pre is 'qwen2'"),
    "some biases": (
        {},
        {"blk.0.attn_k.bias": np.zeros(32, np.float32)},
        "attn_k.bias is there",
    ),
    "unknown scaling": ({}, {"rope_freqs.weight": np.arange(1, 9, dtype="f4")}, "not Llama 3's"),
}


@pytest.mark.parametrize(("changes", "tensors", "match"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_opened_is_named(changes, tensors, match, parts, tmp_path):
    path = rewritten(parts, tmp_path / "m.gguf", changes, tensors)
    check_refused(path, UnsupportedModelError, match)


def test_a_file_that_says_little_takes_llama_cpps_defaults(parts, tmp_path):
    unsaid = (
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "vocab_size",
    )
    changes = {f"llama.{key}": None for key in unsaid}
    model, _ = load_gguf(rewritten(parts, tmp_path / "m.gguf", changes))
    assert model.config.rope_theta == 10000.0
    assert model.config.head_dim == 16
    assert model.config.vocab_size == 400


def test_the_small_llama_opens_where_it_can(tmp_path):
    for model, ours in [
        (small(), True),
        (hugging_face(tie_word_embeddings=True), True),
        (hugging_face(), False),
        (hugging_face(tie_word_embeddings=True, mlp_bias=True), False),
        (hugging_face(tie_word_embeddings=True, head_dim=96), False),
    ]:
        export_gguf(model, tmp_path / "m.gguf", "F16")
        back, _ = load_gguf(tmp_path / "m.gguf")
        assert isinstance(back, Llama) == ours
        assert not back.training


def test_numbers_of_the_config_come_back_as_they_were_written(tmp_path):
    model = small(rope_theta=123456.7, rms_norm_eps=1e-6, bos_token_id=3, eos_token_id=5)
    export_gguf(model, tmp_path / "m.gguf", "F16")
    assert load_gguf(tmp_path / "m.gguf")[0].config == model.config


@pytest.mark.parametrize("type", ["F32", "Q4_1", "Q8_0"])
def test_a_file_that_the_reference_package_wrote_opens_as_its_model(type, tmp_path):
    package = pytest.importorskip("gguf")
    model = lively(Llama(llama_cpp_tests.CONFIG))
    kind = package.GGMLQuantizationType[type]

    class Writer(package.GGUFWriter):
        def add_tensor(self, name, tensor):
            blocks = package.quants.quantize(tensor, kind) if tensor.ndim == 2 else tensor
            super().add_tensor(name, blocks, raw_dtype=kind if tensor.ndim == 2 else None)

    path = llama_cpp_tests.write(tmp_path / "m.gguf", model, make=Writer)
    back, tokenizer = load_gguf(path)
    assert tokenizer is None
    assert isinstance(back, Llama)
    for name, weight in model.named_parameters():
        expected = weight.detach().numpy()
        if weight.ndim == 2:
            expected = package.quants.dequantize(package.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(back.get_parameter(name).detach().numpy(), expected)


def test_load_opens_a_gguf_path_with_its_tokenizer(tmp_path):
    model, tokenizer = ql.load("storyteller")
    export_gguf(model, tmp_path / "story.gguf", "F16", tokenizer=tokenizer)
    back, again = ql.load(tmp_path / "story.gguf")
    assert again.encode("Once upon a time") == tokenizer.encode("Once upon a time")
    assert back.config == model.config
    export_gguf(model, tmp_path / "ids.gguf", "F16")
    with pytest.raises(UnsupportedModelError, match="has no tokenizer; open it"):
        ql.load(tmp_path / "ids.gguf")
