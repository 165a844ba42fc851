"""The real llama.cpp in its child process: its answers, and its refusals."""

import sys

import numpy as np
import pytest
import torch

from quantlab.gguf import llama_cpp, llama_cpp_child
from quantlab.gguf.llama_cpp import LlamaCppError
from quantlab.models.families import linears
from quantlab.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=160,
    max_position_embeddings=1024,
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from RoPE's halves to llama.cpp's neighbors."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def tensors(model: Llama):
    """Yield (name, float32 array) of a llama as llama.cpp wants them."""
    decoder = model.model
    yield "token_embd.weight", decoder.embed_tokens.weight
    yield "output_norm.weight", decoder.norm.weight
    for i, block in enumerate(model.blocks()):
        for path, name in NAMES.items():
            weight = block.get_submodule(path).weight
            if name == "attn_q":
                weight = pairs(weight, CONFIG.num_attention_heads)
            if name == "attn_k":
                weight = pairs(weight, CONFIG.num_key_value_heads)
            yield f"blk.{i}.{name}.weight", weight


def write(path, model: Llama, *, vocabulary=None, heads=CONFIG.num_attention_heads, make=None):
    """Write a llama with the reference package, in float32 unless ``make`` is another writer."""
    writer = (make or pytest.importorskip("gguf").GGUFWriter)(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary)
        writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_add_bos_token(True)
    for name, weight in tensors(model):
        writer.add_tensor(name, weight.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def letters() -> list[str]:
    """160 tokens: a begin token, 'ab', and single characters."""
    return ["<s>", "ab", *(chr(33 + i) for i in range(94)), *(chr(0x100 + i) for i in range(64))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Llama(CONFIG)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    for block in model.blocks():
        for linear in linears(block).values():  # the blocks say more than the embedding
            torch.nn.init.normal_(linear.weight, std=0.25)
        # gains of 1 would hide two norms that changed places
        torch.nn.init.uniform_(block.input_layernorm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(block.post_attention_layernorm.weight, 0.5, 1.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    pytest.importorskip("xllamacpp")
    return write(tmp_path_factory.mktemp("llama") / "tiny.gguf", model, vocabulary=letters())


def draw(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, length)


@pytest.mark.parametrize("length", [1, 2, 40, 512, 513, 700])
def test_logits_of_a_float32_file_equal_those_of_pytorch(path, model, length):
    tokens = draw(length)
    ours = model(torch.tensor(tokens)[None])[0].numpy()
    theirs = llama_cpp.logits(path, tokens)
    assert theirs.dtype == np.float32
    # Logits have a standard deviation of 0.8. Sums run in another order, and RoPE's angles, which
    # grow with the position, are rounded to float32 on another way.
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5 * max(1, length / 40))


def test_the_float16_cache_is_less_exact_than_the_float32_one(path, model):
    tokens = draw(40)
    ours = model(torch.tensor(tokens)[None])[0].numpy()
    exact = np.abs(llama_cpp.logits(path, tokens) - ours).max()
    rounded = np.abs(llama_cpp.logits(path, tokens, f32_cache=False) - ours).max()
    assert 20 * exact < rounded < 0.1


def test_generation_continues_as_pytorch_does_and_stops_at_the_end_token(path, model):
    tokens = draw(9)
    expected = model.generate(torch.tensor(tokens)[None], 12)[0, 9:].tolist()
    found = llama_cpp.generate(path, tokens, 12, end=CONFIG.eos_token_id)
    assert found == expected
    assert len(found) == 12
    assert len(set(found)) > 3, "one token again and again would prove little"
    assert llama_cpp.generate(path, tokens, 12, end=found[4]) == found[: found.index(found[4])]
    assert llama_cpp.generate(path, tokens, 0) == []


def test_texts_become_the_ids_of_the_vocabulary(path):
    known = letters()
    texts = ["a", "ab", "cab", "", "<s>"]
    found = llama_cpp.tokenize(path, texts)
    assert [[known[i] for i in row] for row in found] == [
        ["a"],
        ["ab"],
        ["c", "ab"],
        [],
        ["<", "s", ">"],
    ]
    assert llama_cpp.tokenize(path, ["a<s>b"], special=True) == [
        [known.index("a"), 0, known.index("b")]
    ]
    assert llama_cpp.tokenize(path, ["a"], add_bos=True) == [[0, known.index("a")]]


def test_a_file_without_vocabulary_gives_logits(model, tmp_path):
    pytest.importorskip("xllamacpp")
    path = write(tmp_path / "mute.gguf", model)
    assert llama_cpp.logits(path, [1, 2, 3]).shape == (3, CONFIG.vocab_size)
    with pytest.raises(LlamaCppError, match="holds no tokenizer"):
        llama_cpp.tokenize(path, ["a"])


def test_a_refused_file_is_told_with_llama_cpps_reason(path, model, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(
        LlamaCppError, match=r"^llama\.cpp refuses .*short\.gguf: .*not within the file bounds"
    ):
        llama_cpp.logits(short, [1])
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(LlamaCppError, match="invalid magic"):
        llama_cpp.logits(tmp_path / "text.gguf", [1])
    odd = write(tmp_path / "odd.gguf", model, heads=8)
    with pytest.raises(LlamaCppError, match="wrong shape"):
        llama_cpp.logits(odd, [1])


def test_a_file_that_kills_llama_cpp_leaves_us_alive(model, tmp_path):
    pytest.importorskip("xllamacpp")
    twins = ["same"] * 2 + letters()[2:]
    path = write(tmp_path / "twins.gguf", model, vocabulary=twins)
    with pytest.raises(
        LlamaCppError, match=r"was killed by SIGABRT on .*twins\.gguf: src/.* GGML_ASSERT"
    ):
        llama_cpp.tokenize(path, ["a"])


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("os.kill(os.getpid(), 11)", r"was killed by SIGSEGV on .*: last words"),
        ("os._exit(7)", r"ended with exit status 7 on .*: last words"),
    ],
)
def test_a_child_that_dies_in_the_middle_of_its_answer_is_no_answer(
    path, tmp_path, monkeypatch, ending, message
):
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys; print('[3]', flush=True)\n"
        f"print('first\\nlast words', file=sys.stderr, flush=True); {ending}"
    )
    monkeypatch.setattr(llama_cpp, "CHILD", child)
    with pytest.raises(LlamaCppError, match=message):
        llama_cpp.generate(path, [1], 1)


def test_a_hanging_child_is_ended(path):
    with pytest.raises(LlamaCppError, match=r"did not finish logits of .* in 0\.001 s"):
        llama_cpp.logits(path, [1], timeout=0.001)


def test_without_xllamacpp_the_error_says_how_to_get_it(path, monkeypatch):
    assert llama_cpp.available()
    monkeypatch.setattr(llama_cpp, "find_library", lambda: None)
    assert not llama_cpp.available()
    with pytest.raises(LlamaCppError, match="pip install xllamacpp"):
        llama_cpp.logits(path, [1])


def test_the_package_is_looked_for_without_importing_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "xllamacpp"]:
        monkeypatch.delitem(sys.modules, name)
    llama_cpp.available()
    assert "xllamacpp" not in sys.modules


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "one sequence of ids"),
        ([[1, 2]], "one sequence of ids"),
        ([0.5], "one sequence of ids"),
        ([160], r"token id 160 is outside of the vocabulary, 0\.\.159"),
        ([1, -1], "token id -1 is outside"),
    ],
)
def test_tokens_that_are_no_ids_are_refused(path, tokens, reason):
    with pytest.raises(ValueError, match=reason):
        llama_cpp.logits(path, tokens)
    with pytest.raises(ValueError, match=reason):
        llama_cpp.generate(path, tokens, 1)


