# %% [markdown]
# # Number Formats and the Affine Map
#
# Duration: 75 min · runs in about 10 s on 2 CPU cores
#
# A quantized weight is a small whole number, the *code*, and an agreement about what it stands for. This module is about the
# agreements: how one and the same byte, `01100100`, can mean 100, or -28, or 48, or 1024, or two different weights.

# %% [markdown]
# ## Objectives
#
# 1. Derive scale and zero point of a range, and quantize with them by hand, the ends of the range included. (q1, q3)
# 2. Tell which convention a stored zero point follows, and translate it. (q2)
# 3. Write a number as an FP8 byte, read one back, and compare formats by range and by precision. (q4, q6, q7)
# 4. Recognize integers, small floats and tables as three kinds of one thing: a list of levels. (q5)
# 5. Say which bit of which byte holds a 3-bit code. (q8)
#
# ## Prerequisites
#
# Module 01, a little PyTorch, and binary and hexadecimal notation. Pencil and paper help: every exercise here can be done by hand.

# %% [markdown] tags=["predict"]
# ## Which float gets 0.1 + 0.2 right?
#
# It is the most famous bug report in computing: in 64-bit floating point, `0.1 + 0.2 == 0.3` is `False`.
#
# Now throw away 56 of the 64 bits. FP8 E4M3 is the 8-bit float that runs in today's language models. It has 256 codes in all, so
# every result is rounded to the nearest of very few numbers.
#
# **Predict.** Write down your answers before you run the cell.
#
# 1. Is `0.1 + 0.2 == 0.3` true in FP8?
# 2. Start at 0 and keep adding 1 in FP8. How far do you get?

# %%
import torch

import quantlab as ql


def fp8(x):
    """Round a number to the nearest FP8 E4M3 value."""
    code = ql.FP8_E4M3.encode(torch.tensor([x], dtype=torch.float64))
    return ql.FP8_E4M3.decode(code).item()


print("64 bits: 0.1 + 0.2 == 0.3 is", 0.1 + 0.2 == 0.3)
print(" 8 bits: 0.1 + 0.2 == 0.3 is", fp8(fp8(0.1) + fp8(0.2)) == fp8(0.3))

count = 0.0
while fp8(count + 1) != count:
    count = fp8(count + 1)
print("adding 1 again and again in 8 bits ends at", int(count))

# %% [markdown]
# The 8-bit float gives the answer a school child expects, and then it cannot count past 16.
#
# Neither is magic. Near 0.3 the only FP8 numbers are 0.28125 and 0.3125; the sum and 0.3 both land on 0.3125. Where there are few
# numbers, being equal is cheap. Between 16 and 32 the only numbers are 16, 18, 20, ...: 16 + 1 lies in the middle, and the tie
# goes back to 16.
#
# So a number format is a **list of levels**, and a code is a place in that list. Three questions settle everything about it:
#
# - **Where** do the levels lie?
# - What happens **between** two levels?
# - What happens **beyond** the last one?
#
# ## Where do the levels of an integer grid lie?
#
# The simplest list is evenly spaced: INT8 has the codes 0 to 255 (or -128 to 127). To cover your own range, stretch and shift it.
# That is the **affine map**, the one formula of this module to know by heart:
#
#     value = scale * (code - zero_point)            x = S * (q - Z)
#
# Two wishes fix the two numbers. For the range from -1 to 3 and codes 0 to 255, code 0 should mean -1 and code 255 should mean 3:
#
#     -1 = S * (0 - Z)        3 = S * (255 - Z)
#
# Subtract the first from the second, and Z drops out: 4 = 255 S, so **S = 4/255**. It is 255, not 256: that many codes, but one
# *step* fewer, as a fence has one gap fewer than posts. The first line then gives Z = 1/S = 63.75.
#
# Z is rounded to **64**, because then a *code* stands for exactly 0. Zeros are special: padding, ReLU outputs and pruned weights
# should not become small noise.
#
# **Predict.** After rounding Z, which two numbers do the codes 0 and 255 really stand for? Is 3 still covered?

