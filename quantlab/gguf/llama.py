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

NAME = "llama"  # general.architecture
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
    >>> import numpy as np
    >>> to_pairs(np.arange(8), heads=2).tolist()  # row i + d/2 comes to stand beside row i
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def to_halves(rows: Rows, heads: int) -> Rows:
    """Undo ``to_pairs``.

    Examples
    --------
    >>> import numpy as np
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
