"""Products straight from GGUF blocks: as defined, and bit for bit where they are integers."""

import ctypes
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quantlab as ql
from quantlab.kernels import gguf_blocks, paths, reference
from quantlab.kernels.block_layouts import LAYOUTS
from quantlab.kernels.block_reference import parts_of
from quantlab.kernels.gguf_blocks import gguf_matmul
from quantlab.kernels.threads import set_threads
from tests.ggml import library

MAIN = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
EACH = [
    *((name, path) for name in MAIN for path in paths.available()),
    *((name, path) for name in LAYOUTS if name not in MAIN for path in paths.available()[:1]),
]
ROWS = 5
HALVES = (0, 0x3C00, 0xBC00, 0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x8000, 0x2E66)


def random_blocks(name, rows=ROWS, columns=None, seed=0):
    """Random bits; float16 fields of all sizes and signs, but finite."""
    layout, cls = LAYOUTS[name], ql.gguf.find_type(name)
    columns = columns or (layout.chunk + layout.block_weights)  # one chunk and a tail
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (rows, cls.row_bytes(columns)), np.uint8)
    structs = blocks.view(cls.layout)
    for field in set(structs.dtype.names) & {"d", "dmin", "m"}:
        structs[field] = draw.choice(np.array(HALVES, np.uint16), structs.shape).view(np.float16)
        structs[field][1:] = (draw.standard_normal(structs[1:].shape) / 50).astype(np.float16)
    return blocks


def columns_of(blocks, name):
    return blocks.shape[1] // LAYOUTS[name].block_bytes * LAYOUTS[name].block_weights


def activations(tokens, columns, seed=1):
    """Normal numbers; blocks of zeros, of huge and of tiny ones, one outlier."""
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    x[:, :32] = 0
    x[-1, 32:64] *= 1e30
    x[0, 64:96] *= 1e-42
    x[0, -1] = 77
    return x


def bits_of(y):
    return y.float().contiguous().view(torch.int32)


