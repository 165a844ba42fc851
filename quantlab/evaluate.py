"""How good a model still is: perplexity, bits per byte, KL to a reference, flips, error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlab.data import check_tokens

BATCH = 8  # windows a forward pass
RESAMPLES = 1000


class Decoder(Protocol):
    """What this file asks of a tokenizer."""

    def decode(self, ids: list[int] | Tensor) -> str:
        """Return the text of ids without special tokens."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Quality on held-out windows. Each ``*_se`` is a bootstrap standard error over windows.

    Attributes
    ----------
    tokens : int
        Tokens predicted: the first of each window is only read.
    length : int
        Window length; perplexities at different lengths do not compare.
    nats : float
        Mean loss per token, natural logarithm.
    perplexity, perplexity_se : float
        exp(nats).
    bits_per_byte : float, or None without a tokenizer
        Comparable across tokenizers.
    ratio, ratio_se : float, or None without a reference
        Perplexity divided by the reference's on the same windows. Paired, so its error bar is far
        smaller than perplexity's: hard windows are hard for both.
    kl, kl_se : nats per token, or None without a reference
        Mean KL(reference || model) of the next-token distributions.
    flips, flips_se : share of tokens, or None without a reference
        How often the most likely next token differs from the reference's.
    """

    tokens: int
    length: int
    nats: float
    perplexity: float
    perplexity_se: float
    bits_per_byte: float | None = None
    ratio: float | None = None
    ratio_se: float | None = None
    kl: float | None = None
    kl_se: float | None = None
    flips: float | None = None
    flips_se: float | None = None

    def __str__(self) -> str:
        parts = [f"perplexity {self.perplexity:.3f} +- {self.perplexity_se:.3f} (T={self.length})"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} bits/byte")
        if self.kl is not None and self.flips is not None:
            parts.append(f"x {self.ratio:.4f} +- {self.ratio_se:.4f}")
            parts.append(f"KL {self.kl:.4f} +- {self.kl_se:.4f}")
            parts.append(f"flips {100 * self.flips:.1f} %")
        return ", ".join(parts)


@torch.no_grad()
def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return log p(next token) at every position, (samples, length - 1, vocabulary) float32."""
    parts = []
    for batch in tokens.split(BATCH):
        output = model(batch)
        logits = output if isinstance(output, Tensor) else output.logits
        parts.append(F.log_softmax(logits[:, :-1].float(), dim=-1))
    return torch.cat(parts)


def perplexity(model: nn.Module, tokens: Tensor) -> float:
    """Return exp(mean loss) over windows (samples, length).

    Raises
    ------
    ValueError
        If tokens is not a non-empty LongTensor, or the model's output is not finite.

    Examples
    --------
    >>> import quantlab as ql
    >>> model, tokenizer = ql.load("storyteller")
    >>> ql.perplexity(model, ql.test_set(tokenizer, samples=4)) < 20
    True
    """
    return evaluate(model, tokens).perplexity


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: Tensor,
    *,
    reference: nn.Module | Tensor | None = None,
    tokenizer: Decoder | None = None,
) -> Evaluation:
    """Measure a model on held-out windows.

    Parameters
    ----------
    model : nn.Module
    tokens : (samples, length) LongTensor
        From ``test_set``, never from the calibration text.
    reference : nn.Module, or (samples, length - 1, vocabulary) tensor, or None
        The float model, or its ``log_probabilities`` (cheaper when many models are compared).
    tokenizer : Tokenizer, or None
        To count bytes for ``bits_per_byte``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If tokens is not a non-empty LongTensor, or the model's output is not finite.
    """
    check_tokens(tokens)
    log_p = log_probabilities(model, tokens)
    loss = losses(log_p, tokens)
    if not torch.isfinite(loss).all():
        raise ValueError("the model's output is not finite on this text; check its weights")
    per_window = loss.mean(1).numpy()
    nats = float(per_window.mean())
    extra: dict[str, float] = {}
    if reference is not None:
        extra = compare(log_p, reference, tokens)
    if tokenizer is not None:
        byte_count = sum(len(tokenizer.decode(row[1:]).encode()) for row in tokens)
        extra["bits_per_byte"] = float(loss.sum()) / math.log(2) / byte_count
    spread = standard_error(np.exp(bootstrap_means(per_window)))
    return Evaluation(loss.numel(), tokens.shape[1], nats, math.exp(nats), spread, **extra)


def losses(log_p: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p of each token but the first, (samples, length - 1) float64."""
    return -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).double()


def compare(log_p: Tensor, reference: nn.Module | Tensor, tokens: Tensor) -> dict[str, float]:
    """Return perplexity ratio, KL(reference || model), flipped share, and standard errors."""
    log_r = reference if isinstance(reference, Tensor) else log_probabilities(reference, tokens)
    if log_r.shape != log_p.shape:
        raise ValueError(
            f"reference has shape {tuple(log_r.shape)}, this model gives {tuple(log_p.shape)}; "
            "use the same windows and vocabulary"
        )
    kl = (log_r.exp() * (log_r - log_p)).sum(-1).double().mean(1).numpy()
    flips = (log_r.argmax(-1) != log_p.argmax(-1)).double().mean(1).numpy()
    worse = (losses(log_p, tokens) - losses(log_r, tokens)).mean(1).numpy()
    return {
        "ratio": math.exp(worse.mean()),
        "ratio_se": standard_error(np.exp(bootstrap_means(worse))),
        "kl": float(kl.mean()),
        "kl_se": standard_error(bootstrap_means(kl)),
        "flips": float(flips.mean()),
        "flips_se": standard_error(bootstrap_means(flips)),
    }


def bootstrap_means(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the means of resampled windows (1,000 draws with replacement, seeded)."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return values[draws].mean(1)


def standard_error(means: np.ndarray) -> float:
    """Return the standard deviation over bootstrap draws."""
    return float(means.std(ddof=1))
