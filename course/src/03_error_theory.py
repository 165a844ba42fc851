# %% [markdown]
# # Error Theory: SQNR, Clipping, Granularity
#
# Duration: 75 min · runs in about 10 s on 2 CPU cores
#
# Before anybody builds a bridge, somebody calculates what it will carry. Before you quantize a model
# you should be able to say what it will lose, on a sheet of paper, without running anything. That is possible:
# the error follows from how many levels there are, how far they reach, and how the weights are spread.
#
# ## Objectives
#
# After this module you can
#
# 1. predict the error of a grid in decibels, and name the cases where the prediction fails. (q1, q2)
# 2. split an error into clipping and rounding, and choose the clip that makes their sum least. (q3, q4, q5)
# 3. choose among the rules that all call themselves "symmetric 4 bit". (q6)
# 4. say what smaller groups gain, what they cost, and when another bit is the better buy. (q7, q8)
#
# ## Prerequisites
#
# Module 02 (grids, scale and zero point). From statistics: mean, variance, the bell curve.

# %% [markdown] tags=["predict"]
# ## Must the grid reach the largest weight?
#
# Here are 20,000 weights from a bell curve, and a grid of 15 levels (4 bits, symmetric: the codes −7 to
# 7). The weights are crowded in the middle; the largest is about four standard deviations out. The
# obvious grid reaches it, so that nothing is cut:
#
# ```
#  weights             .  . ...::::|||||#################|||||::::... .  .         *  <- the largest
#  obvious   |    |    |    |    |    |    |    |    |    |    |    |    |    |    |
#  bolder                  |  |  |  |  |  |  |  |  |  |  |  |  |  |  |
# ```
#
# The bolder grid ends at 60 % of the largest weight. All the weights beyond, the largest ones, are cut
# off: they land on the last level and are simply wrong.
#
# **Predict.** What does that do to the mean squared error of all 20,000 weights? (a) It more than
# doubles. (b) It grows a little. (c) It shrinks a little. (d) It falls to less than half. Write your letter down.

# %%
import numpy as np
import torch

import quantlab as ql
from quantlab.widgets.clip_slider import clip_errors

bell = torch.tensor(np.random.default_rng(3).standard_normal(20_000))
largest = bell.abs().max().item()
rows = []
for percent in (100, 80, 60, 40, 15):
    clip = percent / 100 * largest
    clipping, rounding, decibels = clip_errors(bell, bits=4, clip=clip)
    cut = int((bell.abs() > clip).sum())
    rows.append((f"{percent} %", cut, clipping, rounding, clipping + rounding, decibels))
ql.table(rows, ["grid reaches", "weights cut", "clipping", "rounding", "sum", "SQNR in dB"])

# %% [markdown] tags=["predict"]
# The answer is (d). Cutting off the largest weights removed more than half of the error. Rounding is
# a small tax that *everybody* pays, 20,000 times; clipping is a large bill for a few. Pull the ends
# in, and the tax falls with the square of the step, while the bill at first hardly grows, because so
# few weights live out there. Pull too far (15 %) and the bill ruins everything.
#
# The two columns add up exactly, not just roughly. A weight inside the grid has no clipping error, and
# a weight outside has no rounding error, because it is moved to the end, which is a level.
#
# ### A scale for errors
#
# An error of 0.013 says nothing by itself: weights ten times larger would have one a hundred times
# larger. So we divide by the weights' own energy and take the logarithm. The **signal to quantization
# noise ratio** is
#
# $$\mathrm{SQNR} = 10 \log_{10} \frac{\sum w^2}{\sum (w - \hat w)^2}\ \text{dB}.$$
#
# Three anchors are worth remembering. **3 dB** more: half the squared error. **6 dB** more: half the error. **20 dB**:
# the noise holds 1 % of the energy, so a typical weight is off by 10 % of a typical weight.
#
# ## Where is the best place to cut?
#
# **Predict.** Below is the whole trade for 4 bits. If there were only 2 bits, would the best clip be
# further in or further out? And with 8 bits?

