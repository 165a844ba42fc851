"""quantlab: quantize models, and see exactly what was lost.

>>> import quantlab as ql
>>> model, tokenizer = ql.load("storyteller")
>>> data = ql.calibration_set(tokenizer, samples=8, length=128)
>>> report = ql.quantize_(model, ql.GPTQ(), ql.Scheme(bits=4, group_size=64), data)
>>> ql.perplexity(model, ql.test_set(tokenizer, samples=4)) < 20
True
"""

from quantlab.block import Block, Method, second_moment
from quantlab.data import calibration_set, test_set
from quantlab.evaluate import Evaluation, evaluate, log_probabilities, perplexity
from quantlab.methods.gptq import GPTQ, gptq
from quantlab.methods.rtn import RTN, rtn
from quantlab.models.families import UnsupportedModelError
from quantlab.models.loading import load
from quantlab.nn import QuantizedLinear, is_quantized
from quantlab.pipeline import quantize_
from quantlab.report import Report
from quantlab.scheme import Scheme
from quantlab.tensor import (
    CalibrationError,
    PackedTensor,
    QuantizedTensor,
    output_error,
    sqnr,
)

__version__ = "0.1.0"