# %%
scheme = ql.Scheme(bits=8, symmetric=False)
x = torch.tensor([[-1.0, 0.0, 1.0, 3.0]], dtype=torch.float64)
scale, zero_point = scheme.grid(scheme.group(x))
codes = scheme.encode(x, scale, zero_point)
decoded = scheme.decode(codes, scale, zero_point)

print("scale", ql.digits(scale.item(), sig=4), "  zero point", int(zero_point))
rows = zip(x[0].tolist(), codes[0].tolist(), decoded[0].tolist(), strict=True)
ql.table([(f"{a:g}", code, b) for a, code, b in rows], ["x", "code", "stands for"], sig=4)

# %% [markdown] tags=["myth"]
# The whole grid moved by a quarter of a step, so that 0 could have a code of its own: it now runs from -1.004 to 2.996, and 3
# falls 0.004 short. That is the price, and it is at most half a step.
#
# ### Myth G2: a zero point is a zero point
#
# **Claim.** "Our file says zero point -64, so everybody knows what to do."
#
# Three conventions are in use for the very same grid. Storing int8 instead of uint8 shifts all codes by -128, and Z with them:
# 64 - 128 = -64. And some tools (AIMET, and the QNN runtime it exports to) store an *offset* that is **added**: x = S * (q +
# offset), which is the zero point with its sign turned. (quantlab: codes from 0 up, zero point subtracted. So Z = 64 here.)
#
# **Predict.** A file holds int8 codes with Z = -64. A reader takes the -64 for an offset. What becomes of -1, 0, 1 and 3?

# %% tags=["myth"]
S = 4 / 255
rows = [
    ("uint8, zero point", "S * (q - Z)", 64, 128, S * (128 - 64)),
    ("int8,  zero point", "S * (q - Z)", -64, 0, S * (0 - (-64))),
    ("uint8, offset", "S * (q + offset)", -64, 128, S * (128 + (-64))),
]
print(ql.table(rows, ["stored as", "formula", "stored", "code of 1", "value"], sig=4))

assert rows[0][-1] == rows[1][-1] == rows[2][-1]  # one grid, three ways to write it down

int8 = torch.tensor([-128, -64, 0, 127])  # the codes of -1, 0, 1 and 3
print("\nright:  ", ql.digits(S * (int8.double() - (-64)), sig=4))
misread = S * (int8.double() + (-64))  # the second row's codes, the third row's formula
print("misread:", ql.digits(misread, sig=4))
assert misread[1] != 0  # not even 0 survives
print("Verdict: a zero point means nothing without its integer range and its sign.")

# %% [markdown] tags=["predict"]
# Every value slipped by the same 128 steps, 2.008: 0 is no longer 0, and 1 came out as -1. Nothing crashed, all shapes fit.
#
# *Source: the two readings of -64 are the conventions of Jacob et al. (arXiv:1712.05877) and of AIMET and QNN. TinyTorch, a teaching
# course, gives 64 for [-1, 3] in its prose and computes -64 in its int8 code: each is right in one convention, and neither says in
# which.*
#
# 💡 **Reading a file:** Z above 127 must be uint8. Z below 0 is int8 *or* an offset: decode one value you know before all others.
#
# ## Symmetric grids: may a scale be negative?
#
# Weights spread about evenly around 0, so one can drop Z from the file and put 0 in the middle. With 4 bits there are 16 codes: an
# even number, and 0 takes one of them. 15 are left for two sides, so **one side must be shorter by one level**. What to do with it?
#
# - *Textbook:* do not use it. Seven steps to each side, S = max|w| / 7.
# - *Ours* (and Q4_0 of llama.cpp): give the long side to the largest weight, **whatever its sign**: S = (the signed extreme) / -8,
#   Z = 8. Code 0 stands for exactly that extreme.
#
# If the extreme is +0.8, then S = 0.8 / -8 = **-0.1**: the grid is turned around, and its codes run downhill. Nothing is wrong with
# that; a scale is only a factor. (A *reader* of our files must not assume that scales are positive.)
#
# **Predict.** For the row 0.8, -0.33, 0.12, 0.5: which grid has the smaller gap? And which values near the *other* end does ours
# no longer reach?

# %%
sym = ql.Scheme(bits=4)  # symmetric, one scale for the whole row


