"""A Llama in GGUF: the names of its tensors, the order of q's and k's rows, and its metadata.

Hugging Face and llama.cpp rotate the same pairs of numbers, laid out differently: the former turns
(i, i + d/2) of a head of d numbers, the latter neighbors (2i, 2i + 1). So the *rows* of q and k
change places on the way: those of q within each of its heads, those of k within each of the
key/value heads, which may be fewer. A file written without that loads, runs and writes nonsense.

References
----------
ggml-org/ggml, ``docs/gguf.md``; ggml-org/llama.cpp, pull requests 3364 (k of grouped heads) and
22611 (what a forgotten permutation costs).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from quantlab.gguf.cursor import FormatError
from quantlab.gguf.file import GGUFFile

NAME = "llama"  # general.architecture
MOST_LAYERS = 512
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_BACK = {value: key for key, value in OUTER.items()}
INNER_BACK = {value: key for key, value in INNER.items()}
ROPE_DIVISORS = "rope_freqs.weight"

Rows = TypeVar("Rows", bound=Any)  # a NumPy array or a torch tensor


def gguf_name(name: str) -> str | None:
    """Return GGUF's name of a module or tensor in Hugging Face's words; None if it has none.

    Examples
    --------
    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("model.layers.3.mlp.up_proj")
    ('blk.3.attn_q.weight', 'blk.3.ffn_up')
    """
    stem, kind = split_kind(name)
    if stem in OUTER:
        return OUTER[stem] + kind
    parts = stem.split(".", 3)
    if parts[:2] != ["model", "layers"] or len(parts) < 4 or parts[3] not in INNER:
        return None
    return f"blk.{parts[2]}.{INNER[parts[3]]}{kind}"


def model_name(name: str) -> str | None:
    """Return Hugging Face's name of a GGUF tensor; None if a plain Llama has no such tensor.

    Examples
    --------
    >>> model_name("blk.3.attn_q.weight"), model_name("output.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'lm_head.weight')
    """
    stem, kind = split_kind(name)
    if stem in OUTER_BACK:
        return OUTER_BACK[stem] + kind
    parts = stem.split(".")
    if parts[0] != "blk" or len(parts) != 3 or parts[2] not in INNER_BACK:
        return None
    return f"model.layers.{parts[1]}.{INNER_BACK[parts[2]]}{kind}"


def split_kind(name: str) -> tuple[str, str]:
    """Split off a closing ``.weight`` or ``.bias``."""
    for kind in (".weight", ".bias"):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, ""


def to_pairs(rows: Rows, heads: int) -> Rows:
    """Reorder rows (heads * d, ...) of q or k from Hugging Face's order to llama.cpp's.

    Examples
    --------
    >>> to_pairs(np.arange(8), heads=2).tolist()  # row i + d/2 comes to stand beside row i
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def to_halves(rows: Rows, heads: int) -> Rows:
    """Undo ``to_pairs``.

    Examples
    --------
    >>> to_halves(np.array([0, 2, 1, 3, 4, 6, 5, 7]), heads=2).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Llama, and how it turns its heads.

    Attributes
    ----------
    layers, width, heads, kv_heads, head_size, hidden, vocabulary, context : int
        ``width`` of the residual stream, ``hidden`` of the MLP.
    eps : float
        Of the norms.
    theta : float
        Base of the rotation's frequencies.
    tied : bool
        The head is the embedding.
    linear : float
        Positions are divided by it ("linear" scaling); 1: they are not.
    divisors : (head_size / 2,) floats, or None
        Frequencies are divided by them (Llama 3's scaling).
    original_context : int, or None
        The context that the divisors stretch, where it is known.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    context: int
    eps: float
    theta: float = 10000.0
    tied: bool = True
    linear: float = 1.0
    divisors: tuple[float, ...] | None = None
    original_context: int | None = None

    def heads_of(self, name: str) -> int | None:
        """Return the heads within which a tensor's rows change places; None: they do not."""
        kind = name.split(".")[2] if name.startswith("blk.") else ""
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(kind)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the model must have, by GGUF's name."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        width, hidden = self.width, self.hidden
        block = {
            "attn_norm": (width,),
            "attn_q": (query, width),
            "attn_k": (key, width),
            "attn_v": (key, width),
            "attn_output": (width, query),
            "ffn_norm": (width,),
            "ffn_gate": (hidden, width),
            "ffn_up": (hidden, width),
            "ffn_down": (width, hidden),
        }
        outer = {"token_embd": (self.vocabulary, width), "output_norm": (width,)}
        if not self.tied:
            outer["output"] = (self.vocabulary, width)
        found = {f"{name}.weight": shape for name, shape in outer.items()}
        for i in range(self.layers):
            found |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        return found

    def biases(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every bias that the model may have."""
        return {
            name.removesuffix("weight") + "bias": shape[:1]
            for name, shape in self.shapes().items()
            if name.startswith("blk.") and len(shape) == 2
        }

    def metadata(self) -> dict[str, Any]:
        """Return what llama.cpp reads before the tensors; ints are u32, floats f32 in the file."""
        found = {
            "context_length": self.context,
            "embedding_length": self.width,
            "block_count": self.layers,
            "feed_forward_length": self.hidden,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_size,
            "attention.value_length": self.head_size,
            "attention.layer_norm_rms_epsilon": self.eps,
            "rope.dimension_count": self.head_size,
            "rope.freq_base": self.theta,
            "vocab_size": self.vocabulary,
        }
        if self.linear != 1:
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": self.linear}
        if self.original_context is not None:
            found["rope.scaling.original_context_length"] = self.original_context
        return {f"{NAME}.{key}": value for key, value in found.items()}


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


def llama3_divisors(
    theta: float, head_size: int, original_context: int, scaling: Mapping[str, float]
) -> tuple[float, ...]:
    """Return what Llama 3.1 divides each frequency by: slow ones by a factor, fast ones by 1.

    Parameters
    ----------
    scaling : mapping
        ``factor``, ``low_freq_factor`` and ``high_freq_factor``, as in config.json.

    References
    ----------
    Meta, llama-models, ``apply_scaling`` (Llama 3.1).
    """
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for pair in range(head_size // 2):
        turns = original_context * theta ** (-2 * pair / head_size) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))  # 1: as before, 0: slowed whole
        divisors.append(1 / ((1 - share) / factor + share))
    return tuple(divisors)
