# %% [markdown]
# # Activation Outliers: SmoothQuant and W8A8
#
# Duration: 75 min · runs in about 15 s on 2 CPU cores
#
# Eight bits for weights cost next to nothing. Eight bits for activations can ruin a model. The difference is a handful of channels, and a
# division that takes place before the model runs.
#
# ## Objectives
#
# After this module you can
#
# 1. find the outliers of a layer, and say what they do to those that share their scale. (q3, q6)
# 2. compute smoothing scales and the ranges that they leave. (q1, q2, q7)
# 3. fold scales into norms and weights, and prove that the float model stays. (q5)
# 4. choose a granularity that integer products allow. (q4, q8)
#
# ## Prerequisites
#
# Modules 02, 03 and 05 (scales, granularity, folding); module 07 for integer products.

# %% [markdown] tags=["predict"]
# ## One model, written in two ways
#
# `storyteller-outlier` computes the same function as `storyteller`. We made it from it: in each norm six gains are multiplied by 32 or 64, and the matching
# columns of the linears behind it are divided by the same number. Powers of two only move exponents, so that nothing is rounded.
# Large language models grow such channels by themselves; ours is a **controlled defect**, and the plain model is its exact inverse: our oracle.
#
# Weights get 8 bits, one scale a row. Activations that enter a linear get 8 bits, one scale a **tensor**, found beforehand on other text ("static W8A8").
#
# **Predict.** Are the logits of both models equal in every bit, or to six digits? What does W8 alone cost each of them? And static W8A8?

# %%
import os

import torch

import quantlab as ql

EIGHT = ql.Scheme(8)
plain, tokenizer = ql.load("storyteller")
planted, _ = ql.load("storyteller-outlier")
test = ql.test_set(tokenizer, samples=4)
data = ql.calibration_set(tokenizer, samples=8, length=128)
target = ql.log_probabilities(plain, test)
print("the same logits in every bit:", planted(test[:1]).equal(plain(test[:1])))


# %%
def measure(variant, weights=EIGHT, **smoothing):
    """Return 1,000 KL of W8, of static W8A8, and of W8A8 with a scale per token."""
    model, _ = ql.load(variant)
    if smoothing:
        ql.smooth_(model, data, **smoothing)
    ql.quantize_(model, ql.RTN(), weights)
    static = ql.StaticSim(model, data, activations=EIGHT)
    token = ql.DynamicSim(model, activations=EIGHT)
    return [1000 * ql.evaluate(m, test, reference=target).kl for m in (model, static, token)]


HEADERS = ["1,000 KL", "W8", "W8A8 static", "W8A8 per token"]
found = {name: measure(name) for name in ("storyteller", "storyteller-outlier")}
assert found["storyteller-outlier"][1] > 10 * found["storyteller"][1]
ql.table([(name, *values) for name, values in found.items()], HEADERS, sig=1)

# %% [markdown]
# The same function, and one of the two cannot be quantized: static W8A8 costs it almost 30 times as much as the other (0.36 nats a token). A scale per token helps, but still costs
# far more than it should. Rounding sees how a function is *written*, not what it computes. That is bad news, and the way out.
#
# ## Who sets the step?
#
# **Predict.** The inputs of the second block's value projection. How many times is the loudest channel as large as the median one, in the plain model and in the
# variant? And how many of the 255 codes are left for the median channel, if all share one scale?


# %%
def entering(variant, name):
    """Return what enters a linear on the calibration text, (tokens, in), and its weight."""
    model, _ = ql.load(variant)
    seen, linear = [], model.get_submodule(name)
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    model(data)
    return seen[0], linear.weight.detach()


VALUE = "model.layers.1.self_attn.v_proj"
rows = []
for variant in ("storyteller", "storyteller-outlier"):
    x, W = entering(variant, VALUE)
    for what, sizes in (("inputs", x.abs().amax(0)), ("weights", W.abs().amax(0))):
        top, median = sizes.max().item(), sizes.median().item()
        rows.append((variant, what, top / median, 2 * round(127 * median / top) + 1))
ql.table(rows, ["model", "of", "loudest / median channel", "codes of the median channel"])

