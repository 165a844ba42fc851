"""The simple block types: against ggml, against slow twins, and at the edge of their range."""

import ggml
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlab.gguf import TYPES, dequantize, quantize
from tests.gguf.reference import READERS
from tests.gguf.rows import awkward_rows, importance, importance_with_zeros, subnormal_rows

SIMPLE = list(READERS)
WITH_IMATRIX = ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]
PLAIN = ["F16", "BF16"]


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    both_nan = np.isnan(ours) & np.isnan(theirs)
    equal = ours.view(np.uint32) == theirs.view(np.uint32)
    np.testing.assert_array_equal(equal | both_nan, True)


def awkward(name: str, columns: int, seed: int) -> np.ndarray:
    limit = np.float32(TYPES[name].limit)
    return np.clip(np.stack(list(awkward_rows(columns, seed).values())), -limit, limit)


def block(name: str, weight: float) -> np.ndarray:
    """Return a block of zeros with one weight in it."""
    x = np.zeros(TYPES[name].size, np.float32)
    x[-1] = weight
    return x


@pytest.mark.parametrize("name", SIMPLE + PLAIN)
@pytest.mark.parametrize("columns", [256, 768])
def test_bytes_and_floats_equal_ggml(name, columns):
    for seed in range(1, 4):
        x = awkward(name, columns, seed)
        data = quantize(x, name)
        np.testing.assert_array_equal(data, ggml.quantize(x, TYPES[name].id))
        same_bits(dequantize(data, name), ggml.dequantize(data, TYPES[name].id, columns))


@pytest.mark.parametrize("name", WITH_IMATRIX)
@pytest.mark.parametrize("make", [importance, importance_with_zeros])
def test_bytes_with_an_imatrix_equal_ggml(name, make):
    for columns in (256, 768):
        x = awkward(name, columns, 5)
        theirs = ggml.quantize(x, TYPES[name].id, make(columns))
        np.testing.assert_array_equal(quantize(x, name, make(columns)), theirs)


@pytest.mark.parametrize("name", SIMPLE + PLAIN)
def test_any_bytes_become_the_floats_of_ggml(name):
    data = np.random.default_rng(1).integers(0, 256, (99, TYPES[name].row_bytes(768)), np.uint8)
    same_bits(dequantize(data, name), ggml.dequantize(data, TYPES[name].id, 768))


@pytest.mark.parametrize("name", [name for name in SIMPLE if name != "MXFP4"])
def test_rows_whose_scales_vanish_become_zeros(name):
    x = np.stack(list(subnormal_rows(512).values()))
    ours = dequantize(quantize(x, name), name)
    np.testing.assert_array_equal(ours, 0)
    theirs = ggml.dequantize(ggml.quantize(x, TYPES[name].id), TYPES[name].id, 512)
    np.testing.assert_array_equal(theirs, 0)