def our_grid(row):
    """Quantize one row; return the result and all 16 values of its grid."""
    result = ql.rtn(row[None], sym)  # round to nearest, as in module 01
    return result, sym.decode(torch.arange(16)[None], result.scale, result.zero_point)[0]


row = torch.tensor([0.8, -0.33, 0.12, 0.5], dtype=torch.float64)
(result, up), (mirrored, down) = our_grid(row), our_grid(-row)
for name, scale in (("ours", result.scale), ("ours, row negated", mirrored.scale)):
    print("scale", ql.digits(scale.item()), name)
print("weights", ql.digits(row))
print("codes  ", result.codes[0].tolist())
print("values ", ql.digits(result.dequantize()[0]))
textbook = torch.arange(-7, 8) * row.abs().max() / 7
lists = {"textbook": textbook, "ours": up, "ours, row negated": down}
ql.plot.level_lines(lists, title="Gaps of 0.1 instead of 0.114, and one end falls short")

# %% [markdown] tags=["predict"]
# Our gaps are 12.5 % narrower, for every weight of the row. The price stands at the far end: a weight of -0.79 would have to stop
# at -0.7. The largest weights of both signs are rarely that close; module 03 measures what the choice is worth. And look at the
# codes: the largest weight has code 0, and -0.33, the smallest, has the largest code. A negative scale counts downhill.
#
# ## What happens between two levels, and beyond the last?
#
# **Between:** the nearest level wins, but a *tie* (exactly in the middle) needs a rule. IEEE 754, PyTorch, NumPy and Python send
# ties to the even neighbor; C's `round` and school send them away from zero.
#
# **Beyond:** a cast may *saturate* (stop at the last level) or *wrap* (keep the low bits, as an odometer does).
#
# **Predict.**
#
# 1. The numbers 0.5, 1.5, 2.5, ..., 99.5 are rounded by each rule. What is the average change?
# 2. 200 goes to int8. What comes out if the cast saturates, what if it wraps?

# %% tags=["control"]
ties = torch.arange(100, dtype=torch.float64) + 0.5
print("average change, to even:       ", ql.digits((torch.round(ties) - ties).mean().item()))
print("average change, away from zero:", ql.digits((torch.floor(ties + 0.5) - ties).mean().item()))

one, middle = torch.ones(1, 1), torch.full((1, 1), 128.0)


def saturating(x):
    return ql.Scheme(bits=8).encode(x[None].float(), one, middle)[0].long() - 128


def wrapping(x):
    return torch.remainder(x + 128, 256) - 128


def keeps_order(cast):  # the test: a larger number never gets a smaller code
    return bool((torch.diff(cast(torch.arange(-400, 401))) >= 0).all())


x = torch.tensor([200])
print("200 saturates to", saturating(x).item(), "and wraps to", wrapping(x).item())
assert keeps_order(saturating)
assert not keeps_order(wrapping)  # the control: this one must fail
print("a saturating cast keeps the order, a wrapping one does not")

# %% [markdown]
# Half to even leaves no drift; half away lifts sums of positive numbers by half a step per tie. On random data ties are rare, but
# quantized data is full of them: a value that already lies on a fine grid often lies exactly between two levels of a coarser one.
#
# And 200 wraps to -56: a large positive activation turns negative. The control proves that our test can tell the two apart.
#
# ## A float is a ruler for every octave
#
# An integer grid has one step for everything. A float spends some bits, the **exponent**, on saying in which octave (from one
# power of two to the next) a number lies, and the rest, the **mantissa**, on even steps within it. Let us write 0.1 in E4M3: 1
# sign bit, 4 exponent bits with bias 7, 3 mantissa bits.
#
#     0.1 = 1.6 * 2^-4                    the octave from 1/16 to 1/8
#     stored exponent  -4 + 7 = 3         0011
#     mantissa         0.6 * 8 = 4.8 → 5  101
#
#       0   0 0 1 1   1 0 1               0x1D:  (-1)^0 * 2^(3 - 7) * (1 + 5/8) = 0.1015625
#       s   e e e e   m m m
#
# When the exponent field is 0 the leading 1 is dropped: (-1)^s * 2^-6 * m/8. These *subnormal* numbers continue the last octave's
# step of 2^-9 down to 0.
#
# **Try it.** In a running notebook you can switch each bit below with the mouse, or with Tab and the space key. Which single bit
# halves the value? Which one takes 0.0078125 away? Which code is the largest number? (The picture shows the start: its lower line
# is the whole format, its upper line the neighbors of 0.1015625. Watch the gap double at 0.125.)

# %% tags=["signature"]
ql.widgets.BitInspector(format="FP8_E4M3", code=0x1D)

# %% [markdown] tags=["predict"]
# The lowest exponent bit halves the value (0011 becomes 0010); the lowest mantissa bit takes away one step of the octave, 2^-7; the
# largest number is `0 1111 110`, 448. One code further, `0 1111 111`, is NaN.
#
# Formats differ in how they divide the bits, and in what they do at the top. **E5M2** is built like every IEEE float: the highest
# exponent is kept for infinities and NaN. **E4M3** cannot spare 16 codes for that; it gives up infinities and keeps only
# `1111 111` as NaN. **E2M1** (FP4) gives up NaN, too.
#
# **Predict.** How many of the 256 codes of E4M3 stand for numbers strictly between -2 and 2? How many of E5M2?

# %%
formats = [ql.FP8_E4M3, ql.FP8_E5M2, ql.FP4_E2M1, ql.FP16, ql.BF16]


def census(form):
    """Count what the codes of a format stand for."""
    v = form.values()
    finite = v[v.isfinite()]
    counts = len(finite), len(finite.unique()), int(v.isnan().sum()), int(v.isinf().sum())
    ends = f"{form.max:g}", f"2^{torch.tensor(form.smallest).log2():.0f}"
    return form.name, *counts, *ends, int((finite.abs() < 2).sum())


headers = ["format", "finite", "distinct", "NaN", "inf", "max", "smallest", "in (-2, 2)"]
print(ql.table([census(form) for form in formats], headers), "\n")
e4m3, e5m2 = (form.values()[:128] for form in formats[:2])
part = {"E4M3": e4m3[e4m3 <= 8], "E5M2": e5m2[e5m2 <= 8], "INT8": torch.arange(3) * 448 / 127}
ql.plot.level_lines(part, title="Up to 8: floats crowd around zero, integers do not")

# %% [markdown] tags=["predict"]
# Exactly half of all codes lie between -2 and 2: 128 of 256 in both FP8 formats, 32,768 of 65,536 in FP16 and BF16, 8 of 16 in
# FP4. A float spends its codes evenly on *octaves*, and the usual bias, 2^(e-1) - 1 for e exponent bits, puts half of them below 2.
# An INT8 grid that must reach 448 has three levels from 0 to 8. (*Distinct* is one less than *finite*: 0 and -0 are two codes.)
#
# The bit that E5M2 takes from the mantissa gives a range of 57,344 instead of 448, and half the levels in each octave. FP16 and
# BF16 make the same trade with 16 bits: 10 mantissa bits and a maximum of 65,504, or 7 and the range of float32.
#
# 💡 **Precision:** m mantissa bits keep the relative rounding error of normal numbers below 2^-(m+1): 6.25 % for E4M3, 12.5 % for
# E5M2, 0.4 % for BF16, 0.05 % for FP16. If activations may pass 65,504, take BF16.
#
# **Predict.** Which of FP16 and BF16 tells 1.001 from 1? Which holds 70,000?

# %%
cases = torch.tensor([1.001, 70000.0, 1e-6], dtype=torch.float64)
rows = []
for form in (ql.FP16, ql.BF16, ql.FP8_E4M3, ql.FP8_E5M2):
    stored = form.decode(form.encode(cases), torch.float64)
    rows.append([form.name, *(f"{value:.8g}" for value in stored.tolist())])
print(ql.table(rows, ["stored in", "1.001", "70000", "0.000001"]))

