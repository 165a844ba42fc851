"""quantlab: quantize models, and see exactly what was lost.

>>> import quantlab as ql
>>> model, tokenizer = ql.load("storyteller")
>>> data = ql.calibration_set(tokenizer, samples=8, length=128)
>>> report = ql.quantize_(model, ql.GPTQ(), ql.Scheme(bits=4, group_size=64), data)
>>> ql.perplexity(model, ql.test_set(tokenizer, samples=4)) < 30
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantlab import gguf, quiz
from quantlab.accumulators import safe_terms, saturated_pairs
from quantlab.adapters import (
    LoRALinear,
    Merge,
    adapter_bytes,
    add_adapters_,
    merge_adapters_,
    train_adapters_,
)
from quantlab.allocate import Allocation, Choices, Mixed, sensitivities
from quantlab.block import Block, Method, second_moment
from quantlab.blockwise import DYNAMIC8, BlockCodes, blockwise8, quantize_blocks
from quantlab.codebook_tensor import CodebookTensor, Scales
from quantlab.data import calibration_set, test_set
from quantlab.double_quantization import double_quantize
from quantlab.evaluate import Evaluation, evaluate, log_probabilities, perplexity
from quantlab.export.bitsandbytes import from_bitsandbytes_, to_bitsandbytes_
from quantlab.export.gguf import export_gguf
from quantlab.export.gguf_load import load_gguf
from quantlab.export.imatrix import imatrix
from quantlab.factor import factorize, inverse_cholesky
from quantlab.fake_quant import fake_quantize, stored_scale
from quantlab.floats import (
    BF16,
    E8M0,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    NF4,
    Codebook,
    FloatFormat,
    nf4_levels,
)
from quantlab.hadamard import hadamard_matrix, hadamard_transform
from quantlab.integer import (
    Add,
    DequantStub,
    QuantStub,
    calibrate,
    convert,
    folded,
    follow_ranges,
    freeze_ranges,
    learn_clips,
    learn_steps,
    prepare,
    quantize_dynamic,
)
from quantlab.kernels.gguf_blocks import gguf_matmul
from quantlab.kernels.product import int4_matmul, int8_matmul
from quantlab.lattice_e8 import decode_e8, encode_e8, nearest_e8
from quantlab.layer_table import LayerCost, layer_costs
from quantlab.methods.adaround import AdaRound
from quantlab.methods.adascale import AdaScale
from quantlab.methods.awq import AWQ, awq, mean_size
from quantlab.methods.codebook import KMeans, Lattice, kmeans, lattice
from quantlab.methods.distillation import distillation_loss
from quantlab.methods.flexround import FlexRound
from quantlab.methods.float_formats import FloatRTN, float_rtn, mx, nvfp4, shared_exponent
from quantlab.methods.fp4 import FP4_BNB, Float4, fp4
from quantlab.methods.gptq import GPTQ, gptq, solve
from quantlab.methods.hqq import HQQ, half_quadratic, hqq, shrink
from quantlab.methods.kv_cache import pack_states
from quantlab.methods.llm_int8 import Int8Rows, int8_rows, llm_int8
from quantlab.methods.lsq import LearnedStep, lsq_gradient_scale, lsq_start
from quantlab.methods.nf4 import NormalFloat, nf4
from quantlab.methods.omniquant import OmniQuant
from quantlab.methods.pact import LearnedClip
from quantlab.methods.qat import accuracy, train_classifier
from quantlab.methods.rtn import RTN, rtn
from quantlab.methods.smoothquant import smooth_scales
from quantlab.methods.ternary import BitLinear, Ternary, pack_ternary, round_tokens, ternary
from quantlab.models.decoder import FastDecoder
from quantlab.models.digits import DigitImages, digit_images
from quantlab.models.families import UnsupportedModelError
from quantlab.models.kv_cache import QuantizedKVCache, TokenByToken
from quantlab.models.loading import load
from quantlab.models.mobilenet import MobileNet, digits_net, mobilenet_v2
from quantlab.nn import QuantizedLinear, activation_bits_, is_quantized
from quantlab.nn_codebook import CodebookLinear
from quantlab.nn_int8 import Int8Linear, llm_int8_
from quantlab.notebook import digits, notebook, show, table
from quantlab.observers import ObservedRange
from quantlab.orthogonal import cayley_step, incoherence, rotation_matrix
from quantlab.packing import pack_codes, packed_bytes, unpack_codes
from quantlab.pipeline import quantize_
from quantlab.quiz import exercise
from quantlab.report import Report
from quantlab.rotate import Rotations, rotate_
from quantlab.scheme import Scheme
from quantlab.sim import DynamicSim, QuantSim, StaticSim
from quantlab.smooth import smooth_
from quantlab.spinquant import learn_rotations
from quantlab.tensor import (
    CalibrationError,
    PackedTensor,
    QuantizedTensor,
    output_error,
    sqnr,
)

if TYPE_CHECKING:  # imported on first use: see __getattr__
    from quantlab import plot, widgets

__version__ = "0.1.0"

__all__ = [
    "AWQ",
    "BF16",
    "DYNAMIC8",
    "E8M0",
    "FP4_BNB",
    "FP4_E2M1",
    "FP6_E2M3",
    "FP6_E3M2",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "GPTQ",
    "HQQ",
    "NF4",
    "RTN",
    "AdaRound",
    "AdaScale",
    "Add",
    "Allocation",
    "BitLinear",
    "Block",
    "BlockCodes",
    "CalibrationError",
    "Choices",
    "Codebook",
    "CodebookLinear",
    "CodebookTensor",
    "DequantStub",
    "DigitImages",
    "DynamicSim",
    "Evaluation",
    "FastDecoder",
    "FlexRound",
    "Float4",
    "FloatFormat",
    "FloatRTN",
    "Int8Linear",
    "Int8Rows",
    "KMeans",
    "Lattice",
    "LayerCost",
    "LearnedClip",
    "LearnedStep",
    "LoRALinear",
    "Merge",
    "Method",
    "Mixed",
    "MobileNet",
    "NormalFloat",
    "ObservedRange",
    "OmniQuant",
    "PackedTensor",
    "QuantSim",
    "QuantStub",
    "QuantizedKVCache",
    "QuantizedLinear",
    "QuantizedTensor",
    "Report",
    "Rotations",
    "Scales",
    "Scheme",
    "StaticSim",
    "Ternary",
    "TokenByToken",
    "UnsupportedModelError",
    "accuracy",
    "activation_bits_",
    "adapter_bytes",
    "add_adapters_",
    "awq",
    "blockwise8",
    "calibrate",
    "calibration_set",
    "cayley_step",
    "convert",
    "decode_e8",
    "digit_images",
    "digits",
    "digits_net",
    "distillation_loss",
    "double_quantize",
    "encode_e8",
    "evaluate",
    "exercise",
    "export_gguf",
    "factorize",
    "fake_quantize",
    "float_rtn",
    "folded",
    "follow_ranges",
    "fp4",
    "freeze_ranges",
    "from_bitsandbytes_",
    "gguf",
    "gguf_matmul",
    "gptq",
    "hadamard_matrix",
    "hadamard_transform",
    "half_quadratic",
    "hqq",
    "imatrix",
    "incoherence",
    "int4_matmul",
    "int8_matmul",
    "int8_rows",
    "inverse_cholesky",
    "is_quantized",
    "kmeans",
    "lattice",
    "layer_costs",
    "learn_clips",
    "learn_rotations",
    "learn_steps",
    "llm_int8",
    "llm_int8_",
    "load",
    "load_gguf",
    "log_probabilities",
    "lsq_gradient_scale",
    "lsq_start",
    "mean_size",
    "merge_adapters_",
    "mobilenet_v2",
    "mx",
    "nearest_e8",
    "nf4",
    "nf4_levels",
    "notebook",
    "nvfp4",
    "output_error",
    "pack_codes",
    "pack_states",
    "pack_ternary",
    "packed_bytes",
    "perplexity",
    "plot",
    "prepare",
    "quantize_",
    "quantize_blocks",
    "quantize_dynamic",
    "quiz",
    "rotate_",
    "rotation_matrix",
    "round_tokens",
    "rtn",
    "safe_terms",
    "saturated_pairs",
    "second_moment",
    "sensitivities",
    "shared_exponent",
    "show",
    "shrink",
    "smooth_",
    "smooth_scales",
    "solve",
    "sqnr",
    "stored_scale",
    "table",
    "ternary",
    "test_set",
    "to_bitsandbytes_",
    "train_adapters_",
    "train_classifier",
    "unpack_codes",
    "widgets",
]


def __getattr__(name: str) -> Any:
    """Import the rooms that need matplotlib or anywidget on first use."""
    if name in ("plot", "widgets"):
        return import_module(f"quantlab.{name}")
    raise AttributeError(f"quantlab has no {name!r}")
