"""Products on a CUDA GPU with Triton: which kernel, in which blocks, for which shapes.

A *launch* is a plan that can be looked at before it runs: a kernel, a grid of programs, arguments,
compiler options. The functions that make launches need no GPU.

Results do not depend on chance: no atomic additions, and no block sizes chosen by a stopwatch, so
the same shapes on the same device give the same bits in every run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quantlab.kernels import gpu_float, gpu_integer
from quantlab.kernels.gpu_language import INTERPRETED, missing, tl
from quantlab.kernels.tiles import Tiles

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EXACT = {"enable_fp_fusion": False}  # a product and a sum are rounded one by one
FUSED = {"enable_fp_fusion": True}
MOST_SHARES = 8  # into which the columns are cut when rows alone would leave the GPU idle


@dataclass(frozen=True)
class Launch:
    """One kernel on a grid of programs.

    Attributes
    ----------
    kernel : a Triton function
    grid : up to three counts of programs
    arguments : dict
        Tensors, sizes, and constants of the compiled code (in capitals).
    options : dict
        For the compiler: num_warps, num_stages, enable_fp_fusion.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Compile if this is new, and start the programs; results lie in the output tensors."""
        self.kernel[self.grid](**self.arguments, **self.options)


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
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    out = x.new_empty(tokens.shape[0], weight.shape[0], dtype=written_type(x.dtype))
    if out.numel() and activation_bits == 8:
        codes, scale, sums = quantize_activations(tokens, weight.scheme.group_size)
        integer_launch(out, codes, scale, sums, weight).run()
    elif out.numel():
        out = float_product(tokens, weight, out)
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def float_product(x: Tensor, weight: Tiles, out: Tensor) -> Tensor:
    """Return the product of x (tokens, in), in ``out`` or as the sum of what shares gave."""
    launch = gemv_launch(out, x, weight) if len(x) == 1 else gemm_launch(out, x, weight)
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


# ---------------------------------------------------------------- launches


def gemv_launch(
    out: Tensor, x: Tensor, weight: Tiles, *, words: int = 64, warps: int = 4
) -> Launch:
    """Plan the product of one token (1, in); ``words`` of 16 rows are read at a time."""
    tiles, row_words, _ = weight.words.shape
    shares = shares_for(tiles, row_words // words, out.device)
    share = -(-row_words // (shares * words)) * words
    arguments = {
        "out": parts_of(out, shares),
        "x": x,
        **pointers(weight),
        "share": share,
        **constants(weight, words),
        "STAGES": 3,
    }
    return Launch(gpu_float.gemv, (tiles, shares), arguments, {"num_warps": warps, **FUSED})


def gemm_launch(
    out: Tensor, x: Tensor, weight: Tiles, *, rows: int = 64, warps: int = 4, stages: int = 3
) -> Launch:
    """Plan the product of several tokens (tokens, in); a program makes ``rows`` outputs of each."""
    single = x.dtype == torch.float32  # no tensor cores: smaller blocks, for want of registers
    tokens = block_tokens(len(x), most=32 if single else 128)
    words = block_words(weight, most=32 if single else 128, least=16)
    grid = (-(-weight.shape[0] // rows), -(-len(x) // tokens))
    blocks = weight.scale.shape[1] * -(-group_words(weight) // words)
    shares = shares_for(grid[0] * grid[1], blocks // 4, out.device)
    share = -(-blocks // shares)
    arguments = {
        "out": parts_of(out, shares),
        "x": x,
        **pointers(weight),
        "tokens": len(x),
        "share": share,
        **constants(weight, words),
        "ROWS": rows,
        "TOKENS": tokens,
        "FLOAT": meeting_type(x.dtype),
    }
    options = {"num_warps": warps, "num_stages": stages, **FUSED}
    return Launch(gpu_float.gemm, (*grid, shares), arguments, options)


def integer_launch(out: Tensor, x: Tensor, scale: Tensor, sums: Tensor, weight: Tiles) -> Launch:
    """Plan the product of int8 codes (tokens, in) with their scales and sums (tokens, groups)."""
    arguments = {"out": out, "x": x, "x_scale": scale, "x_sums": sums, **pointers(weight)}
    if len(x) == 1:
        words = group_words(weight)
        groups = max(1, 64 // words) if words & (words - 1) == 0 else 1
        words = 64 if groups == 1 else groups * words
        arguments |= {**constants(weight, words), "GROUPS": groups}
        return Launch(
            gpu_integer.gemv, (weight.words.shape[0],), arguments, {"num_warps": 4, **EXACT}
        )
    rows, tokens = 64, block_tokens(len(x), most=128)
    words = block_words(weight, most=128, least=32)
    arguments |= {**constants(weight, words), "tokens": len(x), "ROWS": rows, "TOKENS": tokens}
    grid = (-(-weight.shape[0] // rows), -(-len(x) // tokens))
    return Launch(gpu_integer.gemm, grid, arguments, {"num_warps": 4, "num_stages": 3, **EXACT})


def dequantize_launch(out: Tensor, weight: Tiles, *, words: int = 64) -> Launch:
    """Plan writing the weight as floats into ``out`` (out, in)."""
    arguments = {"out": out, **pointers(weight), **constants(weight, words)}
    grid = (weight.words.shape[0], -(-weight.words.shape[1] // words))
    return Launch(gpu_float.dequantize, grid, arguments, {"num_warps": 4, **EXACT})


def quantize_launch(codes: Tensor, scale: Tensor, sums: Tensor, x: Tensor) -> Launch:
    """Plan rounding x (tokens, in) to int8, one program for each group of ``scale``."""
    tokens, groups = scale.shape
    size = x.shape[1] // groups
    arguments = {"codes": codes, "scale": scale, "sums": sums, "x": x}
    arguments |= {"columns": x.shape[1], "groups": groups, "GROUP": size}
    block = power_of_two(size)
    warps = 1 if block <= 512 else 8
    return Launch(
        gpu_integer.quantize,
        (tokens, groups),
        arguments | {"BLOCK": block},
        {"num_warps": warps, **EXACT},
    )


# ---------------------------------------------------------------- sizes


def pointers(weight: Tiles) -> dict[str, Any]:
    """Return what every kernel is told about a weight: its tensors and its shape."""
    return {
        "words": weight.words,
        "scale": weight.scale,
        "zeros": weight.zeros,
        "rows": weight.shape[0],
        "columns": weight.shape[1],
        "groups": weight.scale.shape[1],
    }


def constants(weight: Tiles, words: int) -> dict[str, int]:
    """Return the sizes that are compiled into a kernel."""
    return {"BITS": weight.scheme.bits, "GROUP_WORDS": group_words(weight), "WORDS": words}


def group_words(weight: Tiles) -> int:
    """Return the 32-bit words that a group of a row takes."""
    return weight.words.shape[1] // weight.scale.shape[1]


def block_words(weight: Tiles, *, most: int, least: int) -> int:
    """Return the words of a GEMM's block: a power of two that divides a group, if one does.

    ``most`` and ``least`` count weights: tensor cores add up 16 to 32 products at once.
    """
    words, per_word = group_words(weight), weight.codes_per_word
    divisor = words & -words  # the largest power of two in it
    block = divisor if divisor * per_word >= least else power_of_two(words)
    return max(least // per_word, min(block, most // per_word))


def block_tokens(count: int, *, most: int) -> int:
    """Return the tokens of a GEMM's block: a power of two, 16 at least."""
    return max(16, min(power_of_two(count), most))


def shares_for(programs: int, most: int, device: torch.device) -> int:
    """Return into how many shares to cut the columns, so that each processor gets a program."""
    return max(1, min(processors(device) // programs, most, MOST_SHARES))


def parts_of(out: Tensor, shares: int) -> Tensor:
    """Return where the shares are written: the output itself, or float32 parts to be added up."""
    return out if shares == 1 else out.new_empty(shares, *out.shape, dtype=torch.float32)


def power_of_two(number: int) -> int:
    """Return the least power of two that is not below a number.

    Examples
    --------
    >>> [power_of_two(n) for n in (1, 5, 64, 65)]
    [1, 8, 64, 128]
    """
    return 1 << (number - 1).bit_length()


@lru_cache
def processors(device: torch.device) -> int:
    """Return the number of streaming multiprocessors of a GPU; 1 in the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def meeting_type(dtype: torch.dtype) -> Any:
    """Return Triton's type for operands of a dot product of activations of a dtype."""
    if dtype == torch.bfloat16 and INTERPRETED:
        return tl.float32
    return getattr(tl, str(dtype).removeprefix("torch."))


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
