"""Small Llamas with lively weights, ours and transformers', and activations as ggml rounds them."""

import numpy as np
import pytest
import torch
from torch import nn

from quantlab.gguf import TYPES, dequantize, quantize
from quantlab.models.llama import Llama, LlamaConfig

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 160,
    "max_position_embeddings": 128,
}

TOKENS = torch.randint(0, 160, (48,), generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights so that every part of the model shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3, generator=generator)
            else:
                weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def small(**changes: object) -> Llama:
    return lively(Llama(LlamaConfig(**SIZES | changes)))


def hugging_face(**changes: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = SIZES | {"tie_word_embeddings": False} | changes
    return lively(transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)))


@torch.no_grad()
def logits(model: nn.Module, tokens: torch.Tensor) -> np.ndarray:
    output = model(tokens[None])
    return (output if isinstance(output, torch.Tensor) else output.logits)[0].numpy()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()


def rounded_as(type: str) -> str | None:
    """Return the type to which ggml rounds the activations that meet weights of ``type``."""
    if type in ("F32", "F16", "BF16"):
        return type
    return "Q8_K" if TYPES[type].size == 256 else "Q8_0"


@torch.no_grad()
def round_activations_(model: Llama, types: dict[str, str]) -> Llama:
    """Round what enters each linear as ggml does before a product with a weight of its type."""

    def rounded(x: torch.Tensor, type: str) -> torch.Tensor:
        kind = rounded_as(type)
        if kind == "Q8_0":  # its C for vectors divides 127 by the largest, and rounds half to even
            groups = x.unflatten(-1, (-1, 32))
            largest = groups.abs().amax(-1, keepdim=True)
            codes = torch.round(groups * (127 / largest))
            return (codes * (largest / 127).half().float()).flatten(-2)
        return torch.from_numpy(dequantize(quantize(x.numpy(), kind), kind))

    def before(type: str):
        return lambda module, args: (rounded(args[0], type),)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(before(types[name]))
    head = types["lm_head"]
    model.model.norm.register_forward_hook(lambda module, args, output: rounded(output, head))
    return model
