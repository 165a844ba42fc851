# %% [markdown]
# # INT4/INT8: Packing and Integer Matmul
#
# Duration: 75 min · runs in about 12 s on 2 CPU cores
#
# So far codes were an intermediate step: rounded, decoded, multiplied as floats. Here they stay integers, from the file to the
# sum of products. That saves bytes and time, and it brings two questions that floats never asked: *which bits belong to
# which code*, and *does the sum still fit?*
#
# ## Objectives
#
# After this module you can
#
# 1. pack eight 4-bit codes into a word, read a hex dump, and recognize an order that is not yours. (q1, q2, q6)
# 2. multiply codes as integers and correct the product for zero points. (q4, q7)
# 3. choose an accumulator that no data can overflow, and name the instruction that overflows silently. (q3, q5)
# 4. say what 8-bit activations cost, and which of them should share a scale. (q8)
#
# ## Prerequisites
#
# Modules 01 to 03 (codes, scales, zero points, groups), and hexadecimal notation.

# %% [markdown] tags=["predict"]
# ## A vector times itself
#
# Two sums that cannot go wrong:
#
# - 300 ones times 300 ones, both stored as `int8`, multiplied with PyTorch's `@`.
# - A vector of 512 codes, each of them -8, times *itself*. Eight times eight is positive, and so is a sum of squares.
#
# **Predict.** Write down both results. Then run the cell.

# %%
import time

import numpy as np
import torch

import quantlab as ql
from quantlab.kernels import paths, reference
from quantlab.kernels.tiles import Tiles

ones = torch.ones(1, 300, dtype=torch.int8)
print("300 ones times 300 ones, int8 @ int8:", (ones @ ones.T).item())
print("the same with torch._int_mm:         ", torch._int_mm(ones, ones.T).item())
for n in (511, 512):
    code = np.full(n, -8, dtype=np.int16)
    print(f"{n} times (-8)(-8), added in int16:", int((code * code).sum(dtype=np.int16)))

# %% [markdown]
# 44, and a sum of squares of -32,768. No warning, no exception: an integer sum that does not fit *wraps*, as an odometer
# does. PyTorch's `@` of two int8 matrices returns int8 and keeps the last eight bits, 300 - 256 = 44. The second
# sum is 32,768, one more than the largest 16-bit number.
#
# Floats degrade; integers are **exact or nonsense**. This module is about staying on the exact side, where the reward is
# large: integer products have no rounding error at all, in any order, on any processor.
#
# ## Which bits belong to which code?
#
# Four bits are no address. The smallest thing that memory hands out is a byte, so two codes share one, and eight fill the
# 32-bit word that a kernel loads. Our order is the one of `pack_codes`: code k in bits 4k … 4k + 3, the first one *lowest*.
#
# ```
#   code            1  2  3  4  5  6  7  8
#   byte in file    0x21  0x43  0x65  0x87       low nibble first: 1 | 2 << 4 = 0x21
#   32-bit word     0x87654321                   a little-endian machine reads the last byte as the highest
# ```
#
# The dump seems to swap pairs, the word seems to run backwards, and both are the same four bytes.
#
# **Predict.** Other people chose other orders. bitsandbytes puts the first code of a byte into the *high* nibble. Q4_0 (module 06)
# pairs code k with the code half a block later. AWQ's GEMM layout stores the codes 0 2 4 6 1 3 5 7. Write the four bytes of each.

# %%
codes = torch.arange(1, 9, dtype=torch.uint8)
packed = ql.pack_codes(codes, bits=4)
word = int(packed.view(torch.int32)) % 2**32
print("bytes:", packed.numpy().tobytes().hex(" "), "  word, in hex:", f"{word:08x}")
assert ql.unpack_codes(packed, 4, 8).equal(codes)

packer = ql.widgets.NibblePacker()
rows = []
for order in packer.table["orders"]:
    packer.move(order=order)
    rows.append((order, packer.word.to_bytes(4, "little").hex(" "), f"{packer.word:08x}"))
