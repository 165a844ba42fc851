# %% [markdown]
# # AWQ
#
# Duration: 90 min · runs in about 20 s on 2 CPU cores
#
# GPTQ repairs an error after it is made. AWQ (activation-aware weight quantization) asks an earlier question: *which*
# errors matter, and can we make those smaller before anything is rounded? The answer fits in one line of algebra,
# costs nothing at run time, and can be searched in a second.
#
# ## Objectives
#
# After this module you can
#
# 1. say what AWQ changes, what it needs and what it leaves alone. (q1, q2, q6)
# 2. compute a scale from the sizes of activations, and search its ratio. (q3, q4)
# 3. fold a scale into the module before, and prove that the float model stays the same. (q5)
# 4. judge the gain by a control, and recognize code that only claims to be AWQ. (q7, q8)
#
# ## Prerequisites
#
# Modules 02 (grids), 03 (clipping) and 04 (the output error and its second moment M).

# %% [markdown] tags=["predict"]
# ## One loud input
#
# A neuron has four weights and 4-bit codes. Its first weight is small, but the input it meets is sixteen times as
# loud as the others:
#
# ```
#   weight    0.19     1.00    -0.30     0.70        one grid for all four: step 1.00 / 8 = 0.125
#   input      ±16       ±1       ±1       ±1        independent signs
#              ^ its rounding error counts 16 times at the output
# ```
#
# We may multiply the first weight by s before rounding, if we divide its input by s: (w·s)·(x/s) = w·x. In float
# nothing happens. Rounded, the error of w·s is about as large as any other, and it is *divided by s* on its way out.
#
# **Predict.** What happens to the output error at s = 2, 4 and 16? When does the trick begin to hurt, and whom?

# %%
import numpy as np
import torch

import quantlab as ql
from quantlab.methods.awq import input_scale, rounded

w = torch.tensor([[0.19, 1.0, -0.3, 0.7]], dtype=torch.float64)
x_size = torch.tensor([16.0, 1.0, 1.0, 1.0], dtype=torch.float64)
rows = []
for s in (1, 2, 4, 5, 8, 16):
    scale = torch.tensor([s, 1, 1, 1], dtype=torch.float64)
    step = ql.Scheme(4).grid(w * scale)[0].abs().item()
    D = (rounded(w, scale, ql.Scheme(4)) - w)[0]
    parts = (D * x_size).square()
    rows.append((s, step, D[0].item(), parts[0].item(), parts[1:].sum().item(), parts.sum().item()))
ql.table(rows, ["s", "step", "error of w1", "from w1", "from the others", "output error"])

# %% [markdown]
# Up to s = 5 the largest weight is still 1.00, so the step stays and the others pay nothing. From s = 8 on the first
# weight is the largest itself: the step grows and the three others are rounded on a coarser grid. In between lies a best s. Note
# the jump at s = 2: 0.38 happens to lie almost on a level. Scaling lowers the error *on average*, and a single
# weight can be lucky, so we shall search and not compute.
#
# ### The same for a matrix
#
# One s_j for each input channel: y = Wx = (W·diag(s)) (diag(s)⁻¹x). With step Δ, the rounding error of one
# product is about (paper, Eq. 2 and 3)
#
# $$\Delta\cdot\mathrm{RoundErr}\!\left(\frac{w}{\Delta}\right)x \quad\longrightarrow\quad \Delta'\cdot\mathrm{RoundErr}\!\left(\frac{w\,s}{\Delta'}\right)\frac{x}{s},\qquad \text{smaller by } \frac{\Delta'}{\Delta}\cdot\frac1s .$$
#
# RoundErr is on average 1/4 of a step in both. If few columns are scaled, most groups keep their step (Δ' = Δ).
#
# ## Which channels are salient?
#
# The authors found the trick by an experiment: round everything, but keep 1 % of the input channels in float. Choose
# them by the size of their *weights*, by the size of their *inputs*, or by a coin. We repeat it on one linear of
# two models: our storyteller, and its *outlier variant*, in which six channels of each norm have been made 32 or
# 64 times louder and the weights that read them smaller by the same factor. Its float function is the same to the last
# bit. It is a controlled defect, such as large models grow by themselves (module 08).
#
# **Predict.** How much of the output error does each choice save, in each model?