# %% [markdown]
# One scale for all is set by the loudest channel, and an ordinary one is left with a handful of codes. The outliers sit in the *same channels for every token*:
# that is why a scale per token cannot separate them. A scale per channel could, and is not allowed:
#
# $$y = \sum_j s_j q_j\, p_j \qquad\text{— the scale has the index that is summed over.}$$
#
# An integer product sums codes and scales the sum. Scales of tokens and of output rows can be taken out of it; a scale of an *input channel* cannot.
#
# 💡 **Legal granularities:** activations per tensor or per token; weights per tensor or per row; both per group along the inputs, if the kernel scales each group's sum (module 07).
#
# ## Divide beforehand
#
# What cannot stand inside the sum can stand before it. Divide channel j by $s_j$ and multiply column j of the weights by it:
#
# $$W x = (W\,\mathrm{diag}(s))\;(\mathrm{diag}(s)^{-1}x), \qquad s_j = \frac{\max|X_j|^{\alpha}}{\max|W_j|^{1-\alpha}}$$
#
# The division costs nothing: the norm before the layer multiplies the same channels by its gain, so the gain takes it. Afterwards
#
# $$\max|X_j|\to(\max|X_j|\max|W_j|)^{1-\alpha}, \qquad \max|W_j|\to(\max|X_j|\max|W_j|)^{\alpha}.$$
#
# The product of the two ranges stays, and α, the *migration strength*, shares it out. At ½ both sides get the same range in each channel.
#
# **Predict.** Largest inputs 64, 1, 4, 1, largest weights ¼, 1, ½, 4. Which s at α = ½, and which ranges afterwards?

# %%
inputs, weights = torch.tensor([64.0, 1, 4, 1]), torch.tensor([0.25, 1, 0.5, 4])
rows = []
for alpha in (0, 0.5, 1):
    s = ql.smooth_scales(inputs, weights, alpha)
    rows.append((alpha, *(ql.digits(v.tolist(), sig=3) for v in (s, inputs / s, weights * s))))
ql.table(rows, ["alpha", "s", "inputs / s", "weights * s"])

# %% [markdown] tags=["predict"]
# α = 1 makes all inputs equal and leaves the whole trouble to the weights; α = 0 does the opposite.
#
# **Predict.** Fold s into the model: `ql.smooth_`. In float64, how far do the logits move? In float32? With every s rounded to a power of two? And what is left
# of the collapse?

# %%
copies = {"float64": torch.float64, "float32": torch.float32}
rows = []
for name, dtype in copies.items():
    for powers in (False, True):
        model, _ = ql.load("storyteller-outlier")
        model, before = model.to(dtype), planted.to(dtype)(test[:1])
        ql.smooth_(model, data, change=(lambda s: s.log2().round().exp2()) if powers else None)
        moved = ((model(test[:1]) - before).norm() / before.norm()).item()
        assert moved < {"float64": 1e-10, "float32": 1e-4}[name]
        rows.append((name, "powers of two" if powers else "as computed", moved == 0))
_ = planted.float()
ql.table(rows, ["model", "scales", "logits equal in every bit"])

# %% [markdown]
# In float64 the logits move by less than 10⁻¹⁰ of their size, in float32 by less than 10⁻⁴: a fold is an identity, and what is left is rounding. Powers of two
# move exponents only, and not one bit changes.

# %% tags=["signature"]
found |= {f"smoothed, alpha {a:g}": measure("storyteller-outlier", alpha=a) for a in (0.5, 0.75)}
naive, rescued = found["storyteller-outlier"], found["smoothed, alpha 0.5"]
assert rescued[1] < naive[1] / 10  # static: rescued
assert rescued[1] < 1.5 * found["storyteller"][1]  # as good as the oracle
ql.table([(name, *values) for name, values in found.items()], HEADERS, sig=1)

# %% [markdown] tags=["predict"]
# Rescued, down to what the oracle costs. (The W8 column recovers, too: the planted columns of the weights had been *shrunken* and rounded to nearly nothing, module 05.)
# What is left in the static column is no matter of channels: the first token of each story is loud in the down projections ("massive activations"), and a scale per token shuts it in.
#
# **Predict.** Is it *these* scales that help, or would any rough scaling do? Give the same numbers to other channels. And what does smoothing do for the plain model?

# %% tags=["control"]
shuffle = torch.randperm(256, generator=torch.Generator().manual_seed(0))
controls = {
    "outlier, no scales": naive,
    "outlier, s on other channels": measure("storyteller-outlier", change=lambda s: s[shuffle]),
    "outlier, s": rescued,
    "plain, no scales": found["storyteller"],
    "plain, s": measure("storyteller", alpha=0.5),
}
shuffled = controls["outlier, s on other channels"][1]
assert not shuffled < naive[1] / 10  # the control: the same numbers elsewhere rescue nothing
assert abs(controls["plain, s"][1] / found["storyteller"][1] - 1) < 0.2  # nothing to gain
rows = [(name, values[1]) for name, values in controls.items()]
ql.table(rows, ["control", "1,000 KL, W8A8 static"], sig=1)

# %% [markdown] tags=["predict"]
# Shuffled scales do not help at all: it gets *worse* than with none. And where no channel is loud, there is nothing to win.
#
# ## How strong? And what if the weights are hard themselves?
#
# Our defect shows on both sides: loud inputs met shrunken columns, so that every α finds it, and the sweep over the model is flat. Real outliers meet weights of ordinary
# size. So take a layer of the plain model and make six of its input channels 50 times louder, *without* shrinking anything.
#
# **Predict.** Where is the least error of W8A8: at α = 0, near ½, near 1? And if the weights have 3 bits, or the activations 4?
#
# **Try it.** Move α through the whole range, and watch which side is flat.

# %%
x, W = entering("storyteller", VALUE)
x[:, [5, 40, 77, 130, 200, 231]] *= 50
slider = ql.widgets.MigrationSlider(x[:256], W)
low = slider.table["errors"]
print("no scales:", ql.digits(slider.table["before"], sig=2), "%")
print("alpha 0, 0.5, 1:", ql.digits([low[0], low[10], low[20]], sig=2), "%")
assert min(low) < slider.table["before"] / 2
assert low[10] < low[0]
slider

# %%
rows, best = [], {}
for bits in ((8, 8), (4, 8), (3, 8), (8, 4)):
    here = ql.widgets.MigrationSlider(x[:256], W, weight_bits=bits[0], activation_bits=bits[1])
    tried, best[bits] = here.table["errors"], here.position["alpha"]
    rows.append((f"W{bits[0]}A{bits[1]}", *tried[::5], best[bits]))
assert best[3, 8] < 0.5 <= best[8, 8] < best[8, 4]
ql.table(rows, ["error, %", *(f"alpha {k / 4:g}" for k in range(5)), "best alpha"])

# %% [markdown] tags=["predict"]
# α is a matter of who is harder to round. With as many bits on both sides the least lies in the middle. Weights of 3 or 4 bits are hard themselves and want less; activations of
# 4 bits want all there is. The paper takes 0.5 for most models and 0.75 where activations are worse. A value costs one forward pass: measure instead of believing.
#
# ## Smaller sets: ZeroQuant's way
#
# The other cure needs no scales to be moved: let fewer numbers share one. ZeroQuant rounds weights in **groups** and activations per **token**; kernels that scale each group's sum can
# give activations groups, too. Our int8 kernel does that: `ql.activation_bits_(model, 8)` computes with real int8 codes.
#
# **Predict.** On the outlier variant: do groups of 64 come near smoothing? What do both together give?

# %%
rows = []
for size in (32, 64, 128):
    row = [size]
    for smoothed in (False, True):
        model, _ = ql.load("storyteller-outlier")
        if smoothed:
            ql.smooth_(model, data)
        ql.quantize_(model, ql.RTN(), ql.Scheme(8, size))
        ql.activation_bits_(model, 8)  # one scale for each token and group of weights
        row.append(1000 * ql.evaluate(model, test, reference=target).kl)
    rows.append(row)
    assert row[2] < row[1] / 5
ql.table(rows, ["group", "1,000 KL, as it is", "smoothed"], sig=1)

# %% [markdown]
# Groups confine an outlier to its neighbors, and that is better than a token, but a loud channel still spoils the 63 others of its group. Smoothing removes the cause, and then the
# granularity hardly matters.
#
# 💡 **Order of remedies:** smooth (free), then a scale per token (a pass over the token), then groups (a kernel that takes them), then rotate (module 13).

# %% [markdown] tags=["myth"]
# ### Myth G11: activations quantize like weights
#
# **Claim.** Rounding is rounding: if int8 with one scale is good enough for a weight, it is good enough for an activation.
#
# **Predict.** One layer of the variant, one scale for the whole weight, or one for the whole input: which error is larger, and how many times?

# %% tags=["myth"]
x, W = entering("storyteller-outlier", VALUE)
x, W = x.double(), W.double()


def one_scale(t):
    return ql.rtn(t.flatten()[None], EIGHT).dequantize().view_as(t)


exact = x @ W.T
pairs = {"weight": x @ one_scale(W).T, "activation": one_scale(x) @ W.T}
errors = {name: (100 * (y - exact).norm() / exact.norm()).item() for name, y in pairs.items()}
ordinary = x.abs().amax(0) < x.abs().amax() / 16
lost = (one_scale(x)[:, ordinary] == 0).double().mean().item()
assert lost > 2 * (one_scale(W)[:, ordinary] == 0).double().mean().item()
print("error of the output, %:", {name: round(e) for name, e in errors.items()})
print("ordinary activations that became zero:", ql.digits(100 * lost, sig=2), "%")
print("Verdict: G11 is false: channels of activations differ by factors of 32 to 100.")

# %%
if os.environ.get("QUANTLAB_ONLINE"):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "HuggingFaceTB/SmolLM2-135M"
    model, words = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    ids = words("Once upon a time there was a little model. " * 40, return_tensors="pt").input_ids
    for smooth in (False, True):
        if smooth:
            ql.smooth_(model, ids)
        static = ql.StaticSim(model, ids, activations=EIGHT)
        print("smoothed:", smooth, " static A8:", ql.perplexity(static, ids))
else:
    print("A real model: skipped. Set QUANTLAB_ONLINE=1 and install transformers to run it.")

# %% [markdown] tags=["exercise"]
# ## In the wild
#
# | where | what it does |
# |---|---|
# | llm-compressor (vLLM) | `SmoothQuantModifier(smoothing_strength=0.8)` before W8A8: int8 weights per row, activations per token |
# | TensorRT-LLM | SmoothQuant checkpoints with static or per-token activations |
# | Intel Neural Compressor | SmoothQuant with α searched per layer |
# | LLM.int8() (bitsandbytes) | keeps outlier channels in float16 instead of moving them (module 08) |
# | AWQ | the same fold, for the weights' sake: it scales what *meets* loud inputs (module 05) |
#
# ## Exercises
#
# Replace `...` and run the cell. `exercise.hint()` gives the next hint, `exercise.solution()` ours.
#
# ### Exercise a: s for four channels
# Difficulty: ●○○ · Importance: ●●● · 8 min
#
# Write `smooth(inputs, weights, alpha)`: two lists of largest sizes become a list of scales.


# %% tags=["exercise"]
def smooth(inputs, weights, alpha): ...


exercise = ql.exercise("12_smoothquant.a")
exercise.check(smooth)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Fold it
# Difficulty: ●○○ · Importance: ●●● · 8 min
#
# Write `fold(gain, weight, s)`: return the new gain and the new weight (out, in). The check runs both in float64.


# %% tags=["exercise"]
def fold(gain, weight, s): ...


exercise = ql.exercise("12_smoothquant.b")
exercise.check(fold)

# %% [markdown] tags=["exercise"]
# ### Exercise c: The best strength
# Difficulty: ●●○ · Importance: ●●○ · 12 min
#
# Write `best_alpha(x, weight, error)`: of 0, 0.1, … 1, the strength with the least `error(x / s, weight * s)`. The check hands over easy weights and hard ones.
#
# ### Exercise d: A control that can fail
# Difficulty: ●●○ · Importance: ●●● · 8 min
#
# Write `rescued(smoothed, shuffled, naive)`: True if smoothing leaves less than a tenth of the naive loss *and* the same scales on other channels do not.


# %% tags=["exercise"]
def best_alpha(x, weight, error): ...


def rescue(smoothed, shuffled, naive): ...


ql.exercise("12_smoothquant.c").check(best_alpha)
exercise = ql.exercise("12_smoothquant.d")
exercise.check(rescue)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("12_smoothquant")

# %% [markdown]
# ## Summary
#
# - A few channels of activations are tens of times louder than the rest, in every token. One scale for all leaves the others a handful of codes.
# - A scale per input channel stands inside the integer sum. Scales per token and per output row can be taken out.
# - s = max|X|^α / max|W|^(1 - α) divides the norm's gain and multiplies the columns: the float model stays, with powers of two to the last bit.
# - The product of both ranges stays; α shares it out. The same scales on other channels make it worse.
# - Loud token: a scale per token. Loud channel: smooth it. Groups help with both, and cost a kernel.

# %% [markdown]
# ## What we left out
#
# Searching α per layer, smoothing behind value and up projections (`norms_only=False`), outliers shifted instead of scaled, biases, attention's own products in int8, the causes of
# outliers and training without them, rotations (module 13), and speed (modules 23 and 24).
#
# ## Sources
#
# - G. Xiao et al.: *SmoothQuant*, ICML 2023, arXiv:2211.10438, equation 4.
# - Z. Yao et al.: *ZeroQuant*, arXiv:2206.01861. T. Dettmers et al.: *LLM.int8()*, arXiv:2208.07339.
# - M. Sun et al.: *Massive Activations in Large Language Models*, arXiv:2402.17762. Y. Bondarenko et al.: *Quantizable Transformers*, arXiv:2306.12929 (attention that does nothing needs outliers).
