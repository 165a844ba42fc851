"""Products of packed weights on a CUDA GPU, with Triton.

The kernels stand in ``gpu_float`` and ``gpu_integer``; ``gpu_launch`` plans how they run.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quantlab.kernels.gpu_language import INTERPRETED, missing
from quantlab.kernels.gpu_launch import (
    Launch,
    dequantize_launch,
    gemm_launch,
    gemv_launch,
    integer_launch,
    quantize_launch,
)
from quantlab.kernels.tiles import Tiles

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INT32_SAFE = (2**31 - 1) // (255 * 127)  # products of a byte and an int8 that an int32 can add up


def matmul(x: Tensor, weight: Tiles, activation_bits: int = 16) -> Tensor:
    """Multiply activations (..., in) with the transpose of a quantized weight (out, in).

    Parameters
    ----------
    x : (..., in) float32, bfloat16 or float16 tensor
        On the device of ``weight``: CUDA, or the CPU under ``TRITON_INTERPRET=1``.
    weight : Tiles, (out, in)
    activation_bits : 16 or 8
        16: products of floats, added up in float32. 8: x is rounded to int8 first, and the result
        equals ``reference.matmul`` in every bit.

    Returns
    -------
    (..., out) tensor in the dtype of ``x``

    Raises
    ------
    ValueError
        If Triton or a GPU is missing, or x does not fit the weight.
    """
    check(x, weight)
    if activation_bits not in (8, 16):
        raise ValueError(
            f"activation_bits is {activation_bits}; choose 16 (floats) or 8 (integers)"
        )
    if activation_bits == 8:
        check_sums(weight)
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(tokens.shape[0], weight.shape[0], dtype=written_type(x.dtype))
    if out.numel() and activation_bits == 8:
        codes, scale, sums = quantize_activations(tokens, weight.scheme.group_size)
        integer_launch(out, codes, scale, sums, weight).run()
    elif out.numel():
        out = float_product(tokens, weight, out)
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def float_product(x: Tensor, weight: Tiles, out: Tensor) -> Tensor:
    """Return the product of x (tokens, in)."""
    plan = gemv_launch if len(x) == 1 else gemm_launch
    return finished(plan(out, x, weight), out)


def finished(launch: Launch, out: Tensor) -> Tensor:
    """Run a product; return ``out``, or the sum of the parts if its columns were shared out."""
    launch.run()
    parts = launch.arguments["out"]
    return out if parts is out else parts.sum(0).to(out.dtype)


def dequantize(weight: Tiles, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the (out, in) weight, equal to ``PackedTensor.dequantize`` in every bit.

    Raises
    ------
    ValueError
        If Triton or a GPU is missing, or ``dtype`` is not float32, bfloat16 or float16.
    """
    check_device(weight.words.device)
    check_dtype(dtype, "dtype")
    out = weight.words.new_empty(weight.shape, dtype=written_type(dtype))
    dequantize_launch(out, replace(weight, scale=weight.scale.to(dtype))).run()
    return out.to(dtype)


def quantize_activations(x: Tensor, group_size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return int8 codes (tokens, in), and scale and sum of the codes of each group.

    The first two equal ``reference.quantize_activations`` in every bit; the sums (tokens, groups)
    are int32, and serve the zero points of weights.
    """
    check_device(x.device)
    check_dtype(x.dtype, "x")
    groups = x.shape[1] // (group_size or x.shape[1])
    codes = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(len(x), groups, dtype=torch.float32)
    sums = x.new_empty(len(x), groups, dtype=torch.int32)
    quantize_launch(codes, scale, sums, x).run()
    return codes, scale, sums


def written_type(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which kernels write: the interpreter cannot round to bfloat16."""
    return torch.float32 if dtype == torch.bfloat16 and INTERPRETED else dtype


# ---------------------------------------------------------------- checks


def check(x: Tensor, weight: Tiles) -> None:
    """Raise a ValueError unless x (..., in) fits the weight and both lie where kernels run."""
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; the weight takes (..., {weight.shape[1]})")
    check_dtype(x.dtype, "x")
    if x.device != weight.words.device:
        raise ValueError(
            f"x is on {x.device} and the weight on {weight.words.device}; move one to the other"
        )
    check_device(x.device)


def check_sums(weight: Tiles) -> None:
    """Raise a ValueError if a group is so long that a sum of integers could overflow int32."""
    group = weight.shape[1] // weight.scale.shape[1]
    if weight.scheme.bits == 8 and group > INT32_SAFE:
        raise ValueError(
            f"{group} products of 8 bits can overflow an int32, which holds {INT32_SAFE}; "
            "quantize with a group_size"
        )


def check_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise a ValueError unless the kernels know a floating type."""
    if dtype not in FLOATS:
        raise ValueError(f"{name} is {dtype}; the GPU kernels take float32, bfloat16 and float16")


def check_device(device: torch.device) -> None:
    """Raise a ValueError unless kernels can be launched on a device."""
    reason = missing()
    if reason:
        raise ValueError(reason)
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"the tensors are on {device}; GPU kernels take CUDA tensors, or any under "
            "TRITON_INTERPRET=1, set before Python starts"
        )