def assert_equal_bits(y, wanted):
    assert y.shape == wanted.shape
    assert y.dtype == wanted.dtype
    nan = wanted.isnan()
    assert torch.equal(y.isnan(), nan)
    assert torch.equal(bits_of(y)[~nan], bits_of(wanted)[~nan])


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_scales_and_shifts_make_the_weights_that_gguf_makes(name):
    blocks = random_blocks(name)
    codes, scale, shift = parts_of(blocks, name)
    weights = codes.astype(np.float32) * scale[..., None]
    if shift is not None:
        weights = weights + shift[..., None]
    assert np.array_equal(weights.reshape(ROWS, -1), ql.gguf.dequantize(blocks, name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_definition_rounds_activations_and_nothing_else(name):
    blocks = random_blocks(name)[1:]
    x = torch.randn(3, columns_of(blocks, name), generator=torch.Generator().manual_seed(0))
    codes, scale = reference.quantize_activations(x, 32)
    rounded = (codes.float().unflatten(1, (-1, 32)) * scale[..., None]).flatten(1)
    weights = torch.from_numpy(ql.gguf.dequantize(blocks, name)).double()
    truth, size = rounded.double() @ weights.T, rounded.double().abs() @ weights.abs().T
    shape = (len(blocks), x.shape[1])
    y = reference.block_matmul(x, blocks, name, shape, 8)
    assert ((y.double() - truth).abs() <= 2.0**-20 * size).all()


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize(("name", "path"), EACH)
def test_every_path_equals_the_definition_bit_for_bit(name, path):
    blocks = random_blocks(name)
    x = activations(5, columns_of(blocks, name))
    wanted = gguf_matmul(x, blocks, name, activation_bits=8, backend="reference")
    with paths.force(path):
        assert_equal_bits(gguf_matmul(x, blocks, name, activation_bits=8), wanted)
        if path == paths.available()[0]:  # one token alone takes other steps
            assert_equal_bits(gguf_matmul(x[:1], blocks, name, activation_bits=8), wanted[:1])


@pytest.mark.parametrize("name", MAIN)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_and_any_activations_give_the_definitions_bits(name, data):
    rows, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    whole = data.draw(st.integers(1, 3))
    columns = whole * LAYOUTS[name].block_weights * data.draw(st.sampled_from([1, 6]))
    blocks = random_blocks(name, rows, columns, data.draw(st.integers(0, 2**31)))
    fill = data.draw(st.sampled_from([None, 0, 255]))
    if fill is not None:  # all codes and integer scales at an end; halves as they were
        halves = {f: blocks.view(ql.gguf.find_type(name).layout)[f].copy() for f in ("d",)}
        blocks[:] = fill
        blocks.view(ql.gguf.find_type(name).layout)["d"] = halves["d"]
        if name == "Q4_K":
            blocks.view(ql.gguf.find_type(name).layout)["dmin"] = 0.5
    x = activations(tokens, columns, data.draw(st.integers(0, 2**31)))
    wanted = gguf_matmul(x, blocks, name, activation_bits=8, backend="reference")
    assert_equal_bits(gguf_matmul(x, blocks, name, activation_bits=8), wanted)


def test_the_largest_products_do_not_overflow_on_any_path():
    for name in ("Q8_0", "Q6_K"):
        blocks = random_blocks(name)
        structs = blocks.view(ql.gguf.find_type(name).layout)
        structs["d"] = 1
        if name == "Q8_0":
            structs["qs"] = -128  # never written, but any byte can be read
        else:
            structs["ql"], structs["qh"], structs["scales"] = 255, 255, -128
        x = torch.full((1, columns_of(blocks, name)), -3.0)
        for path in paths.available():
            with paths.force(path):
                y = gguf_matmul(x.expand(5, -1), blocks, name, activation_bits=8)
            truth = x.double() @ torch.from_numpy(ql.gguf.dequantize(blocks, name)).double().T
            assert torch.allclose(y.double(), truth.expand(5, -1), rtol=1e-6)


# ---------------------------------------------------------------- floats


@pytest.mark.parametrize(("name", "path"), [e for e in EACH if e[1] in paths.available()[::3]])
def test_float_products_are_as_near_as_float32_sums_can_be(name, path):
    blocks = random_blocks(name)[1:]
    x = torch.randn(5, columns_of(blocks, name), generator=torch.Generator().manual_seed(2))
    codes, scale, shift = parts_of(blocks, name)
    size = np.abs(codes * scale[..., None].astype(np.float64))
    if shift is not None:
        size += np.abs(shift[..., None])  # summed apart from the codes
    size = x.double().abs() @ torch.from_numpy(size).flatten(1).T
    truth = gguf_matmul(x.double().float(), blocks, name, backend="reference").double()
    with paths.force(path):
        y = gguf_matmul(x, blocks, name)
    assert ((y.double() - truth).abs() <= 2.0**-20 * size).all()


def test_bfloat16_goes_in_and_comes_out():
    blocks = random_blocks("Q4_0")[1:]
    x = torch.randn(2, 3, columns_of(blocks, "Q4_0")).bfloat16()
    for bits in (8, 16):
        y = gguf_matmul(x, blocks, "Q4_0", activation_bits=bits)
        wanted = gguf_matmul(x.float(), blocks, "Q4_0", activation_bits=bits).bfloat16()
        assert y.shape == (2, 3, ROWS - 1)
        assert_equal_bits(y, wanted)


# ---------------------------------------------------------------- ggml


def test_errors_against_the_truth_are_no_larger_than_ggmls():
    """Ggml rounds activations too, so results differ; ours may not be worse than its own."""
    ggml = library()
    traits = ggml.ggml_get_type_traits_cpu
    traits.restype = ctypes.POINTER(CpuTraits)
    draw = np.random.default_rng(0)
    w = (draw.standard_normal((48, 1024)) * 0.02).astype(np.float32)
    x = draw.standard_normal((1, 1024)).astype(np.float32)
    for name in MAIN:
        number = ql.gguf.find_type(name).id
        blocks = ql.gguf.quantize(w, name)
        mine = traits(number).contents
        theirs = np.array([vec_dot(ggml, mine, row, x) for row in blocks])
        truth = x.astype(np.float64) @ ql.gguf.dequantize(blocks, name).astype(np.float64).T
        ours = gguf_matmul(torch.from_numpy(x), blocks, name, activation_bits=8).numpy()
        spread = np.linalg.norm(truth)
        assert np.linalg.norm(theirs - truth) < 0.02 * spread, name  # we do call it rightly
        assert np.linalg.norm(ours - truth) < 1.2 * np.linalg.norm(theirs - truth), name
        # two roundings to 8 bits, each off by up to 1.2 % of the whole in this many terms
        assert np.linalg.norm(ours - theirs) < 0.02 * spread, name


class CpuTraits(ctypes.Structure):
    """``ggml_type_traits_cpu``: how activations are rounded, the product, and their type."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(
                None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p,
                ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
            ),
        ),
        ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    )  # fmt: skip


def vec_dot(ggml, traits, row, x):
    """Return ggml's product of a row of blocks with activations (1, in)."""
    ggml.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
    rounded = np.zeros(ggml.ggml_row_size(traits.vec_dot_type, x.size), np.uint8)
    of_x = ggml.ggml_get_type_traits_cpu(traits.vec_dot_type).contents
    of_x.from_float(x.ctypes.data, rounded.ctypes.data, x.size)
    row, out = np.ascontiguousarray(row), np.zeros(1, np.float32)
    traits.vec_dot(x.size, out.ctypes.data, 0, row.ctypes.data, 0, rounded.ctypes.data, 0, 1)
    return float(out[0])


# ---------------------------------------------------------------- memory and threads


def test_blocks_are_read_where_a_file_is_mapped(tmp_path):
    weight = np.random.default_rng(0).standard_normal((9, 544)).astype(np.float32)
    path = tmp_path / "one.gguf"
    blocks = ql.gguf.quantize(weight, "Q4_0")
    ql.gguf.write(path, {"w": ql.gguf.Raw("Q4_0", blocks, weight.shape)}, {})
    tensor = ql.gguf.read(path).tensors["w"]
    seen = gguf_blocks.check_blocks(tensor.data, tensor.type, tensor.shape)
    assert np.shares_memory(seen, tensor.data)
    x = torch.randn(1, 544)
    y = gguf_matmul(x, tensor.data, tensor.type, tensor.shape, activation_bits=8)
    assert_equal_bits(y, gguf_matmul(x, blocks, "Q4_0", activation_bits=8))


def test_nothing_beyond_the_last_block_is_read():
    """A forbidden page follows the blocks: reading one byte of it would end the process."""
    page = 4096
    for name in MAIN:
        blocks = random_blocks(name)
        import mmap

        room = mmap.mmap(-1, 8 * page)
        flat = np.frombuffer(room, np.uint8)
        address = flat.ctypes.data
        libc = ctypes.CDLL(None)
        pages = -(-blocks.size // page)
        assert libc.mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
        here = flat[pages * page - blocks.size : pages * page].reshape(blocks.shape)
        here[:] = blocks
        x = activations(1, columns_of(blocks, name))
        y = gguf_matmul(x, here, name, activation_bits=8)
        assert_equal_bits(y, gguf_matmul(x, blocks, name, activation_bits=8))
        assert libc.mprotect(ctypes.c_void_p(address + pages * page), page, 3) == 0


def test_threads_change_nothing():
    blocks = random_blocks("Q4_0", rows=701, columns=1056)
    x = torch.randn(1, 1056)
    try:
        set_threads(1)
        alone = gguf_matmul(x, blocks, "Q4_0", activation_bits=8)
        set_threads(2)
        shared = gguf_matmul(x, blocks, "Q4_0", activation_bits=8)
    finally:
        set_threads(None)
    assert_equal_bits(shared, alone)


def test_python_threads_may_multiply_at_once():
    blocks = random_blocks("Q4_0", rows=701, columns=1056)
    inputs = [torch.randn(1, 1056) for _ in range(6)]
    wanted = [gguf_matmul(x, blocks, "Q4_0", activation_bits=8) for x in inputs]
    wrong = []

    def work(x, y):
        for _ in range(20):
            if not torch.equal(
                bits_of(gguf_matmul(x, blocks, "Q4_0", activation_bits=8)), bits_of(y)
            ):
                wrong.append(y)

    crowd = [threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert not wrong


# ---------------------------------------------------------------- what is refused, what is NaN


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_make_their_token_nan_and_no_other(bad, bits):
    blocks = ql.gguf.quantize(np.random.default_rng(0).standard_normal((5, 544)), "Q4_0")
    x = torch.randn(5, 544)
    x[2, 40] = bad
    y = gguf_matmul(x, blocks, "Q4_0", activation_bits=bits)
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_what_does_not_fit_is_refused_in_one_line():
    blocks = ql.gguf.quantize(np.ones((2, 64)), "Q4_0")
    x = torch.ones(1, 64)
    cases = [
        ({"blocks": blocks[:, :-1]}, "whole"),
        ({"shape": (3, 64)}, "whole"),
        ({"shape": (2, 65)}, "blocks of 32"),
        ({"blocks": blocks.reshape(-1)}, "or shape"),
        ({"blocks": blocks.view(np.int8)}, "uint8"),
        ({"type_name": "IQ4_XS"}, "ql.gguf.dequantize"),
        ({"type_name": "Q9_0"}, "unknown ggml type"),
        ({"x": torch.ones(1, 32)}, "last axis"),
        ({"x": x.double()}, "float32"),
        ({"activation_bits": 4}, "choose 16"),
        ({"backend": "gpu"}, "backend"),
    ]
    for change, word in cases:
        with pytest.raises(ValueError, match=word) as caught:
            gguf_matmul(**({"x": x, "blocks": blocks, "type_name": "Q4_0"} | change))
        assert "\n" not in str(caught.value)


def test_no_tokens_give_no_rows():
    blocks = ql.gguf.quantize(np.ones((2, 64)), "Q4_0")
    assert gguf_matmul(torch.ones(0, 64), blocks, "Q4_0").shape == (0, 2)
