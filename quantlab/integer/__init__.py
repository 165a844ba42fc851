"""Networks that compute on integers: prepare, calibrate (or train), convert.

    float model ── prepare ──> fake-quantized twin ── calibrate ──> ranges known ── convert ──> int8
                                                └── train_classifier (QAT) ──┘

``quantize_dynamic`` is the short way for linears: no calibration, activations rounded on the fly.
"""

from quantlab.integer.convert import convert
from quantlab.integer.dynamic import quantize_dynamic
from quantlab.integer.fold import folded
from quantlab.integer.prepare import (
    calibrate,
    follow_ranges,
    freeze_ranges,
    learn_clips,
    learn_steps,
    prepare,
)
from quantlab.integer.stubs import Add, DequantStub, QuantStub

__all__ = [
    "Add",
    "DequantStub",
    "QuantStub",
    "calibrate",
    "convert",
    "folded",
    "follow_ranges",
    "freeze_ranges",
    "learn_clips",
    "learn_steps",
    "prepare",
    "quantize_dynamic",
]