# %%
def layer(variant, name="model.layers.1.self_attn.v_proj", samples=4):
    """Return a linear's float64 weight, second moment and input sizes."""
    model, tokenizer = ql.load(variant)
    seen, linear = [], model.get_submodule(name)
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    model.double().requires_grad_(False)(ql.calibration_set(tokenizer, samples=samples))
    hook.remove()
    return linear.weight, ql.second_moment(seen[0]), ql.mean_size(seen[0])


def saved(W, M, channels):
    """Return the percentage of RTN's output error that float columns save."""
    Q = ql.rtn(W, three).dequantize()
    before = ql.output_error(W, Q, M)
    Q[:, channels] = W[:, channels]
    return 100 * (1 - ql.output_error(W, Q, M) / before)


three = ql.Scheme(bits=3, group_size=64)
layers = {variant: layer(variant) for variant in ("storyteller", "storyteller-outlier")}
rows = [(v, *W.shape, (x.max() / x.median()).item()) for v, (W, _, x) in layers.items()]
ql.table(rows, ["model", "outputs", "inputs", "loudest input / median"])

# %%
rng, kept = np.random.default_rng(5), {}
for variant, (W, M, sizes) in layers.items():
    draws = [saved(W, M, torch.tensor(rng.permutation(256)[:3])) for _ in range(40)]
    kept[variant] = {
        "loudest inputs": saved(W, M, sizes.argsort(descending=True)[:3]),
        "largest weights": saved(W, M, W.abs().sum(0).argsort(descending=True)[:3]),
        "random (mean of 40)": float(np.mean(draws)),
    }
print(
    ql.table(
        [(k, *map(round, v.values())) for k, v in kept.items()], ["% saved by", *kept[variant]]
    )
)
ql.plot.saved_bars(kept)

# %% [markdown]
# Three of 256 channels, and the inputs know which. In the plain storyteller keeping the loudest three saves about 3 %, nearly three
# times what chance saves; in the outlier variant it saves more than a quarter. The size of the *weights* is no guide: in the outlier variant
# the salient columns are the *smallest* ones.
#
# So should we store those channels in float (myth 000-2)? It would work, and no fast kernel likes a matrix with two
# kinds of rows. AWQ keeps one bit-width for all weights and *scales* instead.
#
# ## The search for a ratio
#
# How large should s be? AWQ takes s_j = (mean |x_j|)^ratio, normalized so that the largest times the smallest is 1, and
# tries the ratios 0, 0.05 … 0.95. Ratio 0 means s = 1, which is plain rounding: the search can never lose *on its own
# data*. No gradient, no training: twenty roundings, twenty output errors, and the first smallest wins.
#
# **Predict.** Is the curve of the output error over the ratio a smooth valley, so that a clever search could skip most of the
# twenty? And at which ratio does it end up in each model?

# %%
print(ql.show(input_scale))
rows, searches = [], {}
with torch.no_grad():  # nothing here needs a gradient
    for variant, (W, M, sizes) in layers.items():
        _, found = ql.awq(W, M, sizes, three, clip=False)
        shares = [100 * loss / found.losses[0] for loss in found.losses]
        turns = np.count_nonzero(np.diff(np.sign(np.diff(shares))))
        rows.append((variant, found.ratio, round(min(shares)), turns))
        searches[variant] = found
        assert min(found.losses) <= found.losses[0]
        print(f"{variant:20}", " ".join(str(round(share)) for share in shares))
ql.table(rows, ["model", "best ratio", "% of RTN's error", "changes of direction"])

# %% tags=["signature"]
ql.widgets.RatioSlider(*layers["storyteller-outlier"], three)

