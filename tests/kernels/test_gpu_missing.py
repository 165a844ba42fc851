"""The GPU kernels where Triton or a GPU is missing: they import, and say what to do."""

import json
import subprocess
import sys

import pytest

import quantlab as ql
from tests.kernels.weights import random_weight

WITHOUT_TRITON = """
import json, sys
import torch
import quantlab as ql
from quantlab.kernels import product, tiles
assert "triton" not in sys.modules, "importing quantlab must not import Triton"
sys.modules["triton"] = None  # importing it now fails, as where it is not installed
from quantlab.kernels import gpu
weight = tiles.Tiles.of(ql.rtn(torch.eye(16, 64), ql.Scheme(4, 32)).pack())
messages = []
for call in (
    lambda: ql.int4_matmul(torch.zeros(64), weight, backend="gpu"),
    lambda: gpu.dequantize(weight),
    lambda: gpu.quantize_activations(torch.zeros(1, 64)),
):
    try:
        call()
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def test_kernels_import_without_triton_and_a_call_says_how_to_install_it():
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    wanted = "the GPU kernels need Triton; run: pip install 'quantlab[gpu]'"
    assert json.loads(child.stdout) == [wanted] * 3


def test_packed_weights_hold_every_code_and_negative_scales():
    weight = random_weight(64, 512, ql.Scheme(4, 32, symmetric=False)).unpack()
    assert weight.codes.unique().numel() == weight.zero_point.unique().numel() == 16
    assert (weight.scale < 0).any()
    assert pytest.approx(0.125, abs=0.05) == (weight.scale == 0).float().mean().item()
