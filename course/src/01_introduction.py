# %% [markdown]
# # Introduction to Quantization Engineering
#
# Duration: 60 min · runs in about 15 s on 2 CPU cores
#
# In the next three minutes you take a language model that works, throw away three quarters of its
# bits, and listen to what it still has to say. The rest of the hour asks what exactly happened,
# what it cost, and how to tell a true claim about it from a false one.

# %% [markdown]
# ## Objectives
#
# 1. Place any name of the field (GGUF, GPTQ, NF4, ...) in one of five kinds. (q4, q7)
# 2. Compute the size of a model from weights, bits, group size and scale type. (q1, q2)
# 3. Tell a model that stores integers from one that was only rounded. (q3)
# 4. Tell a claim about quality from a claim about speed, and say what measures each. (q6, q8)
# 5. Say what a method asks of you: nothing, calibration data, or training. (q5)
#
# ## Prerequisites
#
# None. You read Python, and you know that a layer of a network multiplies a vector by a matrix.

# %% [markdown] tags=["predict"]
# ## How much of a model can you throw away?
#
# Meet the *storyteller*, a small Llama that learned to write from children's stories. It has
# 3,672,320 weights, and they came with this package: nothing is downloaded unless you ask for it.
#
# Each weight is stored in 16 bits, which can tell 65,536 values apart. We now leave each weight a
# choice of **16** values: 4 bits. Then a choice of **4** values: 2 bits. Nothing is retrained; each
# weight moves to the nearest value that is left, and that is all.
#
# **Predict.** What comes out of a model after that?
#
# - at 4 bits: (a) word salad, (b) a clumsier story, (c) a story like before?
# - at 2 bits: the same three choices.

# %%
import copy
import os
import struct
import timeit

import numpy as np
import torch

import quantlab as ql

model, tokenizer = ql.load("storyteller")
prompt = torch.tensor([tokenizer.encode("Once upon a time")])


def shrink(bits, group_size=32):
    small = copy.deepcopy(model)
    return small, ql.quantize_(small, ql.RTN(), ql.Scheme(bits, group_size))


def tell(storyteller):
    return " ".join(tokenizer.decode(storyteller.generate(prompt, 18)[0]).split()) + " ..."


(four, report), (two, coarse) = shrink(4), shrink(2)
float_bytes = 2 * sum(row.weights for row in report.rows)  # 16 bits are 2 bytes
print(f"16 bits, {float_bytes:,} bytes: {tell(model)}")
print(f" 4 bits, {report.nbytes:,} bytes: {tell(four)}")
print(f" 2 bits, {coarse.nbytes:,} bytes: {tell(two)}")

# %% [markdown]
# **You have quantized a language model.** Compare the first two lines: sixteen values in place of
# 65,536, 3.6 times fewer bytes, and the storyteller still tells a story. Did you expect worse?
#
# Now the third line. Whether you like it or not, one line of text is an anecdote. We need a number
# for a whole text, and we need it for more than three settings.
#
# ## Turn the dial
#
# The number is **perplexity**. Let the model read a text it has never seen and guess every next
# token. A perplexity of 10 means: on average it is as unsure as if it had to choose blindly among 10
# tokens. Lower is better, and the float model sets the bar.
#
# The cell below quantizes the storyteller in 15 ways and measures each on 8 pieces of unseen
# stories, 256 tokens each. Two sliders lead through the results: the **bits** of a weight, and the
# size of the **groups** of weights that share one scale (in a minute you will see what that is).
# Run it, then click a slider and use the arrow keys.
#
# **Your turn.** (1) Which is the smallest setting within 1 % of the float model's perplexity?
# (2) Go to 2 bits. What do smaller groups buy, and what do they cost?

# %% tags=["signature"]
tokens = ql.test_set(tokenizer, samples=8)
reference = ql.log_probabilities(model, tokens)
floating = ql.evaluate(model, tokens)
quality, rows = {}, []
for group in (32, 64, None):  # None: a whole row of the matrix shares one scale
    for bits in (2, 3, 4, 6, 8):
        small, report = shrink(bits, group)
        measured = ql.evaluate(small, tokens, reference=reference)
        quality[bits, group] = measured
        row = {"bits": bits, "group": group, "nbytes": report.nbytes, "text": tell(small)}
        row |= {"bits_per_weight": report.bits_per_weight, "perplexity": measured.perplexity}
        rows.append(row)

