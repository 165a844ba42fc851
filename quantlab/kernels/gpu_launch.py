"""Which GPU kernel, in which blocks, for which shapes.

A *launch* is a plan that can be looked at before it runs: a kernel, a grid of programs, arguments,
compiler options. Making one needs no GPU.

No block size is chosen by a stopwatch, and nothing is added atomically: the same shapes on the same
device give the same bits in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quantlab.kernels import gpu_float, gpu_integer
from quantlab.kernels.gpu_language import INTERPRETED, tl
from quantlab.kernels.tiles import Tiles

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
    out: Tensor, x: Tensor, weight: Tiles, *, rows: int = 64, stages: int = 3
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
    options = {"num_warps": warps_for(tokens), "num_stages": stages, **FUSED}
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
    options = {"num_warps": warps_for(tokens), "num_stages": 3, **EXACT}
    return Launch(gpu_integer.gemm, grid, arguments, options)


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


def warps_for(tokens: int) -> int:
    """Return the warps of a GEMM's program: enough registers for sums of 64 rows times tokens."""
    return 4 if tokens < 128 else 8


def shares_for(programs: int, most: int, device: torch.device) -> int:
    """Return into how many shares to cut the columns: for two programs a processor.

    One program alone has too few words on their way from memory to keep a processor busy.
    """
    return max(1, min(2 * processors(device) // programs, most, MOST_SHARES))


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
