"""Part of kernel_goals.py: tokens a second of the story model, ours and llama.cpp's.

All get the same tokens of a held-out story, one at a time, and take turns; a sample is the time of
a token, as the mean over one reading of the story without its first eight tokens. llama.cpp reads
our exported files in a process of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import quantlab as ql
from quantlab.gguf import llama_cpp
from quantlab.kernels.bench import use_threads
from quantlab.kernels.samples import compare, summarize
from quantlab.models.decoder import FastDecoder
from quantlab.models.llama import KVCache

TOKENS = 136
WARM_UP = 8  # tokens of each reading that are not timed
ROUNDS = 7
GROUP = 32
MOST_WRONG = 0.05  # of the logits' size: the head in 8 bits, and activations in 8 bits
FILES = ("F32", "Q8_0", "Q4_0")
Reading = Callable[[], float]


def story() -> torch.Tensor:
    _, tokenizer = ql.load("storyteller")
    return ql.test_set(tokenizer, 1, TOKENS)[0]


def torch_model(tokens: torch.Tensor) -> Reading:
    model, _ = ql.load("storyteller")

    @torch.no_grad()
    def read() -> float:
        cache = KVCache(model.config.num_hidden_layers)
        for position, token in enumerate(tokens):
            if position == WARM_UP:
                began = time.perf_counter()
            model(token.view(1, 1), cache)
        return (time.perf_counter() - began) / (len(tokens) - WARM_UP)

    return read


def decoder(tokens: torch.Tensor, bits: int, activation_bits: int) -> Reading:
    model, _ = ql.load("storyteller")
    if bits < 32:
        ql.quantize_(model, ql.RTN(), ql.Scheme(bits=bits, group_size=GROUP))
    with torch.no_grad():
        truth = model(tokens[None])[0]
    fast = FastDecoder(model, activation_bits=activation_bits, head_bits=8 if bits < 32 else 32)
    error = float((fast.logits(tokens) - truth).norm() / truth.norm())
    if not error < MOST_WRONG:
        raise SystemExit(f"w{bits}a{activation_bits}: logits are off by {error:.2g} of their size")

    def read() -> float:
        cache = fast.start()
        for position, token in enumerate(tokens.tolist()):
            if position == WARM_UP:
                began = time.perf_counter()
            fast.step(cache, token, position)
        return (time.perf_counter() - began) / (len(tokens) - WARM_UP)

    return read


def llama(tokens: torch.Tensor, path: Path, threads: int) -> Reading:
    def read() -> float:
        seconds = llama_cpp.step_seconds(path, tokens.tolist(), f32_cache=False, threads=threads)
        return sum(seconds[WARM_UP:]) / (len(seconds) - WARM_UP)

    return read


def readers(threads: int, folder: Path) -> dict[str, Reading]:
    tokens = story()  # (136,)
    found = {"torch float32": torch_model(tokens)}
    for name, bits, activation_bits in (
        ("quantlab float32", 32, 16),
        ("quantlab W8A16", 8, 16),
        ("quantlab W8A8", 8, 8),
        ("quantlab W4A16", 4, 16),
        ("quantlab W4A8", 4, 8),
    ):
        found[name] = decoder(tokens, bits, activation_bits)
    if llama_cpp.available():
        model, tokenizer = ql.load("storyteller")
        for kind in FILES:
            path = folder / f"{kind}.gguf"
            ql.export_gguf(model, path, kind, tokenizer=tokenizer)
            found[f"llama.cpp {kind} (wheel)"] = llama(tokens, path, threads)
    return found


def measure(threads: int) -> list[dict]:
    """Return rows of tokens a second, and the goals on them."""
    use_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        found = readers(threads, Path(folder))
        for read in found.values():
            read()  # compiles
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(ROUNDS):
            for name, read in found.items():
                times[name].append(read())
    rate = {name: 1 / summarize(samples).median for name, samples in times.items()}
    wanted = {"torch float32": 2.0, "quantlab float32": 2.0, "llama.cpp Q4_0 (wheel)": 1.0}
    goals = []
    for own in ("quantlab W4A8", "quantlab W4A16"):
        for peer, goal in wanted.items():
            if peer in times:
                ratio = compare(times[own], times[peer])
                of_best = min(times[peer]) / min(times[own])
                goals.append(
                    {
                        "own": own,
                        "threads": threads,
                        "own_rate": rate[own],
                        "peer": peer,
                        "peer_rate": rate[peer],
                        "ratio": of_best,
                        "median_ratio": ratio.ratio,
                        "interval": [ratio.low, ratio.high],
                        "goal": goal if own == "quantlab W4A8" else None,
                        "met": of_best >= goal if own == "quantlab W4A8" else None,
                        "all_rates": {name: round(value, 1) for name, value in rate.items()},
                    }
                )
    return goals