bar = {"nbytes": float_bytes, "perplexity": floating.perplexity, "text": tell(model)}
assert abs(quality[8, 32].perplexity / floating.perplexity - 1) < 0.01
assert quality[2, 32].perplexity > 1.05 * floating.perplexity
assert quality[2, 32].perplexity < quality[2, None].perplexity
ql.widgets.MemoryDial(rows, bar, bits=4, group=32)

# %% [markdown]
# <details><summary>What we see</summary>
#
# (1) From 8 bits downwards little happens at first: the curve is flat. Below 4 bits it bends
# upwards, and at 2 bits every group size hurts. Near 4 bits lies the bargain, and that is why many
# of the quantized models you meet have about that size.
#
# (2) At 2 bits small groups repair a good part of the damage, for a few tenths of a bit per weight.
# The coarser the values, the more it matters that they suit their group.
#
# </details>
#
# (The dial counts the 28 linear layers, which we quantize: 3,145,728 weights. The embedding and the
# norms stay in 16 bits, as most tools leave them.)
#
# ## What is stored in place of a weight?
#
# Two things: a small integer for each weight, the **code**, and one number for a whole group of
# weights, the **scale**. A weight is then *scale times (code minus the middle code)*. Here are eight
# weights that share one scale; the code of zero is 8, the middle of 0 to 15.

# %%
weights = torch.tensor([[-0.80, 0.31, 0.06, 0.52, -0.27, 0.74, -0.11, 0.00]])
q = ql.rtn(weights, ql.Scheme(bits=4))
columns = [tensor[0].tolist() for tensor in (weights, q.codes, q.dequantize())]
print("scale:", ql.digits(q.scale.item()))
print(ql.table(list(zip(*columns, strict=True)), ["weight", "code", "read back"]))
print("packed, two codes a byte:", bytes(q.pack().data[0].tolist()).hex(" "))
assert (q.dequantize() - weights).abs().max() <= q.scale.abs() / 2 + 1e-6

row = model.model.layers[0].mlp.gate_proj.weight[:1]  # a real row: 256 weights
q = ql.rtn(row, ql.Scheme(bits=4))
levels = q.scale * (torch.arange(16) - 8)
ql.plot.weight_histogram(row, levels)

# %% [markdown]
# Check one line by hand: 0.31 divided by the scale 0.1 is 3.1, rounded 3, plus the middle code 8:
# code 11. Read back: 0.1 · (11 - 8) = 0.3. The error, 0.01, is at most half a step (between the
# outermost levels), and **half a step is half a scale**. So the scale decides how much is lost, and
# one large weight in a group makes the scale, and with it everybody's error, large. That is the
# whole reason for groups.
#
# The picture shows the same for a real row of the storyteller: 256 weights, and the 16 values they
# move to. Most weights sit in the middle, where a few values have to serve them all; the outer
# values wait for the rare large ones. Spending values better than this is what half of this course
# is about.

# %% [markdown] tags=["myth"]
# ## What do 7 billion weights weigh?
#
# ### Myth G1: 4-bit weights take 4.0 bits each
#
# **Claim.** A model of 7 billion weights at 4 bits needs 7 · 4 / 8 = 3.5 GB.
#
# **Predict.** With float16 scales for groups of 32, is it (a) 3.5 GB, give or take a few MB, or (b)
# more than 10 % above that?

# %% tags=["myth"]
parts, rows = {"16 bits": {"weights": 14e9, "scales": 0.0}}, [("16 bits", "16", 14.0)]
for bits, group in ((8, 32), (4, 32), (4, 128), (3, 32), (2, 32)):
    name, cost = f"{bits} bits, groups of {group}", ql.Scheme(bits, group).bits_per_weight
    rows.append((name, f"{cost:g}", 7 * cost / 8))  # billions of weights * bits / 8 = GB
    parts[name] = {"weights": 7e9 * bits / 8, "scales": 7e9 * (cost - bits) / 8}

print(ql.table(rows, ["7 billion weights", "bits per weight", "GB"]))
layer = four.model.layers[0].mlp.gate_proj  # no formula: the bytes of a layer of ours
count, stored = layer.in_features * layer.out_features, layer.nbytes
print(f"a layer of the 4-bit storyteller: {count:,} weights in {stored:,} bytes")
assert 8 * stored / count == 4.5
print("verdict: 4-bit weights in groups of 32 take 4.5 bits each, 3.94 GB for 7 billion")
ql.plot.bytes_bar(parts)

