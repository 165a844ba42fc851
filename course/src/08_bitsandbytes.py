# %% [markdown]
# # bitsandbytes: LLM.int8() and NF4
#
# Duration: 75 min · runs in about 15 s on 2 CPU cores
#
# Most people meet quantization through one line: `load_in_8bit=True` or `load_in_4bit=True`. Behind it stands
# bitsandbytes, and behind that two ideas. LLM.int8() lets a handful of loud input channels stay in float, so that all others
# can be int8. NF4 puts sixteen levels where normally distributed weights are. We build both, bit for bit, and then ask what they are worth.
#
# ## Objectives
#
# After this module you can
#
# 1. decompose a product into int8 columns and outlier columns, and name the control that proves the gain. (q1, q2)
# 2. derive NF4 from normal quantiles, and encode with it. (q3)
# 3. count every stored bit, and compare formats at equal bits. (q4, q5)
# 4. use bitsandbytes on a CPU without its traps. (q6, q7, q8)
#
# ## Prerequisites
#
# Modules 02 (grids, codebooks), 03 (SQNR, groups) and 07 (integer products).

# %% [markdown] tags=["predict"]
# ## One loud channel
#
# int8 for *activations*: each token gets one step, its largest |x| divided by 127. One token, five input channels:
#
# ```
#   0.52   -0.31    0.84    0.07    40.0
# ```
#
# **Predict.** Which codes do the first four channels get? And which, if the fifth is left out and multiplied in float?

# %%
import importlib.util
import os

import numpy as np
import torch

import quantlab as ql

x = torch.tensor([[0.52, -0.31, 0.84, 0.07, 40.0]])
rows = []
for threshold in (0, 6):
    q = ql.int8_rows(x, threshold=threshold)
    rows.append((threshold, q.absmax.item(), *q.codes[0].tolist(), int(q.outliers.sum())))
print(ql.show(ql.int8_rows))
ql.table(rows, ["threshold", "absmax", *(f"code {j}" for j in range(5)), "outliers"])

# %% [markdown]
# With the loud channel inside, nothing is left for the other four but the codes from -3 to 3. Without it they get the full range. LLM.int8() (paper, Eq. 8)
# splits the product along the input channels:
#
# $$y = \underbrace{X_{:,\text{ordinary}}\,W_{:,\text{ordinary}}^{\top}}_{\text{int8 × int8 → int32, times two scales}} + \underbrace{X_{:,\text{outlier}}\,W_{:,\text{outlier}}^{\top}}_{\text{float}}$$
#
# A channel is an outlier if *any* token reaches the threshold, 6 by default. The weight has one scale for each output row, each token has its own,
# so the int32 sums are multiplied by an outer product of scales. Nothing is calibrated: outliers are looked for in every batch, at run time.
#
# ## Where are the outliers?
#
# The paper's observation: from about 6.7 billion parameters on, a few channels (the same in nearly all layers and tokens) become up to twenty
# times as large as the others. Our storyteller is far too small for that, so we take its outlier variant beside it: six channels of each norm are 32 or 64 times
# as loud, the weights that read them as much smaller, and the float function is the same to the last bit.
#
# **Predict.** In the outlier variant, plain int8 (a threshold above everything) loses how many percent of this layer's output? What does threshold 6 leave, with
# six channels of 256 in float? What happens as the threshold goes on falling to 1?


# %% tags=["signature"]
def layer(variant, name="model.layers.1.self_attn.v_proj"):  # inputs and weight of a linear
    model, tokenizer = ql.load(variant)
    seen, linear = [], model.get_submodule(name)
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model.double()(ql.test_set(tokenizer, samples=2))
    hook.remove()
    return seen[0].float(), linear.weight.detach().float()


layers, rows = {v: layer(v) for v in ("storyteller", "storyteller-outlier")}, []
for variant, (x, _) in layers.items():
    sizes = x.abs().amax(0).sort(descending=True).values
    rows.append((variant, *sizes[[0, 5, 6, 128]].tolist(), int((sizes >= 6).sum())))
print(ql.table(rows, ["largest |x|", "1st", "6th", "7th", "129th", "channels >= 6"]))
ql.widgets.ThresholdSlider(*layers["storyteller-outlier"])