# %% [markdown]
# The orange points come together as the ratio grows (the inputs even out) and the blue ones move the opposite way. In the outlier variant the six
# leftmost columns had shrunken weights, which plain rounding flattened to zero; scaled up, they get their levels back. In the plain
# storyteller there is little to even out, and the scale alone saves a few percent. The curve has bumps: every ratio
# shifts thousands of weights across rounding boundaries. All twenty are tried.
#
# ### Linears that share an input share a scale
#
# q, k and v read the same vector, so they must agree on one s, and so must gate and up. Which output should judge it?
# AWQ takes the smallest module that contains all of them: the whole attention, the whole MLP. For o and
# down it is the linear alone. `AWQ.quantize_block` runs these four searches on the block's *original* weights and inputs.
#
# ## Folding: where 1/s goes
#
# | columns × s | 1/s is absorbed by |
# |---|---|
# | q, k, v | the gain of the norm before attention |
# | o | the rows of v (query heads that share a value head must share s) |
# | gate, up | the gain of the norm before the MLP |
# | down | the rows of up; not gate, whose output passes through SiLU |
#
# Afterwards no s is left anywhere: same shapes, same operations, same speed. If s is a power of two, even the float output is the same
# to the last bit. And the outlier variant has an oracle: dividing its norms by the planted factors must give the plain storyteller's
# norms, values and MLP back (what was planted between queries and keys lies elsewhere, and harms no weight).

# %%
from quantlab.block import Block
from quantlab.folding import fold_, foldable
from quantlab.models.families import LLAMA_SCALINGS, linears

plain, tokenizer = ql.load("storyteller")
planted, _ = ql.load("storyteller-outlier")
for ours, original in zip(planted.model.layers, plain.model.layers, strict=True):
    block = Block(ours, linears(ours), scalings=LLAMA_SCALINGS)
    for place in LLAMA_SCALINGS[::2]:  # the two norms
        assert foldable(block, place)
        gain, target = (m.get_submodule(place.previous).weight for m in (ours, original))
        fold_(block, place, (gain / target).detach())
        assert torch.equal(gain, target)
tokens = ql.test_set(tokenizer, samples=2)
with torch.no_grad():
    print("float logits unchanged to the last bit:", torch.equal(planted(tokens), plain(tokens)))
v, up = "self_attn.v_proj", "mlp.up_proj"
pairs = [(m.get_submodule(n).weight for m in (ours, original)) for n in (v, up)]
same = all(ql.rtn(a, three).codes.equal(ql.rtn(b, three).codes) for a, b in pairs)
print("codes after rounding equal those of the plain storyteller:", same)
assert same

# %% [markdown] tags=["predict"]
# ## The second search: clipping
#
# Module 03 showed that a grid need not reach its largest weight. AWQ's second search tries, for every group of every row, the
# range 1.0, 0.95 … 0.55 of its largest weight, and takes the one that disturbs the group's own part of the output
# least: E|d_g·x_g|², with M's diagonal block of that group. Queries and keys are left out: a clipped q or k bends the softmax.
#
# **Predict.** Which saves more on the *plain* storyteller at 3 bits, the scale or the clip? And on the outlier variant?

# %%
rows = []
for variant, (W, M, sizes) in layers.items():
    base = ql.output_error(W, ql.rtn(W, three).dequantize(), M)
    for label, options in (
        ("scale", {"clip": False}),
        ("clip", {"ratios": 1}),
        ("scale, then clip", {}),
    ):
        q, found = ql.awq(W, M, sizes, three, **options)
        error = ql.output_error(W, q.dequantize() / found.scale, M)
        rows.append((variant, label, found.ratio, round(100 * error / base)))
    gptq = ql.output_error(W, ql.gptq(W, M, three).dequantize(), M)
    rows.append((variant, "GPTQ", "", round(100 * gptq / base)))
ql.table(rows, ["v_proj of", "search", "ratio", "% of RTN's error"])

# %%
from quantlab.clip_search import SHRINKS, clip_and_round, group_errors, moment_blocks

W, M, _ = layers["storyteller"]
clipped, groups = clip_and_round(W, M, three), three.group(W)
blocks, counts = moment_blocks(M, groups.shape[1]), {}
step = (clipped.scale / three.grid(groups)[0]).flatten()
for m in SHRINKS:
    counts[f"{m:.2f}"] = round(100 * ((step - m).abs() < 1e-6).double().mean().item())
print(ql.table([list(counts.values())], list(counts)), "<- % of the groups that chose this range")
parts = [
    group_errors(W, groups, (q.scale, q.zero_point), blocks, three)
    for q in (ql.rtn(W, three), clipped)
]
assert (parts[1] <= parts[0]).all()  # no group got worse in its own part of the output
print("every group's own part of the output error is at most what it was")