# An outside judge: torch reads each code, and each code must survive decoding and encoding.
fp8_types = [(ql.FP8_E4M3, torch.float8_e4m3fn), (ql.FP8_E5M2, torch.float8_e5m2)]
for form, dtype in [*fp8_types, (ql.FP16, torch.float16), (ql.BF16, torch.bfloat16)]:
    codes = torch.arange(2**form.bits)
    theirs = codes.to(torch.uint8 if form.bits == 8 else torch.int16).view(dtype).double()
    ours = form.values()
    assert torch.equal(ours.isnan(), theirs.isnan())
    real = ~ours.isnan()
    assert torch.equal(ours[real], theirs[real])
    assert torch.equal(form.encode(ours[real], saturate=False).long(), codes[real])
print("\nall codes of FP8, FP16 and BF16 round-trip, and torch reads each of them as we do")

# %% [markdown] tags=["myth"]
# FP16 knows 1.001 and stops at 65,504. BF16 has room for 70,000, to about two and a half digits, and cannot tell 1.001 from 1. For
# both FP8 formats a millionth is nothing.
#
# Beyond the largest value the agreement ends. We saturate unless told otherwise: 70,000 becomes 448 in E4M3. PyTorch's cast to
# `float8_e4m3fn` gave NaN there until 2.11 and saturates since 2.12 (pytorch#178817): same code, same tensor, another answer after
# an upgrade. *Divide by a scale first, and no value has to find out.*
#
# ### Myth 001-7: quantizing turns floats into integers
#
# **Claim.** "Quantization converts floating-point numbers to lower-precision integers."
#
# **Predict.** One row of 64 weights, its largest weight scaled to 1, is stored three times with 4 bits per code: as INT4 integers,
# as E2M1 floats, and with NF4, a table. Each list has at most 16 levels. How many *sizes of gaps* does each list have?

# %% tags=["myth"]
import numpy as np

row = torch.from_numpy(np.random.default_rng(7).standard_normal(64))
row = row / row[row.abs().argmax()]  # the extreme is exactly 1
result, int4 = our_grid(row)
levels = {"INT4": int4, "E2M1": ql.FP4_E2M1.values() / 6, "NF4": ql.NF4.values()}
stored = {
    "INT4": result.dequantize()[0],
    "E2M1": ql.FP4_E2M1.decode(ql.FP4_E2M1.encode(row * 6), torch.float64) / 6,
    "NF4": ql.NF4.decode(ql.NF4.encode(row), torch.float64),
}
gaps = {}
for name, values in levels.items():
    ladder = values.unique()
    gaps[name] = len(ladder.diff().round(decimals=9).unique())
    used = f"{len(ladder)} levels, {len(stored[name].unique())} used"
    print(f"{name}: {used}, gap sizes: {gaps[name]}")
    print("      from 0 up:", ql.digits(ladder[ladder >= 0]))
assert gaps["INT4"] == 1 < gaps["E2M1"] < gaps["NF4"]
print("Verdict: only INT4 counts in steps; the others select from a list, also with 4 bits.")
ql.plot.level_lines(levels, title="Three ways to choose up to 16 levels")

# %% [markdown] tags=["predict"]
# E2M1 does not count: its code 6 means 4 and its code 7 means 6, with nothing in between (0, 0.5, 1, 1.5, 2, 3, 4, 6, each over 6
# above). NF4 does not even use round numbers. What the three share is a 4-bit code and a scale; **that** is quantization. *Sources:
# OCP Microscaling (arXiv:2310.10537) for E2M1; QLoRA (arXiv:2305.14314) for NF4; ggml has MXFP4, NVFP4 and IQ4_NL beside integers.*
#
# ## Where does the NF4 table come from?
#
# If any list will do, why not place the levels where the weights are? Weights look like a normal distribution. **NF4** takes levels
# at evenly spaced *probabilities*: the quantiles of a normal distribution, eight levels above 0 and seven below, 0 itself among
# them, divided by the largest so that they end at -1 and 1. Each level should then be used about equally often, and a code that is
# used as often as any other carries the most information.
#
# **Predict.** Sixteen levels, equally used: 6.25 % each. On normal weights, how far from that are NF4's least and most used level?
# And INT4's, stretched over the same range?

# %%
import math

from quantlab.floats import nf4_levels