print(ql.table(rows, ["order", "bytes", "word, in hex"]))
packer.move(order="low nibble first")
packer

# %% [markdown] tags=["predict"]
# Nothing in the bytes says which order they follow. The orders are not whims: a kernel that extracts *all* low nibbles with one AND
# gets codes that belong side by side if they were stored apart (Q4_0), and AWQ's order suits a trick that turns two nibbles
# at a time into a pair of float16.
#
# **Predict.** A layer of the storyteller, 4 bits in groups of 32. A reader takes the file in the wrong order. How large is the error of
# the output, relative to the output: 1 %, 10 %, 100 %, more? Does anything crash?


# %%
def layer(variant, name):
    """Return a linear's weight, the inputs it meets on two windows of text, and the tokens."""
    model, tokenizer = ql.load(variant)
    seen, linear = [], model.get_submodule(name)
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    tokens = ql.test_set(tokenizer, samples=2)
    model(tokens)
    return linear.weight.detach(), seen[0], tokens.flatten()


def relative(y, target):
    """Return the size of an error in percent of the target's."""
    return (100 * (y.double() - target.double()).norm() / target.double().norm()).item()


W, x, _ = layer("storyteller", "model.layers.1.mlp.gate_proj")
q = ql.rtn(W, ql.Scheme(bits=4, group_size=32))
y = x.double() @ W.double().T

# %%
misread = {"right order": list(range(8)), "pairs exchanged": [1, 0, 3, 2, 5, 4, 7, 6]}
misread["AWQ's order read as ours"] = [0, 2, 4, 6, 1, 3, 5, 7]
rows = []
for name, order in misread.items():
    shuffled = q.codes.unflatten(1, (-1, 8))[:, :, order].flatten(1)
    wrong = ql.QuantizedTensor(shuffled, q.scale, q.zero_point, q.scheme).dequantize()
    rows.append((name, relative(x @ wrong.T, y)))
assert rows[0][1] < 15 < 100 < min(row[1] for row in rows[1:])
saved = W.nbytes / q.pack().nbytes
print("packed:", ql.digits(saved), "times fewer bytes than float32")
ql.table(rows, ["read", "error of the output, %"], sig=2)

# %% [markdown]
# All shapes fit, all codes are valid, the histogram of the weights is the same, and the output is noise: more than 100 % error, as
# if the weights had been shuffled, which they have. Only a *known value* finds this: decode one weight you know before you trust a file.
#
# 💡 **Packing:** 4 bits in groups of 32 with float16 scales cost 4.5 bits, 7.1 times less than float32. Less than 6 times? Then scales are float32 or codes lie in bytes.
#
# ## The product of codes, and what zero points do to it
#
# A code is not a number yet: x = s (q - z). Put two of them into a dot product of K terms and take the scales out:
#
# $$\sum_k s_x (q_k - z)\; s_w (p_k - y) \;=\; s_x s_w \Bigl(\sum_k q_k p_k \;-\; z\sum_k p_k \;-\; y\sum_k q_k \;+\; K z y\Bigr)$$
#
# Only the first sum runs over *products*, and it takes raw codes, which is what integer instructions want. The other three are cheap:
#
# | term | changes with | computed |
# |---|---|---|
# | z Σp | the weight row | once, when the model is loaded |
# | y Σq | the token | once a token, for all rows |
# | K z y | neither | once |
#
# With symmetric weights (y = 0) the second line disappears. That is one reason why weights are mostly symmetric.
#
# **Predict.** The integer product, corrected and scaled, against the float product of the *dequantized* operands, in float64. How many digits agree?
# And the control: leave the corrections out. For which data is the product still right? How wrong is it for our layer?