# %% [markdown]
# The scale is stored too: 16 bits for 32 weights are half a bit each. *Bits per weight = bits + bits
# of scale and zero point / group size.* (Source: this arithmetic, and ggml's `Q4_0` block in
# `src/ggml-common.h`: 18 bytes for 32 weights, the same 4.5 bits.)
#
# 💡 **Tip.** GB = billions of weights × bits per weight / 8. At 4.5 bits that is 0.56 GB a billion:
# a 7B model needs 3.94 GB, and then some memory for activations and the KV cache.
#
# ## How much was lost, and how sure are we?
#
# The dial drew points. A measurement needs an error bar (+-) as well: had we read eight other pieces
# of text, how far could the number have moved? And perplexity has closer relatives, which compare a
# model with the float one *on the same tokens*:
#
# - **x** is the ratio of the two perplexities; 1 means no loss.
# - **KL** looks at the whole list of next-token probabilities, not only at the right token: how far
#   has the list moved, on average? 0 means not at all.
# - **flips** is the share of positions at which the most probable token is another one.
#
# **Predict.** Perplexity at 4 bits against float: is the difference larger than its error bar?

# %%
ladder = []
print(f"float   {floating}")
for bits in (8, 4, 3, 2):
    measured, cost = quality[bits, 32], ql.Scheme(bits, 32).bits_per_weight
    print(f"{bits} bits  {measured}")
    error = measured.perplexity_se
    point = {"name": f"{bits} bits", "bits_per_weight": cost, "perplexity_se": error}
    ladder.append(point | {"perplexity": measured.perplexity})

four_bit, two_bit = quality[4, 32], quality[2, 32]
shift = abs(four_bit.perplexity - floating.perplexity)
print("4 bits: perplexity moved by more than its error bar:", shift > four_bit.perplexity_se)
print("4 bits: KL exceeds five of its error bars:", four_bit.kl > 5 * four_bit.kl_se)
assert two_bit.kl > 5 * four_bit.kl > 0
ql.plot.quality_ladder(ladder, reference=floating.perplexity)

# %% [markdown]
# Perplexity swings with the text: some stories are harder than others, for every model alike. On so
# few windows its error bar hides what 4 bits do; should a quantized model come out *below* float,
# that is luck with the text, not a gift of rounding. On the same tokens the difficulty of the text
# drops out: the error bar of x is many times smaller, and KL, which even sees changes that cancel in
# x, stands far clear of its own. Both views are needed: perplexity says how good a model is, KL how
# far it has moved. (More in module 11.)
#
# 💡 **Tip.** Start at 4 bits. Going below with plain rounding is where models break: LLaMA-7B has
# perplexity 5.68 in 16 bits, 6.29 after rounding to 4, and 25.54 after rounding to 3; GPTQ (module
# 04) brings the last two to 6.09 and 8.07 (IST-DASLab/gptq, README).
#
# ## Was anything quantized at all?
#
# A strange question, but quality cannot answer it. Here is a model that *computes* exactly like our
# 4-bit one: each weight is rounded to the same value, and then kept as a float. It must fail the test.

# %% tags=["control"]
pretender = copy.deepcopy(model)
for name, layer in four.named_modules():
    if isinstance(layer, ql.QuantizedLinear):
        pretender.get_submodule(name).weight.data = layer.packed.dequantize()


def stored_bytes(network):
    return sum(tensor.nbytes for tensor in network.state_dict().values())


codes, floats = (ql.log_probabilities(one, tokens[:2]) for one in (four, pretender))
same = (codes - floats).abs().max().item() < 1e-4
print("the last two predict the same, but for float32 rounding:", same)
named = {"float32": model, "4-bit codes": four, "rounded, kept as float": pretender}
rows = [(name, ql.is_quantized(one), stored_bytes(one)) for name, one in named.items()]
print(ql.table(rows, ["model", "is_quantized", "bytes"]))
assert (same, ql.is_quantized(four)) == (True, True)
assert not ql.is_quantized(pretender)
assert stored_bytes(pretender) == stored_bytes(model) > 2 * stored_bytes(four)