# %% [markdown]
# A finding: on the plain storyteller clipping does the work and the scale adds a few percent; on the outlier variant the scale
# does more, and the two together most of all. "AWQ" in a table of results is always both. GPTQ, which knows all of M and not only its diagonal
# blocks, has the smaller error on this layer in both models. Only one group in five keeps its full range at 3 bits.
#
# 💡 *Clip where bits are few: on eight linears of the plain storyteller (groups of 64) the clip search saves 18 to 42 % of RTN's error at 2 bits,
# 14 to 35 % at 4 and only 3 to 10 % at 6.*
#
# One trap, decided on purpose here: with an asymmetric grid a group that is cut on *both* sides lies between −m and m, so its
# zero point is half a code: 7 or 8 by rounding noise. We always take the middle code, 8; in the original, float32 noise decides.
#
# ## The whole model
#
# **Predict.** KL from the float model, both variants, 3 bits in groups of 64. The plain model loses something to RTN, the outlier
# variant more, although both are the same function. (Calibrated on 128 tokens, one short window.) How much of the *difference* can the scale bring back, without any clipping?

# %%
calibration = ql.calibration_set(tokenizer, samples=1, length=128)
tenths = {"ratios": 10}  # 0, 0.1 .. 0.9: half the search, to save your time
test = ql.test_set(tokenizer, samples=4)
reference = ql.log_probabilities(plain, test)
methods = {
    "RTN": ql.RTN(),
    "AWQ, scale only": ql.AWQ(clip=False, **tenths),
    "AWQ, clip only": ql.AWQ(ratios=1),
    "AWQ": ql.AWQ(**tenths),
}
kl, models, reports = {}, {}, {}
for label, method in methods.items():
    for variant in layers:
        model, _ = ql.load(variant)
        reports[label, variant] = ql.quantize_(model.double(), method, three, calibration)
        models[label, variant] = model.float()
        kl[label, variant] = ql.evaluate(model, test, reference=reference).kl
rows = [(k, *(round(1000 * kl[k, variant]) for variant in layers)) for k in methods]
ql.table(rows, ["1,000 KL at 3 bits", *layers])

# %%
names = [row.name for row in reports["AWQ", "storyteller"].rows[:7]]
notes = {v: [r.notes[0] for r in reports["AWQ", v].rows[:7]] for v in layers}
print(
    ql.table(
        [(n[15:], *(notes[v][i] for v in layers)) for i, n in enumerate(names)],
        ["block 0", *layers],
    )
)
assert kl["RTN", "storyteller-outlier"] > 1.2 * kl["RTN", "storyteller"]
assert kl["AWQ, scale only", "storyteller-outlier"] < 0.8 * kl["RTN", "storyteller-outlier"]
picked = {k: reports[k, "storyteller-outlier"] for k in ("RTN", "AWQ")}
ql.plot.layer_errors(picked)

# %% [markdown]
# Read the two columns against each other. The defect of the outlier variant costs RTN more than half again; the scale alone brings about four
# fifths of that back, without knowing how the defect was made. On the plain storyteller the scale brings little, and *clipping
# alone beats AWQ*. Each search lowered the error of its own module (it cannot lose there, and ratios up to 0.9 were chosen), but the model's KL
# hardly followed. A tiny model has no outliers for the scale to save. Large models have them: that is where the published gains come from.
#
# ## How much text?
#
# AWQ asks its text for one average per channel and a choice among twenty. GPTQ asks for a 256 × 256 matrix (768 × 768 for down).
#
# **Predict.** Calibrate both with 1 window of 128 tokens, then AWQ with 3 and GPTQ with 16. Who wins when?

# %%
scarce = {"AWQ": {1: kl["AWQ", "storyteller"]}, "GPTQ": {}}
for method, samples in ((methods["AWQ"], 3), (ql.GPTQ(), 1), (ql.GPTQ(), 16)):
    model, _ = ql.load("storyteller")
    text = ql.calibration_set(tokenizer, samples=samples, length=128)
    name = ql.quantize_(model.double(), method, three, text).method
    scarce[name][samples] = ql.evaluate(model.float(), test, reference=reference).kl
