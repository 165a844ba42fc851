"""A Llama taken apart into the tensors and sizes of a GGUF file: ours, or transformers'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantlab.gguf.llama import ROPE_DIVISORS, Architecture, llama3_divisors, model_name
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama
from quantlab.nn import QuantizedLinear
from quantlab.tensor import PackedTensor

Part = Tensor | PackedTensor
LAYERS = (nn.Linear, nn.Embedding, QuantizedLinear)  # and RMSNorms, of either library


def take_apart(model: nn.Module) -> tuple[Architecture, dict[str, Part]]:
    """Return a Llama's sizes, and its tensors by GGUF's names in the order of the file.

    Raises
    ------
    UnsupportedModelError
        If the model is no Llama, or has a part that a GGUF llama does not have.
    ValueError
        If a tensor is on the meta device.
    """
    architecture = describe(model)
    check_filled(model)
    wanted = architecture.shapes()
    optional = architecture.biases()
    parts: dict[str, Part] = {}
    left = set(model.state_dict())
    if architecture.tied:
        left.discard("lm_head.weight")
    for name in sorted(wanted | optional, key=place):
        stem, _, kind = str(model_name(name)).rpartition(".")
        part = find_part(model, stem, kind)
        left.discard(f"{stem}.{kind}")
        if part is None and name in optional:
            continue
        if part is None or tuple(part.shape) != (wanted | optional)[name]:
            found = "missing" if part is None else f"of shape {tuple(part.shape)}"
            raise UnsupportedModelError(
                f"{stem}.{kind} is {found}; the model's config says {(wanted | optional)[name]}"
            )
        if isinstance(part, PackedTensor):
            left -= {f"{stem}.{buffer}" for buffer in ("data", "scale", "zeros")}
        parts[name] = part
    if architecture.divisors is not None:
        parts[ROPE_DIVISORS] = torch.tensor(architecture.divisors)
    if left:
        raise UnsupportedModelError(
            f"{min(left)} is no part of a llama in GGUF; {len(left)} tensors cannot be written"
        )
    return architecture, parts


def check_filled(model: nn.Module) -> None:
    """Refuse a model whose weights are not in memory, such as one made on the meta device."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no numbers; load the weights first"
            )


def place(name: str) -> tuple[int, str]:
    """Return where a tensor stands in the file: first the outer ones, then layer by layer."""
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "blk" else (-1, name)


def find_part(model: nn.Module, path: str, kind: str) -> Part | None:
    """Return a layer's weight, packed if it is quantized, or its bias; None if there is none."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        return None
    if type(layer) not in LAYERS and not type(layer).__name__.endswith("RMSNorm"):
        raise UnsupportedModelError(
            f"{path} is a {type(layer).__name__}; GGUF export knows nn.Linear, nn.Embedding, "
            "RMSNorm and this library's QuantizedLinear"
        )
    if isinstance(layer, QuantizedLinear) and kind == "weight":
        return layer.packed
    part = getattr(layer, kind, None)
    return part.detach() if isinstance(part, Tensor) else None


def describe(model: nn.Module) -> Architecture:
    """Return the sizes that a Llama's config gives."""
    config: Any = getattr(model, "config", None)
    ours = isinstance(model, Llama)
    if not ours and type(model).__name__ != "LlamaForCausalLM":
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be written to GGUF; Llama and transformers' "
            "LlamaForCausalLM can"
        )
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"hidden_act is {config.hidden_act!r}; a llama in GGUF always has silu"
        )
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    if head_size % 2:
        raise UnsupportedModelError(f"heads of {head_size} numbers cannot be turned in pairs")
    return Architecture(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_size=head_size,
        hidden=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        eps=config.rms_norm_eps,
        tied=is_tied(model) or (ours and model.lm_head is None),
        **describe_rotation(config, head_size),
    )


def is_tied(model: nn.Module) -> bool:
    """Tell whether the head is the embedding itself, whatever the config says."""
    head = find_part(model, "lm_head", "weight")
    embedding = find_part(model, "model.embed_tokens", "weight")
    if not isinstance(head, Tensor) or not isinstance(embedding, Tensor):
        return False
    return head.data_ptr() == embedding.data_ptr()


def describe_rotation(config: Any, head_size: int) -> dict[str, Any]:
    """Return theta and the scaling of a config, where newer or older transformers keep them."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"theta": theta}
    if kind == "linear":
        return {"theta": theta, "linear": rope["factor"]}
    if kind == "llama3":
        original = rope["original_max_position_embeddings"]
        divisors = llama3_divisors(theta, head_size, original, rope)
        return {"theta": theta, "divisors": divisors, "original_context": original}
    raise UnsupportedModelError(
        f"rope scaling {kind!r} cannot be written to GGUF; default, linear and llama3 can"
    )