# %% [markdown] tags=["myth"]
# Rounding is not quantizing: **quantized means that integers are stored**. The pretender saved not
# one byte (and it has its use: *simulated* quantization, module 18). Listings that miss this are
# common, so look twice:
#
# | the listing | what happens |
# |---|---|
# | `quantize_dynamic` on a bare `nn.Linear` | nothing: only children of a module are swapped (001-9); the call is deprecated in favor of torchao (001-15) |
# | prints `.weight` of a layer that was swapped | a method: the integers are `layer.weight().int_repr()` (001-10) |
# | assigns floats to bitsandbytes' `Linear8bit` | the class is `Linear8bitLt` (001-12); the weight stays float until the layer is *moved* to a device, and the bias is not carried over (001-13); as often printed, it also lacks `import torch` (001-14) |
# | prints matrices "before and after" | no single scale leads from one to the other: the output is not the code's (001-11) |
#
# 💡 **Tip.** Before you believe a label, count: a 4-bit layer takes at most 0.3 of its 16-bit bytes
# (4.5 / 16 = 0.28). `ql.is_quantized` and `.nbytes` do it for you.
#
# ## Five kinds of names
#
# ### Myth 001-6: GGUF, GPTQ, AWQ, INT4/INT8 and bitsandbytes are five quantization techniques
#
# **Claim.** You choose one of the five. But they answer different questions:
#
# | kind | its question | names |
# |---|---|---|
# | **number type** | which values can a weight take? | INT4, INT8, FP8, NF4, MXFP4 |
# | **algorithm** | how is each value chosen? | RTN, GPTQ, AWQ (activation-aware; offline, at one width: 001-4), HQQ, AdaScale |
# | **format** | how do they lie in a file? | GGUF, safetensors |
# | **library** | whose code do you call? | bitsandbytes (LLM.int8(), FP4, NF4; not GGUF, GPTQ, AWQ: 001-5), torchao, llm-compressor |
# | **kernel** | which program multiplies with them? | Marlin, `torch._int_mm` |
#
# **Predict.** If "INT4" and "GPTQ" were rivals, you could not have both. Below, each number type
# meets each algorithm. Which of the two decides the bytes, and which the error?

# %% tags=["myth"]
rng = np.random.default_rng(6)
weight = torch.from_numpy(rng.normal(size=(64, 128)))
causes, noise = rng.normal(size=(512, 16)), rng.normal(size=(512, 128))
inputs = torch.from_numpy(causes @ rng.normal(size=(16, 128)) + noise)  # columns move together
moment = inputs.T @ inputs / 512
signal, found = ql.output_error(0 * weight, weight, moment), {}
for scheme in (ql.Scheme(8, 32), ql.Scheme(4, 32)):
    for name, q in (("RTN", ql.rtn(weight, scheme)), ("GPTQ", ql.gptq(weight, moment, scheme))):
        error = ql.output_error(weight, q.dequantize(), moment) / signal
        found[f"INT{scheme.bits}", name] = (q.nbytes, error)
rows = [(*key, *value) for key, value in found.items()]
print(ql.table(rows, ["number type", "algorithm", "bytes", "output error"]))
assert found["INT4", "RTN"][0] == found["INT4", "GPTQ"][0] < found["INT8", "RTN"][0]
assert found["INT4", "GPTQ"][1] < found["INT4", "RTN"][1]
print("verdict: the number type sets the bytes; the algorithm works on the error; choose both")

# %% [markdown] tags=["myth"]
# (Source: each name's own paper or specification, listed below. People also say "a GPTQ model" for a
# file of weights that GPTQ chose: the algorithm lends its name to the result.)
#
# ### Myth 001-1: GGUF is a quantization method
#
# **Claim.** A model "in GGUF" was quantized by GGUF.
#
# **Predict.** Can a valid GGUF file hold weights in plain float32: yes or no?


# %% tags=["myth"]
def tensor_info(name, kind, offset):  # length, name, dimensions, size, type, where it starts
    return struct.pack(f"<Q{len(name)}sIQIQ", len(name), name, 1, 32, kind, offset)


