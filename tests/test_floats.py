"""Float formats against torch's own types and exact fractions; NF4 against its published table."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import nearest_float, nearest_level

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

SIGNED = [FP8_E4M3, FP8_E5M2, FP6_E2M3, FP6_E3M2, FP4_E2M1, BF16, FP16]
FORMATS = [*SIGNED, E8M0]
TORCH_DTYPES = {
    FP8_E4M3: torch.float8_e4m3fn,
    FP8_E5M2: torch.float8_e5m2,
    BF16: torch.bfloat16,
    FP16: torch.float16,
}
E8M0_DTYPE = getattr(torch, "float8_e8m0fnu", None)  # torch 2.7 and later

every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
every_signed = pytest.mark.parametrize("format", SIGNED, ids=lambda f: f.name)
every_torch = pytest.mark.parametrize("format", TORCH_DTYPES, ids=lambda f: f.name)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal numbers, equal signs of zero, NaN in the same places."""
    nan = torch.isnan(a)
    if not nan.equal(torch.isnan(b)):
        return False
    a, b = a[~nan].double(), b[~nan].double()
    return a.equal(b) and torch.signbit(a).equal(torch.signbit(b))


def finite(format: FloatFormat) -> torch.Tensor:
    """All finite values in ascending order, each once."""
    values = format.values()
    return values[torch.isfinite(values)].unique()


def critical(format: FloatFormat) -> torch.Tensor:
    """Every finite value and midpoint, also the one beyond max, with float32 neighbors."""
    ends = finite(format)
    values = torch.cat([ends, ends[-1:] + (ends[-1] - ends[-2])])
    points = torch.cat([values, (values[1:] + values[:-1]) / 2]).float()
    inf = torch.tensor(torch.inf)
    return torch.cat([points, points.nextafter(inf), points.nextafter(-inf)])


def random_bit_patterns(count: int = 500_000) -> torch.Tensor:
    """Any float32 with equal chance: all magnitudes, subnormals, infinities and NaN."""
    patterns = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64)
    return patterns.to(torch.int32).view(torch.float32)


# ---------------------------------------------------------------- tables


@every_torch
def test_every_code_decodes_as_torch_reads_its_bits(format):
    integer = torch.uint8 if format.bits == 8 else torch.int16
    codes = torch.arange(2**format.bits).to(integer)
    expected = codes.view(TORCH_DTYPES[format])
    assert same(format.values(), expected.double())


@pytest.mark.skipif(E8M0_DTYPE is None, reason="this torch has no float8_e8m0fnu")
def test_every_e8m0_code_decodes_as_torch_reads_its_bits():
    codes = torch.arange(256).to(torch.uint8)
    assert same(E8M0.values(), codes.view(E8M0_DTYPE).float().double())


def test_e8m0_is_every_power_of_two_from_minus_127_to_127_and_nan():
    assert E8M0.values()[:255].tolist() == [2.0**k for k in range(-127, 128)]
    assert math.isnan(E8M0.values()[255])


def test_six_and_four_bit_values_equal_the_tables_of_the_mx_specification():
    # Section 5.3 of the OCP MX specification: subnormals first, then one row an exponent.
    e2m3 = (
        [k / 8 for k in range(16)] + [k / 4 for k in range(8, 16)] + [k / 2 for k in range(8, 16)]
    )
    e3m2 = [k / 16 for k in range(8)]
    e3m2 += [2.0**e * (1 + m / 4) for e in range(-1, 5) for m in range(4)]
    e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for format, table in [(FP6_E2M3, e2m3), (FP6_E3M2, e3m2), (FP4_E2M1, e2m1)]:
        assert same(format.values(), torch.tensor(table + [-v for v in table], dtype=torch.float64))


