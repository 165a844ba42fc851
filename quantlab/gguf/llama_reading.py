"""Read the sizes of a llama from a GGUF file, each value checked as strictly as llama.cpp does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from quantlab.gguf.cursor import FormatError
from quantlab.gguf.file import GGUFFile
from quantlab.gguf.llama import NAME, ROPE_DIVISORS, Architecture

MOST_LAYERS = 512


def read_architecture(file: GGUFFile) -> Architecture:
    """Return the sizes that a llama's metadata gives, each checked; tensors are not read.

    Raises
    ------
    FormatError
        If a value is missing, of another type than llama.cpp demands, or out of range.
    """
    width, heads = count(file, "embedding_length"), count(file, "attention.head_count")
    head_size = count(file, "attention.key_length", width // heads or 1)
    kv_heads = count(file, "attention.head_count_kv", heads)
    if heads % kv_heads:
        raise FormatError(f"{heads} heads cannot share {kv_heads} key/value heads evenly")
    if head_size % 2:
        raise FormatError(f"heads of {head_size} numbers cannot be turned in pairs")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := count(file, key, head_size)) != head_size:
            raise FormatError(f"llama.{key} is {other}, and a head has {head_size} numbers")
    return Architecture(
        layers=count(file, "block_count", most=MOST_LAYERS),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        hidden=count(file, "feed_forward_length"),
        vocabulary=vocabulary_size(file),
        context=count(file, "context_length"),
        eps=positive(file, "attention.layer_norm_rms_epsilon"),
        theta=positive(file, "rope.freq_base", 10000.0),
        tied="output.weight" not in file.tensors,
        linear=linear_factor(file),
        divisors=read_divisors(file, head_size // 2),
        original_context=count(file, "rope.scaling.original_context_length", 0) or None,
    )


def entry(file: GGUFFile, key: str, kind: str, default: Any = None) -> Any:
    """Return a metadata value of exactly the type ``kind``, as llama.cpp demands."""
    if key not in file.metadata:
        if default is None:
            raise FormatError(f"metadata lacks {key}; llama.cpp could not run this file either")
        return default
    if file.types[key] != kind:
        raise FormatError(f"{key} is stored as {file.types[key]}; llama.cpp reads {kind} here")
    return file.metadata[key]


def count(file: GGUFFile, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    """Return a size from the metadata, 1..most."""
    value = entry(file, f"{NAME}.{key}", "u32", default)
    if value == default:
        return value
    if not 1 <= value <= most:
        raise FormatError(f"{NAME}.{key} is {value}; it must lie in 1..{most}")
    return value


def positive(file: GGUFFile, key: str, default: float | None = None) -> float:
    """Return a positive number from the metadata, as the shortest decimal that float32 allows."""
    value = entry(file, f"{NAME}.{key}", "f32", default)
    if not (math.isfinite(value) and value > 0):
        raise FormatError(f"{NAME}.{key} is {value}; it must be positive")
    return float(str(np.float32(value)))


def vocabulary_size(file: GGUFFile) -> int:
    """Return the number of tokens: llama.cpp counts them where it has them."""
    if "tokenizer.ggml.tokens" not in file.metadata:
        return count(file, "vocab_size")
    return len(entry(file, "tokenizer.ggml.tokens", "[str]"))


def linear_factor(file: GGUFFile) -> float:
    """Return what positions are divided by."""
    if scaling_type(file) != "linear":
        return 1.0
    return positive(file, "rope.scaling.factor")


def scaling_type(file: GGUFFile) -> str:
    """Return how the rotation is scaled: "none", "linear", "yarn" or another."""
    return entry(file, f"{NAME}.rope.scaling.type", "str", "none")


def read_divisors(file: GGUFFile, size: int) -> tuple[float, ...] | None:
    """Return the tensor of Llama 3's scaling."""
    if ROPE_DIVISORS not in file.tensors:
        return None
    tensor = file.tensors[ROPE_DIVISORS]
    if tensor.shape != (size,) or tensor.type != "F32":
        raise FormatError(
            f"{ROPE_DIVISORS} is {tensor.type} {tensor.shape}; it must be F32 ({size},)"
        )
    values = tensor.dequantize()
    if not (np.isfinite(values) & (values > 0)).all():
        raise FormatError(f"{ROPE_DIVISORS} holds {values.min()}; divisors are positive")
    return tuple(values.tolist())


def check_tensors(file: GGUFFile, architecture: Architecture) -> None:
    """Raise a FormatError unless the file holds each tensor of the model, in its shape, no other.

    A tensor that is not read is as wrong as a missing one: the model would be another.
    """
    wanted = architecture.shapes()
    optional = architecture.biases() | {ROPE_DIVISORS: (architecture.head_size // 2,)}
    for name, shape in wanted.items():
        if name not in file.tensors:
            raise FormatError(f"tensor {name} is missing; the metadata asks for {shape}")
    for name, tensor in file.tensors.items():
        shape = (wanted | optional).get(name)
        if shape is None:
            raise FormatError(f"tensor {name} is none of a llama of {architecture.layers} layers")
        if tensor.shape != shape:
            raise FormatError(f"tensor {name} has shape {tensor.shape}; the metadata says {shape}")