# %% tags=["signature"]
ql.widgets.ClipSlider(bell, start=(4, 60))

# %% [markdown] tags=["predict"]
# On the left, the weights and the grid; on the right, both errors stacked, for every clip from 1 % to
# 100 % of the largest weight. The orange part is clipping: a wall on the left that is gone soon after
# two standard deviations. The blue part is rounding: a parabola. The dashed line marks the clip. In the live
# widget, move the slider to feel how flat the bottom is: being off by 5 % costs next to nothing, and
# being off by a factor of two costs a lot. Then change the bits. With 2 bits steps are dear, and
# the best clip moves *in*; with 8 bits they are cheap, and it moves almost to the end.
#
# ## What is one bit worth?
#
# Why does the blue part grow with the square of the clip? Let Δ be the distance between levels. A weight
# between two levels can be anywhere in its cell, so its error e is spread evenly over −Δ/2 … Δ/2:
#
# $$\mathbb{E}[e^2] = \frac{1}{\Delta}\int_{-\Delta/2}^{\Delta/2} e^2\,de = \frac{\Delta^2}{12}.$$
#
# This is the one formula to take away. Now fill the range from −c to c with 2ᵇ cells: Δ = 2c/2ᵇ. For
# weights of standard deviation σ,
#
# $$\mathrm{SQNR} = 10\log_{10}\frac{12\,\sigma^2}{\Delta^2} = 6.02\,b + 4.77 - 20\log_{10}\frac{c}{\sigma}\ \text{dB}.$$
#
# One more bit halves Δ, a quarter of the error: 20·log₁₀ 2 = **6.02 dB**. And the last term is the price of
# reach: every doubling of c/σ costs 6.02 dB too, exactly one bit. A box of uniform numbers has
# c/σ = √3, and the two constants cancel: 6.02 b. A sine has c/σ = √2: 6.02 b + 1.76.
#
# **Predict.** The cell compares the formula with measurements: a box, a sine, and a bell whose grid
# reaches the largest of 200,000 values, or only 1 σ. Which pairs will agree, and which will not?


# %%
def mid_rise(x, clip, bits):  # to the centers of 2**bits cells that fill -clip .. clip
    step, top = 2 * clip / 2**bits, 2 ** (bits - 1)
    return step * (np.floor(x / step).clip(-top, top - 1) + 0.5)


rng = np.random.default_rng(32)
box, wave = rng.uniform(-1, 1, 200_000), np.sin(np.linspace(0, 1000, 200_000))
normal = rng.standard_normal(200_000)  # the bell
rows = []
for name, x, clip in [("box", box, 1.0), ("sine", wave, 1.0),
                      ("bell, all", normal, np.abs(normal).max()), ("bell, 1 σ", normal, 1.0)]:  # fmt: skip
    for bits in (2, 4, 8):
        formula = 6.0206 * bits + 4.771 - 20 * np.log10(clip / x.std())
        measured = ql.sqnr(torch.tensor(x), torch.tensor(mid_rise(x, clip, bits)))
        off = round(measured - formula, 1) + 0.0  # no minus zero
        rows.append((name, bits, clip / x.std(), formula, measured, f"{off:+.1f}"))
ql.table(rows, ["signal", "bits", "c / σ", "formula, dB", "measured, dB", "off by"])

# %% [markdown] tags=["predict"]
# ### Where the rule fails
#
# 1. **Cells too wide** (2 bits). Within a wide cell the values no longer spread evenly: those of a bell
#    crowd at its inner edge, and a sine lingers at its turning points, the outer edge of the last cell.
# 2. **Clipping** ("bell, 1 σ"). The formula knows of rounding only; it promises more and more, while
#    clipping stays the same at any number of bits.
# 3. **Weights already on levels.** Round twice on one grid, and the second error is 0, not Δ²/12.
# 4. **"One more bit is 6.02 dB"**, for a bell at its *best* clip. With finer steps it pays to reach
#    further, so part of each bit is spent on reach. You are about to see the real price.
#
# ## The best clip of a bell curve
#
# A histogram is not needed when the curve is known: the mean squared error is an integral over the
# bell, and we can try every clip. Two grids compete, and you will meet both. *Mid-rise* has 2ᵇ levels and none at 0;
# the *symmetric* grid has 2ᵇ − 1, gives one away and keeps an exact 0.
#
# **Predict.** How much does giving up one level cost at 2 bits? At 8 bits?