# %%
eight = ql.Scheme(bits=8, symmetric=False)
weight = ql.rtn(W.double(), eight)  # one scale and zero point a row
inputs = x.double().flatten()[None]  # one scale and zero point for all tokens
scale, z = eight.grid(eight.group(inputs))
a = eight.encode(inputs, scale, z).reshape(x.shape)
b, y_zero = weight.codes, weight.zero_point[:, 0].long()

dots = reference.integer_matmul(a, int(z), b, y_zero)
product = dots * scale * weight.scale[:, 0]
floats = (a.double() - z) * scale @ weight.dequantize().T
print("zero point of the inputs:", int(z), " of the first weight rows:", y_zero[:6].tolist())
print("largest sum of products:", int((a.long() @ b.long().T).max()))
print(
    "equal to the float product to 1e-12:", bool((product - floats).norm() < 1e-12 * floats.norm())
)

a8, b8 = ((codes.int() - 128).to(torch.int8) for codes in (a, b))  # codes and zero points move
z8, y8 = int(z) - 128, y_zero - 128
sums = torch._int_mm(a8, b8.T).long(), b8.sum(1), a8.sum(1, keepdim=True), a8.shape[1]
corrected = sums[0] - z8 * sums[1] - y8 * sums[2] + sums[3] * z8 * y8
print("torch._int_mm and three corrections: the same integers:", corrected.equal(dots))
print("error of W8A8 against the float layer:", ql.digits(relative(product, y), sig=2), "%")

# %% tags=["control"]
rng = np.random.default_rng(7)


def dropped(q, p, z, y):
    return q.long() @ p.long().T  # the sum of products alone


def right(q, p, z, y):
    return torch.equal(dropped(q, p, z, y), (q.long() - z) @ (p.long() - y).T)


signed_codes = [torch.from_numpy(rng.integers(-127, 128, (8, 64))) for _ in range(2)]
unsigned_codes = [torch.from_numpy(rng.integers(0, 256, (8, 64))) for _ in range(2)]
assert right(*signed_codes, 0, 0)  # both zero points 0: nothing to correct
assert not right(*unsigned_codes, 128, 128)  # the control: this must fail
assert not right(*unsigned_codes, 0, 128)  # one zero point is enough
wrong = (a.long() @ b.long().T) * scale * weight.scale[:, 0]
print("symmetric codes without corrections: right; asymmetric codes: wrong")
print("our layer without corrections: error", round(relative(wrong, y) / 100), "times the output")

# %% [markdown] tags=["predict"]
# All digits agree: the integer sums are exact, and what differs beyond the twelfth digit belongs to the float side. All loss happened before, when weights and
# inputs were rounded. `torch._int_mm` takes int8 and returns int32; unsigned codes move over by subtracting 128 from code *and* zero point, and the
# differences (q - z) stay.
#
# Without the corrections a test on symmetric data passes, and our layer's output is off by more than 100 times its size. *Test zero points with zero points that differ, and are not 0.*
#
# ## How long may a sum be?
#
# Products of codes are integers of known size, so the largest sum is no matter of luck. The worst case repeats the worst product; how often does
# it fit into 2^31 - 1 above zero and 2^31 below?
#
# **Predict.** For int32 and codes within ±127: is the safe number of terms nearer to 1,000, 100,000 or 10 million? How much of it does the *one* extra code -128 cost?
# And if somebody adds 8-bit products in int16, or the same integers in *float32*?

