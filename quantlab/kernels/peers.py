"""Other libraries' products on the CPU, each with weights of its own making.

Traps, each one seen: ``_weight_int4pack_mm_for_cpu`` is 50 times slower with float32 activations
than with bfloat16; ``_int_mm`` wants the weight as a transposed view, and is 45 times slower on a
transposed copy; bitsandbytes' layer repacks its weight at the first call without gradients.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlab.kernels.contest import Calls, Contestant, Prepared, Product

INT4PACK_GROUPS = (32, 64, 128, 256)  # that torch's kernel knows
DYNAMIC_ENGINES = ("x86", "onednn")
NF4_BLOCK = 64  # weights that share a scale in bitsandbytes
Build = Callable[[], Callable[[], Tensor]]


def repeated(build: Build) -> Callable[[int], Prepared]:
    """Return a ``prepare`` that builds each set of weights anew, without gradients or warnings."""

    def prepare(sets: int) -> Prepared:
        with quiet():
            return Calls([build() for _ in range(sets)])

    return prepare


@contextmanager
def quiet() -> Iterator[None]:
    """Run peers without gradients, and without their warnings of being old or experimental."""
    before = logging.root.manager.disable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def float_peers(product: Product) -> list[Contestant]:
    """Return torch's float32 and bfloat16 products: the rows that all others are read against."""

    def build(dtype: torch.dtype) -> Build:
        def one() -> Callable[[], Tensor]:
            weight, x = product.weight.to(dtype, copy=True), product.x.to(dtype)
            return lambda: F.linear(x, weight)

        return one

    result = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        weight = product.weight.to(dtype)
        result.append(
            Contestant(
                name=f"torch {name} linear",
                activations=name,
                weight_bytes=weight.nbytes,
                truth=product.truth(weight),
                prepare=repeated(build(dtype)),
                bits=8.0 * weight.element_size(),
            )
        )
    return result


def int4_peers(product: Product, group_sizes: Sequence[int] = (32, 128)) -> list[Contestant]:
    """Return torch's 4-bit product for some groups, and bitsandbytes' NF4 where it is installed."""
    columns = product.weight.shape[1]
    sizes = [g for g in group_sizes if g in INT4PACK_GROUPS and columns % g == 0]
    result = [int4pack(product, size) for size in sizes if len(product.weight) % 32 == 0]
    if find_spec("bitsandbytes") and product.weight.numel() % NF4_BLOCK == 0:
        result.append(bitsandbytes_nf4(product))
    return result


def int4pack(product: Product, group_size: int) -> Contestant:
    """Return torch's product of bfloat16 with asymmetric 4-bit weights."""
    groups = product.weight.unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).to(torch.bfloat16)
    zero = (low + 8 * scale).to(torch.bfloat16)  # what code 8 stands for
    codes = torch.round((groups - zero[..., None]) / scale[..., None] + 8).clamp(0, 15)
    weight = (codes.double() - 8) * scale.double()[..., None] + zero.double()[..., None]
    integers = codes.flatten(1).int()
    x, pairs = product.x.bfloat16(), torch.stack([scale.T, zero.T], -1).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)

    def build() -> Callable[[], Tensor]:
        own, scales = packed.clone(), pairs.clone()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return lambda: multiply(x, own, group_size, scales)

    nbytes = packed.nbytes + pairs.nbytes
    return Contestant(
        name=f"torch int4pack g{group_size}",
        activations="bfloat16",
        weight_bytes=nbytes,
        truth=product.truth(weight.flatten(1)),
        prepare=repeated(build),
        bits=8 * nbytes / weight.numel(),
        note="asymmetric, bfloat16 scales",
    )