def test_arguments_are_checked_before_a_child_starts(path, tmp_path):
    with pytest.raises(ValueError, match=r"asked for -1; .* 0 or more"):
        llama_cpp.generate(path, [1], -1)
    with pytest.raises(ValueError, match=r"asked for 0; .* 1 or more"):
        llama_cpp.logits(path, [1], threads=0)
    for texts in ("abc", ["a", 3]):
        with pytest.raises(ValueError, match="pass a list of strings"):
            llama_cpp.tokenize(path, texts)
    with pytest.raises(ValueError, match="surrogates not allowed"):
        llama_cpp.tokenize(path, ["a\ud800"])
    with pytest.raises(ValueError, match="is no file"):
        llama_cpp.logits(tmp_path / "missing.gguf", [1])


@pytest.mark.parametrize("kind", [llama_cpp_child.ModelParams, llama_cpp_child.ContextParams])
def test_a_changed_layout_fails_loudly(kind):
    """Shift every byte by one field: a newer llama.cpp that put one in front."""
    true = kind()
    for name, value in kind.defaults:
        setattr(true, name, value)
    assert llama_cpp_child.checked(true) is true
    shifted = kind.from_buffer_copy((bytes(4) + bytes(true))[: len(bytes(true))])
    with pytest.raises(llama_cpp_child.Refused, match="lays its structures out differently"):
        llama_cpp_child.checked(shifted)


def test_a_field_inserted_anywhere_before_the_cache_types_is_noticed():
    kind = llama_cpp_child.ContextParams
    true = kind()
    for name, value in kind.defaults:
        setattr(true, name, value)
    whole = bytes(true)
    for offset in range(0, kind.type_v.offset + 4, 4):
        moved = whole[:offset] + bytes(4) + whole[offset:-4]
        with pytest.raises(llama_cpp_child.Refused, match="lays its structures out differently"):
            llama_cpp_child.checked(kind.from_buffer_copy(moved))
