"""Hand quantized layers to bitsandbytes and take them back, code for code.

bitsandbytes 0.50 on a CPU works if one steers round four hazards, each of them silent:

1. With AVX512-BF16, the first ``eval()`` forward of a Linear4bit repacks the weight and computes in
   bfloat16, whatever its compute_dtype says. Cure: ``support_avx512bf16_for_cpu = False`` before
   the first forward; every layer made here has it.
2. After that repacking, ``state_dict()`` writes the scales transposed and in bfloat16, and leaves
   the live layer broken. Layers in this state are refused when read back.
3. With AVX-512, ``dequantize_4bit`` takes wrong scales if a block would cross from row to row.
   Layers whose input the block size does not divide are refused.
4. ``F.gemv_4bit`` on ordinary packing returns garbage. Nothing here calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantlab.blockwise import DYNAMIC8
from quantlab.codebook_tensor import CodebookTensor, PackedCodebook, Scales, StoredScales
from quantlab.double_quantization import BLOCK, DoubleScales
from quantlab.floats import NF4, Codebook
from quantlab.methods.fp4 import FP4_BNB
from quantlab.methods.llm_int8 import Int8Rows
from quantlab.nn_codebook import CodebookLinear
from quantlab.nn_int8 import Int8Linear

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TABLES: dict[str, Codebook] = {"nf4": NF4, "fp4": FP4_BNB}
Convert = Callable[[Any], nn.Module | None]


def library() -> Any:
    """Return the bitsandbytes module, without its log line about a package that it misses.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            "bitsandbytes is not installed; pip install 'quantlab[bnb]' brings it"
        ) from error
    finally:
        logging.disable(silenced)


@torch.no_grad()
def to_bitsandbytes_(
    model: nn.Module, *, compute_dtype: torch.dtype = torch.float32
) -> tuple[str, ...]:
    """Replace NF4, FP4 and LLM.int8() layers by bitsandbytes' Linear4bit and Linear8bitLt.

    Quantize first, with ``ql.quantize_(model, ql.NormalFloat(), None)`` or ``ql.llm_int8_(model)``:
    the codes and scales go over as they are.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    compute_dtype : torch.dtype
        Of the 4-bit layers' products.

    Returns
    -------
    tuple of str
        The names of the layers that were replaced.

    Raises
    ------
    ValueError
        If bitsandbytes is missing, there is no such layer, or one has a table or block size that
        bitsandbytes does not know. Nothing is replaced then.
    """
    library()

    def convert(layer: Any) -> nn.Module | None:
        if isinstance(layer, CodebookLinear):
            return linear4bit(layer, compute_dtype)
        return linear8bit(layer) if isinstance(layer, Int8Linear) else None

    return replace_(
        model, convert, "NF4, FP4 or int8 layers; quantize it first, with ql.NormalFloat()"
    )


@torch.no_grad()
def from_bitsandbytes_(model: nn.Module) -> tuple[str, ...]:
    """Replace bitsandbytes' layers by this library's, with the same codes and scales.

    Returns
    -------
    tuple of str
        The names of the layers that were replaced.

    Raises
    ------
    ValueError
        If bitsandbytes is missing, there is no such layer, or one was never quantized, has been
        repacked by an ``eval()`` forward, or has blocks that cross from row to row. Nothing is
        replaced then.
    """
    bnb = library()

    def convert(layer: Any) -> nn.Module | None:
        if isinstance(layer, bnb.nn.Linear4bit):
            return from_linear4bit(layer)
        return from_linear8bit(layer) if isinstance(layer, bnb.nn.Linear8bitLt) else None

    return replace_(model, convert, "bitsandbytes layers")


def replace_(model: nn.Module, convert: Convert, wanted: str) -> tuple[str, ...]:
    """Replace each layer for which ``convert`` has an answer: all of them, or none if it raises."""
    made: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        try:
            replacement = convert(layer)
        except ValueError as error:
            raise ValueError(f"{name or type(layer).__name__}: {error}") from error
        if replacement is not None:
            made[name] = replacement.train(layer.training)
    if not made or "" in made:
        raise ValueError(f"{type(model).__name__} contains no {wanted}")
    for name, replacement in made.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, replacement)
    return tuple(made)


# ---------------------------------------------------------------- 4 bits


