"""Train the embedded story model from a text file: the whole recipe, seeded and resumable.

    python labs/experiments/train_storyteller.py --corpus stories.txt --valid held_out.txt --out run

The corpus is plain text with ``<|endoftext|>`` between stories. The script learns a byte-level BPE
of 2,048 pieces from it, trains 3.67 M parameters, and writes ``model.safetensors`` (float16),
``config.json``, ``tokenizer.json`` and ``training_log.json`` into ``--out``. Started again with
the same ``--out`` it goes on at its last checkpoint. The held-out text is only ever measured.

Recipe: Muon (Jordan et al. 2024, as in ``torch.optim``) for the matrices, AdamW for embedding and
gains; warm-up, constant rate, linear decay to zero; dropout on both residual branches, because
seven megabytes are read many times over; windows of 256 tokens, then 512 during the decay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from quantlab.models.llama import Llama, LlamaConfig

END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Every number that decides the outcome."""

    steps: int = 1620
    tokens_per_step: int = 8192
    length: int = 256
    final_length: int = 512
    warmup: int = 100
    decay: float = 0.35  # share of the steps in which the rate falls to zero
    matrix_rate: float = 4e-3
    other_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the factor on both learning rates at ``step``."""
        decay_from = self.steps * (1 - self.decay)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.steps - decay_from))

    def window(self, step: int) -> int:
        """Return the window length at ``step``: longer during the decay."""
        return self.final_length if step >= self.steps * (1 - self.decay) else self.length


def read_stories(path: str) -> list[str]:
    """Return the stories of a file, stripped, without empty ones."""
    text = Path(path).read_text(encoding="utf-8")
    return [story.strip() for story in text.split(END) if story.strip()]


def train_tokenizer(stories: list[str], size: int) -> Tokenizer:
    """Learn a byte-level BPE in which id 0 begins and ends every story."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


def stream(encoded: list[list[int]], order: torch.Tensor) -> torch.Tensor:
    """Join stories in the given order, each after the begin token 0."""
    return torch.tensor([token for i in order.tolist() for token in (0, *encoded[i])])


class Batches:
    """Windows of the shuffled corpus; a batch depends on (seed, step) alone: resuming is exact."""

    def __init__(self, encoded: list[list[int]], recipe: Recipe) -> None:
        self.encoded, self.recipe, self.epoch = encoded, recipe, -1
        tokens = sum(len(story) + 1 for story in encoded)
        self.steps_per_epoch = (tokens - recipe.final_length) // recipe.tokens_per_step

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, (tokens_per_step / length, length) each."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + epoch)
            order = torch.randperm(len(self.encoded), generator=generator)
            self.tokens, self.epoch = stream(self.encoded, order), epoch
        size, length = self.recipe.tokens_per_step, self.recipe.window(step)
        piece = self.tokens[place * size : (place + 1) * size + 1]
        return piece[:-1].view(-1, length), piece[1:].view(-1, length)