# %% [markdown]
# Six channels, 2 % of the columns, take three quarters of the error away. Below that the curve is flat: it falls no further than 3.7 % even when *all*
# channels are multiplied in float. Something else is wrong here.
#
# ## The other half: the weights of the outlier channels
#
# In the paper the outlier columns of W stay in float16. bitsandbytes stores W once, in int8, and reads the outlier columns back from there: cheaper, and nearly as good if all columns of
# a row are about equally large. In our variant the columns that read loud inputs are 32 to 64 times *smaller* than the others, and an int8 step that fits the row flattens them.
#
# **Predict.** What is the error if those six columns of W stay in float too?


# %%
def mixed(x, W, columns, keep_weights=True):  # these channels in float; percent of error
    rest, rows = x.clone(), ql.int8_rows(W)
    rest[:, columns] = 0
    kept = W if keep_weights else rows.dequantize()
    y = ql.llm_int8(rest, rows, threshold=0.0).double()
    y = y + x[:, columns].double() @ kept[:, columns].double().T
    exact = x.double() @ W.double().T
    return 100 * ((y - exact).norm() / exact.norm()).item()


rows = []
for variant, (x, W) in layers.items():
    loudest = x.abs().amax(0).argsort(descending=True)[:6]
    errors = [mixed(x, W, loudest[:0]), *(mixed(x, W, loudest, keep) for keep in (False, True))]
    rows.append((variant, *errors))
ql.table(rows, ["error in %", "all int8", "6 in float, W from int8", "6 in float, W too"])

# %% [markdown]
# So the outlier variant is back at the plain storyteller's error, for 2 % more bytes of weights. In real large models weights are *not* small where inputs are loud, and bitsandbytes'
# shortcut costs little; but "LLM.int8()" in a table of results can mean either. Say which.
#
# ## The control that must fail
#
# Perhaps *any* six channels in float would do? And a method with a knob must fall back to the plain one when the knob is turned off: with a threshold above every
# input, the answer must be plain int8 to the last bit.

# %% tags=["control"]
x, W = layers["storyteller-outlier"]
plain, above, six = (
    ql.llm_int8(x, ql.int8_rows(W), threshold=t) for t in (0.0, x.abs().max().item() + 1, 6.0)
)
assert above.equal(plain)
assert not six.equal(plain)
rng = np.random.default_rng(8)
random = [mixed(x, W, torch.from_numpy(rng.permutation(256)[:6])) for _ in range(9)]
loudest = x.abs().amax(0).argsort(descending=True)[:6]
row = (mixed(x, W, loudest[:0]), mixed(x, W, loudest), float(np.median(random)))
assert row[1] < row[0] / 10
assert row[2] > 0.9 * row[0]
print("threshold above every input: plain int8, bit for bit")
ql.table([row], ["% error: none", "six loudest", "six random (median)"])

# %% [markdown]
# ## The whole model
#
# **Predict.** `ql.llm_int8_` replaces all 28 linears of the blocks. KL divergence from the float model, in thousandths: which of the four is not small?

# %%
original, tokenizer = ql.load("storyteller")
test = ql.test_set(tokenizer, samples=4)
reference = ql.log_probabilities(original, test)


def kl(model):  # from the float model, times 1,000
    return round(1000 * ql.evaluate(model, test, reference=reference).kl)


table = {}
for variant in layers:
    for threshold in (0.0, 6.0):
        model, _ = ql.load(variant)
        report = ql.llm_int8_(model, threshold=threshold)
        table.setdefault(variant, []).append(kl(model))
print("bits per weight:", ql.digits(report.bits_per_weight))
ql.table([(v, *row) for v, row in table.items()], ["1,000 KL", "threshold 0", "threshold 6"])

# %% [markdown]
# 💡 *If int8 activations hurt, look for channels above 6 before you blame the bits: on this layer six of 256 made three quarters of the error.*
#
# What it costs: int8 halves the bytes of float16, but each forward pass searches for outliers, quantizes, multiplies twice and adds. That is why int8 in
# bitsandbytes saves memory and is often *slower* than float16. Modules 12 and 13 remove outliers before the model runs.
#
# ## NF4: levels where the weights are
#
# Trained weights look normally distributed. If every level is to stand for the same share of them, levels belong at evenly spaced *probabilities*: at quantiles.
# Zero has to be a level, so QLoRA makes the two sides apart, 8 levels above zero and 7 below, up to the probability p = 929/960, and divides by the largest.
#
# **Predict.** How many times as far apart are the two outermost levels as the two innermost?

