"""Module 01: kinds of names, bytes of a model, and whether anything was quantized at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import quantlab as ql
from quantlab.nn import weight_bytes
from quantlab.quiz.check import Exercise
from quantlab.quiz.expect import Wrong, call, expect, show

KINDS = ("number type", "algorithm", "format", "library", "kernel")
# name -> kind, and the thought that sends a learner there
NAMES = {
    "GGUF": (
        "format",
        "look inside a .gguf file: tensors of many types, some of them float",
    ),
    "safetensors": ("format", "it lays named tensors into a file, quantized or not"),
    "INT8": ("number type", "it says which values one number can take"),
    "NF4": ("number type", "it is a table of 16 values; anybody may pick from it, in many ways"),
    "MXFP4": ("number type", "small floats with a shared power of two: again a list of values"),
    "GPTQ": ("algorithm", "it decides how each weight is rounded, whatever stores it afterwards"),
    "AWQ": ("algorithm", "it decides how columns are scaled before they are rounded"),
    "RTN": ("algorithm", "rounding to nearest is the simplest way to choose the values"),
    "bitsandbytes": ("library", "you import it: code for several number types and algorithms"),
    "llm-compressor": ("library", "you install and call it; it offers several algorithms"),
    "Marlin": ("kernel", "a GPU program that multiplies with packed 4-bit weights"),
    "torch._int_mm": ("kernel", "one function: an int8 matrix product with int32 sums"),
}


def check_kinds(answer: Any) -> None:
    """Name the first misplaced name, with a thought that leads on."""
    if not isinstance(answer, dict):
        raise Wrong(f"expected a dict name -> kind, yours is {show(answer)}")
    for name, (kind, thought) in NAMES.items():
        if name not in answer or answer[name] is ...:
            raise Wrong(f"{name} has no kind yet")
        mine = str(answer[name]).strip().lower()
        if mine not in KINDS:
            raise Wrong(f"{name}: {show(answer[name])} is no kind; choose {', '.join(KINDS)}")
        if mine != kind:
            raise Wrong(f"{name} is no {mine}: {thought}")


def gigabytes(weights: float, bits: float, group_size: int | None) -> float:
    """Bytes / 1e9 of codes, and of one float16 scale for each group if there are groups."""
    scale_bits = 16 / group_size if group_size else 0
    return weights * (bits + scale_bits) / 8 / 1e9


SIZES = [(7e9, 16, None), (7e9, 4, 32), (7e9, 4, 128), (70e9, 3, 64), (1e9, 8, 32)]


def check_gigabytes(answer: Any) -> None:
    """Name the usual slips on 7e9 weights of 4 bits in groups of 32, then compare all cases."""
    probe = call(answer, 7e9, 4, 32)
    slips = {
        3.5: "the scales are stored too: 16 bits for every group",
        31.5: "these are gigabits; a byte has 8 bits",
        3.9375e9: "these are bytes; a gigabyte is 1e9 bytes",
        7e9 * 4.5 / 8 / 2**30: "you divided by 2**30 (that is GiB); a GB is 1e9 bytes",
        7e9 * (4 + 2 / 32) / 8 / 1e9: "a float16 scale takes 2 bytes, which is 16 bits",
        7e9 * (4 + 16) / 8 / 1e9: "the 32 weights of a group share one scale",
    }
    for value, reason in slips.items():
        if isinstance(probe, int | float) and abs(probe - value) < 1e-6 * value:
            raise Wrong(f"gigabytes(7e9, 4, 32): yours is {show(float(probe))}; {reason}")
    for case in SIZES:
        shown = ", ".join(map(show, case))
        what = f"gigabytes({shown})"
        expect(call(answer, *case), gigabytes(*case), what, rel=1e-9)


def sample_layer() -> nn.Linear:
    """Return a seeded layer with a bias that nobody can overlook."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(64, 32)
    layer.weight.data = 0.1 * torch.randn(32, 64, generator=generator)
    layer.bias.data = torch.randn(32, generator=generator)
    return layer