close = torch.allclose(nf4_levels(), ql.NF4.values(), rtol=0, atol=1e-6)
print("the derivation meets the table to 1e-6:", close)


def shares(levels, edge):
    """Return the percentage of normal weights at each level; 1 means `edge` deviations."""
    borders = (levels[1:] + levels[:-1]) / 2 * edge
    below = 0.5 * (1 + torch.erf(borders / math.sqrt(2)))
    return torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1)) * 100


edge = torch.special.ndtri(torch.tensor(929 / 960, dtype=torch.float64))  # 1.848, the outermost
rows = []
for name in ("NF4", "INT4"):
    share = shares(levels[name].unique(), edge)
    rows.append((name, share.min().item(), share.max().item()))
ql.table(rows, ["levels", "least used, %", "most used, %"])

# %% [markdown] tags=["predict"]
# NF4 nearly keeps its promise: each level gets between 5.57 and 7.10 %, while INT4's middle is crowded and its outer levels stand
# half empty. But mind the condition: the largest weight of the block has to lie at 1.848 standard deviations. In blocks of 64
# it usually lies further out, and "equally used" is not "smallest error" anyway: module 08 puts both on the scales.
#
# **In the wild.** FP8 checkpoints for vLLM, made with llm-compressor (`FP8_DYNAMIC`), hold E4M3 codes with one scale for each output
# channel. MXFP4, the format of the released gpt-oss weights, is E2M1 in blocks of 32 with a power of two as scale. bitsandbytes
# loads NF4 in blocks of 64. Q4_0 of llama.cpp is our symmetric grid, negative scales included.
#
# ## How do eight 3-bit codes fit into three bytes?
#
# Memory is counted in bytes, so codes of 3 bits are laid end to end, each beginning where the last one ended, lowest bit first. Two
# of the eight codes a to h straddle a border:
#
#     byte            0                   1                   2
#     bit      7 6 5 4 3 2 1 0     7 6 5 4 3 2 1 0     7 6 5 4 3 2 1 0
#     code     c c b b b a a a     f e e e d d d c     h h h g g g f f
#
# **Predict.** Which byte begins the row 1, 2, 3, 4, 5, 6, 7, 0? Write its eight bits from the drawing: first a, then b, then the
# low two bits of c.

# %%
codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
packed = ql.pack_codes(codes, bits=3)
shown = [f"{byte:08b} = 0x{byte:02X}" for byte in packed.tolist()]
print("8 codes of 3 bits in", len(packed), "bytes:", ", ".join(shown))
print("9 codes of 3 bits in", ql.packed_bytes(9, bits=3), "bytes: a row is padded to whole bytes")
assert torch.equal(ql.unpack_codes(packed, bits=3, count=8), codes)

everything = torch.cartesian_prod(*[torch.arange(8)] * 4).to(torch.uint8)  # all rows of four codes
assert torch.equal(ql.unpack_codes(ql.pack_codes(everything, 3), 3, 4), everything)
print(f"all {len(everything):,} rows of four 3-bit codes come back unchanged")

byte = torch.tensor([0b01100100], dtype=torch.uint8)  # the byte of this module's first lines
e4m3, e5m2 = ql.FP8_E4M3.decode(byte).item(), ql.FP8_E5M2.decode(byte).item()
print(f"\n01100100 as uint8: {byte.item()}, symmetric INT8: {byte.item() - 128},", end=" ")
nibbles = ql.unpack_codes(byte, bits=4, count=2).tolist()
print(f"E4M3: {e4m3:g}, E5M2: {e5m2:g}, two 4-bit codes: {nibbles}")

# %% [markdown] tags=["exercise"]
# 0xD1, in bits 11 010 001: the low two bits of 3, then 2, then 1. The high bit of 3 opens the next byte. And the first lines' promise
# is kept: five readings of one byte, none of them wrong.
#
# ## Exercises
#
# Replace `...` and run the cell; it says correct, incorrect (and why), or not attempted. Uncomment `exercise.hint()` for a hint, call
# it again for the next; `exercise.solution()` shows ours. For a and b, pencil first: FP8 and the affine map are smaller than they look.
#
# ### Exercise a: Four numbers in E4M3
# Difficulty: ●●○○○ · Importance: ●●●●○ · 10 min
#
# Write 1.0, 0.3, -20.0 and 0.005 as E4M3 bytes in hexadecimal, such as `"0x1d"`. The last one is subnormal.

