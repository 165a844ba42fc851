"""Open a GGUF file of any producer as a PyTorch model: every tensor dequantized, one at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlab.gguf.cursor import FormatError
from quantlab.gguf.file import GGUFFile, read
from quantlab.gguf.llama import (
    NAME,
    ROPE_DIVISORS,
    Architecture,
    llama3_divisors,
    model_name,
    to_halves,
)
from quantlab.gguf.llama_reading import check_tensors, entry, read_architecture, scaling_type
from quantlab.gguf.vocabulary_reading import (
    BEGINS,
    check_special_ids,
    check_vocabulary,
    read_tokenizer,
)
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.models.loading import Tokenizer, make_with_transformers

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of every Llama 3 that was published
LLAMA3_CONTEXT = 8192
NEVER = -1  # an end token that is never sampled


def load_gguf(path: str | Path) -> tuple[nn.Module, Tokenizer | None]:
    """Open a GGUF file as a model in float32, and its tokenizer.

    The result is the small ``Llama`` where that can hold the file (tied, no biases, plain rotary
    positions), else transformers' LlamaForCausalLM. Only one dequantized tensor is in memory
    beside the model.

    Parameters
    ----------
    path : str or path
        Of a llama, by any producer, in any type that ``quantlab.gguf.TYPES`` knows.

    Returns
    -------
    model, tokenizer
        The tokenizer is None if the file has no vocabulary.

    Raises
    ------
    FormatError
        If the file breaks a rule of the format, or its parts contradict one another.
    UnsupportedModelError
        If it holds another architecture, a tokenizer that cannot be rebuilt, or needs transformers
        and that is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import quantlab as ql
    >>> from quantlab.export.gguf import export_gguf
    >>> model, tokenizer = ql.load("storyteller")
    >>> path = os.path.join(tempfile.mkdtemp(), "story.gguf")
    >>> report = export_gguf(model, path, "F32", tokenizer=tokenizer)
    >>> back, tokenizer = load_gguf(path)
    >>> all(a.equal(b) for a, b in zip(model.parameters(), back.parameters()))
    True
    """
    with read(path) as file:
        check_supported(file)
        check_vocabulary(file)
        architecture = read_architecture(file)
        check_special_ids(file, architecture.vocabulary)
        check_tensors(file, architecture)
        tokenizer = open_tokenizer(file)
        model = empty_model(file, architecture)
        fill_(model, file, architecture)
    return model.eval(), tokenizer


def check_supported(file: GGUFFile) -> None:
    """Refuse other architectures than a plain llama."""
    architecture = entry(file, "general.architecture", "str")
    if architecture != NAME:
        raise UnsupportedModelError(
            f"general.architecture is {architecture!r}; only {NAME!r} can be opened as a model"
        )
    if file.metadata.get(f"{NAME}.expert_count"):
        raise UnsupportedModelError("the file holds a mixture of experts; only a plain llama opens")
    if scaling_type(file) not in ("none", "linear"):
        raise UnsupportedModelError(
            f"rope scaling {scaling_type(file)!r} cannot be opened; none, linear and Llama 3's can"
        )


def open_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """Return the file's tokenizer, which puts the begin token first where the file says so."""
    try:
        raw = read_tokenizer(file)
    except FormatError:
        raise
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from error
    if raw is None:
        return None
    begins = BEGINS.get(file.metadata.get("tokenizer.ggml.pre", "default"), False)
    adds = entry(file, "tokenizer.ggml.add_bos_token", "bool", begins)
    return Tokenizer(raw, special_id(file, "bos") if adds else None)


def special_id(file: GGUFFile, name: str) -> int | None:
    """Return the id of the token "bos" or "eos", None if the file does not say."""
    return file.metadata.get(f"tokenizer.ggml.{name}_token_id")


def empty_model(file: GGUFFile, architecture: Architecture) -> nn.Module:
    """Return a model of the right sizes whose weights are still to come."""
    begin, end = special_id(file, "bos"), special_id(file, "eos")
    shared: dict[str, Any] = {
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.kv_heads,
        "intermediate_size": architecture.hidden,
        "vocab_size": architecture.vocabulary,
        "max_position_embeddings": architecture.context,
        "rms_norm_eps": architecture.eps,
    }
    if is_small(file, architecture):
        begin, end = 0 if begin is None else begin, NEVER if end is None else end
        ids = {"bos_token_id": begin, "eos_token_id": end}
        return Llama(LlamaConfig(**shared, **ids, rope_theta=architecture.theta))
    return make_with_transformers(
        shared
        | {"head_dim": architecture.head_size, "tie_word_embeddings": architecture.tied}
        | {"bos_token_id": begin, "eos_token_id": end}
        | {"rope_parameters": rotation(architecture)}
        | has_biases(file)
    )


def is_small(file: GGUFFile, architecture: Architecture) -> bool:
    """Tell whether the small Llama can hold the model."""
    plain = architecture.linear == 1 and architecture.divisors is None
    whole = architecture.heads * architecture.head_size == architecture.width
    return architecture.tied and plain and whole and not any(has_biases(file).values())


def has_biases(file: GGUFFile) -> dict[str, bool]:
    """Return which half of a block has biases; a FormatError if only some of its layers do."""
    layers = file.metadata[f"{NAME}.block_count"]
    found = {}
    for key, names in (
        ("attention_bias", ("attn_q", "attn_k", "attn_v", "attn_output")),
        ("mlp_bias", ("ffn_gate", "ffn_up", "ffn_down")),
    ):
        biases = [f"blk.{i}.{name}.bias" for i in range(layers) for name in names]
        present = [name for name in biases if name in file.tensors]
        found[key] = bool(present)
        if present and len(present) < len(biases):
            missing = min(set(biases) - set(present))
            raise UnsupportedModelError(
                f"{present[0]} is there and {missing} is not; transformers has all or none"
            )
    return found


def rotation(architecture: Architecture) -> dict[str, Any]:
    """Return transformers' description of how heads are turned."""
    theta = {"rope_theta": architecture.theta}
    if architecture.divisors is None:
        if architecture.linear == 1:
            return theta | {"rope_type": "default"}
        return theta | {"rope_type": "linear", "factor": architecture.linear}
    factor = float(f"{max(architecture.divisors):.6g}")
    original = architecture.original_context or LLAMA3_CONTEXT
    scaling = {"factor": factor} | LLAMA3
    size = architecture.head_size
    expected = llama3_divisors(architecture.theta, size, original, scaling)
    pairs = zip(architecture.divisors, expected, strict=True)
    same = all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)
    if not same or architecture.linear != 1:
        raise UnsupportedModelError(
            f"{ROPE_DIVISORS} is not Llama 3's scaling by {factor:g} of a context of {original}"
        )
    context = {"original_max_position_embeddings": original}
    return theta | {"rope_type": "llama3"} | scaling | context


@torch.no_grad()
def fill_(model: nn.Module, file: GGUFFile, architecture: Architecture) -> None:
    """Dequantize every tensor into its parameter, q's and k's rows back in their order."""
    for name, tensor in file.tensors.items():
        if name == ROPE_DIVISORS:
            continue
        weight = torch.from_numpy(tensor.dequantize())
        if not torch.isfinite(weight).all():
            raise FormatError(
                f"tensor {name} holds values that are not finite; the file is damaged"
            )
        heads = architecture.heads_of(name)
        if heads is not None:
            weight = to_halves(weight, heads)
        model.get_parameter(str(model_name(name))).copy_(weight)