@pytest.mark.parametrize(
    ("format", "largest", "smallest", "numbers", "nans", "infinities"),
    [  # numbers: distinct finite values, where 0 and -0 are one
        (FP8_E4M3, 448.0, 2**-9, 253, 2, 0),
        (FP8_E5M2, 57344.0, 2**-16, 247, 6, 2),
        (FP6_E2M3, 7.5, 2**-3, 63, 0, 0),
        (FP6_E3M2, 28.0, 2**-4, 63, 0, 0),
        (FP4_E2M1, 6.0, 2**-1, 15, 0, 0),
        (E8M0, 2.0**127, 2**-127, 255, 1, 0),
        (BF16, torch.finfo(torch.bfloat16).max, 2**-133, 65279, 254, 2),
        (FP16, 65504.0, 2**-24, 63487, 2046, 2),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_formats_have_the_published_ranges_and_counts(
    format, largest, smallest, numbers, nans, infinities
):
    values = format.values()
    assert (format.max, format.smallest) == (largest, smallest)
    assert len(finite(format)) == numbers
    assert (int(values.isnan().sum()), int(values.isinf().sum())) == (nans, infinities)


@every_format
def test_fields_put_together_are_the_code(format):
    codes = torch.arange(2**format.bits)
    sign, exponent, mantissa = format.fields(codes)
    E, M = format.exponent_bits, format.mantissa_bits
    assert ((sign << (E + M)) | (exponent << M) | mantissa).equal(codes)
    assert int(exponent.max()) == 2**E - 1
    assert int(mantissa.max()) == 2**M - 1
    assert format.fields(1) == tuple(int(field[1]) for field in (sign, exponent, mantissa))


# ---------------------------------------------------------------- encode


@every_format
def test_every_value_encodes_to_its_own_code(format):
    values = format.values()
    codes = torch.arange(2**format.bits)
    keep = torch.isfinite(values)
    assert format.encode(values[keep]).long().equal(codes[keep])
    if format.special != "none":
        again = format.decode(format.encode(values, saturate=False), torch.float64)
        assert torch.signbit(again[~values.isnan()]).equal(torch.signbit(values[~values.isnan()]))
        assert again.nan_to_num(7.5).equal(values.nan_to_num(7.5))


@every_torch
def test_encode_equals_torchs_cast_at_every_value_and_midpoint_and_beside_them(format):
    x = critical(format)
    x = x[format.encode(x) == format.encode(x, saturate=False)]  # overflow has its own test
    assert same(format.decode(format.encode(x)), x.to(TORCH_DTYPES[format]).float())


@every_torch
def test_encode_equals_torchs_cast_on_random_bit_patterns(format):
    x = torch.cat([random_bit_patterns(), torch.randn(200_000), 0.01 * torch.randn(200_000)])
    cast = x.to(TORCH_DTYPES[format]).float()
    beyond = format.encode(x) != format.encode(x, saturate=False)
    if format is FP8_E4M3 and bool(torch.tensor(1e9).to(torch.float8_e4m3fn).float() == 448):
        assert same(format.decode(format.encode(x)), cast)  # torch 2.12 and later saturate
    else:
        assert same(format.decode(format.encode(x, saturate=False)), cast)
    assert int(beyond.sum()) > 0  # overflow was among them


@pytest.mark.skipif(E8M0_DTYPE is None, reason="this torch has no float8_e8m0fnu")
def test_e8m0_encodes_as_torch_but_for_torchs_slip_at_the_bottom():
    x = torch.cat([random_bit_patterns(), critical(E8M0)]).abs()
    ours, cast = E8M0.decode(E8M0.encode(x, saturate=False)), x.to(E8M0_DTYPE).float()
    # torch sends all of (2**-127, 2**-126) up: 2**-126 is right only from 1.5 * 2**-127 on.
    slip = (x > 2.0**-127) & (x < 1.5 * 2.0**-127)
    assert same(ours[~slip], cast[~slip])
    assert (ours[slip] == 2.0**-127).all()


@pytest.mark.parametrize("format", [f for f in SIGNED if f.bits <= 8], ids=lambda f: f.name)
def test_encode_equals_an_exact_search_at_every_midpoint_and_beside_it(format):
    values = format.values()[: format.max_code + 1].tolist()
    x = critical(format)
    expected = torch.tensor([nearest_float(values, v) for v in x.tolist()])
    assert same(format.decode(format.encode(x)), expected)


@given(st.floats(allow_nan=False), st.sampled_from([FP8_E4M3, FP8_E5M2, FP6_E3M2, FP4_E2M1]))
def test_encode_equals_an_exact_search_for_any_float64(x, format):
    values = format.values()[: format.max_code + 1].tolist()
    expected = math.copysign(format.max, x) if math.isinf(x) else nearest_float(values, x)
    got = format.decode(format.encode(torch.tensor([x], dtype=torch.float64)), torch.float64)
    assert same(got, torch.tensor([expected], dtype=torch.float64))


def test_float64_is_not_rounded_twice():
    # Just above the midpoint of 1 and 1.125; a detour over float32 would make it a tie.
    x = torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64)
    assert FP8_E4M3.decode(FP8_E4M3.encode(x)).item() == 1.125
    assert FP8_E4M3.decode(FP8_E4M3.encode(x.float())).item() == 1.0


@every_format
def test_encoding_twice_changes_nothing_and_keeps_order(format):
    x = torch.cat([random_bit_patterns(100_000), 3 * torch.randn(100_000)])
    x = x[~x.isnan()]
    x = (x if format.signed else x.abs()).sort().values
    once = format.decode(format.encode(x))
    assert same(format.decode(format.encode(once)), once)
    assert (once.diff() >= 0).all()


@every_signed
def test_rounding_is_odd_and_keeps_the_sign_of_zero(format):
    x = torch.cat([torch.randn(10_000), torch.tensor([0.0, 1e-45, torch.inf])])
    assert same(format.decode(format.encode(-x)), -format.decode(format.encode(x)))


def test_overflow_saturates_or_becomes_infinity_or_nan():
    x = torch.tensor([464.0, 464.001, 1e30, torch.inf, -500.0])
    assert FP8_E4M3.decode(FP8_E4M3.encode(x)).tolist() == [448, 448, 448, 448, -448]
    loose = FP8_E4M3.decode(FP8_E4M3.encode(x, saturate=False))
    assert loose[0] == 448  # a tie: 448 is even, and 480 would be NaN's code
    assert loose[1:].isnan().all()
    x = torch.tensor([61439.0, 61440.0, torch.inf, -70000.0])
    assert FP8_E5M2.decode(FP8_E5M2.encode(x)).tolist() == [57344, 57344, 57344, -57344]
    loose = FP8_E5M2.decode(FP8_E5M2.encode(x, saturate=False))
    assert loose.tolist() == [57344, torch.inf, torch.inf, -torch.inf]


def test_e8m0_takes_zero_to_its_smallest_value():
    assert E8M0.decode(E8M0.encode(torch.tensor([0.0, 1e-45, 1.5, 1.49]))).tolist() == [
        2**-127,
        2**-127,
        2,
        1,
    ]


def test_codes_are_uint8_up_to_eight_bits_and_int32_above():
    x = torch.randn(2, 3, 5)
    assert FP4_E2M1.encode(x).dtype == FP8_E4M3.encode(x).dtype == torch.uint8
    assert FP16.encode(x).dtype == torch.int32
    assert FP16.decode(FP16.encode(x)).shape == (2, 3, 5)
    assert FP8_E4M3.encode(torch.empty(0, 4)).shape == (0, 4)


def test_what_a_format_cannot_say_is_refused_with_value_and_place():
    nan = torch.tensor([[0.0, 1.0], [torch.nan, 2.0]])
    with pytest.raises(ValueError, match=r"FP4_E2M1 has no NaN; x holds nan at \[1, 0\]"):
        FP4_E2M1.encode(nan)
    with pytest.raises(ValueError, match=r"FP6_E3M2 has no infinity; pass saturate=True for 28; "):
        FP6_E3M2.encode(torch.tensor([31.0]), saturate=False)
    with pytest.raises(ValueError, match=r"E8M0 has no sign; x holds -2 at \[1\]"):
        E8M0.encode(torch.tensor([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"code 64 is not in FP6_E2M3; its codes are 0 \.\. 63"):
        FP6_E2M3.decode(torch.tensor([3, 64]))
    with pytest.raises(ValueError, match=r"code -1 is not in FP16"):
        FP16.decode(torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"E9M8 has 9 exponent and 8 mantissa bits"):
        FloatFormat("E9M8", 9, 8, bias=255)
    with pytest.raises(ValueError, match=r"choose at least 1 and 1"):
        FloatFormat("E3M0", 3, 0, bias=3, special="ieee")


# ---------------------------------------------------------------- codebooks


def test_nf4_levels_are_float32_numbers_with_zero_and_both_ends():
    levels = NF4.values()
    assert levels.float().double().equal(levels)
    assert len(levels) == 16
    assert levels[[0, 7, 15]].tolist() == [-1.0, 0.0, 1.0]


def test_nf4_levels_follow_from_normal_quantiles():
    # bitsandbytes spaced its probabilities in float32 and cut p to seven digits, hence 2e-7.
    assert (nf4_levels() - NF4.values()).abs().max() < 2e-7


def test_nf4_levels_move_by_a_thousandth_if_the_offset_is_one_of_its_two_halves():
    # The constant is a mean of two; with either alone the table is another one.
    for p in (1 - 1 / 32, 1 - 1 / 30):
        quantiles = torch.special.ndtri(torch.linspace(p, 0.5, 9, dtype=torch.float64)[:-1])
        assert (quantiles.flip(0) / quantiles[0] - NF4.values()[8:]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebook_codes_are_those_of_the_nearest_level_with_ties_down(dtype):
    levels = NF4.values()
    midpoints = ((levels[1:] + levels[:-1]) / 2).to(dtype)
    assert NF4.encode(midpoints).tolist() == list(range(15))
    up = midpoints.nextafter(torch.tensor(torch.inf, dtype=dtype))
    down = midpoints.nextafter(torch.tensor(-torch.inf, dtype=dtype))
    assert NF4.encode(up).tolist() == list(range(1, 16))
    assert NF4.encode(down).tolist() == list(range(15))
    x = torch.cat([torch.randn(2000), torch.rand(2000) * 2 - 1]).to(dtype)
    expected = [nearest_level(list(NF4.levels), v) for v in x.double().tolist()]
    assert NF4.encode(x).tolist() == expected


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=256, unique=True),
    st.lists(st.floats(-2e6, 2e6, width=32), min_size=1, max_size=20),
)
def test_any_codebook_picks_a_nearest_level(levels, numbers):
    book = Codebook("any", tuple(sorted(levels)))
    x = torch.tensor(numbers, dtype=torch.float64)
    error = (book.decode(book.encode(x), torch.float64) - x).abs()
    best = (x[:, None] - book.values()).abs().min(1).values
    # A midpoint is itself a rounded float64: near it the choice may cost one last place.
    assert (error <= best + 4e6 * 2.0**-52).all()


def test_codebook_levels_encode_to_themselves_and_numbers_beyond_take_the_ends():
    assert NF4.encode(NF4.values()).tolist() == list(range(16))
    assert NF4.encode(torch.tensor([-9.0, 9.0, torch.inf])).tolist() == [0, 15, 15]
    x = torch.randn(3, 4, 5).to(torch.bfloat16)
    assert NF4.encode(x.transpose(0, 2)).equal(NF4.encode(x).transpose(0, 2))
    assert NF4.decode(NF4.encode(x)).dtype == torch.float32


def test_codebook_refuses_bad_levels_nan_and_foreign_codes():
    with pytest.raises(ValueError, match=r"pair has 1 levels; pass 2 to 256"):
        Codebook("pair", (1.0,))
    for levels in [(1.0, 0.0), (0.0, 0.0), (0.0, torch.inf), (0.0, torch.nan, 1.0)]:
        with pytest.raises(ValueError, match=r"levels of bad do not ascend"):
            Codebook("bad", levels)
    with pytest.raises(ValueError, match=r"NF4 has no NaN; x holds nan at \[0\]"):
        NF4.encode(torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match=r"code 16 is not in NF4"):
        NF4.decode(torch.tensor([16]))