def repaired(layer: torch.nn.Linear) -> torch.nn.Module:
    """Store 4-bit codes and scales in place of the float weight, and keep the bias."""
    quantized = ql.rtn(layer.weight, ql.Scheme(bits=4, group_size=32))
    return ql.QuantizedLinear(quantized.pack(), layer.bias)


def check_repair(answer: Any) -> None:
    """Ask for integers in storage, fewer bytes, the bias, and outputs that are still right."""
    module = call(answer, sample_layer())
    if not isinstance(module, nn.Module):
        raise Wrong(f"expected a layer (nn.Module), yours is {show(module)}; pack it into a layer")
    if not ql.is_quantized(module):
        kept = sorted({str(tensor.dtype) for tensor in module.state_dict().values()})
        raise Wrong(f"is_quantized says False: your layer stores only {', '.join(kept)}")
    before = sample_layer()
    if weight_bytes(module) > weight_bytes(before) / 2:
        raise Wrong(
            f"your layer stores {weight_bytes(module)} bytes, the float layer "
            f"{weight_bytes(before)}: the float weight must go"
        )
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        right, mine = before(x), call(module, x)
    if not isinstance(mine, Tensor) or mine.shape != right.shape:
        raise Wrong(f"your layer returns {show(mine)}; expected shape {tuple(right.shape)}")
    if error_share(mine + before.bias.detach(), right) < error_share(mine, right):
        raise Wrong("the outputs lack the bias: only the weight was carried over")
    if error_share(mine, right) > 0.02:
        share = 100 * error_share(mine, right)
        raise Wrong(f"{share:.0f} % of the output's energy is error; 4 bits should cost below 2 %")


def error_share(mine: Tensor, right: Tensor) -> float:
    """Return the squared error's share of the output's energy."""
    return float((mine - right).square().sum() / right.square().sum())


class Int8Linear(nn.Linear):
    """A float layer with a proud name."""


def specimens() -> list[tuple[str, nn.Module, bool]]:
    """Return (description, module, does it store integer weights)."""
    rounded, renamed = sample_layer(), Int8Linear(64, 32)
    rounded.weight.data = ql.rtn(rounded.weight, ql.Scheme(bits=4)).dequantize()
    packed = repaired(sample_layer())
    return [
        ("an untouched float layer", sample_layer(), False),
        ("a float layer whose weight was rounded to 16 levels a row", rounded, False),
        ("a float layer whose class is called Int8Linear", renamed, False),
        ("a float layer beside a BatchNorm, which counts batches in an int64",
         nn.Sequential(sample_layer(), nn.BatchNorm1d(32)), False),
        ("a layer of packed 4-bit codes", packed, True),
        ("a float layer followed by a packed one", nn.Sequential(sample_layer(), packed), True),
    ]  # fmt: skip


def stores_integers(module: torch.nn.Module) -> bool:
    """Look at what is stored: one-byte integers, wherever they are."""
    small = (torch.uint8, torch.int8)
    return any(tensor.dtype in small for tensor in module.state_dict().values())


def check_audit(answer: Any) -> None:
    """Try the audit on layers that only look quantized, then on two that are."""
    for description, module, stored in specimens():
        verdict = call(answer, module)
        if not isinstance(verdict, bool):
            raise Wrong(f"expected True or False, yours is {show(verdict)} for {description}")
        if verdict != stored:
            truth = "stores integer weights" if stored else "stores no integer weight"
            raise Wrong(f"your audit says {verdict} for {description}, which {truth}")


def round_in_float(layer: nn.Linear) -> nn.Linear:
    """Round without storing integers: the listing of the exercise, which must fail."""
    scale = layer.weight.abs().max() / 127
    layer.weight.data = torch.round(layer.weight / scale) * scale
    return layer


def without_bias(layer: nn.Linear) -> nn.Module:
    """Quantize the weight and forget the rest."""
    return ql.QuantizedLinear(ql.rtn(layer.weight, ql.Scheme(bits=4, group_size=32)).pack())


