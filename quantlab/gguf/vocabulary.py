"""A tokenizer as GGUF metadata: byte-level BPE, and SentencePiece's BPE.

A file says little about how text is split before merging: a name ("gpt-2", "llama-bpe") stands for
a pattern that llama.cpp has built in. A tokenizer that none of them describes exactly would load
and be quietly wrong, so it is refused here, with the reason.

References
----------
ggml-org/llama.cpp, ``src/llama-vocab.cpp``; issue 7476 (perplexity 15.5 for 6.2, by a wrong name).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # token types
SPACE = "\u2581"  # how SentencePiece writes a space
GPT2, LLAMA3 = "gpt-2", "llama-bpe"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PLAIN = {"dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}


def no_vocabulary(size: int) -> dict[str, Any]:
    """Return the metadata of a model that is given ids instead of text."""
    return {f"{KEY}model": "no_vocab", "llama.vocab_size": size}


def vocabulary_metadata(
    tokenizer: Tokenizer,
    size: int,
    *,
    begin: int | None = None,
    end: int | None = None,
    add_begin: bool = False,
) -> dict[str, Any]:
    """Return the metadata that makes llama.cpp split text into the same ids.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        BPE on bytes with the pattern of GPT-2 or Llama 3, or SentencePiece's BPE.
    size : int
        Rows of the model's embedding; unused tokens fill up what the tokenizer lacks.
    begin, end : int, or None
        Ids of the tokens that open and close a text.
    add_begin : bool
        llama.cpp puts ``begin`` before every text.

    Raises
    ------
    ValueError
        If llama.cpp would split some text differently; the message says why.
    """
    description = json.loads(tokenizer.to_str())
    model = description["model"]
    if model["type"] == "Unigram":
        raise refusal("a Unigram model weighs whole sentences, and llama.cpp would merge pairs")
    if model["type"] != "BPE":
        raise refusal(f"its model is {model['type']}; only BPE can be written")
    for key, plain in PLAIN.items():
        if (model.get(key) or plain) != plain:
            raise refusal(f"its BPE has {key} = {model[key]!r}")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokens, types = list_tokens(description, size)
    if model.get("byte_fallback"):
        found = sentencepiece_metadata(description, tokens, types, merges)
    else:
        found = byte_level_metadata(description, tokens, merges)
    found |= {"tokens": tokens, "token_type": np.array(types, np.int32)}
    for name, token in (("bos", begin), ("eos", end)):
        if token is not None:
            if not 0 <= token < size:
                raise ValueError(
                    f"{name} token {token} is outside of the vocabulary, 0..{size - 1}"
                )
            found[f"{name}_token_id"] = token
    found |= {"add_bos_token": add_begin, "add_eos_token": False}
    return {KEY + key: value for key, value in found.items()}


def refusal(reason: str) -> ValueError:
    """Return the error for a tokenizer that cannot be written."""
    return ValueError(
        f"this tokenizer cannot be written to GGUF: {reason}; export without tokenizer= and give "
        "llama.cpp ids"
    )


def list_tokens(description: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return every token in the order of ids, and its type."""
    by_id = {number: text for text, number in description["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, NORMAL)
    for token in description["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise refusal(f"its token {token['content']!r} swallows spaces or needs to stand alone")
        by_id[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER
    if max(by_id, default=-1) >= size:
        raise ValueError(
            f"token id {max(by_id)} has no row in the model's embedding of {size} rows"
        )
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    if len(set(tokens)) < size:
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise refusal(f"it holds {twice!r} twice")
    return tokens, [types.get(number, UNUSED) for number in range(size)]


# ---------------------------------------------------------------- byte-level BPE


def byte_level_metadata(
    description: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """Return what is special to BPE on bytes: the pattern's name and the merges."""
    if description["normalizer"] is not None:
        raise refusal(f"it changes text first ({description['normalizer']['type']})")
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens)
    if missing:
        raise refusal(f"{len(missing)} of the 256 bytes have no token, such as {min(missing)!r}")
    name = pattern_name(description["pre_tokenizer"])
    if bool(description["model"].get("ignore_merges")) != (name == LLAMA3):
        raise refusal(
            f"ignore_merges is {name != LLAMA3}, and llama.cpp's {name!r} works the other way"
        )
    lines = [" ".join(merge) for merge in merges]
    first, second = tokens[:2]  # llama.cpp demands a merge, and this one makes no known token
    return {"model": "gpt2", "pre": name, "merges": lines or [f"{first} {second}"]}


def pattern_name(splitter: Mapping[str, Any] | None) -> str:
    """Return llama.cpp's name of the pattern that splits text before merging."""
    if splitter == byte_level(use_regex=True):
        return GPT2
    parts = (splitter or {}).get("pretokenizers", [])
    if len(parts) == 2 and parts[1] == byte_level(use_regex=False):
        split = parts[0]
        if (split.get("pattern") or {}).get("Regex") == LLAMA3_PATTERN and (
            split["behavior"] == "Isolated" and not split["invert"]
        ):
            return LLAMA3
    raise refusal("it splits text neither as GPT-2 nor as Llama 3 does")


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """Return the description of a byte-level step; where offsets are trimmed changes no id."""
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel"} | flags


# ---------------------------------------------------------------- SentencePiece BPE


def sentencepiece_metadata(
    description: Mapping[str, Any],
    tokens: Sequence[str],
    types: list[int],
    merges: Sequence[tuple[str, ...]],
) -> dict[str, Any]:
    """Return what is special to SentencePiece, its scores above all; mark its types in ``types``.

    llama.cpp knows no merges here: it joins the neighbors whose joint token has the best score.
    """
    missing = set(BYTE_TOKENS) - set(tokens)
    if missing:
        raise refusal(f"{len(missing)} of the 256 byte tokens are missing, such as {min(missing)}")
    unknown = description["model"].get("unk_token")
    if unknown is None:
        raise refusal("it has no unknown token")
    prefix = prefixes_space(description)
    check_merges(tokens, merges)
    order = {token: rank for rank, (token, _) in enumerate(groupby(merges, "".join))}
    for number, token in enumerate(tokens):
        if token in BYTE_TOKENS:
            types[number] = BYTE
        elif token == unknown:
            types[number] = UNKNOWN
    scores = [-float(order.get(token, 0)) for token in tokens]
    return {
        "model": "llama",
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "unknown_token_id": tokens.index(unknown),
        "add_space_prefix": prefix,
    }


def prefixes_space(description: Mapping[str, Any]) -> bool:
    """Tell whether a space is put before the text; refuse what does anything else to spaces."""
    normalizer, splitter = description["normalizer"] or {}, description["pre_tokenizer"]
    steps = normalizer.get("normalizers", [normalizer])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if splitter is None and steps in ([{"type": "Prepend", "prepend": SPACE}, replace], [replace]):
        return len(steps) == 2
    raise refusal("it does not treat spaces as SentencePiece's BPE of Llama 2 does")


def check_merges(tokens: Iterable[str], merges: Sequence[tuple[str, ...]]) -> None:
    """Refuse merges that no score for each token can describe."""
    results = [token for token, _ in groupby(merges, "".join)]
    if len(set(results)) < len(results):
        raise refusal("the merges into one token do not follow one another, as scores demand")
    absent = set(splits(tokens)) - set(merges)
    if absent:
        left, right = min(absent)
        raise refusal(f"it does not merge {left!r} and {right!r}, which SentencePiece would")


def splits(tokens: Iterable[str]) -> list[tuple[str, str]]:
    """Return every way to cut a token into two tokens.

    Examples
    --------
    >>> splits(["a", "b", "ab", "aba", "ba"])
    [('a', 'b'), ('a', 'ba'), ('ab', 'a'), ('b', 'a')]
    """
    known = dict.fromkeys(tokens)
    return [
        (token[:cut], token[cut:])
        for token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
