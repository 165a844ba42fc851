"""MXFP4 and NVFP4: every scale, every code, and the nearest value by exhaustive search."""

import ggml
import numpy as np
import pytest

from quantlab.floats import E8M0, FP4_E2M1, FP8_E4M3
from quantlab.gguf import TYPES, dequantize, quantize


def neighbors(values: np.ndarray, steps: int) -> np.ndarray:
    """Return float32 values with ``steps`` floats on each side of them."""
    bits = np.asarray(values, np.float32).view(np.int32)[:, None]
    return (bits + np.arange(-steps, steps + 1, dtype=np.int32)).reshape(-1).view(np.float32)


def one_weight(name: str, weights: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(weights), TYPES[name].size), np.float32)
    rows[:, 3] = weights
    return rows


def test_the_exponent_around_each_power_of_two_equals_ggml():
    x = one_weight("MXFP4", neighbors(2.0 ** np.arange(-124, 128), 20))
    np.testing.assert_array_equal(quantize(x, "MXFP4"), ggml.quantize(x, 39))


def test_the_scale_around_each_e4m3_number_equals_ggml():
    scales = FP8_E4M3.values()[1:127].numpy()
    middles = (scales[1:] + scales[:-1]) / 2
    wanted = neighbors(6 * np.concatenate([scales, middles, [248]]), 6)
    x = one_weight("NVFP4", wanted[wanted <= 2688])
    np.testing.assert_array_equal(quantize(x, "NVFP4"), ggml.quantize(x, 40))


def test_mxfp4_is_fp4_doubled_under_e8m0_halved():
    data = np.zeros((253, 17), np.uint8)
    data[:, 0] = np.arange(253)
    data[:, 1:] = np.arange(16) * 17
    values = FP4_E2M1.values().numpy() * E8M0.values().numpy()[:253, None]
    # larger scales reach beyond float32
    np.testing.assert_array_equal(dequantize(data, "MXFP4"), np.tile(values, 2))


def test_nvfp4_is_fp4_under_e4m3():
    data = np.zeros((127, 36), np.uint8)
    data[:, :4] = np.arange(127)[:, None]
    data[:, 4:] = np.tile(np.arange(8) + 16 * np.arange(8, 16), 4)
    values = FP4_E2M1.values().numpy() * FP8_E4M3.values().numpy()[:127, None]
    np.testing.assert_array_equal(dequantize(data, "NVFP4"), np.tile(values, 4))


@pytest.mark.parametrize(("name", "group"), [("MXFP4", 32), ("NVFP4", 16)])
def test_no_other_code_is_nearer(name, group):
    rng = np.random.default_rng(0)
    x = (np.round(rng.normal(size=(200, 64)) * 16) / 16).astype(np.float32)  # with ties
    read = dequantize(quantize(x, name), name).reshape(-1, group)
    x = x.reshape(-1, group)
    largest = np.abs(x).max(axis=1)
    if name == "MXFP4":
        scale = 2.0 ** (np.floor(np.log2(largest)) - 2)
    else:
        e4m3 = FP8_E4M3.values()[:127].numpy()[::-1]  # of two as near, argmin takes the larger
        scale = e4m3[np.abs(e4m3 - largest[:, None] / 6).argmin(axis=1)]
    levels = FP4_E2M1.values().numpy() * scale[:, None, None]
    distance = np.abs(levels - x[..., None])
    np.testing.assert_array_equal(np.abs(read - x), distance.min(axis=-1))
    ties = (distance == distance.min(axis=-1, keepdims=True)).sum(axis=-1) > 1
    assert ties[x != 0].any()


def test_mxfp4_below_its_least_exponent_stays_finite():
    x = np.array([[1e-40] * 31 + [2.0**-126]], np.float32)
    assert quantize(x, "MXFP4")[0, 0] == 0
    assert np.abs(dequantize(quantize(x, "MXFP4"), "MXFP4") - x).max() <= 2.0**-128


def test_nvfp4_refuses_what_it_would_clip():
    quantize(one_weight("NVFP4", np.array([2688.0])), "NVFP4")
    with pytest.raises(ValueError, match="NVFP4 holds sizes up to 2688"):
        quantize(one_weight("NVFP4", np.array([np.nextafter(np.float32(2688), np.inf)])), "NVFP4")


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_around_each_midpoint_the_codes_equal_ggml(name):
    levels = FP4_E2M1.values()[:8].numpy()
    x = np.zeros((60, TYPES[name].size), np.float32)
    middles = neighbors((levels[1:] + levels[:-1]) / 2, 2)
    for i, scale in enumerate(2.0 ** np.arange(-9, 9)):
        x[i, :15] = middles[:15] * scale
        x[i + 20, :15] = -middles[15:30] * scale
        x[i + 40, :5] = middles[30:] * scale
        x[[i, i + 20, i + 40], 15] = 6 * scale
    np.testing.assert_array_equal(quantize(x, name), ggml.quantize(x, TYPES[name].id))