@pytest.mark.parametrize("name", SIMPLE)
def test_the_slow_twin_reads_the_same_weights(name):
    cls, seen = TYPES[name], 0
    for row in quantize(awkward(name, 512, 4), name):
        for data in row.reshape(-1, cls.layout.itemsize)[:2]:
            twin = np.array(READERS[name](data.tobytes()))
            # d q + m of Q4_1 and Q5_1 is rounded to float32, the other products are exact
            np.testing.assert_array_equal(dequantize(data, name), twin.astype(np.float32))
            seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Q4_0", "0080" + 16 * "88"),
        ("Q4_1", 20 * "00"),
        ("Q5_0", "0080ffffffff" + 16 * "00"),
        ("Q5_1", 24 * "00"),
        ("Q8_0", 34 * "00"),
        ("TQ1_0", 48 * "80" + 4 * "7f" + "0000"),
        ("TQ2_0", 64 * "55" + "0000"),
        ("Q2_0", "0000" + 16 * "55"),
        ("Q1_0", "0000" + 16 * "ff"),
        ("MXFP4", 17 * "00"),
        ("NVFP4", 36 * "00"),
        ("F16", "0000"),
        ("BF16", "0000"),
    ],
)
def test_zeros_have_known_bytes(name, text):
    assert quantize(np.zeros(TYPES[name].size), name).tobytes().hex() == text


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("Q4_0", 8 * 65520),
        ("Q5_0", 16 * 65520),
        ("Q8_0", 127 * 65520),
        ("TQ1_0", 65520),
        ("TQ2_0", 65520),
        ("Q2_0", 65520),
        ("F16", 65520),
        ("BF16", 255.5 * 2.0**120),
    ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_weight_is_finite_and_the_next_float_is_refused(name, most, sign):
    accepted = np.nextafter(np.float32(most), np.float32(0))
    data = quantize(block(name, sign * accepted)[None], name)
    np.testing.assert_array_equal(
        data, ggml.quantize(block(name, sign * accepted)[None], TYPES[name].id)
    )
    assert np.isfinite(dequantize(data, name)).all()
    with pytest.raises(ValueError, match=f"{name} holds sizes up to"):
        quantize(block(name, sign * np.float32(most)), name)
    theirs = ggml.dequantize(
        ggml.quantize(block(name, sign * np.float32(most))[None], TYPES[name].id),
        TYPES[name].id,
        TYPES[name].size,
    )
    assert not np.isfinite(theirs).all()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Q4_1", block("Q4_1", -65520)),
        ("Q4_1", block("Q4_1", 65520 * 15)),
        ("Q5_1", block("Q5_1", -65520)),
        ("Q5_1", block("Q5_1", 65520 * 31)),
        ("Q1_0", np.full(128, 65520, np.float32)),
    ],
)
def test_a_scale_beyond_float16_is_refused_and_just_below_it_is_not(name, row):
    with pytest.raises(ValueError, match=r"row 1, block 2 .* does not fit float16"):
        quantize(np.stack([np.zeros(3 * len(row)), np.concatenate([0 * row, 0 * row, row])]), name)
    inside = np.nextafter(row, np.float32(0))
    data = quantize(inside[None], name)
    np.testing.assert_array_equal(data, ggml.quantize(inside[None], TYPES[name].id))
    assert np.isfinite(dequantize(data, name)).all()


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q1_0"])
def test_weights_near_the_largest_float_are_refused(name):
    x = np.random.default_rng(0).uniform(-3.4e38, 3.4e38, TYPES[name].size)
    with pytest.raises(ValueError, match="does not fit float16"):
        quantize(x, name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", SIMPLE + PLAIN + ["F32"])
def test_what_is_not_finite_is_refused(name, value):
    x = np.zeros((3, 256))
    x[1, 40] = value
    with pytest.raises(ValueError, match=r"weight \[1, 40\] is .*repair the checkpoint"):
        quantize(x, name)


@given(st.lists(st.integers(-16, 16), min_size=32, max_size=32), st.sampled_from(SIMPLE[:5]))
def test_no_weight_is_further_than_half_a_step(codes, name):
    x = np.array(codes, np.float32) / 4
    error = np.abs(dequantize(quantize(x, name), name) - x).max()
    levels = {"Q4_0": 16, "Q4_1": 15, "Q5_0": 32, "Q5_1": 31, "Q8_0": 254}[name]
    signed = name in ("Q4_0", "Q5_0")
    width = 2 * np.abs(x).max() if signed or name == "Q8_0" else np.ptp(x)
    # The grid of a signed type ends one step before the opposite extreme; float16 rounds the scale.
    assert error <= width / levels * (1.0 if signed else 0.5) + 2e-3 * np.abs(x).max()


@pytest.mark.parametrize("name", SIMPLE + PLAIN)
def test_what_was_read_is_written_with_the_same_weights(name):
    once = dequantize(quantize(awkward(name, 512, 9)[:6], name), name)
    twice = dequantize(quantize(once, name), name)
    if name in ("Q1_0", "TQ1_0", "TQ2_0", "Q2_0", "F16", "BF16", "MXFP4"):
        np.testing.assert_array_equal(once, twice)
    else:  # a scale that lost a digit in float16 may move
        np.testing.assert_allclose(once, twice, atol=np.abs(once).max() / 15)


@pytest.mark.parametrize("name", SIMPLE + PLAIN)
def test_threads_do_not_change_a_byte(name):
    x = np.random.default_rng(0).normal(size=(65, 2048)).astype(np.float32)
    one, two = quantize(x, name, threads=1), quantize(x, name, threads=2)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(dequantize(one, name, threads=2), dequantize(one, name))


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64", "F64"])
def test_plain_numbers_are_read_and_not_written(name):
    numbers = np.array([[1, -2, 3], [0, 100, -128]]).astype(TYPES[name].layout)
    np.testing.assert_array_equal(dequantize(numbers.view(np.uint8), name), numbers)
    with pytest.raises(ValueError, match=f"{name} can be read here, but not written"):
        quantize([1.0], name)


def test_f32_is_a_copy():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert quantize(x, "F32").tobytes() == x.tobytes()
    np.testing.assert_array_equal(dequantize(quantize(x, "F32"), "F32"), x)


def test_every_float16_is_read_and_written_as_numpy_does():
    bits = np.arange(2**16, dtype="<u2")
    halves = bits.view("<f2")
    read = dequantize(bits.view(np.uint8), "F16")
    np.testing.assert_array_equal(read, halves.astype(np.float32))
    finite = np.isfinite(read)
    np.testing.assert_array_equal(np.signbit(read)[finite], np.signbit(halves)[finite])
    between = (read[finite][:-1].astype(np.float64) + read[finite][1:]) / 2  # ties, and their
    for x in (between, np.nextafter(np.float32(between), np.float32(9e9)), read[finite]):
        x = np.float32(x)[np.abs(x) < 65520]
        np.testing.assert_array_equal(quantize(x, "F16").view("<f2"), x.astype(np.float16))
