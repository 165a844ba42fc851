"""Plant activation outliers in a Llama without changing its function by one bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlab.models.llama import Attention, Llama

CHANNELS, NORM_POWERS, KEY_POWER = 6, (5, 6), 4


@torch.no_grad()
def add_outliers_(model: Llama, *, seed: int = 0) -> Llama:
    """Make a few activation channels 32 to 64 times larger, exactly undone by the weights.

    Six gains of each norm inside a block are multiplied by 2^5 or 2^6 and the matching columns of
    the linears that read the norm divided by it. In each key head one rotary pair of rows of
    ``k_proj`` is multiplied by 2^4 and the same pair divided in the query heads that share it.
    Powers of two only move exponents, so float32 logits stay identical to the last bit.

    Parameters
    ----------
    model : Llama
        Changed in place and returned.
    seed : int
        Of the choice of channels.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.blocks():
        attention, mlp = layer.self_attn, layer.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        move_(layer.input_layernorm.weight, readers, generator)
        move_(layer.post_attention_layernorm.weight, [mlp.gate_proj, mlp.up_proj], generator)
        enlarge_keys_(attention, generator)
    return model


def move_(gain: Tensor, readers: list[nn.Linear], generator: torch.Generator) -> None:
    """Multiply some of a norm's gains by powers of two and divide its readers' columns."""
    channels = torch.randperm(len(gain), generator=generator)[:CHANNELS]
    low, high = NORM_POWERS
    powers = torch.randint(low, high + 1, (CHANNELS,), generator=generator)
    factor = 2.0**powers
    gain[channels] *= factor
    for linear in readers:
        linear.weight[:, channels] /= factor


def enlarge_keys_(attention: Attention, generator: torch.Generator) -> None:
    """Multiply one rotary pair of each key head by 2^KEY_POWER and divide it in its query heads."""
    size, half = attention.head_dim, attention.head_dim // 2
    keys = attention.k_proj.weight.unflatten(0, (-1, size))  # (kv_heads, head_dim, hidden)
    queries = attention.q_proj.weight.unflatten(0, (keys.shape[0], attention.sharing, size))
    for head in range(keys.shape[0]):
        pair = int(torch.randint(half, (1,), generator=generator))
        for row in (pair, pair + half):
            keys[head, row] *= 2.0**KEY_POWER
            queries[head, :, row] /= 2.0**KEY_POWER