def too_coarse(layer: nn.Linear) -> nn.Module:
    """Stay with one bit."""
    return ql.QuantizedLinear(ql.rtn(layer.weight, ql.Scheme(bits=1)).pack(), layer.bias)


def both_kept(layer: nn.Linear) -> nn.Module:
    """Add the integers and keep the float weight as well."""
    module = repaired(layer)
    module.register_buffer("original", layer.weight.detach())
    return module


EXERCISES = [
    Exercise(
        "a",
        "Sort twelve names into number type, algorithm, format, library and kernel.",
        difficulty=1,
        importance=5,
        minutes=6,
        check=check_kinds,
        hints=[
            "ask of each name: is it a list of values, a way to choose them, a layout of a file, "
            "code to install, or one function that multiplies?",
            "there are 2 formats, 3 number types, 3 algorithms, 2 libraries and 2 kernels",
            "GGUF and safetensors are the two formats",
        ],
        solution={name: kind for name, (kind, _) in NAMES.items()},
        wrong=[
            dict.fromkeys(NAMES, "algorithm"),
            {name: kind for name, (kind, _) in NAMES.items()} | {"bitsandbytes": "algorithm"},
            {name: kind for name, (kind, _) in NAMES.items()} | {"NF4": "technique"},
            {"GGUF": "format"},
            ["format"],
        ],
    ),
    Exercise(
        "b",
        "Write gigabytes(weights, bits, group_size) for codes and their float16 scales.",
        difficulty=1,
        importance=5,
        minutes=6,
        check=check_gigabytes,
        hints=[
            "count the bits of one weight first: its code, and its share of a scale",
            "a group of g weights shares 16 bits of scale; group_size None has no scale",
            "bits per weight = bits + 16 / group_size; a byte has 8 bits, a GB 1e9 bytes",
        ],
        solution=gigabytes,
        wrong=[
            lambda weights, bits, group_size: weights * bits / 8 / 1e9,
            lambda weights, bits, group_size: gigabytes(weights, bits, group_size) * 8,
            lambda weights, bits, group_size: gigabytes(weights, bits, group_size) * 1e9,
            lambda weights, bits, group_size: gigabytes(weights, bits, group_size) * 1e9 / 2**30,
            lambda weights, bits, group_size: weights * (bits + 2 / (group_size or 1e9)) / 8e9,
            lambda weights, bits, group_size: weights * (bits + 16) / 8e9,
            lambda weights, bits, group_size: weights * (bits + 16 / group_size) / 8e9,
        ],
    ),
    Exercise(
        "c",
        "Repair a listing that rounds in float: return a layer for which ql.is_quantized holds.",
        difficulty=2,
        importance=5,
        minutes=10,
        check=check_repair,
        hints=[
            "round(w / scale) is the code; the listing multiplies it back and stores a float",
            "ql.rtn returns codes and scales; .pack() brings them into the form that is stored",
            "ql.QuantizedLinear(packed, bias) is a layer that holds a packed weight",
        ],
        solution=repaired,
        wrong=[
            lambda layer: layer,
            round_in_float,
            lambda layer: layer.half(),
            lambda layer: ql.rtn(layer.weight, ql.Scheme(bits=4)),
            without_bias,
            too_coarse,
            both_kept,
        ],
    ),
    Exercise(
        "d",
        "Write an audit that looks at storage; rounded and renamed float layers must fail it.",
        difficulty=2,
        importance=4,
        minutes=8,
        check=check_audit,
        hints=[
            "names, classes and counts of distinct values say nothing about storage; dtypes do",
            "module.state_dict() holds every stored tensor, of this module and of those inside it",
            "BatchNorm counts in int64: which integer dtypes can hold a packed weight?",
        ],
        solution=stores_integers,
        wrong=[
            lambda module: True,
            lambda module: False,
            lambda module: any(
                len(w.unique()) <= 16 * len(w) for w in module.state_dict().values()
            ),
            lambda module: "int8" in type(module).__name__.lower(),
            lambda module: any(not w.is_floating_point() for w in module.state_dict().values()),
            lambda module: weight_bytes(module),
        ],
    ),
]