values = np.linspace(-1, 1, 32, dtype=np.float32)
scale = np.float16(1 / 127)
block = scale.tobytes() + np.rint(values / scale).astype(np.int8).tobytes()  # 34 bytes: Q8_0
head = struct.pack("<4sIQQ", b"GGUF", 3, 2, 0)  # magic, version, tensors, entries of metadata
head += tensor_info(b"plain", 0, 0) + tensor_info(b"small", 8, 128)
file = head.ljust(-(-len(head) // 32) * 32, b"\0") + values.tobytes() + block

magic, version, tensors, _ = struct.unpack_from("<4sIQQ", file)
place, kinds = 24, {}
for _ in range(tensors):
    (length,) = struct.unpack_from("<Q", file, place)
    name, _, size, kind, _ = struct.unpack_from(f"<{length}sIQIQ", file, place + 8)
    kinds[name.decode()], place = {0: "F32", 8: "Q8_0"}[kind], place + 32 + length
print(magic.decode(), "version", version, "holds", kinds)
assert kinds == {"plain": "F32", "small": "Q8_0"}
print("verdict: one file, one float tensor, one quantized tensor; GGUF is the box, not the method")

# %% [markdown] tags=["myth"]
# (Source: ggml-org/ggml, `docs/gguf.md` and `include/ggml.h`. Module 06 writes whole models.)
#
# ## Smaller, so faster?
#
# ### Myth 001-8: a quantized model is faster
#
# **Claim.** A quarter of the bytes is a quarter of the reading, so a 4-bit layer runs faster.
#
# **Predict.** We multiply a 4096 × 4096 matrix by a vector, once from float32, once from packed 4-bit
# codes that plain torch unpacks first. Is the second (a) faster, (b) about equal, (c) at least twice
# as slow?

# %% tags=["myth"]
packed = torch.randint(0, 256, (4096, 2048), dtype=torch.uint8)  # two codes a byte
scales = torch.full((4096, 128, 1), 0.01)
vector = torch.ones(4096)


def unpack():
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).view(4096, 128, 32)
    return ((codes.float() - 8) * scales).view(4096, 4096)


def best_of(runs, work):
    return min(timeit.repeat(work, number=1, repeat=runs))


matrix = unpack()
quick, slow = best_of(10, lambda: matrix @ vector), best_of(3, lambda: unpack() @ vector)
print("naive unpack slower:", slow > 2 * quick)
assert slow > 2 * quick

# %% tags=["nbval-ignore-output"]
print(
    f"on this machine, one thread: float32 {1e3 * quick:.1f} ms, unpack first {1e3 * slow:.0f} ms"
)

# %% [markdown]
# Verdict: **bytes are a property of the model, speed of a kernel on a machine.** Plain torch writes
# out the whole float matrix before it multiplies, so it moves more bytes than before. On one thread
# of a 2-core x86 server we measured 2.88 ms for float32, 217 ms for this unpacking, and 0.44 ms for
# a kernel that reads the packed codes directly: the chance is real, if somebody wrote the kernel
# (module 23: our own `QuantizedLinear` runs on one). So ask of every claim: is it about *quality* (a text and an error bar), *size* (a byte count) or *speed* (a clock, a
# machine, repeats)? One word, "performance", for all three is a warning sign (001-17).
#
# ## What does a method ask of you?
#
# | it needs | methods | order of cost, 7 billion weights |
# |---|---|---|
# | **nothing** but the weights | RTN, HQQ, NF4 layers | seconds to minutes |
# | **calibration**: some text that runs through the model | GPTQ, AWQ, SmoothQuant, static INT8; with gradients block by block AdaRound, AdaScale | minutes to hours |
# | **training**: the model learns on | QAT, LLM-QAT, QLoRA (adapters beside frozen weights) | hours to days |
#
# None of the names in myth 001-6 trains a student with a teacher (001-16); that is called
# distillation, and LLM-QAT does it. Today you used the first line only. It carries you to about 4
# bits; the others are how people go below.
#
# **In the wild.** llm-compressor and GPTQModel run GPTQ and AWQ and write checkpoints that servers
# load; torchao quantizes PyTorch modules in place, as `ql.quantize_` does; llama.cpp writes and runs
# GGUF; bitsandbytes quantizes while a model loads; AIMET prepares models for phone chips. Tutorials still
# send you to AutoGPTQ and AutoAWQ: both are retired by their own READMEs (G22).

# %%
if os.environ.get("QUANTLAB_ONLINE") == "1":
    name = os.environ.get("QUANTLAB_MODEL", "HuggingFaceTB/SmolLM2-135M")
    big, big_tokenizer = ql.load(name)
    sample = ql.test_set(big_tokenizer, samples=4, length=128)
    before = ql.log_probabilities(big, sample)
    for bits in (8, 4, 2):
        work = copy.deepcopy(big)
        ql.quantize_(work, ql.RTN(), ql.Scheme(bits, 32))
        print(bits, "bits:", ql.evaluate(work, sample, reference=before))
else:
    print("Skipped: set QUANTLAB_ONLINE=1 and install transformers to repeat it on SmolLM2-135M.")

# %% [markdown] tags=["exercise"]
# ## Exercises
#
# Replace each `...`, run the cell, read what it says. `exercise.hint()` helps step by step,
# `exercise.solution()` shows one answer.
#
# ### Exercise a: Sort the names
#
# Difficulty: ●○○ · Importance: ●●● · 6 min
#
# Give each name its kind: `"number type"`, `"algorithm"`, `"format"`, `"library"` or `"kernel"`.

# %% tags=["exercise"]
exercise = ql.exercise("01_introduction.a")
names = {
    "GGUF": ..., "safetensors": ..., "INT8": ..., "NF4": ..., "MXFP4": ..., "GPTQ": ...,
    "AWQ": ..., "RTN": ..., "bitsandbytes": ..., "llm-compressor": ..., "Marlin": ...,
    "torch._int_mm": ...,
}  # fmt: skip
exercise.check(names)

# %% [markdown] tags=["exercise"]
# ### Exercise b: The size of a model
#
# Difficulty: ●○○ · Importance: ●●● · 6 min
#
# Write `gigabytes(weights, bits, group_size)`: the size in GB (1e9 bytes) of so many codes, with one
# float16 scale for each group. `group_size=None` means plain numbers without scales. Anchor:
# `gigabytes(7e9, 16, None)` is 14.0.

# %% tags=["exercise"]
exercise = ql.exercise("01_introduction.b")


def gigabytes(weights, bits, group_size):
    # bits of one weight, its share of a scale included; then bytes; then GB
    ...


exercise.check(gigabytes)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Repair a listing
#
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# This listing claims to turn a layer into INT8. It does not:
#
# ```python
# def quantize(layer):
#     scale = layer.weight.abs().max() / 127
#     layer.weight.data = torch.round(layer.weight / scale) * scale
#     return layer
# ```
#
# Write `quantize(layer)`, which takes an `nn.Linear` and returns a layer for which `ql.is_quantized`
# holds: at most half the bytes, the bias still in place, less than 2 % of the output's energy lost.

# %% tags=["exercise"]
exercise = ql.exercise("01_introduction.c")


def quantize(layer):
    # codes and scales of layer.weight, packed, in a layer that keeps layer.bias
    ...


exercise.check(quantize)

# %% [markdown] tags=["exercise"]
# ### Exercise d: Your own audit
#
# Difficulty: ●●○ · Importance: ●●○ · 8 min
#
# Write `audit(module) -> bool` without `ql.is_quantized`: does the module, or any module inside it,
# store integer weights? **Control:** a float layer that was rounded to 16 values, and a float layer
# whose class is called `Int8Linear`, must both fail your audit.

# %% tags=["exercise"]
exercise = ql.exercise("01_introduction.d")


def audit(module):
    # look at what is stored: module.state_dict() has it all
    ...


exercise.check(audit)

# %% [markdown]
# ## Quiz
#
# Eight questions; the numbers change each time you ask for others. Each wrong answer tells you which
# idea led there.

# %% tags=["quiz"]
ql.quiz.practice("01_introduction")

# %% [markdown]
# ## Summary
#
# - A quantized weight is a small integer, its code; a group of weights shares one scale.
# - Bits per weight = bits + what the group shares / group size; GB = billions × bits per weight / 8.
# - Rounding to nearest is nearly free down to about 4 bits and clearly hurts at 2.
# - Perplexity says how good a model is, KL how far it moved; both need an error bar.
# - Quantized means that integers are *stored*: look at dtypes and bytes, never at names.
# - Number type, algorithm, format, library, kernel: choose one of each.
# - Size is counted, quality is measured on text, speed is timed with a kernel on a machine.

# %% [markdown]
# ## What we left out
#
# Grids that are not symmetric (module 02), where to put the values (03), everything smarter than
# rounding to nearest (04 on), activations (12) and the KV cache (22). One small model and 2,048
# tokens of children's stories are enough to see the shape of the curve, not to rank methods.
#
# ## Sources
#
# - M. Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295; R. Krishnamoorthi,
#   Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342.
# - GPTQ arXiv 2210.17323, with IST-DASLab/gptq (the LLaMA-7B figures); AWQ arXiv 2306.00978; QLoRA and
#   NF4 arXiv 2305.14314; LLM-QAT arXiv 2305.17888.
# - ggml-org/ggml: `docs/gguf.md`, `include/ggml.h`, `src/ggml-common.h`.
# - Times of the kernel section: measured with torch 2.13-2.15 on a 2-core x86 server, one thread.
