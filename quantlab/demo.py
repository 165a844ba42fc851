"""``quantlab demo``: one real model at 4, 3 and 2 bits, rounded and repaired, in under a minute."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from quantlab.data import calibration_set, test_set
from quantlab.evaluate import Evaluation, evaluate, log_probabilities
from quantlab.methods.gptq import GPTQ
from quantlab.methods.rtn import RTN
from quantlab.models.loading import Tokenizer, load
from quantlab.nn import weight_bytes
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme

PROMPT = "Once upon a time, there was a little rabbit"
NEW_TOKENS = 40
GROUP = 64


@dataclass(frozen=True)
class Row:
    """One line of the demo's table."""

    name: str
    bits_per_weight: float
    nbytes: int
    quality: Evaluation
    story: str


@dataclass(frozen=True)
class Bench:
    """What every line of the table is measured with."""

    tokenizer: Tokenizer
    tokens: torch.Tensor
    reference: torch.Tensor

    def measure(self, name: str, model: nn.Module, bits_per_weight: float, nbytes: int) -> Row:
        """Evaluate a model and let it continue the prompt greedily."""
        quality = evaluate(model, self.tokens, reference=self.reference)
        prompt = torch.tensor([self.tokenizer.encode(PROMPT)])
        written = model.generate(prompt, NEW_TOKENS)[0, prompt.shape[1] :]  # type: ignore[operator]
        story = " ".join(self.tokenizer.decode(written).split())
        return Row(name, bits_per_weight, nbytes, quality, story)


def run_demo(say: Callable[[str], None] = print) -> list[Row]:
    """Quantize the storyteller six ways, say each line as it is known, and return the rows."""
    started = time.perf_counter()
    model, tokenizer = load("storyteller")
    tokens = test_set(tokenizer, samples=24)
    data = calibration_set(tokenizer, samples=32)
    bench = Bench(tokenizer, tokens, log_probabilities(model, tokens))
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    say(heading(weights, tokens.numel()))
    rows = [bench.measure("float32", model, 32.0, 4 * weights)]
    say(line(rows[0]))
    for bits in (4, 3, 2):
        for method, calibration in ((RTN(), None), (GPTQ(), data)):
            twin = copy.deepcopy(model)
            report = quantize_(twin, method, Scheme(bits=bits, group_size=GROUP), calibration)
            name = f"{type(method).__name__} {bits} bit"
            rows.append(bench.measure(name, twin, report.bits_per_weight, report.nbytes))
            say(line(rows[-1]))
    say(closing(rows, weight_bytes(model), time.perf_counter() - started))
    return rows


def heading(weights: int, tokens: int) -> str:
    """Return the lines above the table."""
    columns = f"{'bits/weight':>11} {'bytes':>10} {'perplexity':>10} {'times float':>16} {'KL':>7}"
    return (
        f"storyteller: {weights:,} weights in 28 linear layers; groups of {GROUP} share a float16 "
        f"scale.\nPerplexity on {tokens:,} held-out tokens: lower is better. Beside it how many "
        "times float's it is,\n+- one standard error. KL: nats per token by which the next-word "
        f'forecast moved.\nEach model goes on from: "{PROMPT}"\n\n{"":12} {columns}'
    )


def line(row: Row) -> str:
    """Return one row as text, its story below it."""
    quality = row.quality
    cost = f"{row.bits_per_weight:11.2f} {row.nbytes:10,}"
    ratio = f"{quality.ratio:.3f} +- {quality.ratio_se:.3f}"
    score = f"{quality.perplexity:10.2f} {ratio:>16} {quality.kl:7.4f}"
    return f"{row.name:12} {cost} {score}\n{'':12}   {row.story}"


def closing(rows: list[Row], total: int, seconds: float) -> str:
    """Return what to take home, from the measured rows."""
    by_name = {row.name: row.quality for row in rows}
    rounded, repaired = by_name["RTN 2 bit"], by_name["GPTQ 2 bit"]
    lost = rounded.perplexity - by_name["float32"].perplexity
    won = (rounded.perplexity - repaired.perplexity) / lost
    calmer = 1 - (by_name["GPTQ 3 bit"].kl or 0) / (by_name["RTN 3 bit"].kl or 1)
    return (
        f"\nAt 2 bits GPTQ wins back {100 * won:.0f} % of the perplexity that rounding to nearest "
        f"(RTN) loses, with the same bytes;\nat 3 bits it moves the forecasts {100 * calmer:.0f} % "
        "less. Embedding and norms stay in float: the whole float\n"
        f"model is {total:,} bytes. Took {seconds:.0f} s. Next: quantlab course"
    )