def linear4bit(layer: CodebookLinear, compute_dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a ``bnb.nn.Linear4bit`` with the codes and scales of an NF4 or FP4 layer.

    Raises
    ------
    ValueError
        If bitsandbytes has no such table or block size.
    """
    bnb, packed = library(), cast(PackedCodebook, layer.packed)
    kind = next((k for k, t in TABLES.items() if t == getattr(packed, "table", None)), None)
    if kind is None or packed.tile[0] != 1 or packed.tile[1] not in BLOCK_SIZES:
        raise ValueError(
            f"{getattr(packed, 'scheme', type(packed).__name__)} is unknown to bitsandbytes; "
            "it takes NF4 and FP4 in blocks of 32, 64, 128 .. 4096"
        )
    state = quant_state(packed, kind)
    new = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=state.nested,
        quant_type=kind,
    )
    new.weight = bnb.nn.Params4bit(
        pack_nibbles(packed.unpack().codes),
        requires_grad=False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=kind,
        module=new,
        bnb_quantized=True,
    )
    new.quant_state = state
    new.support_avx512bf16_for_cpu = False  # hazards 1 and 2
    return with_bias(new, layer.bias)


def quant_state(packed: PackedCodebook, kind: str) -> Any:
    """Return bitsandbytes' record of a weight's scales."""
    functional, scales = library().functional, packed.scales
    device = packed.data.device
    double = isinstance(scales, DoubleScales)
    second = None
    if isinstance(scales, DoubleScales):
        second = functional.QuantState(
            absmax=scales.absmax.clone(),
            blocksize=BLOCK,
            code=DYNAMIC8.values().float().to(device),
            dtype=torch.float32,
        )
    first = scales.codes if isinstance(scales, DoubleScales) else scales.values()
    return functional.QuantState(
        absmax=first.flatten().clone(),
        shape=packed.shape,
        code=packed.table.values().float().to(device),
        blocksize=packed.tile[1],
        quant_type=kind,
        dtype=torch.float32,
        offset=scales.offset.clone() if double else None,
        state2=second,
    )


def from_linear4bit(layer: Any) -> CodebookLinear:
    """Return this library's layer with the codes and scales of a ``bnb.nn.Linear4bit``.

    Raises
    ------
    ValueError
        If the layer was never quantized, was repacked, or its blocks cross from row to row.
    """
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        raise ValueError("its weight was never quantized; bitsandbytes does that in .to('cpu')")
    if getattr(state, "packing_format_for_cpu", False) or state.absmax.ndim != 1:
        raise ValueError(
            "an eval() forward has repacked its weight and rounded its scales to bfloat16; load it "
            "again and set layer.support_avx512bf16_for_cpu = False before the first forward"
        )
    rows, columns = state.shape
    if columns % state.blocksize:
        raise ValueError(
            f"blocks of {state.blocksize} cross from row to row of {columns}; "
            "quantize it again with a block size that divides the row"
        )
    scales: StoredScales = Scales(state.absmax.view(rows, -1).clone())
    if state.nested:
        absmax, offset = state.state2.absmax.clone(), state.offset.clone()
        scales = DoubleScales(state.absmax.view(rows, -1).clone(), absmax, offset)
    codes = unpack_nibbles(layer.weight.data.view(torch.uint8), rows * columns)
    table = TABLES[state.quant_type]
    name = f"{table.name}g{state.blocksize}{'dq' if state.nested else ''}"
    tensor = CodebookTensor(codes.view(rows, columns), scales, table, (1, state.blocksize), name)
    return CodebookLinear(tensor.pack(), layer.bias)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack 4-bit codes of any shape as bitsandbytes does: the earlier code in the high half.

    Examples
    --------
    >>> pack_nibbles(torch.tensor([[1, 2], [15, 0]], dtype=torch.uint8)).tolist()
    [[18], [240]]
    """
    flat = codes.flatten()
    if flat.numel() % 2:
        raise ValueError(f"{flat.numel()} codes do not fill whole bytes; pass an even number")
    return (flat[::2] << 4 | flat[1::2])[:, None]


def unpack_nibbles(data: Tensor, count: int) -> Tensor:
    """Return the first ``count`` codes of packed bytes, (count,) uint8.

    Examples
    --------
    >>> unpack_nibbles(torch.tensor([[18], [240]], dtype=torch.uint8), 4).tolist()
    [1, 2, 15, 0]
    """
    flat = data.flatten()
    return torch.stack([flat >> 4, flat & 15], 1).flatten()[:count]


# ---------------------------------------------------------------- 8 bits


def linear8bit(layer: Int8Linear) -> nn.Module:
    """Return a ``bnb.nn.Linear8bitLt`` with the codes, scales and threshold of an int8 layer.

    In train mode on a CPU it multiplies by the dequantized weight: only ``eval()`` is LLM.int8().
    """
    bnb = library()
    new = bnb.nn.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        has_fp16_weights=False,
        threshold=layer.threshold,
    )
    codes = layer.codes.clone()
    new.weight = bnb.nn.Int8Params(
        codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=layer.absmax.clone()
    )
    return with_bias(new, layer.bias)


def from_linear8bit(layer: Any) -> Int8Linear:
    """Return this library's layer with the codes, scales and threshold of a ``Linear8bitLt``.

    Raises
    ------
    ValueError
        If the layer was never quantized.
    """
    codes, absmax = layer.weight.CB, layer.weight.SCB
    if codes is None:  # the first forward moves them
        codes, absmax = layer.state.CB, layer.state.SCB
    if codes is None or codes.dtype != torch.int8:
        raise ValueError(
            "its weight was never quantized; create it with has_fp16_weights=False "
            "and call .to('cpu')"
        )
    nowhere = torch.zeros(layer.in_features, dtype=torch.bool, device=codes.device)
    rows = Int8Rows(codes.clone(), absmax.clone(), nowhere)
    return Int8Linear(rows, layer.bias, threshold=layer.state.threshold)


def with_bias(layer: Any, bias: Tensor | None) -> nn.Module:
    """Give a layer a copy of this bias: bitsandbytes casts it in place to the input's dtype."""
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