def bitsandbytes_nf4(product: Product) -> Contestant:
    """Return bitsandbytes' ``Linear4bit`` with NF4 codes in blocks of 64."""
    with quiet():
        bitsandbytes: Any = import_module("bitsandbytes")
    rows, columns = product.weight.shape
    x = product.x.bfloat16()

    with quiet():
        plain = bitsandbytes.nn.Linear4bit(
            columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        own = bitsandbytes.nn.Params4bit(
            product.weight.clone(), requires_grad=False, quant_type="nf4"
        )
        plain.weight = own
        plain = plain.to("cpu").eval()
        state = plain.weight.quant_state
        weight = bitsandbytes.functional.dequantize_4bit(plain.weight.data, state)

    def build() -> Callable[[], Tensor]:
        layer = deepcopy(plain)
        layer(x)  # repacks its weight

        def call() -> Tensor:
            with torch.no_grad():
                return layer(x)

        return call

    nbytes = plain.weight.data.nbytes + state.absmax.nbytes
    return Contestant(
        name="bitsandbytes NF4",
        activations="bfloat16",
        weight_bytes=nbytes,
        truth=product.truth(weight),
        prepare=repeated(build),
        bits=8 * nbytes / weight.numel(),
        note="16 levels of NF4, float32 scales",
    )


def int8_peers(product: Product) -> list[Contestant]:
    """Return torch's 8-bit products: of bfloat16, of bytes, and of bytes rounded on the way."""
    result = [int8pack(product), int_mm(product)]
    engines = [e for e in DYNAMIC_ENGINES if e in torch.backends.quantized.supported_engines]
    return result + [dynamic_linear(product, engine) for engine in engines]


def codes_and_scales(product: Product) -> tuple[Tensor, Tensor]:
    """Return the weight as int8 (out, in) and float32 scales (out,)."""
    scale = product.weight.abs().amax(1).clamp(min=1e-12) / 127
    return torch.round(product.weight / scale[:, None]).to(torch.int8), scale


def int8pack(product: Product) -> Contestant:
    """Return torch's product of bfloat16 with int8 weights."""
    codes, scale = codes_and_scales(product)
    x, scales = product.x.bfloat16(), scale.bfloat16()

    def build() -> Callable[[], Tensor]:
        own = codes.clone()
        return lambda: torch.ops.aten._weight_int8pack_mm(x, own, scales)

    return Contestant(
        name="torch int8pack",
        activations="bfloat16",
        weight_bytes=codes.nbytes + scales.nbytes,
        truth=product.truth(codes.double() * scales.double()[:, None]),
        prepare=repeated(build),
        bits=8 + 16 / codes.shape[1],
    )


def int_mm(product: Product) -> Contestant:
    """Return torch's product of int8 with int8, the bare integers."""
    codes, _ = codes_and_scales(product)
    whole = product.x.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    x = torch.round(product.x / whole).to(torch.int8)
    multiply = torch.ops.aten._int_mm

    def build() -> Callable[[], Tensor]:
        own = codes.clone()
        return lambda: multiply(x, own.t())

    return Contestant(
        name="torch _int_mm",
        activations="int8 given",
        weight_bytes=codes.nbytes,
        truth=(x.double() @ codes.double().T).numpy(),
        prepare=repeated(build),
        bits=8,
        note="bare integers: activations already rounded, no scale applied",
    )


def dynamic_linear(product: Product, engine: str) -> Contestant:
    """Return torch's dynamically quantized linear layer with one of its engines."""
    scale = product.weight.abs().amax(1).clamp(min=1e-12) / 127
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    x = product.x

    def quantized() -> Tensor:
        return torch.quantize_per_channel(product.weight, scale.double(), zeros, 0, torch.qint8)

    def build() -> Callable[[], Tensor]:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            packed = torch.ops.quantized.linear_prepack(quantized(), None)
        finally:
            torch.backends.quantized.engine = before
        return lambda: torch.ops.quantized.linear_dynamic(x, packed, True)  # as its layer does

    with quiet():
        weight = quantized().dequantize()
    return Contestant(
        name=f"torch dynamic {engine}",
        activations="int8 per tensor",
        weight_bytes=weight.numel() + 4 * len(scale),
        truth=product.truth(weight),
        prepare=repeated(build),
        bits=8 + 32 / weight.shape[1],
        note="activations in 7 bits, as torch's layer has them",
    )