rows = [(k, *(round(1000 * v[n]) if n in v else "" for n in (1, 3, 16))) for k, v in scarce.items()]
assert scarce["AWQ"][1] < scarce["GPTQ"][1]
assert scarce["GPTQ"][16] < scarce["AWQ"][3]
ql.table(rows, ["1,000 KL, plain", "1 window", "3 windows", "16 windows"])

# %% [markdown]
# With 1 window GPTQ repairs noise and does worse than RTN, while AWQ beats RTN already, and three times the text gives it a little more; with 16 windows GPTQ wins clearly. The paper reports the same shape: 16 sequences serve AWQ as 192 serve GPTQ, and
# text from another domain costs AWQ 0.5 to 0.6 perplexity, GPTQ 2.3 to 4.9 (OPT-6.7B, 3 bits). Its Llama-2-7B figures (WikiText-2 perplexity,
# groups of 128): FP16 5.47; 4 bits RTN 5.73, GPTQ 5.69, AWQ 5.60; 3 bits RTN 6.66, GPTQ 6.43, AWQ 6.24. The two can be combined, `ql.AWQ(then=ql.GPTQ())`: first scale, then repair.
#
# 💡 *A few hundred tokens: AWQ. Many more tokens than a layer has inputs: try GPTQ, and judge both on other text.*
#
# ## The control that must fail
#
# The search tries twenty candidates and keeps the best. Perhaps *any* twenty scales would do? We give it the same sizes in shuffled
# order, and judge with the true inputs. What survives would not come from knowing the activations.

# %% tags=["control"]
W, M, sizes = layers["storyteller-outlier"]
found = searches["storyteller-outlier"]
rows = [("true sizes", found.ratio, round(100 * min(found.losses) / found.losses[0]))]
for seed in range(4):
    shuffled = sizes[torch.tensor(np.random.default_rng(seed).permutation(256))]
    _, found = ql.awq(W, M, shuffled, three, clip=False)
    rows.append(
        (f"shuffled, seed {seed}", found.ratio, round(100 * min(found.losses) / found.losses[0]))
    )
assert rows[0][2] < 70  # with the true sizes the error falls
assert min(row[2] for row in rows[1:]) > 97  # with shuffled ones the gain is gone
salient, _, chance = kept["storyteller-outlier"].values()
assert chance < 3 < 3 * chance < salient
print("kept channels, outlier variant: salient saves more than 3 times what chance saves")
ql.table(rows, ["scale from", "best ratio", "% of RTN's error"])

# %% [markdown] tags=["myth"]
# ## Myths about AWQ
#
# | id | you may read that AWQ | in fact |
# |---|---|---|
# | 000-1 | is short for *adaptive* weight quantization | activation-aware: sizes of activations decide |
# | 000-2 | gives critical weights a higher precision, the rest a lower one | one bit-width for all weights; salient *channels* are scaled |
# | 000-3 | is dynamic, unlike static quantization | static: found once, from calibration text, and folded away |
# | 000-4 | ranks weights by their gradients | no gradient; twenty ratios, the least output error wins |
# | 000-8 | can be told without activations | they are what defines it |
# | 000-11 | sets a level for each weight | it sets a scale per input channel; "which level" is a false premise |
#
# ### Myths 000-5, 000-6, 000-7, 000-10: ten lines that call themselves AWQ
#
# A listing circulates that takes `Linear(10, 5)`, rounds weights with a large gradient to multiples of 8 and the others to multiples of 4
# ("8 bits" and "4 bits"), writes floats back and prints a 10 × 5 matrix of 0 and ±8. And 000-9: AWQ *reduces the computations*.
#
# **Predict.** How many weights are not zero after the listing? Which group would get the finer grid? How many bytes are saved? And for the
# table above: if we permute the inputs of a layer, what happens to s? Which codes change when other text runs through the finished model?

# %% tags=["myth"]
done = models["AWQ", "storyteller-outlier"]
packed = {n: m.packed for n, m in done.named_modules() if isinstance(m, ql.QuantizedLinear)}
before = {n: p.unpack().codes for n, p in packed.items()}
with torch.no_grad():
    done(ql.test_set(tokenizer, samples=1))
assert all(p.unpack().codes.equal(before[n]) for n, p in packed.items())  # 000-3: static
assert all(c.max() <= 7 for c in before.values())  # 000-2, 000-11: 3 bits, everywhere
assert all(p.grad is None for p in done.parameters())  # 000-4
W, M, sizes = layers["storyteller-outlier"]
order = torch.tensor(np.random.default_rng(0).permutation(256))
assert input_scale(sizes[order], 0.5).equal(input_scale(sizes, 0.5)[order])  # 000-1, 000-8
print(f"{len(packed)} linears, codes 0 to 7 in all of them, the same codes after any text")
print("permuted inputs: the scales are permuted with them, whatever the weights are")
print("Verdict: 000-1, 000-2, 000-3, 000-4, 000-8 and 000-11 are false")

# %% tags=["myth"]
torch.manual_seed(0)
weight = torch.nn.Linear(10, 5).weight.detach()
important = torch.rand(5, 10) > 0.5  # stands in for "gradient above the threshold"
listing = torch.where(important, (weight / 8).round() * 8, (weight / 4).round() * 4)
assert weight.abs().max() <= 10**-0.5  # default initialization: at most 1 / sqrt(inputs)
assert not listing.any()  # 000-5: every weight is gone; 000-6: no ±8 can appear
assert listing.shape == (5, 10)  # 000-6: and the weight is 5 by 10
levels = [len((100 * weight / step).round().unique()) for step in (8, 4)]
assert levels[0] < levels[1]  # 000-7: "important" weights get the coarser grid
assert listing.nbytes == weight.nbytes  # 000-10: floats were written back
print("not zero:", int((listing != 0).sum()), "of 50; bytes", weight.nbytes, "->", listing.nbytes)
print(f"weights times 100: {levels[0]} levels for 'important' weights, {levels[1]} for the others")
smaller = ql.digits(32 / ql.Scheme(4, 32).bits_per_weight)
print(f"real 4-bit codes in groups of 32, packed: {smaller} times smaller than float32")
print("Verdict: 000-5, 000-6, 000-7 and 000-10 are false")

# %% tags=["myth"]
n = 4096  # one token through a 4096 x 4096 linear: float16, and W4A16 in groups of 128
four = ql.Scheme(4, 128, symmetric=False)
rows = [
    ("multiplications of the product", n * n, n * n),
    ("multiplications to decode weights", 0, n * n),
    ("bytes of weights read", 2 * n * n, round(n * n * four.bits_per_weight / 8)),
]
assert rows[0][1] == rows[0][2]
print("Verdict: 000-9 is false: fewer bytes, not fewer computations (module 24: why it is faster)")
ql.table(rows, ["per token", "float16", "W4A16"])

# %%
import os

if os.environ.get("QUANTLAB_ONLINE") == "1":  # a real model, from Hugging Face
    for method in (None, ql.RTN(), ql.AWQ(clip=False), ql.AWQ()):
        real, words = ql.load("HuggingFaceTB/SmolLM2-135M")
        if method is not None:
            text = ql.calibration_set(words, samples=16)
            ql.quantize_(real, method, ql.Scheme(bits=3, group_size=64), text)
        print(method or "float", ql.evaluate(real, ql.test_set(words, samples=8)))
else:
    print("Skipped: set QUANTLAB_ONLINE=1 and install transformers to use SmolLM2-135M.")