# %% tags=["signature"]
pairs = {
    "int8 x int8, ±127": ((-127, 127), (-127, 127)),
    "int8 x int8, with -128": ((-128, 127), (-128, 127)),
    "uint8 x int8": ((0, 255), (-128, 127)),
    "uint4 x int8 (W4A8)": ((0, 15), (-127, 127)),
    "int4 x int4": ((-8, 7), (-8, 7)),
}
rows = []
for name, (low, high) in pairs.items():
    worst = max(abs(i * j) for i in low for j in high)
    rows.append((name, worst, *(ql.safe_terms(low, high, b) for b in (16, 32)), 2**24 // worst))
assert [row[3] for row in rows[:3]] == [133_144, 131_071, 65_793]
assert rows[4][2] == 511
print(ql.table(rows, ["codes", "worst product", "safe in int16", "in int32", "in float32"]))
ql.widgets.OverflowMeter()

# %% [markdown] tags=["predict"]
# Each entry is an integer division: 2,147,483,647 // 16,129 = 133,144. With -128 the worst product is 2^14, and 2^17 of them are exactly 2^31, one
# too many: 131,071. For uint8 × int8 it is the *negative* side that fills first, -32,640 a term. (float32 counts every
# integer up to 2^24; a "simulated" integer layer of more than 1,040 inputs may differ from the real one.)
#
# No layer of today has 65,793 inputs, so int32 is safe and nobody checks at run time. In int16 two 8-bit products are already one too
# many, and int4 × int4 gets to 511: kernels that use it must empty the accumulator in time.
#
# **Try it.** Move the number of terms across the line. In the picture the circles are the worst codes, the triangles random ones: why do random codes need so
# many more terms? Does that make a shorter accumulator safe?
#
# Random products cancel: their sum grows with the square root of the terms (and with the mean, -0.5 for codes -8 … 7). So an accumulator that is too
# short *passes every test on random data*, and fails on the first picture of a clear sky.
#
# ## Saturation, the trap inside one instruction
#
# Processors with VNNI (and GPUs) add 8-bit products in 32 bits. Before VNNI, x86 has VPMADDUBSW: unsigned bytes times
# signed bytes, *two neighboring products added in 16 bits, with saturation*. Two products: 2 · 255 · 127 = 64,770, and int16 ends at 32,767.
#
# **Predict.** The input of the storyteller's four down projections, uint8, weights int8. In the first one, about 1 in 10,000 of these pairs saturates.
# What becomes of the layer's error: unchanged, a tenth more, or nearly doubled? And the cure of that time, 7 bits for one operand?


# %%
def down(block, bits):
    """Return a linear's error in %, exact and with saturating pairs, and the share of those."""
    W, x, _ = layer("storyteller", f"model.layers.{block}.mlp.down_proj")
    weight, grid = ql.rtn(W.double(), ql.Scheme(8)), ql.Scheme(bits, symmetric=False)
    p = (weight.codes.long() - 128).clamp(min=-127)  # int8, within +-127
    scale, z = grid.grid(grid.group(x.double().flatten()[None]))
    x = x[416:448].double()  # 32 tokens
    q = grid.encode(x.flatten()[None], scale, z).reshape(x.shape)[:, None].long()
    pairs = torch.from_numpy(ql.saturated_pairs(q, p))
    lost = (pairs != (q * p).unflatten(-1, (-1, 2)).sum(-1)).double().mean().item()
    sums = (t.sum(-1) - z * p.sum(1) for t in (q * p, pairs))
    return *(relative(t * scale * weight.scale[:, 0], x @ W.double().T) for t in sums), lost


rows = []
for block in range(4):
    (exact, held, lost), (seven, same, none) = (down(block, bits) for bits in (8, 7))
    assert (none, same) == (0, seven)  # 7 bits: 2 * 127 * 127 = 32,258 always fits
    rows.append((block, int(round(1e6 * lost, -1)), exact, held, seven))
ql.table(rows, ["block", "saturated, per million", "8 bits", "with VPMADDUBSW", "7 bits"])

# %%
rows = []
for bits, matmul in ((4, ql.int4_matmul), (8, ql.int8_matmul)):
    for scheme in (ql.Scheme(bits, 32), ql.Scheme(bits, 64, symmetric=False), ql.Scheme(bits)):
        packed = ql.rtn(W, scheme).pack()
        expected = reference.matmul(x[:9], packed, activation_bits=8)
        same = [matmul(x[:9], packed, activation_bits=8).equal(expected)]
        with paths.force("portable"):  # the instructions that any processor has
            same.append(matmul(x[:9], packed, activation_bits=8).equal(expected))
        rows.append((str(scheme), *same))
assert all(all(row[1:]) for row in rows)
ql.table(rows, ["weight", "this processor's path = definition", "portable path = definition"])

# %% [markdown] tags=["predict"]
# 100 pairs in a million, and the first layer's error nearly doubles: the pairs that saturate are the *largest* products, those that the output is
# made of. In the second layer nothing happens at all. That is what makes it a trap: it depends on data and processor, and no
# error is raised. Seven bits (`reduce_range` in PyTorch, the workaround in OpenVINO's manual) cannot saturate, 2 · 127 · 127 = 32,258, and cost
# as much as the disease, or more. 4-bit codes never come near: 2 · 15 · 127 = 3,810.
#
# quantlab's kernels take VPDPBUSD where it exists. Where it does not, a byte is split into its two nibbles, code = low + 16 · high, and each
# half is multiplied without danger: one more instruction, and the same integers.
# The table shows the result: equal in **every bit**, although the last step is float32: the integer sums are exact, and the few float operations after them are done in one fixed order.
#
# ## What do 8-bit activations cost?
#
# Weights can be studied for hours. Activations arrive once, and get a scale on the fly: largest size / 127, over *some* set of them. Over which?
# All tokens, one token, or one group of a token's entries? The answer is decided by outliers, and our little model has grown one by itself.
#
# **Predict.** Four kinds of tokens enter a down projection. Which is the loudest: names, full stops, the first token of a story, or rare words?
# If one scale serves all tokens, what is left for a quiet one? And the outlier *variant* has loud **channels**, in every token: does a scale per token help there?


# %%
def rounded_inputs(x, group_size):
    """Return x after int8, one scale per token and group."""
    codes, scale = reference.quantize_activations(x, group_size)
    return (codes.float().unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)


W, x, tokens = layer("storyteller", "model.layers.1.mlp.down_proj")
sizes = x.abs().amax(1)
_, tokenizer = ql.load("storyteller")
first = tokens == 0  # begins a story
print("largest input of a token, median:", ql.digits(sizes[~first].median().item()))
print("first tokens of a story:", ql.digits(sizes[first]))
loudest = sizes[~first].argsort(descending=True)[:3]
words = [tokenizer.decode([int(t)]) for t in tokens[~first][loudest]]
print("loudest others:", [word.strip() for word in words], ql.digits(sizes[~first][loudest]))

# %%
table, four = {}, ql.Scheme(4, 64)
loud = {"storyteller": "mlp.down_proj", "storyteller-outlier": "self_attn.v_proj"}
for variant, name in loud.items():
    W, x, _ = layer(variant, f"model.layers.1.{name}")
    y, column = x.double() @ W.double().T, {}
    together = rounded_inputs(x.flatten()[None], None).view_as(x)
    column["int8, one scale for all tokens"] = relative(together @ W.T, y)
    for size in (None, 128, 64, 32):
        what = f"per token and group of {size}" if size else "one per token"
        column[f"int8, {what}"] = relative(rounded_inputs(x, size) @ W.T, y)
    column["(4-bit weights, groups of 64)"] = relative(x @ ql.rtn(W, four).dequantize().T, y)
    table[variant] = column
rows = [(k, *(column[k] for column in table.values())) for k in column]
ql.table(rows, ["error, %", "outlier tokens", "outlier channels"])

# %% [markdown] tags=["predict"]
# The token that begins a story is the loudest. It means nothing, so attention uses it as a place for weight that should go nowhere, and it gets huge
# activations. Large models do the same with their first token ("massive activations", module 12).
#
# A scale per *token* shuts an outlier token in: its neighbors keep their 255 codes, 16 % become 2.9 %. It does nothing against a loud *channel*, which sits in
# every token. Groups help there, since only one group in four or eight holds the loud channel, but 6.0 % is still a lot (module 12 moves the
# loudness into the weights instead).
#
# `int4_matmul(..., activation_bits=8)` shares the weight's groups: **a group of weights and the activations that meet it have one scale each**, the
# integer sum runs inside the group, and sums of groups are added as floats.
#
# **Predict.** The whole model: W8 and W4 in groups of 64, with float activations (A16) and int8 (A8). Where does A8 cost more than the 4-bit weights did?

# %%
plain, tokenizer = ql.load("storyteller")
test = ql.test_set(tokenizer, samples=6)
target = ql.log_probabilities(plain, test)
rows, kl = [], {}
for variant in ("storyteller", "storyteller-outlier"):
    for scheme in (ql.Scheme(8, 64), ql.Scheme(4, 64), ql.Scheme(8)):
        model, _ = ql.load(variant)
        ql.quantize_(model, ql.RTN(), scheme)
        for bits in (16, 8):
            assert ql.activation_bits_(model, bits) == 28  # linears
            kl[bits] = 1000 * ql.evaluate(model, test, reference=target).kl
        rows.append((variant, str(scheme), kl[16], kl[8]))
ql.table(rows, ["model", "weights", "1,000 KL with A16", "with A8"], sig=2)

# %% [markdown]
# On the plain model int8 activations are free beside 4-bit weights. On the variant they are not: with one scale a row and a token (`w8sym`), A8 does more harm than
# 4-bit weights, and groups of 64 win back more than half of it.
#
# 💡 **W4A8:** let activations share the weights' groups, 32 to 128. One scale per tensor only where you have looked at the loudest token.
#
# ## Is it faster?
#
# A token through a linear reads each weight once. Fewer bytes are less waiting, if decoding costs less than it saves.
#
# **Predict.** 4096 × 4096, one token: plain PyTorch that unpacks nibbles to floats and multiplies, against our kernel. Which wins, by 2, 20 or 200?

# %% tags=["nbval-ignore-output"]
n, rng = 4096, np.random.default_rng(7)
data = torch.from_numpy(rng.integers(0, 256, (n, n // 2), dtype=np.uint8))
scales = torch.full((n, n // 64), 0.01, dtype=torch.float16)
packed = ql.PackedTensor(data, scales, None, ql.Scheme(4, 64), torch.Size((n, n)))
tiles, dense, one = Tiles.of(packed), packed.dequantize(), torch.ones(1, n)
a64, b64 = (torch.ones(m, n, dtype=torch.int8) for m in (64, n))
contestants = {
    "float32, 1 token": lambda: one @ dense.T,
    "unpack, then multiply": lambda: one @ packed.dequantize().T,
    "int4_matmul, A16": lambda: ql.int4_matmul(one, tiles),
    "int4_matmul, A8": lambda: ql.int4_matmul(one, tiles, activation_bits=8),
    "float32, 64 tokens": lambda: torch.ones(64, n) @ dense.T,
    "torch._int_mm, 64 tokens": lambda: torch._int_mm(a64, b64.T),
}
seconds = {}
for name, run in contestants.items():
    run(), (began := time.perf_counter()), run()
    seconds[name] = time.perf_counter() - began
assert seconds["unpack, then multiply"] > 2 * seconds["int4_matmul, A8"]  # on any machine
ql.table([(k, 1e3 * v) for k, v in seconds.items()], ["4096 x 4096", "milliseconds, here"])

# %% [markdown] tags=["myth"]
# The kernel never writes a float copy of the weights: nibbles become numbers in registers. Unpacking to memory first costs more than it saves,
# on any machine; how the kernel does better is module 23's subject, and how to time it fairly module 24's.
#
# ## Myths
#
# ### Myth 000-5 (and 000-10): dividing by 8, rounding and multiplying by 8 is INT8
#
# **Claim.** `torch.round(W / 8) * 8` "quantizes to 8 bits".
#
# ### Myth 001-13: assigning a float weight to an 8-bit layer quantizes it
#
# **Claim.** Build the layer with the 8-bit class, write `layer.weight = Parameter(W)`, done.
#
# (bitsandbytes behaves alike in its own way: the assigned weight stays float32 until the layer is *moved* to a device, and that move quantizes it. Module 08.)
#
# ### Myth 001-11: the printed before and after matrices are the result
#
# **Claim.** A listing quantizes `Linear(10, 2)` to int8 and prints weights before and after: -0.0029 → -3, -0.0035 → -1, 0.0118 → 1, 0.2255 → 29.
#
# **Predict.** How many weights of the storyteller survive the first? How many codes change by the second? And is there *any* scale with round(w / s) for the
# four pairs of the third, or for three of them?

# %% tags=["myth"]
W, x, _ = layer("storyteller", "model.layers.1.mlp.gate_proj")
eighths = torch.round(W / 8) * 8
assert eighths.count_nonzero() == 0  # every weight is smaller than 4
assert eighths.nbytes == W.nbytes  # and floats were written back
real = ql.rtn(W, ql.Scheme(8)).pack()
error = relative(ql.int8_matmul(x, real), x @ W.T)
print("multiples of 8: weights left", int(eighths.count_nonzero()), "of", W.numel())
print("a real INT8 grid: error of the output", ql.digits(error, sig=2), "%,", end=" ")
print(ql.digits(W.nbytes / real.nbytes), "times fewer bytes")

int8_layer = ql.QuantizedLinear(real)
before = int8_layer.packed.data.clone()
int8_layer.weight = torch.nn.Parameter(2 * W)  # now it has a float weight, too
assert int8_layer.packed.data.equal(before)  # which nobody reads
print("after assigning 2 W: dtype", int8_layer.weight.dtype, "- codes unchanged")
print("Verdict: 000-5, 000-10 and 001-13 are false. Codes come from a scale, rounding and a cast.")

# %% tags=["myth"]
w = torch.tensor([-0.0029, -0.0035, 0.0118, 0.2255], dtype=torch.float64)
printed = torch.tensor([-3.0, -1.0, 1.0, 29.0], dtype=torch.float64)
fit = (w * printed).sum() / printed.square().sum()  # the scale of least squares
scales = torch.logspace(-6, 1, 200_001, dtype=torch.float64)
agree = (torch.round(w / scales[:, None]) == printed).sum(1)
print("best scale", ql.digits(fit.item()), "gives", torch.round(w / fit).int().tolist())
print("most of the four pairs that any scale explains:", int(agree.max()))
assert agree.max() < 3
assert w[1] < w[0] and printed[1] > printed[0]  # noqa: PT018
print("0.2255, with 127 at the largest default weight, is code", round(0.2255 * 10**0.5 * 127))
try:
    torch.nn.Parameter(torch.zeros(2, 10, dtype=torch.int8))
except RuntimeError as error:
    print("an int8 Parameter:", type(error).__name__)
print("Verdict: 001-11 is false: rounding never turns the order of two numbers around.")

# %% [markdown] tags=["exercise"]
# ## In the wild
#
# | where | order of 4-bit codes | integer product |
# |---|---|---|
# | GGUF Q4_0, Q4_K (llama.cpp) | code k with code k + 16 or k + 32 of its block | activations int8 in blocks of 32 (Q8_0) or 256 (Q8_K): W4A8 |
# | GPTQ checkpoints (GPTQModel, vLLM) | eight to an int32 along the inputs, lowest first | weights become float16 in the kernel: W4A16 |
# | AWQ GEMM layout (AutoAWQ, retired: G22; read by vLLM) | 0 2 4 6 1 3 5 7 along the outputs | W4A16 |
# | bitsandbytes | high nibble first | W4A16; LLM.int8() is W8A8 (module 08) |
# | PyTorch x86 and ONNX Runtime on old CPUs | bytes | VPMADDUBSW; `reduce_range` gives one bit away |
#
# llama.cpp's CPU kernels are the W4A8 of this module, and most people who run it have never heard of it.
#
# ## Exercises
#
# Replace `...` and run the cell. `exercise.hint()` gives the next hint, `exercise.solution()` ours.
#
# ### Exercise a: Eight nibbles
# Difficulty: ●○○ · Importance: ●●● · 8 min
#
# Write `pack(codes)`: a list of eight integers 0 … 15 becomes one unsigned 32-bit number, the first code lowest.


# %% tags=["exercise"]
def pack(codes): ...


exercise = ql.exercise("07_int4_int8.a")
exercise.check(pack)

# %% [markdown] tags=["exercise"]
# ### Exercise b: The corrected dot product
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# Write `corrected_dot(q, p, z, y)`: two uint8 tensors with zero points z and y. Return the sum of (q - z)(p - y) as an integer, from four sums. Mind what
# uint8 times uint8 does in PyTorch.


# %% tags=["exercise"]
def corrected_dot(q, p, z, y): ...


exercise = ql.exercise("07_int4_int8.b")
exercise.check(corrected_dot)

# %% [markdown] tags=["exercise"]
# ### Exercise c: The largest safe K
# Difficulty: ●●○ · Importance: ●●○ · 10 min
#
# Write `largest_safe_k(a, b, bits)`: code ranges `a = (lowest, highest)` and `b`, a signed accumulator of `bits` bits; how many products always fit? Each side of
# zero has its own end.
#
# ### Exercise d: A test that can fail
# Difficulty: ●●● · Importance: ●●● · 12 min
#
# Write `agrees(product, symmetric)`: try `product(q, p, z, y)` on codes of your choice and return whether it is right. With `symmetric=True` use zero points of 0. A
# product without corrections must pass there, and fail with `symmetric=False`; so must one that exchanges the zero points.


# %% tags=["exercise"]
def largest_safe_k(a, b, bits): ...


def agrees(product, symmetric): ...


ql.exercise("07_int4_int8.c").check(largest_safe_k)
exercise = ql.exercise("07_int4_int8.d")
exercise.check(agrees)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("07_int4_int8")

# %% [markdown]
# ## Summary
#
# - Integer sums are exact or nonsense: they wrap without a word. `int8 @ int8` in PyTorch returns int8.
# - Eight 4-bit codes make a word; at least four orders are in use, and a wrong one only shows in the output.
# - Σ(q - z)(p - y) = Σqp - zΣp - yΣq + Kzy: one sum of products and three corrections, of which symmetric weights save one.
# - Safe K: 133,144 (±127), 131,071 (with -128), 65,793 (uint8 × int8) in int32; 511 for int4 × int4 in int16. Random data proves nothing.
# - VPMADDUBSW saturates pairs of 8-bit products, on processors without VNNI; nibbles never come near.
# - int8 activations are nearly free if no outlier shares the scale: per token against loud tokens, per group against loud channels.

# %% [markdown]
# ## What we left out
#
# How the kernels load, arrange and multiply (module 23), timing them fairly (24), requantizing int32 sums to int8 by fixed-point multipliers, static scales for
# activations (9, 10), moving outliers into the weights (12, 13), and the blocks of GGUF (06).
#
# ## Sources
#
# - B. Jacob et al.: *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, arXiv:1712.05877, equations 7 and 8 (the corrections).
# - Z. Yao et al.: *ZeroQuant*, arXiv:2206.01861 (groups of weights, a scale per token). M. Sun et al.: *Massive Activations*, arXiv:2402.17762.
# - OpenVINO documentation, "Saturation (overflow) issue workaround"; pytorch, `test/quantization` (vpmaddubsw in FBGEMM); Intel's instruction reference for VPMADDUBSW, VPDPBUSD.
# - casper-hansen/AutoAWQ, `awq/modules/linear/gemm.py` (order 0 2 4 6 1 3 5 7); ggml-org/llama.cpp, `ggml-common.h` and `ggml-quants.c` (Q4_0, Q8_0).