# %% tags=["exercise"]
exercise = ql.exercise("02_number_formats.a")
codes_in_hex = [..., ..., ..., ...]
exercise.check(codes_in_hex)
# exercise.hint()

# %% [markdown] tags=["exercise"]
# ### Exercise b: One range, two zero points
# Difficulty: ●○○○○ · Importance: ●●●●● · 8 min
#
# Range [-0.5, 2], 8 bits, x = S * (q - Z): give the scale (a fraction such as `4 / 255` is fine), and the zero point for uint8 and
# for int8.

# %% tags=["exercise"]
exercise = ql.exercise("02_number_formats.b")
affine = {"scale": ..., "uint8": ..., "int8": ...}
exercise.check(affine)
# exercise.hint()

# %% [markdown] tags=["exercise"]
# ### Exercise c: Ties away from zero
# Difficulty: ●●○○○ · Importance: ●●●○○ · 8 min
#
# Write `half_away(x)`: round a tensor to the nearest integers, ties away from zero, for both signs. `torch.round` is not it.

# %% tags=["exercise"]
exercise = ql.exercise("02_number_formats.c")


def half_away(x): ...


exercise.check(half_away)
# exercise.hint()

# %% [markdown] tags=["exercise"]
# ### Exercise d: A cast that knows its ends
# Difficulty: ●●○○○ · Importance: ●●●●● · 10 min
#
# Write `saturate(x)`: round a float tensor to the nearest integers (PyTorch's ties), stop at -128 and 127, return an `int8` tensor. A
# cast that wraps must not pass: try it once and read what the check says.

# %% tags=["exercise"]
exercise = ql.exercise("02_number_formats.d")


def saturate(x): ...


exercise.check(saturate)
# exercise.hint()      exercise.solution()

# %% [markdown]
# ## Quiz
#
# Eight questions with new numbers on each run. A wrong answer tells you which idea led there.

# %% tags=["quiz"]
ql.quiz.practice("02_number_formats")

# %% [markdown]
# ## Summary
#
# - A format is a list of levels; a code is a place in it; a scale stretches it. Ask: where, between, beyond?
# - x = S * (q - Z): S = width / (number of codes - 1), Z = the code of 0, a whole number. [-1, 3] has Z = 64 (uint8) or -64 (int8).
# - A symmetric grid has one level to give away. We give it to the largest weight, so the scale may be negative.
# - Ties to even do not drift; saturation keeps the order, wrapping turns 200 into -56.
# - Exponent bits buy range, mantissa bits buy precision: E4M3 ends at 448, E5M2 at 57,344, E2M1 at 6; half of all codes lie below 2.
# - NF4 is a table of normal quantiles: quantizing does not have to mean integers.
# - Codes of 3 bits lie end to end, lowest bit first: eight of them in three bytes.

# %% [markdown]
# ## What we left out
#
# How to choose the range (module 03), where activations get theirs (10), blocks with shared FP8 or power-of-two scales, MX and NVFP4
# (21), 4-bit kernels and their own packing orders (07, 23), stochastic rounding, the `fnuz` variants of FP8 with a single zero (some
# AMD hardware), and posits.
#
# ## Sources
#
# - Affine map: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, arXiv:1712.05877.
# - FP8: Micikevicius et al., *FP8 Formats for Deep Learning*, arXiv:2209.05433; OCP 8-bit Floating Point Specification 1.0.
# - E2M1 and shared scales: Rouhani et al., *Microscaling Data Formats for Deep Learning*, arXiv:2310.10537.
# - NF4: Dettmers et al., *QLoRA*, arXiv:2305.14314, section 3 and appendix E.
# - Casts beyond 448: pytorch/pytorch#178817. Symmetric grid by signed extreme: `quantize_row_q4_0_ref` in ggml-org/llama.cpp.
# - Offsets with the opposite sign: quic/aimet. Zero point 64 and -64: harvard-edge/cs249r_book, TinyTorch module 15.
