"""Rebuild a tokenizer from GGUF metadata, after checking that its parts fit each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quantlab.gguf.cursor import FormatError
from quantlab.gguf.file import GGUFFile
from quantlab.gguf.llama_reading import entry
from quantlab.gguf.vocabulary import (
    BYTE,
    CONTROL,
    GPT2,
    KEY,
    LLAMA3,
    LLAMA3_PATTERN,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER,
    splits,
)

BEGINS = {"default": True, LLAMA3: True, GPT2: False}  # files that do not say add_bos_token


def read_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """Return the tokenizer that a file describes; None if it holds no vocabulary.

    Raises
    ------
    FormatError
        If the vocabulary contradicts itself.
    ValueError
        If it is of a kind that cannot be rebuilt here.
    """
    check_vocabulary(file)
    kind = file.metadata[f"{KEY}model"]
    if kind in ("no_vocab", "none"):
        return None
    if kind == "gpt2":
        tokenizer = read_byte_level(file)
    elif kind == "llama":
        tokenizer = read_sentencepiece(file)
    else:
        raise ValueError(f"{KEY}model is {kind!r}; gpt2 and llama can be rebuilt")
    for token, type in zip(file.metadata[f"{KEY}tokens"], token_types(file), strict=True):
        if type in (UNKNOWN, CONTROL, USER):  # found in text before anything is split
            added = AddedToken(token, special=bool(type != USER), normalized=False)
            tokenizer.add_tokens([added])
    return tokenizer


def check_vocabulary(file: GGUFFile) -> None:
    """Raise a FormatError if the parts of a vocabulary do not fit one another."""
    if entry(file, f"{KEY}model", "str") in ("no_vocab", "none"):
        return
    tokens = entry(file, f"{KEY}tokens", "[str]")
    if len(set(tokens)) < len(tokens):
        [twice, _] = next((a, b) for a, b in pairwise(sorted(tokens)) if a == b)
        raise FormatError(f"token {twice!r} stands twice in the vocabulary; llama.cpp would abort")
    for key, kind in (("scores", "[f32]"), ("token_type", "[i32]")):
        values = entry(file, KEY + key, kind, tokens)
        if len(values) != len(tokens):
            raise FormatError(f"{KEY}{key} has {len(values)} values for {len(tokens)} tokens")
    check_special_ids(file, len(tokens))
    for token, type in zip(tokens, token_types(file), strict=True):
        if type == BYTE and not re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            raise FormatError(f"byte token {token!r} is not of the form <0x0A>")


def check_special_ids(file: GGUFFile, size: int) -> None:
    """Raise a FormatError if a begin, end or other special token is none of ``size`` tokens."""
    for key in file.metadata:
        if key.startswith(KEY) and key.endswith("_token_id"):
            number = entry(file, key, "u32")
            if number >= size:
                raise FormatError(f"{key} is {number}; the vocabulary ends at {size - 1}")


def token_types(file: GGUFFile) -> Sequence[int]:
    """Return the type of every token; files without types mean normal ones."""
    tokens = file.metadata[f"{KEY}tokens"]
    return file.metadata.get(f"{KEY}token_type", [NORMAL] * len(tokens))


def read_byte_level(file: GGUFFile) -> Tokenizer:
    """Rebuild BPE on bytes."""
    tokens = file.metadata[f"{KEY}tokens"]
    name = entry(file, f"{KEY}pre", "str", "default")
    if name not in (GPT2, LLAMA3):
        raise ValueError(f"{KEY}pre is {name!r}; {GPT2} and {LLAMA3} can be rebuilt")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for line in entry(file, f"{KEY}merges", "[str]"):
        left, _, right = line.partition(" ")
        if {left, right, left + right} <= vocabulary.keys():  # others make no token
            merges.append((left, right))
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name == LLAMA3)
    tokenizer = Tokenizer(model)
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == GPT2)
    if name == LLAMA3:
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
        step = pre_tokenizers.Sequence([split, step])
    tokenizer.pre_tokenizer = step  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def read_sentencepiece(file: GGUFFile) -> Tokenizer:
    """Rebuild SentencePiece's BPE: its merges are the cuts of its tokens, the best score first."""
    tokens = file.metadata[f"{KEY}tokens"]
    scores = dict(zip(tokens, entry(file, f"{KEY}scores", "[f32]").tolist(), strict=True))
    merges = sorted(splits(tokens), key=lambda pair: -scores["".join(pair)])
    unknown = entry(file, f"{KEY}unknown_token_id", "u32", 0)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=tokens[unknown], byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    prefix = entry(file, f"{KEY}add_space_prefix", "bool", default=True)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    changes = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    tokenizer.normalizer = changes  # pyright: ignore[reportAttributeAccessIssue]
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*undo, *last])  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer
