"""The GPU kernels become machine code for real GPUs, and the machine code is what was meant.

An interpreter takes much that a GPU's compiler refuses. Compiling needs no GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("compile_gpu.py")
SHARED_MEMORY = {"80": 166912, "90": 232448}  # bytes of a program: A100, H100
CONSUMER = 101376  # an RTX 3090 or 4090, which takes the code of architecture 80
TENSOR = {"80": ("HMMA", "IMMA"), "90": ("HGMMA", "IGMMA")}  # floats, integers


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """Return what the machine code holds: {architecture: {launch: facts}}."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = str(PROGRAM.parents[2])
    command = [sys.executable, "-W", "error", str(PROGRAM), *SHARED_MEMORY]
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def of(facts, *words):
    chosen = {name: fact for name, fact in facts.items() if all(word in name for word in words)}
    assert chosen
    return chosen.values()


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_every_kernel_compiles_and_fits_the_processor(code, architecture):
    most = min(SHARED_MEMORY[architecture], CONSUMER if architecture == "80" else 2**20)
    for fact in code[architecture].values():
        assert fact["shared"] <= most
        assert not {"LDL", "STL"} & set(fact["names"]), "registers spill"


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_integer_kernels_round_products_and_sums_one_by_one(code, architecture):
    for fact in of(code[architecture], "int8"):
        assert "FFMA" not in fact["names"]
        assert {"FMUL", "FADD"} <= set(fact["names"])
        assert fact["flush"] == 0  # subnormal numbers stay
    for fact in of(code[architecture], "quantize"):
        assert fact["flush"] == fact["inexact"] == 0
    assert all("FFMA" in fact["names"] for fact in of(code[architecture], "gemv", "float"))


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_many_tokens_are_multiplied_by_tensor_cores(code, architecture):
    floats, integers = TENSOR[architecture]
    for word, names in (("float16", floats), ("int8", integers)):
        for fact in of(code[architecture], "gemm", word):
            assert names in fact["names"]
    for fact in of(code[architecture], "gemm", "float32"):  # they would round float32 to tf32
        assert not {"HMMA", "HGMMA"} & set(fact["names"])


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_words_of_weights_are_loaded_sixteen_bytes_at_a_time(code, architecture):
    for kind in ("gemv w4", "gemm w4", "gemv w8", "dequantize"):
        for fact in of(code[architecture], kind):
            assert fact["wide"] >= 2