def build(recipe: Recipe, vocab_size: int) -> Llama:
    """Return a fresh model with dropout after attention, MLP and embedding (training mode only)."""
    torch.manual_seed(recipe.seed)
    model = Llama(LlamaConfig(vocab_size=vocab_size))
    deep = 0.02 / math.sqrt(2 * model.config.num_hidden_layers)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(weight, std=deep if residual else 0.02)
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj", "embed_tokens")):
            module.register_forward_hook(
                lambda module, args, y: F.dropout(y, recipe.dropout, module.training)
            )
    return model


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [w for name, w in named if w.ndim == 2 and "embed" not in name]
    others = [w for name, w in named if w.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_step(
    model: Llama, steppers: list, batch: tuple[torch.Tensor, torch.Tensor], rate: float
) -> float:
    """Take one step and return the loss in nats per token."""
    inputs, targets = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = group.setdefault("full_rate", group["lr"]) * rate
        stepper.step()
        stepper.zero_grad()
    return loss.item()


@torch.no_grad()
def bits_per_byte(model: Llama, tokens: torch.Tensor, byte_count: int, length: int) -> float:
    """Return bits per byte of a held-out stream in windows of ``length``, every token predicted."""
    model.eval()
    nats = 0.0
    for start in range(0, len(tokens) - 1, 16 * length):
        piece = tokens[start : start + 16 * length + 1]
        for inputs, targets in windows(piece, length):
            logits = model(inputs).flatten(0, 1)
            nats += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    model.train()
    return nats / math.log(2) / byte_count


def windows(piece: torch.Tensor, length: int):
    """Yield (inputs, targets) of a piece: the whole windows in one batch, then the rest."""
    whole = (len(piece) - 1) // length * length
    if whole:
        yield piece[:whole].view(-1, length), piece[1 : whole + 1].view(-1, length)
    if len(piece) - 1 > whole:
        yield piece[whole:-1][None], piece[whole + 1 :][None]


def export(model: Llama, tokenizer: Tokenizer, log: dict, out: Path) -> None:
    """Write the model folder that transformers and quantlab open."""
    state = {name: weight.detach().half() for name, weight in model.state_dict().items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")


def save_checkpoint(path: Path, model: Llama, steppers: list, log: dict, step: int) -> None:
    """Write a checkpoint beside the old one, then put it in its place."""
    state = {
        "model": model.state_dict(),
        "steppers": [stepper.state_dict() for stepper in steppers],
        "log": log,
        "step": step,
    }
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def hardware() -> dict:
    """Describe the machine for the log."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }


def main() -> None:
    """Read the command line, train, measure, export."""
    parser = argparse.ArgumentParser(description="Train the embedded story model.")
    parser.add_argument("--corpus", required=True, help="stories, <|endoftext|> between them")
    parser.add_argument("--valid", required=True, help="held-out stories, only measured")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=200, help="steps between measurements")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    run(options, Recipe(steps=options.steps))


def run(options: argparse.Namespace, recipe: Recipe) -> None:
    """Train from the start or the last checkpoint to the last step."""
    stories, held_out = read_stories(options.corpus), read_stories(options.valid)
    tokenizer = train_tokenizer(stories, LlamaConfig.vocab_size)
    encoded = [story.ids for story in tokenizer.encode_batch(stories)]
    valid = stream([s.ids for s in tokenizer.encode_batch(held_out)], torch.arange(len(held_out)))
    valid_bytes = sum(len(story.encode()) for story in held_out)
    model = build(recipe, tokenizer.get_vocab_size())
    steppers, batches, step = optimizers(model, recipe), Batches(encoded, recipe), 0
    log: dict = {"hardware": hardware(), "curve": [], "seconds": 0.0}
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)
        log, step = state["log"], state["step"]
    log.setdefault("runs", []).append(
        {"from_step": step, "steps": recipe.steps, "threads": torch.get_num_threads()}
    )
    log |= {"recipe": asdict(recipe), "parameters": sum(w.numel() for w in model.parameters())}
    began, recent = time.time() - log["seconds"], []
    while step < recipe.steps:
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout, the same after a resume
        recent.append(train_step(model, steppers, batches(step), recipe.rate(step)))
        step += 1
        if step % options.every == 0 or step == recipe.steps:
            log["seconds"] = round(time.time() - began, 1)
            log["curve"].append(
                {
                    "step": step,
                    "tokens": step * recipe.tokens_per_step,
                    "train_nats": round(sum(recent) / len(recent), 4),
                    "valid_bits_per_byte_512": round(
                        bits_per_byte(model, valid, valid_bytes, recipe.final_length), 4
                    ),
                    "seconds": log["seconds"],
                }
            )
            print(json.dumps(log["curve"][-1]), flush=True)
            save_checkpoint(checkpoint, model, steppers, log, step)
            export(model, tokenizer, log, options.out)
            recent = []


if __name__ == "__main__":
    main()