# %% [markdown] tags=["exercise"]
# ## In the wild
#
# Three tools, three AWQs. Ask which one a figure is about.
#
# | tool | scale | ratios | value → output under grouped heads |
# |---|---|---|---|
# | mit-han-lab/llm-awq @d6e797a (the original) | mean\|x\|^r | 0, 0.05 … 0.95; 1 is never tried | skipped |
# | AutoAWQ @88e4c76 (retired, as its README says: G22) | also divides by a mean of the weights to the power 1 − r | 20 | skipped |
# | vllm-project/llm-compressor @ab1ba3e | as configured | identity and 19 more, up to 1 | depends on the mapping |
# | quantlab | the original's | the original's | one s for the query heads of a value head |
#
# On the original's own example our losses agree to 3·10⁻⁷, the chosen ratios are equal, and so is every code that float32 decides without a tie.
# Checkpoints in the "AWQ GEMM" layout (4 bits, asymmetric) are read by vLLM and transformers; how to write one is a later module's subject.
# Before you scale an architecture by hand: a previous module that is an activation cannot absorb 1/s, and a norm that multiplies by 1 + gain (Gemma) needs another fold.
#
# ## Exercises
#
# Each has `exercise.hint()` and `exercise.solution()`; a check names the idea behind a wrong answer.
#
# ### Exercise a: Best ratio of five
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# Write `best_ratio(W, x, scheme, ratios)`: W (out, in) and input tokens x (tokens, in), both float64. Return the ratio with the least output error, and that error
# E|(Q(W·s)/s − W)x|². s is normalized as above. Use `ql.mean_size`, `ql.second_moment`, `ql.rtn`, `ql.output_error`.


# %% tags=["exercise"]
def best_ratio(W, x, scheme, ratios): ...


exercise = ql.exercise("05_awq.a")
exercise.check(best_ratio)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Fold
# Difficulty: ●●○ · Importance: ●●● · 8 min
#
# A LayerNorm makes x = h·gain + bias, and several weights (out, in) read x. Write `fold(gain, bias, weights, s)` that returns the new (gain, bias, weights).
# With powers of two as s, each output must be identical to the last bit, and column j of every weight must have grown by s_j.


# %% tags=["exercise"]
def fold(gain, bias, weights, s): ...


exercise = ql.exercise("05_awq.b")
exercise.check(fold)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Clip search
# Difficulty: ●●● · Importance: ●●○ · 12 min
#
# Write `best_clip(w, x, scheme)` for one group w (n,) with its input tokens x (tokens, n) and a symmetric scheme: the factor m among 1.0, 0.95 … 0.55 whose grid
# `scheme.grid(w * m)` disturbs the group's output least. The first of equal ones wins. `hint()` says how to call `encode`.

#
# ### Exercise d: The control
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `kept_share(W, x, scheme, channels)`: round W with `ql.rtn`, put the columns in `channels` back to float, and return how many percent of the output error that saves.
# Afterwards try it with the loudest channels and with random ones: the first must save several times as much.


# %% tags=["exercise"]
def best_clip(w, x, scheme): ...


def kept_share(W, x, scheme, channels): ...


ql.exercise("05_awq.c").check(best_clip)
exercise = ql.exercise("05_awq.d")
exercise.check(kept_share)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("05_awq")

# %% [markdown]
# ## Summary
#
# - Errors matter as much as the inputs they meet: salience is a property of input channels, and activations show it.
# - Multiply the columns of loud inputs by s, divide the inputs by s: float stays, their rounding error shrinks by s while the step stands.
# - s = mean|x|^ratio; twenty ratios are tried on the module's output. Ratio 0 is RTN, so the search cannot lose on its own data.
# - 1/s is folded into the norm or linear before: one bit-width, no run-time cost, bit-identical for powers of two.
# - The clip search is half of AWQ: on a small model without outliers it is nearly all of the gain.
# - AWQ asks little of its text; with plenty of text GPTQ repairs more. Shuffle the sizes, and the gain of the scale must vanish.

# %% [markdown]
# ## What we left out
#
# Kernels for AWQ checkpoints (module 23), writing the AWQ GEMM layout, scaling with weight magnitudes (AutoAWQ), SmoothQuant, which uses the same fold to
# make *activations* easy to quantize (module 12), and learned scales (OmniQuant, module 14).
#
# ## Sources
#
# - J. Lin, J. Tang, H. Tang, S. Yang, W.-M. Chen, W.-C. Wang, G. Xiao, X. Dang, C. Gan, S. Han: *AWQ*, MLSys 2024, arXiv:2306.00978v5; tables 4 and 6 and the section on data efficiency.
# - mit-han-lab/llm-awq @d6e797a, `awq/quantize/auto_scale.py` (`n_grid = 20`), `auto_clip.py`, README (the name).
# - casper-hansen/AutoAWQ @88e4c76; vllm-project/llm-compressor @ab1ba3e.