# %%
x = np.arange(-9, 9, 0.001) + 0.0005
density = np.exp(-(x**2) / 2)
density /= density.sum()


def noise(levels):
    """Mean squared error of a bell curve of variance 1, rounded to the nearest level."""
    borders = (levels[1:] + levels[:-1]) / 2
    return density @ (x - levels[np.searchsorted(borders, x)]) ** 2


grids = {
    "mid-rise": lambda clip, bits: clip * (np.arange(1 - 2**bits, 2**bits, 2) / 2**bits),
    "symmetric": lambda clip, bits: clip * np.linspace(-1, 1, 2**bits - 1),
}
rows, clips = [], np.arange(1, 4.2, 0.01)
for name, grid in grids.items():
    for bits in (2, 3, 4, 8):
        errors = np.array([noise(grid(clip, bits)) for clip in clips])
        best = errors.argmin()
        rows.append((name, bits, clips[best], -10 * np.log10(errors[best]), errors[best]))
ql.table(rows, ["grid", "bits", "best clip in σ", "SQNR in dB", "mean squared error"], sig=4)

# %% [markdown] tags=["predict"]
# On the mid-rise grid, a bit at the best clip buys 5 dB where bits are few, and creeps towards 6.02 only
# later. The lost level costs 2 dB at 2 bits (3 levels in place of 4) and next to nothing at 8. And remember the number
# **2.47 σ**: the best symmetric 4-bit clip of a bell curve. In a million weights, the largest is near 5 σ;
# the best grid covers half of that.
#
# ## A control: is 2.47 σ magic?
#
# If 2.47 σ were simply a good number, it would be good for other weights too. Take a box: uniform
# weights between −1 and 1 have σ = 1/√3, so 2.47 σ is 1.43, nearly half as far again as the largest weight.
# Nearly a third of the levels would stand where no weight lives.
#
# **Predict.** Use Δ²/12: by which factor does the error of the box grow, compared with a grid that
# ends at its largest weight? And what happens to the bell if it must use the *box's* clip, √3 σ?


# %% tags=["control"]
def squared_error(weight, clip):
    return sum(clip_errors(weight, 4, clip)[:2])


box = torch.tensor(np.random.default_rng(5).uniform(-1, 1, 20_000))
rows = []
for shape, w, own in [("bell", bell, 2.47 * bell.std().item()), ("box", box, 1.0)]:
    for name, sigmas in [("2.47 σ", 2.47), ("√3 σ", 3**0.5)]:
        error = squared_error(w, sigmas * w.std().item())
        rows.append((shape, name, error, error / squared_error(w, own)))
ratio = {row[:2]: row[3] for row in rows}
assert 1.9 < ratio["box", "2.47 σ"] < 2.2  # the bell's clip doubles the error of the box
assert ratio["bell", "√3 σ"] > 1.9  # and the box's clip that of the bell
ql.table(rows, ["weights", "grid reaches", "squared error", "own clip = 1"])

# %% [markdown] tags=["predict"]
# (1.43)² = 2.04: the control fails as it should, and the bell fares no better with the
# box's clip. A clip is never good by itself; it is good *for a shape*. The honest way to a clip is to look at the weights, or to search, and never to copy a constant.
#
# ## Five rules that are all called "4 bit"
#
# In practice a scale is shared by a group of 32 to 128 weights, and with so few the group's own
# extremes are a good start. Five rules are in use, and four of them say "symmetric". With s the
# scale, and codes from −8 to 7:
#
# | rule | scale | idea |
# |---|---|---|
# | absmax/7 | max\|w\| / 7 | 15 levels, nothing is cut; code −8 is never used |
# | absmax/7.5 | max\|w\| / 7.5 | half a step too short on both sides: 16 levels |
# | max(max/7, min/−8) | the larger of the two | uses −8, if the most negative weight allows |
# | signed max/−8 | (extreme weight) / −8 | the extreme always gets code −8; **s may be negative** |
# | asymmetric | (max − min) / 15 | an integer zero point is stored as well |
#
# **Predict.** Rank the four symmetric rules for groups of 32 from a bell curve. How far apart are the
# best and the worst? Each stores the same bits.


