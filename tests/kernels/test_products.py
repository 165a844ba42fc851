"""Kernels against their definitions, on every path, at every edge of a tile, a word and a group."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quantlab as ql
from quantlab.kernels import cpu, paths, reference
from quantlab.kernels.lanes import Plan
from quantlab.kernels.tiles import Tiles

PATHS = paths.available()


def problem(rows, columns, scheme, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(batch, columns, generator=generator)
    return x, ql.rtn(weight, ql.Scheme.parse(scheme)).pack()


def check(x, packed, path):
    tiles = Tiles.of(packed)
    with paths.force(path):
        assert torch.equal(cpu.matmul(x, tiles, 8), reference.matmul(x, packed, 8))
        y, definition = cpu.matmul(x, tiles), reference.matmul(x.double(), packed)
    # A float32 sum of n products is within n roundings of the sum of their sizes.
    sizes = x.double().abs() @ packed.dequantize(torch.float64).abs().T
    assert ((y - definition).abs() <= sizes * x.shape[1] * 2**-24 + 1e-30).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scheme", ["w4g32sym", "w4g64asym", "w8g32sym", "w8g64asym"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_path_gives_the_definition(path, scheme, batch):
    x, packed = problem(72, 128, scheme, batch)
    assert (packed.scale < 0).any() or not packed.scheme.symmetric  # negative scales are common
    check(x, packed, path)


@pytest.mark.parametrize("scheme", ["w4g32sym", "w4g128asym", "w4sym", "w8g128sym", "w8asym", "w8"])
@pytest.mark.parametrize("batch", [1, 2, 5, 17, 128, 512])
def test_every_batch_and_group_gives_the_definition(scheme, batch):
    check(*problem(80, 256, scheme, batch, seed=batch), paths.chosen())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    words=st.integers(1, 9),
    ragged=st.integers(0, 7),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_ragged_rows_and_tails_give_the_definition(rows, words, ragged, bits, symmetric, seed):
    columns = max(1, 8 * words - ragged)
    kind = "sym" if symmetric else "asym"
    check(*problem(rows, columns, f"w{bits}{kind}", 2, seed), paths.chosen())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("path", PATHS)
def test_the_largest_codes_and_activations_do_not_saturate(bits, path):
    # 2 * 255 * 127 is beyond 16 bits: the trap of VPMADDUBSW
    scheme, columns = ql.Scheme(bits, None, symmetric=False), 256
    codes = torch.full((64, columns), 2**bits - 1, dtype=torch.uint8)
    for zero in (0, 2**bits - 1):
        q = ql.QuantizedTensor(codes, torch.ones(64, 1), torch.full((64, 1), float(zero)), scheme)
        for x in (torch.ones(1, columns), -torch.ones(1, columns)):
            check(x, q.pack(), path)


@pytest.mark.parametrize("activation_bits", [8, 16])
def test_nan_and_infinity_do_not_disappear(activation_bits):
    x, packed = problem(64, 64, "w4g32sym", 3)
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    y = cpu.matmul(x, Tiles.of(packed), activation_bits)
    assert torch.isfinite(y[0]).all()
    assert torch.isnan(y[1]).all()
    assert not torch.isfinite(y[2]).any()


def test_a_token_of_zeros_gives_zeros():
    x, packed = problem(64, 64, "w4g32asym", 2)
    x[1] = 0
    assert (cpu.matmul(x, Tiles.of(packed), 8)[1] == 0).all()


def test_no_tokens_give_no_rows():
    _, packed = problem(64, 64, "w4g32sym")
    for bits in (8, 16):
        assert ql.int4_matmul(torch.ones(2, 0, 64), packed, activation_bits=bits).shape == (
            2,
            0,
            64,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_gives_half_precision_out(dtype):
    x, packed = problem(64, 64, "w4g32sym", 3)
    x = x.to(dtype)
    for bits in (8, 16):
        y = ql.int4_matmul(x, packed, activation_bits=bits)
        assert y.dtype == dtype
        assert torch.equal(y, ql.int4_matmul(x.float(), packed, activation_bits=bits).to(dtype))


@pytest.mark.parametrize("path", PATHS)
def test_codes_may_stand_for_any_sixteen_numbers(path):
    x, packed = problem(72, 64, "w4g32sym", 3)
    tiles, levels = Tiles.of(packed), torch.tensor(ql.NF4.levels, dtype=torch.float32)
    codes, scale = packed.unpack().codes.long(), packed.scale.double()
    weight = (levels.double()[codes].unflatten(1, (-1, 32)) * scale[..., None]).flatten(1)
    with paths.force(path):
        y = cpu.matmul(x, tiles, 16, levels)
    torch.testing.assert_close(y.double(), x.double() @ weight.T, rtol=1e-5, atol=1e-5)


def test_tiles_turn_back_into_rows():
    for scheme in ("w4g32asym", "w8sym", "w4sym"):
        _, packed = problem(37, 96, scheme)
        again = Tiles.of(packed).packed()
        assert torch.equal(again.data, packed.data)
        assert torch.equal(again.scale, packed.scale)
        assert packed.zeros is None or torch.equal(again.zeros, packed.zeros)


def test_what_no_kernel_takes_is_refused_in_one_line():
    _, odd = problem(16, 48, "w4g12sym")
    with pytest.raises(ValueError, match="groups of 12; kernels of 4 bits take multiples of 8"):
        Tiles.of(odd)
    x, packed = problem(16, 64, "w4g32sym")
    refused = {
        "backend is 'tpu'": {"backend": "tpu"},
        "activation_bits is 4": {"activation_bits": 4},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            ql.int4_matmul(x, packed, **options)
    with pytest.raises(ValueError, match="has 4-bit codes; this product takes 8"):
        ql.int8_matmul(x, packed)
    with pytest.raises(ValueError, match="last axis of x must be 64"):
        ql.int4_matmul(x[:, :32], packed)
    with pytest.raises(ValueError, match=r"dtype torch\.int64"):
        ql.int4_matmul(x.long(), packed)


def test_an_int8_row_that_could_overflow_is_refused():
    columns = cpu.INT32_SAFE + 1
    packed = ql.rtn(torch.ones(1, columns), ql.Scheme(8)).pack()
    with pytest.raises(ValueError, match="can overflow an int32, which holds 66311"):
        cpu.matmul(torch.ones(1, columns), Tiles.of(packed), 8)


def test_the_longest_safe_row_does_not_overflow():
    columns = cpu.INT32_SAFE // 4 * 4
    q = ql.rtn(torch.ones(1, columns), ql.Scheme(8, symmetric=False))
    x = torch.ones(1, columns)
    y = cpu.matmul(x, Tiles.of(q.pack()), 8)
    assert torch.equal(y, reference.matmul(x, q.pack(), 8))


def test_a_path_that_is_not_here_cannot_be_forced(monkeypatch):
    with pytest.raises(ValueError, match="path 'sse' is unknown"), paths.force("sse"):
        pass
    monkeypatch.setattr(paths, "features", set)
    message = "this processor has no avx2; it has portable"
    with pytest.raises(ValueError, match=message), paths.force("avx2"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("cpu_name", "features", "path"), [
    ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+sse4.2,+ssse3,+popcnt", "avx2"),
    ("nehalem", "+sse4.2,+ssse3,+popcnt", "portable"),
])  # fmt: skip
def test_older_processors_compile_and_agree(cpu_name, features, path, tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests/kernels', '.']\n"
        "from test_products import check, paths, problem\n"
        f"assert paths.chosen() == {path!r}, paths.chosen()\n"
        "for scheme in ('w4g32sym', 'w4asym', 'w8g32asym'):\n"
        "    check(*problem(72, 128, scheme, 3), paths.chosen())\n"
    )
    env = os.environ | {
        "NUMBA_CPU_NAME": cpu_name,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300)


def test_plans_are_made_once():
    assert cpu.plan_of(4, (1, 1)) is cpu.plan_of(4, (1, 1))
    assert isinstance(cpu.plan_of(4, (1, 1)), Plan)