# %%
levels = ql.nf4_levels()
assert (levels - ql.NF4.values()).abs().max() < 1e-6  # bitsandbytes' table
sigma = levels * torch.special.ndtri(torch.tensor(929 / 960, dtype=torch.float64))
middles, end = (sigma[1:] + sigma[:-1]) / 2, torch.tensor([torch.inf])
edges = torch.cat([-end, middles, end])
areas = torch.special.ndtr(edges).diff()
gaps = levels.diff()
print("levels ", *(ql.digits(v, sig=4) for v in levels))
print("areas %", *(ql.digits(100 * v, sig=4) for v in areas))
print("outermost gap / innermost:", ql.digits(gaps[-1] / gaps[7]))
ql.plot.equal_areas(sigma, edges)

# %% [markdown] tags=["predict"]
# ## Divided by what?
#
# The table is made for weights divided by (1.85 times) their standard deviation. But a block is divided by its *largest magnitude*, so that nothing is clipped.
# In a block of 64 normal weights that is about 2.4 standard deviations, and it is different in every block.
#
# **Predict.** A million normal weights in blocks of 64: is each of the sixteen codes used for 1/16 = 6.25 % of them?

# %%
rng = np.random.default_rng(8)
weights = torch.from_numpy(rng.standard_normal(1_000_000 // 128 * 128)).view(1, -1)
q = ql.nf4(weights, block_size=64)
share = torch.bincount(q.codes.flatten().long(), minlength=16).double() / q.codes.numel()
entropy = -(share * share.log2()).sum().item()
print("code   ", *(f"{code:>4}" for code in range(16)))
print("share %", *(f"{ql.digits(100 * s):>4}" for s in share))
print("entropy of the codes:", ql.digits(entropy), "of 4 bits")
assert share[6] > 4 * share[0]

# %% [markdown]
# No: the innermost codes are used five times as often as the two outermost. Equal areas held for another divisor. (And an exactly even
# use is not the goal: it minimizes neither the squared nor the absolute error. See Yoshida in the sources.)
#
# ## Myth G8: NF4 is optimal at 4 bits
#
# "4 bits" leaves out the scales. Here are formats at *all* the bits they store, on the same million normal weights: NF4 with float32 scales, NF4 with scales in 8 bits, FP4,
# an even grid by absmax / 7, and the grid that this course uses: float16 scales, signed maximum / -8 (llama.cpp's Q4_0 at groups of 32).
#
# **Predict.** At 4.5 bits: NF4 in blocks of 64, or the plain grid in groups of 32? And at 4.13 bits?


# %% tags=["myth"]
even = ql.Codebook("even", tuple(k / 7 for k in range(-7, 8)))
lines = {}
for size in (32, 64, 128):
    full, coded, half = 4 + 32 / size, 4 + 8.125 / size, 4 + 16 / size  # scales in 32, 8, 16 bits
    found = {
        ("NF4", full): ql.nf4(weights, block_size=size),
        ("NF4, 8-bit scales", coded): ql.nf4(weights, block_size=size, double_quantize=True),
        ("FP4", full): ql.fp4(weights, block_size=size),
        ("even, absmax / 7", full): ql.quantize_blocks(weights, even, size),
        ("signed max / -8", half): ql.rtn(weights, ql.Scheme(4, size)).pack(),
    }
    for (name, bits), tensor in found.items():
        lines.setdefault(name, {})[bits] = ql.sqnr(weights, tensor.dequantize())
rows = [(name, *line.values(), *line) for name, line in lines.items()]
print(ql.table(rows, ["", "dB, 32", "dB, 64", "dB, 128", "bits, 32", "64", "128"], sig=4))
at = {name: row for name, *row in rows}
assert at["NF4"][1] < at["signed max / -8"][0]  # 4.5 bits each
assert at["NF4, 8-bit scales"][1] > at["signed max / -8"][2]  # about 4.13 bits each
print("Verdict: G8 is false at 4.5 bits, where the plain grid leads; at 4.13 bits NF4 does")
ql.plot.sqnr_by_bits(lines)

# %% [markdown]
# At the *same block size* NF4 beats the even grid by 0.9 to 1.8 dB (the usual comparison), and FP4 trails both. At the same *stored bits* its 32-bit scales cost it the lead, and
# its 8-bit scales win it back. (Source of the myth box: measured here; the even grid's rule is module 03's.)
#
# 💡 *NF4 without double quantization spends 0.5 bits per weight on scales. With it, blocks of 64 cost 4.127 bits and the SQNR hardly moves: there is little reason to leave it off.*
#
# ### And on trained weights?
#
# **Predict.** The storyteller, KL in thousandths. Does the order at 4.5 and at 4.13 bits stay as it was for Gaussians?

# %%
formats = {
    "NF4 g64": (ql.NormalFloat(), None),
    "FP4 g64": (ql.Float4(), None),
    "signed max / -8 g32": (ql.RTN(), ql.Scheme(4, 32)),
    "NF4 g64, 8-bit scales": (ql.NormalFloat(double_quantize=True), None),
    "signed max / -8 g128": (ql.RTN(), ql.Scheme(4, 128)),
}
rows = []
for name, (method, scheme) in formats.items():
    model, _ = ql.load("storyteller")
    report = ql.quantize_(model, method, scheme)
    middle = sorted(row.sqnr for row in report.rows)[14]
    rows.append((name, ql.digits(report.bits_per_weight, sig=4), middle, kl(model)))
ql.table(rows, ["format", "bits per weight", "SQNR, median layer", "1,000 KL"])

# %% [markdown]
# The SQNR of the median layer repeats the Gaussian table almost to the digit: trained weights *are* nearly normal. The model's KL keeps the
# same order: a little ahead the grid at 4.5 bits, clearly ahead NF4 at 4.13. FP4 is behind in both, and yet it is the default of bitsandbytes' `Linear4bit`.
#
# ## Double quantization: three levels of numbers
#
# ```
#   weight   = level of its 4-bit code   × absmax of its block of 64
#   absmax   = level of its 8-bit code   × absmax of 256 absmaxes  +  their mean
# ```
#
# **Predict.** Bits per weight: codes 4; 8-bit scales 8/64; a float32 for 256 scales 32/(64·256). Which of the three could you leave out of the sum without being wrong by a percent?

#
# The 8-bit table is *dynamic*: seven decades below 1, each with twice as many levels as the one below it. It is the type of bitsandbytes' 8-bit Adam, whose state spans
# many orders of magnitude. On a CPU, x / absmax is first rounded to one of 65,536 evenly spaced points. **Predict.** 0 is one of the 256 levels. What does a 0 beside a 1 come back as?

# %%
model, _ = ql.load("storyteller")
W = model.model.layers[0].mlp.up_proj.weight.detach()
plain, double = (ql.nf4(W, double_quantize=d) for d in (False, True))
parts = [4, 8 / 64, 32 / (64 * 256)]
print(
    "bits per weight:",
    *(ql.digits(part, sig=4) for part in parts),
    "->",
    ql.digits(sum(parts), sig=4),
)
print("stored bytes   :", plain.nbytes, "->", double.nbytes, "(4 of them: the mean)")
error = (double.scale - plain.scale).abs() / plain.scale
print("error of a scale, median in %:", ql.digits(100 * error.median().item(), sig=2))
before, after = (ql.sqnr(W, t.dequantize()) for t in (plain, double))
print("SQNR in dB:", ql.digits(before, sig=4), "->", ql.digits(after, sig=4))
assert plain.codes.equal(double.codes)  # found with the exact scales
q = ql.blockwise8(torch.tensor([0.0, 1e-6, 1e-4, 0.01, 1.0]))
back = [ql.digits(v, sig=2) for v in q.dequantize().tolist()]
rows = [("code", *q.codes.tolist()), ("read back", *back)]
ql.table(rows, ["dynamic 8 bit", "0", "1e-6", "1e-4", "0.01", "1"])

# %% [markdown] tags=["myth"]
# Only the scales are stored more coarsely; the codes of the weights stay. And a zero beside a 1 comes back as 0.00002: it lies half way between two of the 65,536 points, and the level
# nearest to the upper one is no longer 0.
#
# One more thing that the sum of bits does not show: all scales of a tensor share one mean. If a single block is a thousand times as large as the others, *their* scales come back negative
# and their weights mirrored, in bitsandbytes as here; the report of `quantize_` then carries a note.
#
# ## The same bits as bitsandbytes, and what the library holds
#
# If bitsandbytes is installed, the next two cells compare with it. Their output is the same without it: printed are the claims, and the asserts behind them run wherever they can.
#
# ### Myths 001-5, 001-12, 001-13, 001-14
#
# An introduction to the field lists GGUF, GPTQ, AWQ and int8 as things that bitsandbytes implements (001-5), and shows a listing that uses `torch` without importing it
# (001-14), builds `bnb.nn.Linear8bit` (001-12), assigns a float weight to it and prints "quantized" (001-13).
#
# **Predict.** How many linear layers are in `bnb.nn`, and which? What dtype has the weight after the assignment? When does that change, and by which argument?

# %%
from quantlab.export import bitsandbytes as adapter

installed = importlib.util.find_spec("bitsandbytes") is not None
ql.quantize_(model, ql.NormalFloat(double_quantize=True), None)
with torch.no_grad():
    ours = model(test[:1])
    if installed:
        F = adapter.library().functional
        data, state = F.quantize_4bit(W, quant_type="nf4", compress_statistics=True)
        assert data.equal(adapter.pack_nibbles(double.codes))
        assert state.absmax.equal(double.scales.codes.flatten())
        assert F.dequantize_4bit(data, state).equal(double.dequantize())
        assert len(ql.to_bitsandbytes_(model)) == 28  # Linear4bit, with its traps shut (below)
        assert torch.allclose(model(test[:1]), ours, atol=1e-4)
        assert len(ql.from_bitsandbytes_(model)) == 28
    assert model(test[:1]).equal(ours)
print("NF4 codes, 8-bit scales, decoded weights: those of bitsandbytes 0.50, bit for bit")

# %% tags=["myth"]
linears = {"Linear4bit", "Linear8bitLt", "LinearFP4", "LinearNF4", "OutlierAwareLinear"}
if installed:
    nn = adapter.library().nn
    assert {name for name in dir(nn) if "Linear" in name} == linears  # 001-5, 001-12
    source = torch.nn.Linear(16, 8)  # 001-14: the listing forgot `import torch`
    eight = nn.Linear8bitLt(16, 8, has_fp16_weights=False)
    eight.weight.data = source.weight.data.clone()
    assert eight.weight.dtype == torch.float32  # 001-13: assigned, and nothing happened
    assert not torch.equal(eight.bias, source.bias)  # nor was the bias copied
    weight = eight.to("cpu").weight
    assert weight.dtype == torch.int8  # moving quantizes
    assert torch.allclose(weight.CB * weight.SCB[:, None] / 127, source.weight, atol=2e-3)
print("bnb.nn's linear layers:", ", ".join(sorted(linears)))
print("assigned: float32; after .to('cpu') with has_fp16_weights=False: int8; bias not copied")
print("Verdict: 001-5, 001-12, 001-13 and 001-14 are false")

# %%
if os.environ.get("QUANTLAB_ONLINE") == "1":  # a real model, from Hugging Face
    for change in (None, ql.llm_int8_, ql.NormalFloat(double_quantize=True), ql.Float4()):
        real, words = ql.load("HuggingFaceTB/SmolLM2-135M")
        if change is ql.llm_int8_:
            change(real)
        elif change is not None:
            ql.quantize_(real, change, None)
        print(change or "float", ql.evaluate(real, ql.test_set(words, samples=8)))
else:
    print("Skipped: set QUANTLAB_ONLINE=1 and install transformers to use SmolLM2-135M.")

# %% [markdown] tags=["exercise"]
# *(Source: bitsandbytes 0.50, `nn/modules.py`.)*
#
# ## Four traps on a CPU
#
# All of them are silent, were measured with bitsandbytes 0.50, and depend on the processor:
#
# | trap | what happens | way out |
# |---|---|---|
# | first `eval()` forward of `Linear4bit`, AVX512-BF16 | the weight is repacked and multiplied in bfloat16 whatever `compute_dtype` says (error about 0.3 %); shapes with out % 32 are refused | `layer.support_avx512bf16_for_cpu = False` before the first forward |
# | `state_dict()` after it | scales transposed and in bfloat16: file *and* live model are broken | as above, or save before the first forward |
# | `dequantize_4bit`, AVX-512, when blocks cross rows (in % block ≠ 0) | wrong scales, error twice as large | a block size that divides the row |
# | `F.gemv_4bit` on ordinary packing | garbage, as large as the output | do not call it; decode and use `F.linear` |
#
# `ql.to_bitsandbytes_` shuts the first two and refuses the third; `ql.from_bitsandbytes_` refuses layers that have fallen into the second.
#
# 💡 *Save a 4-bit model before its first forward pass, and compare one layer's output with `dequantize` + `linear` once on each new machine.*
#
# ## In the wild
#
# | name | where | what it is |
# |---|---|---|
# | `BitsAndBytesConfig(load_in_8bit=True)` | transformers | `Linear8bitLt`, threshold 6; the head stays in float |
# | `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)` | transformers, PEFT | `Linear4bit`; the *default* type is FP4, so ask for NF4 |
# | QLoRA | PEFT | low-rank adapters on such a frozen model (module 19) |
# | IQ4_NL | ggml | another fixed table of 16 levels, with float16 scales in blocks of 32 (module 06) |
# | `bnb.optim.Adam8bit` | bitsandbytes | state in dynamic 8-bit blocks of 256 |
#
# ## Exercises
#
# Each has `exercise.hint()` and `exercise.solution()`; a check names the idea behind a wrong answer.
#
# ### Exercise a: A table of quantiles
# Difficulty: ●●● · Importance: ●●○ · 12 min
#
# Write `levels(p, below, above)`: evenly spaced probabilities from 1/2 up to p give `above` levels above zero, and mirrored ones give `below` levels under it. Zero stands between, and all are
# divided by the largest magnitude. Return below + 1 + above ascending float64 numbers. With p = 929/960, 7 and 8 it is NF4. `torch.special.ndtri` is the quantile function.


# %% tags=["exercise"]
def levels(p, below, above): ...


exercise = ql.exercise("08_bitsandbytes.a")
exercise.check(levels)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Outlier columns
# Difficulty: ●○○ · Importance: ●●● · 5 min
#
# Write `outlier_columns(x, threshold)`: x is (tokens, in). Return the list of input channels in which any magnitude reaches the threshold.
#
# ### Exercise c: The price of a weight
# Difficulty: ●●○ · Importance: ●●● · 6 min
#
# Write `bits(block, second)`: 4-bit codes in blocks of `block` weights, an 8-bit code for each block's scale, and one float32 for each `second` scales. Return the bits per weight.


# %% tags=["exercise"]
def outlier_columns(x, threshold): ...


def bits(block, second): ...


ql.exercise("08_bitsandbytes.b").check(outlier_columns)
exercise = ql.exercise("08_bitsandbytes.c")
exercise.check(bits)

# %% [markdown] tags=["exercise"]
# ### Exercise d: The mixed product, and its control
# Difficulty: ●●● · Importance: ●●● · 14 min
#
# Write `decompose(x, W, threshold)` that returns y (tokens, out): outlier columns of x and W in float, all others as int8 with the scales of `ql.int8_rows`. The check also sets the
# threshold above every input: then y must be that of plain int8.


# %% tags=["exercise"]
def decompose(x, W, threshold): ...


exercise = ql.exercise("08_bitsandbytes.d")
exercise.check(decompose)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("08_bitsandbytes")

# %% [markdown]
# ## Summary
#
# - LLM.int8(): one scale a token and one an output row; channels in which any |x| reaches 6 are multiplied in float.
# - The gain must vanish with a threshold above every input, and with channels chosen at random.
# - The weights of outlier channels: float16 in the paper, int8 in bitsandbytes. Here that made the difference between 0.8 and 3.8 %.
# - NF4's levels are quantiles for weights divided by their spread; blocks are divided by their largest weight, so the codes are not used evenly.
# - Compare formats at equal stored bits: at 4.5 a plain grid leads, at 4.13 NF4 with 8-bit scales does.
# - On a CPU, switch off the repacking of `Linear4bit` before the first forward pass.

# %% [markdown]
# ## What we left out
#
# Training with 8-bit optimizers, QLoRA (module 19), kernels and their speed (modules 23 and 24), the paged memory of optimizers, and removing outliers instead of
# working around them: SmoothQuant (module 12) and rotations (module 13).
#
# ## Sources
#
# - T. Dettmers, M. Lewis, Y. Belkada, L. Zettlemoyer: *LLM.int8()*, NeurIPS 2022, arXiv:2208.07339; section 3 and the emergence of outliers.
# - T. Dettmers, A. Pagnoni, A. Holtzman, L. Zettlemoyer: *QLoRA*, NeurIPS 2023, arXiv:2305.14314v1; sections 2 and 3, appendix E.
# - T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer: *8-bit Optimizers via Block-wise Quantization*, ICLR 2022, arXiv:2110.02861.
# - D. Yoshida: *NF4 Isn't Information Theoretically Optimal (and that's Good)*, arXiv:2306.06965.
# - bitsandbytes 0.50: `functional.py`, `nn/modules.py`, `csrc/cpu_ops.cpp`; issue bitsandbytes#2078 (scales after an eval forward).