# %%
def rules(w):  # (groups, size) weights -> (groups, 1) scales of each symmetric rule
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    absmax = np.maximum(-low, high)
    return {
        "absmax/7": absmax / 7,
        "absmax/7.5": absmax / w.dtype.type(7.5),
        "max(max/7, min/-8)": np.maximum(high / 7, low / -8),
        "signed max/-8": np.where(high > -low, high, low) / -8,
    }


errors = {}
for size in (32, 64, 128):
    w = np.random.default_rng(33).standard_normal((1_000_000 // size, size))
    rounded = {name: np.clip(np.round(w / s), -8, 7) * s for name, s in rules(w).items()}
    for symmetric in (True, False):
        q = ql.rtn(torch.tensor(w), ql.Scheme(bits=4, symmetric=symmetric))
        rounded[f"ql.Scheme, symmetric={symmetric}"] = q.dequantize().numpy()
    for name, values in rounded.items():
        errors.setdefault(name, []).append(((values - w) ** 2).mean())
ql.table([(k, *v) for k, v in errors.items()], ["rule", "groups of 32", "of 64", "of 128"])

# %% [markdown] tags=["myth"]
# The signed maximum wins, by 22 % against absmax/7 and 18 % against absmax/7.5 at groups of 32, and
# costs nothing. Its trick is small and lovely. The codes −8 … 7 reach further down than up. If the
# extreme weight is negative, all is well: it takes −8. If it is positive, a *negative scale* mirrors
# the group, and the long arm points up. By hand, for (−0.71, 0.34, 0.05, 0.92):
#
# ```
# absmax/7       scale  0.131   codes -5  3  0  7   stand for  -0.657  0.394  0  0.92
# signed max/-8  scale -0.115   codes  6 -3  0 -8   stand for  -0.690  0.345  0  0.92
# ```
#
# So the step is always max|w| / 8, and all 16 levels are of use. Only an opposite extreme that is nearly as
# large gets cut. It is the rule of our `Scheme`, as the equal rows show. The asymmetric
# grid does better still, and stores a zero point for each group.
#
# ### Myth G4: absmax/7.5 is *the* symmetric 4-bit rule
#
# It is in wide use, and it has a second flaw that no error table shows. Divide the group's largest weight by
# its scale: w / (|w|/7.5) = ±7.5, precisely half way between two codes. Whether a computer says −7
# or −8 is decided by the last bit of its arithmetic.
#
# **Predict.** We compute the codes of 100,000 groups of 32 in float32, and again in float64, from the same weights.
# Is the share of groups whose codes differ (a) below 1 in 10,000, or (b) above 1 in 10?

# %% tags=["myth"]
single = np.random.default_rng(34).standard_normal((100_000, 32)).astype(np.float32)
double = single.astype(np.float64)  # the same weights, with more digits to compute in
pairs = zip(rules(single).items(), rules(double).values(), strict=True)
rows, changed = [], {}
for (name, scale32), scale64 in pairs:
    codes32 = np.clip(np.round(single / scale32), -8, 7)
    codes64 = np.clip(np.round(double / scale64), -8, 7)
    changed[name] = (codes32 != codes64).any(1).mean()
    rows.append((name, f"{100 * changed[name]:.1f} %"))
assert changed["absmax/7.5"] > 0.1
assert changed["signed max/-8"] == 0
assert errors["absmax/7.5"][0] > 1.15 * errors["signed max/-8"][0]
print("Verdict: G4 is false, 7.5 is one rule of several, with more error and a tie in every group")
ql.table(rows, ["rule", "groups whose codes change with the precision"])

# %% [markdown] tags=["predict"]
# Only groups with a *negative* extreme can change (a positive 7.5 rounds to 8 or 7, and both end at
# code 7), and a part of those do. A file made on one machine can differ from a file made on another, a
# fast kernel from its reference, and no test can ask for equal codes. Source: measured above; the
# rules are those of the tools named under "In the wild".
#
# ## One scale for how many weights?
#
# Now real weights: the trained storyteller. One scale may serve a whole matrix, a row, or a group
# within a row. The fewer weights share it, the less one large weight can hurt the others; but every
# scale is stored, in 16 bits: 16/g bits for each weight.
#
# Δ²/12 can predict all of it without quantizing anything: with one step s per group, the mean squared
# error is the *mean of s²* over the groups, divided by 12.
#
# **Predict.** Which step down this ladder gains most: matrix to row, row to 128, 128 to 64, 64 to 32,
# or 32 to 16? And which of them is worth its bits, if a whole bit costs 1 and gains about 6 dB?

# %%
model, _ = ql.load("storyteller")
W = model.get_submodule("model.layers.2.mlp.down_proj").weight.detach().double()
rows, bars, last = [], {}, None
for size in (W.numel(), None, 128, 64, 32, 16):
    weight = W.reshape(1, -1) if size == W.numel() else W
    scheme = ql.Scheme(bits=4, group_size=size)
    scale, _ = scheme.grid(scheme.group(weight))
    predicted = 10 * np.log10(12 * W.square().mean().item() / scale.square().mean().item())
    measured = ql.sqnr(weight, ql.rtn(weight, scheme).dequantize())
    stored = scheme.stored_bits(weight.shape[1])
    price = f"{(measured - last[0]) / (stored - last[1]):.0f}" if last else ""
    name = "matrix" if size == W.numel() else "row" if size is None else f"group of {size}"
    rows.append((name, f"{stored:g}", round(predicted, 1), round(measured, 1), price))
    bars[name], last = measured, (measured, stored)
headers = ["one scale per", "bits/weight", "predicted, dB", "measured, dB", "dB per bit"]
print(ql.table(rows, headers))
ql.plot.sqnr_bars(bars)

# %% [markdown] tags=["predict"]
# The prediction is good to a fraction of a decibel, from nothing but the scales. (It is a little
# pessimistic for small groups: in each of them the extreme weight has an error of 0, because it
# sits on code 0 exactly.)
#
# Read the last column against the 6 dB that a whole bit gains. From matrix to row, and from row to
# group, decibels are nearly free. After that, each halving of the group gains about 1 dB, while its price
# doubles. On a bell curve, 128 → 64 brings 0.73 dB for 0.125 bits, 5.8 dB per bit: about even. 64 → 32 brings 0.86 dB
# for 0.25 bits, 3.4 per bit: now a bit is the better buy, if you can afford a whole one.
#
# 💡 *With 16-bit scales, stop at groups of 64, unless the next whole bit is out of reach. To go lower, first shrink the scales (module 06).*
#
# ## Search instead of theory
#
# `rtn(..., clip="mse")` is the honest way from above: for every group it tries the ends at 100 %, 98 %, … 30 %
# of the extreme weight, with both signs of the scale, and keeps the least squared error. Not
# one more bit is stored.
#
# **Predict.** For which size will the search gain most? And if it shortens the grid of nearly every
# group, what does that say about myth G3?

# %% tags=["myth"]
rows = []
for size in (None, 128, 64, 32, 16):
    scheme = ql.Scheme(bits=4, group_size=size)
    plain, searched = ql.rtn(W, scheme), ql.rtn(W, scheme, clip="mse")
    before, after = scheme.group(W).abs(), scheme.group(searched.dequantize()).abs()
    place = before.argmax(-1, keepdim=True)  # of each group's largest weight
    cut = (after.gather(-1, place) < 0.99 * before.gather(-1, place)).double().mean().item()
    decibels = [ql.sqnr(W, q.dequantize()) for q in (plain, searched)]
    assert decibels[1] > decibels[0]
    assert cut > 0.5  # most groups are better off cut
    name = f"group of {size}" if size else "row"
    gained = f"{decibels[1] - decibels[0]:+.1f}"
    rows.append((name, *(round(x, 1) for x in decibels), gained, f"{100 * cut:.0f} %"))
print("Verdict: G3 is false, most groups have less error with their largest weight cut off")
ql.table(rows, ["one scale per", "absmax, dB", "searched, dB", "gain, dB", "groups cut"])

# %% [markdown] tags=["myth"]
# ### Myth G3: the scale must cover the largest weight
#
# It sounds like prudence, and it is the default of many tools. You have now seen it fail on a bell curve,
# on single groups and on trained weights. What is true: the more weights share a scale, and the fewer bits
# they have, the more a cut gains, and *never cut* is right for a box. (Groups of 16 gain again, for another
# reason: with so few weights, a search finds a grid that happens to fit just these.)
# Source: the table above and the optimum 2.47 σ.
#
# ### Does the model notice?
#
# An error of the weights is only a stand-in. What counts is the text. We round all linears of the
# storyteller to 3 bits, one scale per row, and measure how far its predictions move (KL divergence
# from the float model, 0 = no change; module 11 explains it).
#
# **Predict.** The search adds not one stored byte. Will its gain in SQNR arrive at the predictions?

# %%
test = ql.test_set(ql.load("storyteller")[1], samples=8)
reference, rows = ql.log_probabilities(model, test), []
for clip in ("absmax", "mse"):
    small, _ = ql.load("storyteller")
    report = ql.quantize_(small, ql.RTN(clip=clip), ql.Scheme(bits=3))
    quality = ql.evaluate(small, test, reference=reference)
    mean = float(np.mean([row.sqnr for row in report.rows]))
    perplexity, kl = round(quality.perplexity, 1), round(1e4 * quality.kl)
    rows.append((clip, report.bits_per_weight, round(mean, 1), perplexity, kl))
assert rows[1][-1] < rows[0][-1]  # the same bytes, and predictions closer to the float model's
ql.table(rows, ["clip", "bits/weight", "mean SQNR, dB", "perplexity", "10,000 KL"])

# %% [markdown]
# It arrives: same bytes, predictions closer to those of the float model. (A smaller weight error is no
# guarantee of that. Which roundings the *outputs* like best is the question of module 04.)
#
# ## In the wild
#
# All of these rules run in maintained tools today, which is why "4 bit, symmetric" is not a
# specification. **ggml** (llama.cpp) takes the signed maximum / −8 in Q4_0, and searches scales for its
# K-quants; **auto-round** uses the signed maximum too. **compressed-tensors** (used by vLLM and
# llm-compressor) and torchao's `SYMMETRIC` mapping take absmax/7.5; torchao's
# `SYMMETRIC_NO_CLIPPING_ERR` takes max(max/7, min/−8). AutoAWQ, retired by its own README (G22), took absmax/7, as
# llm-awq does. llm-compressor also has an observer that searches for the clip of least squared error.
# When you compare two tools, compare their rules first.
#
# ## Exercises
#
# Each has `exercise.check(...)`, `exercise.hint()` and `exercise.solution()`. Start with (a), on paper.

# %% [markdown] tags=["exercise"]
# ### Exercise a: Predict four errors
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Without running anything: what is the SQNR, in dB, of these four? Each grid has 2ᵇ levels, the centers of the
# cells that fill −c … c. Within 0.3 dB counts. `hint()` and `solution()` are there if you are stuck.
#
# - `box`: uniform numbers in −1 … 1, 5 bits, c = 1
# - `sine`: a sine wave of amplitude 1, 8 bits, c = 1
# - `bell`: a bell curve, 8 bits, c = 5 σ
# - `outlier`: the same bell, 8 bits, but one weight at 20 σ forces c = 20 σ (it is one in millions: σ stays as it is)

# %% tags=["exercise"]
exercise = ql.exercise("03_error_theory.a")
prediction = {"box": ..., "sine": ..., "bell": ..., "outlier": ...}
exercise.check(prediction if ... not in prediction.values() else None)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Find 2.47 σ yourself
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# Write `best_clip(weight, bits)`: the clip of least mean squared error for a float64 tensor on the symmetric grid of
# 2ᵇ − 1 levels from −clip to clip. Search any way you like; an error within 1 % of the least is accepted, on bells and on other
# shapes. (`hint()` names three steps, `solution()` shows ours.)

# %% tags=["exercise"]
exercise = ql.exercise("03_error_theory.b")


def best_clip(weight, bits): ...


exercise.check(best_clip)

# %% [markdown] tags=["exercise"]
# ### Exercise c: What a group of 64 gains
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `gain(weight, group_size)`: how many dB a symmetric 4-bit grid per group (`ql.rtn`, absmax) is better than
# *one* grid for the whole matrix. Then try it on the layers of the storyteller: which has the most to gain? (`hint()`, `solution()`)

# %% tags=["exercise"]
exercise = ql.exercise("03_error_theory.c")


def gain(weight, group_size): ...


exercise.check(gain)

# %% [markdown] tags=["exercise"]
# ### Exercise d: Count the ties
# Difficulty: ●●● · Importance: ●●○ · 10 min
#
# Write `flips(groups, rule)`: the share of rows of a float32 array (n, size) whose codes change when scale *and*
# codes are computed in float64 instead. `rule(array)` returns the scales, (n, 1), in the array's own precision; codes are
# `round(w / scale)` within −8 … 7. (`hint()`, `solution()`)

# %% tags=["exercise"]
exercise = ql.exercise("03_error_theory.d")


def flips(groups, rule): ...


exercise.check(flips)

# %% [markdown] tags=["exercise"]
# ### Exercise e: The control, on paper
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# A symmetric grid of **5 bits** (31 levels) has its best clip at 2.90 σ for a bell. By which factor does the error of a
# *box* grow if its grid reaches 2.90 σ instead of its largest weight? And at 8 bits, where the bell's best
# clip is 3.92 σ? Two numbers, within 3 %. (`hint()`, `solution()`)

# %% tags=["exercise"]
exercise = ql.exercise("03_error_theory.e")
factor = {"5 bits": ..., "8 bits": ...}
exercise.check(factor if ... not in factor.values() else None)

# %% [markdown]
# ## Quiz
#
# Eight questions with your own numbers; each wrong answer tells you which idea led there.

# %% tags=["quiz"]
ql.quiz.practice("03_error_theory")

# %% [markdown]
# ## Summary
#
# - Error = clipping + rounding, exactly. Rounding is Δ²/12; clipping is a wall.
# - SQNR = 6.02 b + 4.77 − 20 log₁₀(c/σ): a bit halves the error, and so does half the reach.
# - The rule fails for wide cells, cut weights, weights on levels, and at the best clip of a bell (about 5 dB per bit).
# - Best symmetric 4-bit clip of a bell: 2.47 σ, 18.9 dB. Of a box: its largest weight. Clips belong to shapes.
# - "Symmetric 4 bit" has four rules. Signed maximum / −8 has the least error and no ties.
# - Groups: mean of s² over 12. Cheap down to 64; below that, compare with the price of a bit.

# %% [markdown]
# ## What we left out
#
# Grids that are not uniform (Lloyd-Max, NF4: modules 02 and 08), shrinking the scales themselves (module 06), and the
# larger truth that errors of weights are not errors of outputs. Module 04 begins with two ways to round
# a pair of weights; the one with the *larger* weight error has a seventh of the output error.
#
# ## Sources
#
# - M. Nagel et al., *A White Paper on Neural Network Quantization*, arXiv:2106.08295, sections 2 and 3.
# - H. Wu et al., *Integer Quantization for Deep Learning Inference*, arXiv:2004.09602 (clipping by search, granularity).
# - J. Max, *Quantizing for Minimum Distortion*, IRE Transactions 1960: the table of best uniform grids for a bell.
# - ggml-org/ggml, `src/ggml-quants.c` (signed maximum / −8); IST-DASLab/gptq, compressed-tensors and torchao (absmax/7.5).
