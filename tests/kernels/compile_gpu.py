"""Compile launches of the GPU kernels to machine code, without a GPU; run as a program.

python compile_gpu.py ARCHITECTURE...   prints, as JSON, what the machine code of each launch holds
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import quantlab as ql
from quantlab.kernels import gpu_launch as plans
from quantlab.kernels.tiles import Tiles

ROWS, COLUMNS = 512, 1024
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
PLANS = {  # by name: scheme, tokens, dtype of the activations, kind
    "gemv w4 bfloat16": ("w4g128sym", 1, torch.bfloat16, "float"),
    "gemv w8 float32": ("w8g32asym", 1, torch.float32, "float"),
    "gemm w4 bfloat16": ("w4g128sym", 16, torch.bfloat16, "float"),
    "gemm w4 float16": ("w4g32asym", 128, torch.float16, "float"),
    "gemm w8 bfloat16": ("w8asym", 128, torch.bfloat16, "float"),
    "gemm w4 float32": ("w4g64asym", 32, torch.float32, "float"),
    "gemv w4 int8": ("w4g32asym", 1, torch.bfloat16, "integer"),
    "gemm w4 int8": ("w4g128asym", 128, torch.bfloat16, "integer"),
    "gemm w8 int8": ("w8sym", 16, torch.bfloat16, "integer"),
    "dequantize": ("w4g128asym", 1, torch.bfloat16, "dequantize"),
    "quantize": ("w4g128sym", 1, torch.bfloat16, "quantize"),
}


def tiles(scheme: ql.Scheme) -> Tiles:
    """Return a weight without memory: shapes and types are all that compiling needs."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(ROWS // 16, *shape, 16, dtype=dtype, device="meta")

    groups = COLUMNS // (scheme.group_size or COLUMNS)
    zeros = None if scheme.symmetric else empty(groups, dtype=torch.uint8)
    words = empty(COLUMNS * scheme.bits // 32, dtype=torch.int32)
    scale = empty(groups, dtype=torch.float16)
    return Tiles(words, scale, zeros, scheme, torch.Size((ROWS, COLUMNS)))


def launch(name: str) -> plans.Launch:
    text, tokens, dtype, kind = PLANS[name]
    weight = tiles(ql.Scheme.parse(text))
    groups = weight.scale.shape[1]
    x = torch.empty(tokens, COLUMNS, dtype=dtype, device="meta")
    out = x.new_empty(tokens, ROWS)
    codes = x.new_empty(x.shape, dtype=torch.int8)
    scale = x.new_empty(tokens, groups, dtype=torch.float32)
    sums = scale.to(torch.int32)
    if kind == "integer":
        return plans.integer_launch(out, codes, scale, sums, weight)
    if kind == "dequantize":
        return plans.dequantize_launch(x.new_empty(ROWS, COLUMNS), weight)
    if kind == "quantize":
        return plans.quantize_launch(codes, scale, sums, x)
    return plans.gemv_launch(out, x, weight) if tokens == 1 else plans.gemm_launch(out, x, weight)


def machine_code(plan: plans.Launch, architecture: int):
    """Compile as Triton does at a launch: multiples of 16 are told, 1 and None are built in."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, facts = {}, {}, {}
    for position, name in enumerate(plan.kernel.arg_names):
        value = plan.arguments[name]
        if name.isupper() or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            facts[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(plan.kernel, signature, constants, facts)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=plan.options)


def disassembled(binary: bytes) -> Counter:
    """Count the instructions of a CUDA binary by name, with what follows the first point."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", text))


def facts(name: str, architecture: int) -> dict:
    compiled = machine_code(launch(name), architecture)
    instructions = disassembled(compiled.asm["cubin"])
    return {
        "shared": compiled.metadata.shared,
        "flush": compiled.asm["ptx"].count(".ftz"),
        "inexact": compiled.asm["ptx"].count("div.full") + compiled.asm["ptx"].count("div.approx"),
        "names": dict(Counter(key.split(".")[0] for key in instructions.elements())),
        "wide": sum(n for key, n in instructions.items() if key[:3] == "LDG" and "128" in key),
        "loads": sum(n for key, n in instructions.items() if key[:3] == "LDG"),
    }


if __name__ == "__main__":
    print(json.dumps({a: {n: facts(n, int(a)) for n in PLANS} for a in sys.argv[1:]}))
