"""Tokenizers written to GGUF split text in llama.cpp as they do here, id by id."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from quantlab.gguf import llama_cpp, read, write
from quantlab.gguf.llama import Architecture
from quantlab.gguf.vocabulary import SPACE, no_vocabulary, vocabulary_metadata
from quantlab.gguf.vocabulary_reading import read_tokenizer
from tests.gguf.strings import (
    STRINGS,
    gpt2_tokenizer,
    llama3_tokenizer,
    sentencepiece_tokenizer,
)

KINDS = {
    "gpt2": gpt2_tokenizer,
    "llama 3": llama3_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "sentencepiece without prefix": lambda: sentencepiece_tokenizer(prefix=False),
}
MORE = (*STRINGS, "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "x</s>y", "<0x41>", "[PAD7]")


def write_vocabulary(path, metadata, size):
    sizes = Architecture(1, 32, 1, 1, 32, 32, size, 64, 1e-5)
    write(path, {}, {"general.architecture": "llama"} | sizes.metadata() | metadata)
    return path


def written(tokenizer, path, *, padding=5, **options):
    size = tokenizer.get_vocab_size() + padding
    return write_vocabulary(path, vocabulary_metadata(tokenizer, size, **options), size)


def ids(tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_there_are_enough_strings():
    assert len(STRINGS) == len(set(STRINGS)) >= 50


@pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_llama_cpp_gives_every_text_the_same_ids(make, tmp_path):
    tokenizer = make()
    path = written(tokenizer, tmp_path / "v.gguf", begin=1, end=2, add_begin=True)
    texts = [text for text in MORE if "PAD" not in text]  # llama.cpp knows unused tokens by name
    expected = ids(tokenizer, texts)
    assert llama_cpp.tokenize(path, texts, special=True) == expected
    begun = llama_cpp.tokenize(path, texts, add_bos=True, special=True)
    assert begun == [[1, *row] for row in expected]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_tokenizer_comes_back_from_its_file(make, tmp_path):
    tokenizer = make()
    back = read_tokenizer(read(written(tokenizer, tmp_path / "v.gguf")))
    assert ids(back, MORE) == ids(tokenizer, MORE)
    for row in ids(tokenizer, MORE):
        assert back.decode(row) == tokenizer.decode(row)


@pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")
def test_a_vocabulary_of_bytes_alone_can_be_written(tmp_path):
    tokenizer = gpt2_tokenizer(size=257)
    assert json.loads(tokenizer.to_str())["model"]["merges"] == []
    path = written(tokenizer, tmp_path / "v.gguf")
    assert llama_cpp.tokenize(path, STRINGS) == ids(tokenizer, STRINGS)
    assert ids(read_tokenizer(read(path)), STRINGS) == ids(tokenizer, STRINGS)


def test_types_scores_and_flags_are_what_llama_cpp_reads(tmp_path):
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    file = read(written(tokenizer, tmp_path / "v.gguf", begin=0, end=0, padding=2))
    assert file.types["tokenizer.ggml.token_type"] == "[i32]"
    assert file.metadata["tokenizer.ggml.token_type"][[0, 1, -3, -2, -1]].tolist() == [
        3,
        1,
        4,
        5,
        5,
    ]
    assert file.metadata["tokenizer.ggml.tokens"][-3:] == ["<tool>", "[PAD401]", "[PAD402]"]
    assert file.metadata["tokenizer.ggml.bos_token_id"] == 0
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    file = read(written(sentencepiece_tokenizer(), tmp_path / "v.gguf"))
    assert file.types["tokenizer.ggml.scores"] == "[f32]"
    assert file.metadata["tokenizer.ggml.token_type"][:5].tolist() == [2, 3, 3, 6, 6]
    assert file.metadata["tokenizer.ggml.add_space_prefix"] is True


def changed(tokenizer, **parts):
    """Return a tokenizer whose description has other parts; model.x reaches into the model."""
    description = json.loads(tokenizer.to_str())
    for key, value in parts.items():
        target = description["model"] if key.startswith("model_") else description
        target[key.removeprefix("model_")] = value
    return Tokenizer.from_str(json.dumps(description))


def unigram():
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0, False))


def with_steps(tokenizer, *, normalizer=None, splitter=None):
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if splitter is not None:
        tokenizer.pre_tokenizer = splitter
    return tokenizer


def stripped():
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<x>", lstrip=True)])
    return tokenizer


def named_like_an_unused_one():
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens(["[PAD500]"])
    return tokenizer


def few_merges():
    tokenizer = sentencepiece_tokenizer()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return changed(tokenizer, model_merges=merges[:-1])


def shuffled_merges():
    tokenizer = sentencepiece_tokenizer()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    first = next(m for m in merges if sum("".join(n) == "".join(m) for n in merges) > 1)
    merges.remove(first)
    return changed(tokenizer, model_merges=[*merges, first])


METASPACE = {  # puts no second space before a text that begins with one; llama.cpp does
    "type": "Metaspace",
    "replacement": SPACE,
    "prepend_scheme": "always",
    "split": False,
}
REFUSED = {
    "unigram": (unigram, "Unigram"),
    "word level": (lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "WordLevel"),
    "dropout": (lambda: changed(gpt2_tokenizer(), model_dropout=0.1), "dropout = 0.1"),
    "normalizer": (
        lambda: with_steps(gpt2_tokenizer(), normalizer=normalizers.Lowercase()),
        "changes text first",
    ),
    "whitespace": (
        lambda: with_steps(gpt2_tokenizer(), splitter=Whitespace()),
        "neither as GPT-2 nor as Llama 3",
    ),
    "no pattern": (
        lambda: with_steps(gpt2_tokenizer(), splitter=ByteLevel(False, use_regex=False)),
        "neither as GPT-2",
    ),
    "prefix space": (
        lambda: with_steps(gpt2_tokenizer(), splitter=ByteLevel(True)),
        "neither as GPT-2",
    ),
    "ignored merges": (
        lambda: changed(gpt2_tokenizer(), model_ignore_merges=True),
        "ignore_merges",
    ),
    "needed merges": (
        lambda: changed(llama3_tokenizer(), model_ignore_merges=False),
        "ignore_merges",
    ),
    "missing bytes": (lambda: without_bytes(), "of the 256 bytes have no token"),
    "greedy token": (stripped, "swallows spaces"),
    "a token twice": (named_like_an_unused_one, r"holds '\[PAD500\]' twice"),
    "metaspace": (
        lambda: changed(sentencepiece_tokenizer(), normalizer=None, pre_tokenizer=METASPACE),
        "does not treat spaces",
    ),
    "missing merge": (few_merges, "which SentencePiece would"),
    "scattered merges": (shuffled_merges, "do not follow one another"),
    "no unknown": (lambda: changed(sentencepiece_tokenizer(), model_unk_token=None), "no unknown"),
}


def without_bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["abc"], trainers.BpeTrainer(show_progress=False))
    return tokenizer


@pytest.mark.parametrize(("make", "match"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_that_would_be_quietly_wrong_is_refused(make, match):
    with pytest.raises(ValueError, match=match) as caught:
        vocabulary_metadata(make(), 1000)
    assert "\n" not in str(caught.value)


def test_a_model_with_fewer_rows_than_tokens_is_refused():
    with pytest.raises(ValueError, match="token id 399 has no row"):
        vocabulary_metadata(gpt2_tokenizer(), 399)
    with pytest.raises(ValueError, match=r"bos token 400 is outside of the vocabulary, 0\.\.399"):
        vocabulary_metadata(gpt2_tokenizer(), 400, begin=400)


def test_a_file_without_vocabulary_gives_no_tokenizer(tmp_path):
    path = write_vocabulary(tmp_path / "v.gguf", no_vocabulary(7), 7)
    assert read_tokenizer(read(path)) is None
    assert read(path).metadata["llama.vocab_size"] == 7


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "t5"}, "model is 't5'"),
        ({"pre": "qwen2"}, "pre is 'qwen2'"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_named(changes, match, tmp_path):
    metadata = vocabulary_metadata(gpt2_tokenizer(), 400)
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    path = write_vocabulary(tmp_path / "v.gguf", metadata, 400)
    with pytest.raises(ValueError, match=match):
        read_tokenizer(read(path))


def test_a_file_without_types_and_flags_takes_llama_cpps_defaults(tmp_path):
    metadata = vocabulary_metadata(gpt2_tokenizer(), 400)
    for key in ("token_type", "add_bos_token", "add_eos_token"):
        del metadata[f"tokenizer.ggml.{key}"]
    back = read_tokenizer(read(write_vocabulary(tmp_path / "v.gguf", metadata, 400)))
    assert ids(back, STRINGS) == ids(gpt2_tokenizer(), STRINGS)
