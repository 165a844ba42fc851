"""Products on a GPU as contestants: ours, torch's and bitsandbytes' 4-bit kernels, and cuBLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantlab.kernels import gpu, gpu_launch
from quantlab.kernels.contest import Contestant, Product
from quantlab.kernels.tiles import Tiles
from quantlab.methods.rtn import rtn
from quantlab.scheme import Scheme

SCHEMES = (Scheme(4, 128), Scheme(4, 32, symmetric=False))
GRAPH_CALLS = 20  # of a replay, at least
Build = Callable[[], Callable[[], Tensor]]


class Graphs:
    """Calls captured in CUDA graphs: one that repeats the first, and one that rotates."""

    def __init__(self, calls: Sequence[Callable[[], Tensor]]) -> None:
        self.calls = list(calls)
        self.process: int | None = None
        self.graphs: dict[bool, tuple[Any, int]] = {}

    def result(self) -> NDArray[np.float64]:
        """Return the product (batch, out) with the first weight."""
        return self.calls[0]().double().cpu().numpy()

    def graph(self, cold: bool) -> tuple[Any, int]:
        """Capture once, after a call that compiles; return the graph and its number of calls."""
        if cold not in self.graphs:
            chosen = self.calls if cold else self.calls[:1]
            chosen = chosen * -(-GRAPH_CALLS // len(chosen))
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with torch.cuda.stream(stream):
                chosen[0]()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                for call in chosen:
                    call()
            self.graphs[cold] = graph, len(chosen)
        return self.graphs[cold]

    def turn(self, calls: int, threads: int, *, cold: bool) -> list[float]:
        """Replay once without a clock, then so many times with one; return seconds of a call."""
        graph, count = self.graph(cold)
        graph.replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 / count for begin, end in pairwise(events)]

    def close(self) -> None:
        """Give the weights back."""
        self.calls.clear()
        self.graphs.clear()


def moved_to_gpu(weight: Tiles) -> Tiles:
    """Return a copy of a weight in memory of its own."""
    zeros = None if weight.zeros is None else weight.zeros.cuda().clone()
    words, scale = weight.words.cuda().clone(), weight.scale.cuda().clone()
    return Tiles(words, scale, zeros, weight.scheme, weight.shape)


def contestant(
    name: str, weight: Tensor, product: Product, nbytes: int, build: Build, **facts: Any
) -> Contestant:
    """Return a contestant whose weight stands for ``weight`` (out, in); ``build`` makes one set."""
    return Contestant(
        name=name,
        activations=facts.pop("activations", "bfloat16"),
        weight_bytes=nbytes,
        truth=product.truth(weight),
        prepare=lambda sets: Graphs([build() for _ in range(sets)]),
        bits=8 * nbytes / weight.numel(),
        **facts,
    )


def own(product: Product, scheme: Scheme, activation_bits: int) -> Contestant:
    """Return our product for a scheme."""
    tiles = Tiles.of(rtn(product.weight, scheme).pack())
    x = product.x.bfloat16().cuda()
    return contestant(
        f"quantlab {scheme} A{activation_bits}",
        tiles.packed().dequantize(torch.float64),
        product,
        tiles.nbytes,
        lambda: partial(gpu.matmul, x, moved_to_gpu(tiles), activation_bits),
        activations="bfloat16" if activation_bits == 16 else "int8",
        ours=True,
    )


def swept(product: Product, scheme: Scheme) -> Iterator[Contestant]:
    """Yield our product of floats with other block sizes than the library's."""
    tiles, single = Tiles.of(rtn(product.weight, scheme).pack()), len(product.x) == 1
    weight, x = tiles.packed().dequantize(torch.float64), product.x.bfloat16().cuda()
    plan = gpu_launch.gemv_launch if single else gpu_launch.gemm_launch
    sizes = [{"words": w, "warps": n} for w in (32, 64, 128) for n in (2, 4, 8)]
    if not single:
        sizes = [{"rows": r, "stages": s} for r in (32, 64, 128) for s in (2, 3, 4)]
    for options in sizes:

        def build(options: dict[str, int] = options) -> Callable[[], Tensor]:
            held, out = moved_to_gpu(tiles), x.new_empty(len(x), product.shape[0])
            return lambda: gpu.finished(plan(out, x, held, **options), out)

        name = f"quantlab {scheme} " + " ".join(f"{k}={v}" for k, v in options.items())
        yield contestant(name, weight, product, tiles.nbytes, build, ours=True)


def cublas(product: Product, dtype: torch.dtype) -> Contestant:
    """Return torch's product of 16-bit floats."""
    x, weight = product.x.to(dtype).cuda(), product.weight.to(dtype)

    def build() -> Callable[[], Tensor]:
        held = weight.cuda().clone()
        return lambda: torch.nn.functional.linear(x, held)

    name = str(dtype).removeprefix("torch.")
    return contestant(f"cuBLAS {name}", weight, product, weight.nbytes, build, activations=name)


def tinygemm(product: Product, group_size: int = 128) -> Contestant:
    """Return torch's 4-bit product: scale * (code - 8) + zero, bfloat16."""
    groups = product.weight.unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).bfloat16()
    zero = (low + 8 * scale).bfloat16()
    codes = torch.round((groups - zero[..., None]) / scale[..., None] + 8).clamp(0, 15)
    weight = (codes.double() - 8) * scale.double()[..., None] + zero.double()[..., None]
    bytes_ = codes.flatten(1).to(torch.uint8)
    pairs = (bytes_[:, ::2] << 4 | bytes_[:, 1::2]).contiguous()
    both, x = torch.stack([scale.T, zero.T], -1).contiguous(), product.x.bfloat16().cuda()

    def build() -> Callable[[], Tensor]:
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.cuda(), 8)
        held = both.cuda().clone()
        return lambda: torch.ops.aten._weight_int4pack_mm(x, packed, group_size, held)

    nbytes = pairs.nbytes + both.nbytes
    return contestant(f"torch tinygemm g{group_size}", weight.flatten(1), product, nbytes, build)


def bitsandbytes_nf4(product: Product) -> Contestant:
    """Return bitsandbytes' ``Linear4bit`` with NF4 codes in blocks of 64."""
    library: Any = import_module("bitsandbytes")
    rows, columns = product.weight.shape
    x = product.x.bfloat16().cuda()

    def layer() -> Any:
        made = library.nn.Linear4bit(
            columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        made.weight = library.nn.Params4bit(
            product.weight.clone(), requires_grad=False, quant_type="nf4"
        )
        return made.cuda().eval()

    first = layer()
    state = first.weight.quant_state
    weight = library.functional.dequantize_4bit(first.weight.data, state).cpu()
    nbytes = first.weight.data.nbytes + state.absmax.nbytes
    return contestant("bitsandbytes NF4", weight, product, nbytes, lambda: partial(layer(), x))


def entrants(product: Product, sweep: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names and makers: a library that is missing fails when its own is made."""
    for scheme in SCHEMES:
        for bits in (16, 8):
            yield f"quantlab {scheme} A{bits}", partial(own, product, scheme, bits)
    yield "torch tinygemm", partial(tinygemm, product)
    yield "bitsandbytes", partial(bitsandbytes_nf4, product)
    for dtype in (torch.bfloat16, torch.float16):
        yield f"cuBLAS {dtype}", partial(cublas, product, dtype)
    if sweep:
        for made in swept(product, SCHEMES[0]):
            yield made.name, lambda made=made: made
