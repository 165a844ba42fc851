"""What a GGUF file says of its tokenizer and its imatrix, beside the tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import ArrayLike
from tokenizers import Tokenizer as RawTokenizer
from torch import nn

from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.vocabulary import no_vocabulary, vocabulary_metadata

IDS_ONLY = (
    "the file has no tokenizer: llama.cpp can be given ids, but no text; pass tokenizer= to "
    "export_gguf to write it as well"
)
SHOWN = 5  # names of entries in a note


def find_notes(
    imatrix: Mapping[str, ArrayLike] | None, tensors: Collection[str], tokenizer: Any
) -> tuple[str, ...]:
    """Return what the report should say about imatrix and tokenizer; refuse a wrong imatrix.

    An entry without a tensor is noted, not refused: llama.cpp's files may hold ``output.weight``,
    which a model whose head is its embedding does not have.
    """
    notes = []
    if imatrix is not None:
        unknown = check_names(imatrix, tensors)
        if unknown:
            more = "" if len(unknown) <= SHOWN else f" and {len(unknown) - SHOWN} more"
            notes.append(
                f"of no use here, entries of the imatrix: {', '.join(unknown[:SHOWN])}{more}"
            )
    if tokenizer is None:
        notes.append(IDS_ONLY)
    return tuple(notes)


def check_names(imatrix: Mapping[str, ArrayLike], tensors: Collection[str]) -> list[str]:
    """Return the entries that name no tensor; a ValueError if no entry names one."""
    if not isinstance(imatrix, Mapping):
        raise ValueError(
            f"imatrix is a {type(imatrix).__name__}; pass what ql.imatrix gave, or a file's path"
        )
    if not imatrix:
        raise ValueError("the imatrix holds no entry; pass None to export without one")
    unknown = [str(name) for name in imatrix if name not in tensors]
    if len(unknown) == len(imatrix):
        raise ValueError(
            f"the imatrix has no entry for this model; it has {min(unknown)}, and the model "
            f"has {next(iter(tensors))}"
        )
    return sorted(unknown)


def describe_imatrix(imatrix: Mapping[str, ArrayLike] | None) -> dict[str, Any]:
    """Return what the file says about the imatrix that was used, in llama-quantize's words."""
    if imatrix is None:
        return {}
    found: dict[str, Any] = {"entries_count": len(imatrix)}
    if isinstance(imatrix, Imatrix):
        found |= {"chunks_count": imatrix.chunk_count, "dataset": ", ".join(imatrix.datasets)}
    return {f"quantize.imatrix.{key}": value for key, value in found.items() if value != ""}


def describe_tokenizer(tokenizer: Any, model: nn.Module, size: int) -> dict[str, Any]:
    """Return the metadata of a tokenizer in any of three forms, or that there is none."""
    config: Any = model.config
    ids = {key: first(getattr(config, f"{key}_token_id", None)) for key in ("bos", "eos")}
    ids = {key: id for key, id in ids.items() if id is not None and 0 <= id < size}
    if tokenizer is None:
        return no_vocabulary(size) | {
            f"tokenizer.ggml.{key}_token_id": id for key, id in ids.items()
        }
    begin, end = ids.get("bos"), ids.get("eos")
    raw = getattr(tokenizer, "raw", getattr(tokenizer, "backend_tokenizer", tokenizer))
    if not isinstance(raw, RawTokenizer):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}; pass what ql.load gave, a "
            "tokenizers.Tokenizer or a fast tokenizer of transformers"
        )
    if hasattr(tokenizer, "begin"):  # ours puts it before every text
        begin = tokenizer.begin
        adds = begin is not None
    else:
        adds = begin is not None and raw.encode("").ids[:1] == [begin]
    return vocabulary_metadata(raw, size, begin=begin, end=end, add_begin=adds)


def first(ids: int | list[int] | None) -> int | None:
    """Return an id, or the first of several."""
    return ids[0] if isinstance(ids, list) else ids
