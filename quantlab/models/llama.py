"""A small, readable Llama: RMSNorm, rotary attention with shared KV heads, SwiGLU.

Module names equal Hugging Face's, so one safetensors file serves both libraries.
Left out on purpose: padding masks, RoPE scaling, biases, training code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama, under the names of Hugging Face's ``config.json``."""

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    intermediate_size: int = 768
    vocab_size: int = 2048
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    bos_token_id: int = 0
    eos_token_id: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict:
        """Return the entries of a Hugging Face ``config.json``."""
        fixed = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": "float16",
        }
        return fixed | asdict(self)


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then multiply by a gain per channel."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis of ``x``."""
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every position's rotation angles, (length, head_dim) each."""
    pair = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None] / theta**pair  # (length, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)  # pair i is (i, i + head_dim / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of ``x`` (..., length, head_dim) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class KVCache:
    """Keys and values of the tokens seen so far, one pair of tensors a layer."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """Tokens held."""
        return 0 if self.keys[0] is None else self.keys[0].shape[-2]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (batch, kv_heads, new, head_dim) tensors and return all that the layer holds."""
        old_key, old_value = self.keys[layer], self.values[layer]
        if old_key is not None and old_value is not None:
            key, value = torch.cat([old_key, key], -2), torch.cat([old_value, value], -2)
        self.keys[layer], self.values[layer] = key, value
        return key, value


class Attention(nn.Module):
    """Causal self-attention in which several query heads share one key/value head."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.sharing = config.num_attention_heads // config.num_key_value_heads
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """Split (batch, length, n * head_dim) into (batch, n, length, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        """Mix the tokens of ``x`` (batch, length, hidden_size)."""
        q = rotate(self.heads(self.q_proj(x)), *rotary)
        k = rotate(self.heads(self.k_proj(x)), *rotary)
        v = self.heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        k = k.repeat_interleave(self.sharing, dim=1)  # (batch, heads, total, head_dim)
        v = v.repeat_interleave(self.sharing, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, **causal(q.shape[-2], k.shape[-2]))
        return self.o_proj(y.transpose(1, 2).flatten(-2))


def causal(new: int, total: int) -> dict:
    """Return the mask argument that lets the last ``new`` of ``total`` tokens see their past."""
    if new == total:
        return {"is_causal": True}
    if new == 1:
        return {}
    return {"attn_mask": torch.ones(new, total, dtype=torch.bool).tril(total - new)}


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden_size) to (..., hidden_size)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """One block: attention, then MLP, each on a normalized copy added back to the stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        """Map (batch, length, hidden_size) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything but the output head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map token ids (batch, length) to hidden states (batch, length, hidden_size)."""
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + tokens.shape[1])
        x = self.embed_tokens(tokens)
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        for layer in self.layers:
            x = layer(x, rotary, cache)
        return self.norm(x)


class Llama(nn.Module):
    """A Llama whose output head is its embedding (tied), unless a rotation has given it another."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head: nn.Linear | None = None

    def blocks(self) -> list[DecoderLayer]:
        """Return the decoder layers, first to last."""
        return [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map token ids (batch, length) to logits (batch, length, vocab_size)."""
        hidden = self.model(tokens, cache)
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return F.linear(hidden, self.model.embed_tokens.weight)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Continue ``tokens`` (1, length) by up to ``new_tokens`` ids, stopping at the end token.

        Parameters
        ----------
        tokens : (1, length) LongTensor
            The prompt, length >= 1.
        new_tokens : tokens
            How many to add at most; prompt and continuation fit ``max_position_embeddings``.
        temperature : float
            0 takes the most likely token (greedy); larger values sample more boldly.
        seed : int
            Of the sampler; the same seed gives the same story.
        cache : KVCache, or None
            An empty cache to fill, such as a ``QuantizedKVCache``; None makes one of floats.

        Returns
        -------
        (1, length + added) LongTensor
            Prompt and continuation.

        Raises
        ------
        ValueError
            If the prompt is empty, too long, or not a batch of one, or the cache is not empty.
        """
        check_prompt(tokens, new_tokens, self.config.max_position_embeddings)
        cache = KVCache(self.config.num_hidden_layers) if cache is None else cache
        if cache.length:
            raise ValueError(f"the cache holds {cache.length} tokens; pass an empty one")
        generator = torch.Generator().manual_seed(seed)
        step = tokens
        for _ in range(new_tokens):
            step = pick(self(step, cache)[:, -1], temperature, generator)
            if step.item() == self.config.eos_token_id:
                break
            tokens = torch.cat([tokens, step], dim=1)
        return tokens


def check_prompt(tokens: Tensor, new_tokens: int, context: int) -> None:
    """Raise a ValueError unless ``tokens`` is one prompt that leaves room in the context."""
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] == 0:
        raise ValueError(f"prompt has shape {tuple(tokens.shape)}; pass (1, length), length >= 1")
    if tokens.shape[1] + new_tokens > context:
        raise ValueError(
            f"prompt of {tokens.shape[1]} + {new_tokens} new tokens exceeds the context of "
            f"{context}; ask for at most {max(0, context - tokens.shape[1])}"
        )


def pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Choose one token id from logits (1, vocab): the best at temperature 0, else a sample."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)
