# %% [markdown]
# # GGUF: Containers, K-quants, imatrix
#
# Duration: 90 min · runs in about 15 s on 2 CPU cores (once compiled; the first run takes twice as long)
#
# Most people who run a language model on their own machine run a `.gguf` file. This module takes one apart to the last bit: the
# header, the blocks, the searches that choose the bits, and what a reader must not believe. At the end llama.cpp itself reads a
# file that you wrote.
#
# ## Objectives
#
# 1. Read a GGUF file by hand, from its header to the first byte of a tensor. (q1, q2)
# 2. Decode any weight of a Q4_0 or Q4_K block from its bytes. (q3, q4)
# 3. Compute real bits per weight, and say which types a tensor can have. (q5, q6)
# 4. Say what the searches and an imatrix change, and test that an imatrix's gain is real. (q7)
# 5. Name what a reader must refuse before it believes a file. (q8)
#
# ## Prerequisites
#
# Modules 02 (codes, scales, packing) and 03 (error measures); E[x xᵀ] from module 04. Hexadecimal helps: two digits are one
# byte.

# %% [markdown] tags=["predict"]
# ## What do the first 24 bytes say?
#
# We write the same small weight, 3 rows of 256, three times into one file: as float32, as Q8_0 (8-bit codes) and as Q4_0 (4-bit
# codes). Then we look at the beginning, without any library: Python's `struct` reads numbers from bytes.
#
# **Predict.** The first four bytes are the letters GGUF. What do you expect in the next twenty: the bit-width? The method? The
# size of the model?

# %%
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch

import quantlab as ql

W = np.random.default_rng(6).standard_normal((3, 256)).astype(np.float32)
tensors = {"plain": W}
for kind in ("Q8_0", "Q4_0"):
    tensors[kind] = ql.gguf.Raw(kind, ql.gguf.quantize(W, kind), W.shape)
path = Path(tempfile.mkdtemp()) / "three.gguf"
ql.gguf.write(path, tensors, {"general.name": "three"})

data = path.read_bytes()
magic, version, count, pairs = struct.unpack("<4sIQQ", data[:24])
print(data[:24].hex(" "), f"\n{magic.decode()}, version {version}: {count} tensors, {pairs} pair")

# %% [markdown] tags=["myth"]
# A version, two counts, and that is all: 4 bytes of letters, 4 of version, 8 and 8 of counts, least significant byte first.
# Nothing about bits, because **a file has none; its tensors have.**
#
# What follows is just as plain. A *string* is its length (8 bytes) and its letters. A *pair* is a key, a value's type (4 bytes;
# 8 means string) and the value. A *tensor's entry* is its name, the number of dimensions (4 bytes), each size (8 bytes), the
# type's number (4) and an offset (8). Then zeros up to the next multiple of 32, the *alignment*, and the weights.
#
# ### Myth 001-1: GGUF is a quantization method
#
# **Claim.** "GGUF is a quantization technique, like GPTQ; its name stands for a generalized uniform format."
#
# **Predict.** The cell walks through our file, 20 lines, no library. How many different types will it find? `W.shape` is (3,
# 256): which size comes first in the file? And does the data begin right behind the last entry?

# %% tags=["myth"]
at = 24


def take(form):  # the next number, little-endian
    global at
    at += struct.calcsize(form)
    return struct.unpack_from("<" + form, data, at - struct.calcsize(form))[0]


def text():
    global at
    length = take("Q")
    at += length
    return data[at - length : at].decode()


print(f"metadata: {text()!r} is of type {take('I')}: {text()!r}")
rows = []
for _ in range(count):
    name, dimensions = text(), take("I")
    rows.append((name, str([take("Q") for _ in range(dimensions)]), take("I"), take("Q")))
begin = at + -at % 32
print(f"the entries end at byte {at}, the data begins at byte {begin}")
assert len({type for _, _, type, _ in rows}) == 3
print("Verdict: 001-1 is false. One file, three types: GGUF is a container.\n")
print(ql.table(rows, ["tensor", "sizes", "type", "offset"]))

# %% [markdown] tags=["predict"]
# *Source: ggml-org/ggml, `docs/gguf.md`, which never expands the name. The quantizing happens in ggml's tensor types (0 is F32,
# 2 is Q4_0, 8 is Q8_0), and not all of those are uniform either, as we shall see.*
#
# Three traps in this small table. **Sizes are reversed**: a PyTorch weight of shape (3, 256) is written as [256, 3], but its
# bytes are the same rows in the same order; whoever reshapes to (256, 3) gets a scrambled matrix of the right size. **Offsets
# count from the beginning of the data**, not of the file. And every tensor is **padded** to 32: Q8_0 takes 816 bytes, and the
# next one begins at 3072 + 832.
#
# ## A block of Q4_0, byte by byte
#
# ggml cuts each row into *blocks* that stand on their own. Q4_0 stores 32 weights in 18 bytes:
#
#     byte    0 1     2           3           4                17
#             d       w16 w0      w17 w1      w18 w2    ...    w31 w15       one byte: high half, low half
#
# d is a float16. A weight is d * (code - 8). The largest weight of the block, *whatever its sign*, gets code 0, so d = M / -8:
# the signed grid of module 02. The halves of a byte are no neighbors: the low halves are weights 0 to 15, the high halves 16 to
# 31. A processor unpacks 16 bytes with one mask and one shift, and has 32 weights in order.
#
# **Predict.** The first row's first 32 weights: if M is positive, what is the sign of d? How do you find weight 20 in this
# block?

# %%
plain = np.frombuffer(data, "<f4", count=768, offset=begin).reshape(3, 256)
wrong = plain.reshape(256, 3)  # the sizes as they stand in the file
print("rows as written:", np.array_equal(plain, W), "  reshaped to the file's sizes, then turned:",
      np.array_equal(wrong.T, W))  # fmt: skip

start = begin + rows[2][3]
block = data[start : start + 18]
print("block:", block.hex(" "))
d = np.frombuffer(block[:2], "<f2")[0]
halves = np.frombuffer(block[2:], np.uint8)
codes = np.concatenate([halves & 15, halves >> 4]).astype(int)
values = np.float32(d) * (codes - 8).astype(np.float32)
first = W[0, :32]
extreme = first[np.abs(first).argmax()]
print(
    "largest weight", ql.digits(extreme, sig=4), " d", ql.digits(d, sig=4), " codes", codes.tolist()
)
print("weight 20 was", ql.digits(first[20]), "and is now", ql.digits(values[20]))
library = ql.gguf.read(path).tensors["Q4_0"].dequantize()
assert np.array_equal(values, library[0, :32])

# %% [markdown] tags=["myth"]
# Six lines decode Q4_0, to the last bit. Here M is negative, so d is positive; a positive M makes d negative. Weight 20 is the
# high half of byte 2 + 4.
#
# ### Myth G7: the digit in a type's name is its bits per weight, and all types are uniform grids
#
# **Claim.** "Q4_K takes 4 bits per weight, Q6_K takes 6, and IQ4_NL is just another 4-bit grid."
#
# The digit counts the *codes*. Everything else in a block costs as well: 18 bytes for 32 weights are 8 · 18 / 32 = 4.5 bits.
#
# **Predict.** A Q4_K block has 256 weights: 128 bytes of codes, eight 6-bit scales, eight 6-bit minima, and two float16. How
# many bits per weight is that? And one block each of Q4_0 and IQ4_NL, with d = 1 and the codes 0 to 15: will the gaps between
# the 16 values be equal?

# %% tags=["myth"]
codes, halves = ("qs", "ql", "qh", "hmask"), ("d", "dmin", "m")
parts = {}
for name in ["Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q4_1", "Q5_K", "Q6_K", "Q8_0"]:
    cls = ql.gguf.TYPES[name]
    parts[name] = {"codes": 0.0, "small scales": 0.0, "float16": 0.0}
    for field, (kind, _) in cls.layout.fields.items():
        use = "codes" if field in codes else "float16" if field in halves else "small scales"
        parts[name][use] += 8 * kind.itemsize / cls.size
    assert sum(parts[name].values()) == cls.bits_per_weight() > int(name.strip("IQ")[0])
ladder = np.frombuffer(b"\x00\x3c" + bytes(range(16)), np.uint8)  # d = 1.0, codes 0 .. 15
even, table = (ql.gguf.dequantize(ladder, name)[:16].astype(int) for name in ("Q4_0", "IQ4_NL"))
print("Q4_0:  ", even.tolist(), "\nIQ4_NL:", table.tolist())
assert len(set(np.diff(even))) == 1 < len(set(np.diff(table)))
print("Verdict: G7 is false twice: no type here takes its digit, and IQ4_NL is a table.")
ql.plot.bits_by_field(parts)

# %% [markdown] tags=["predict"]
# *Source: the C structs in ggml-org/llama.cpp, `ggml/src/ggml-common.h`.* Q4_K and Q4_0 take the same 4.5 bits and spend them
# differently: Q4_0 on one precise float16 scale for each 32 weights; Q4_K on a rough scale *and* a rough minimum for each 32,
# and two float16 for all 256.
#
# ## A super-block of Q4_K
#
# Scales need no 11 bits of precision. So Q4_K stores for each sub-block of 32 a 6-bit scale s and a 6-bit minimum m, and for
# the whole block their units d and dmin:
#
#     weight = d * s * code - dmin * m          8 sub-blocks of 32; s and m from 0 to 63, code from 0 to 15
#
#     byte   0  2     4         8         12                     16                                     144
#            d  dmin  s0..s3    m0..m3    low halves of s4..s7,  codes: 32 bytes hold two sub-blocks,
#                                         m4..m7                 low halves one, high halves the next
#
# Sixteen 6-bit numbers are 12 bytes exactly, but the packing is peculiar. Bytes 4 to 7 hold s0 to s3 in their *low six* bits,
# bytes 8 to 11 m0 to m3. The two bits left on top of each go to the numbers four further on: byte 4 carries the upper two bits
# of s4, whose lower four stand in byte 12.
#
# **Try it.** In a running notebook, move over a byte and see the weights that it feeds, or over a weight and see its bytes; Tab
# and the arrow keys do the same. (The map was not drawn by hand: each bit was flipped, and the weights that changed were
# noted.)
#
# **Predict.** Which weights does byte 5 feed? How many bytes does one weight depend on?

# %% tags=["signature"]
model, tokenizer = ql.load("storyteller")
layer = "model.layers.1.mlp.down_proj"
weight = model.get_submodule(layer).weight.detach().numpy()
explorer = ql.widgets.BlockExplorer(weight[0], type="Q4_K", byte=5)
for position in ({"byte": 5}, {"byte": 17}, {"weight": 161}):
    explorer.move(**position)
    print(explorer, "\n")
explorer.move(byte=5)
explorer

# %% [markdown] tags=["predict"]
# Byte 5 feeds a whole sub-block and, with its top bits, another one: flip one of those, and 32 weights jump. Flip a code's bit,
# and one weight moves a little. A weight of a late sub-block depends on eight bytes.
#
# ## Why is the scale not (max - min) / 15?
#
# That scale makes sure that no weight is clipped. But nobody asked for that; we want a small error (module 03). ggml's K types
# therefore *search*. For each sub-block: stretch the grid a little less or more than the range (21 tries, from 14 to 16 steps
# instead of 15), round to codes, and then compute, by least squares, the scale and minimum that suit these codes best. The try
# with the least error wins.
#
# The cell does the same, in its simplest form, for all groups of 32 weights of one layer at once.
#
# **Predict.** How much of the squared error can be saved without one more bit: 2 %, 10 % or 30 %? How often does the plain
# stretch of 15 win?

# %%
x = weight.astype(np.float64).reshape(-1, 32)
low, high = np.minimum(x.min(1, keepdims=True), 0), x.max(1, keepdims=True)


def rounded(stretch):
    return np.clip(np.rint(stretch / (high - low) * (x - low)), 0, 15)


def refitted(codes):  # the error after least squares for scale and minimum
    a, b = codes - codes.mean(1, keepdims=True), x - x.mean(1, keepdims=True)
    return ((b - a * ((a * b).sum(1) / (a * a).sum(1))[:, None]) ** 2).sum(1)


plain = ((rounded(15) * (high - low) / 15 + low - x) ** 2).sum()
tries = np.stack([refitted(rounded(14 + k / 10)) for k in range(21)])
stored = ql.gguf.dequantize(ql.gguf.quantize(weight, "Q4_K"), "Q4_K")
rows = [("(max - min) / 15", plain), ("its codes, scale refitted", tries[10].sum())]
rows += [("best of 21 stretches", tries.min(0).sum())]
rows += [("Q4_K: 6-bit scales and all", ((stored.reshape(x.shape) - x) ** 2).sum())]
print(f"the stretch of 15 wins in {round(100 * (tries.argmin(0) == 10).mean())} % of the groups")
ql.table([(name, round(100 * e / plain)) for name, e in rows], ["scale", "squared error"])

# %% [markdown] tags=["predict"]
# A fifth of the error was lying on the street. Squeezing the scales into 6 bits gives a little of it back, and what remains is
# a type of 4.5 bits that beats any simple one. (ggml also weights its search: by sqrt(mean x²) + |x|, a guess that large
# weights matter more. That is what the next section improves.)
#
# ## What does an imatrix know?
#
# The search minimizes the error of *weights*. What counts is the error of the *output*, tr(D M Dᵀ) in module 04. The searches
# cannot use all of M, because a block knows nothing of other blocks, but they can use its diagonal: **E[x_j²], how large input
# j is.** llama.cpp calls this list the *importance matrix*: one number for each column, measured on some text. `ql.imatrix`
# measures it, and its file is the one that llama.cpp's tools write and read.
#
# We quantize one layer with and without it, and judge on **other** text, by the true output error with the whole M.
#
# **Predict.** Which types gain most from the imatrix: those with few bits or with many? What does Q8_0 gain?

# %%
calibration = ql.calibration_set(tokenizer, samples=12)
importance = ql.imatrix(model.double(), calibration)  # float64: the same codes on any processor
known = importance["blk.1.ffn_down.weight"]  # GGUF's name of the same layer


def moment(name, tokens):  # E[x xᵀ] of one linear's inputs
    seen, linear = [], model.get_submodule(name)
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    model.requires_grad_(False)(tokens)
    hook.remove()
    return ql.second_moment(seen[0])


M, exact = moment(layer, ql.test_set(tokenizer, samples=8)), torch.from_numpy(weight).double()
energy = ql.output_error(exact, 0 * exact, M)


def damage(kind, imatrix=None):  # output error on held-out text, as a share of the output
    blocks = ql.gguf.quantize(weight, kind, imatrix)
    Q = torch.from_numpy(ql.gguf.dequantize(blocks, kind)).double()
    return ql.output_error(exact, Q, M) / energy


# %%
rows = []
for kind in ("Q2_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0"):
    row = {"name": kind, "bits_per_weight": ql.gguf.TYPES[kind].bits_per_weight()}
    row["error"] = damage(kind)
    if ql.gguf.TYPES[kind].imatrix != "ignored":
        row["imatrix"] = damage(kind, known)
    rows.append(row)
shown = [
    (r["name"], f"{r['bits_per_weight']:g}", r["error"], r.get("imatrix", "ignored")) for r in rows
]
print(f"E[x²] from {ql.digits(known.min())} to {ql.digits(known.max())} over {len(known)} inputs")
print(ql.table(shown, ["type", "bits/weight", "output error", "with imatrix"]))
ql.plot.error_by_bits(rows, what="output error, share of the output")

# %% [markdown] tags=["predict"]
# Follow the left panel along the bits. At 4.5 bits three types compete: Q4_K's two levels of scales win, the table of IQ4_NL
# comes second, plain Q4_0 last, behind even the 4.25 bits of IQ4_XS. From there on each bit more divides the error by about
# four. And the imatrix takes a fifth off, a third at 2 bits, for not one byte more. (Q8_0 ignores it: it does not search.)
#
# ## The control that must fail
#
# Where does the gain come from? Two suspects: the *knowledge* in the imatrix, or the mere fact that something is passed, which
# makes ggml take another path through its code.
#
# - **all ones**: the other path, without knowledge.
# - **shuffled**: the same numbers, at the wrong columns. If knowledge makes the gain, false knowledge must lose it.
#
# **Predict.** For Q4_K and for Q4_0, with the error without imatrix as 100: what will the two controls give?

# %% tags=["control"]
rows = []
for kind in ("Q2_K", "Q4_0", "Q4_K", "Q6_K"):
    none = damage(kind) / 100
    shuffled = [
        damage(kind, known[np.random.default_rng(seed).permutation(len(known))]) / none
        for seed in range(3)
    ]
    true, ones = damage(kind, known) / none, damage(kind, np.ones_like(known)) / none
    rows.append((kind, 100, round(true), round(ones), *map(round, shuffled)))
    assert true < ones - 5  # knowledge helps
    assert min(shuffled) > true + 10  # false knowledge loses what knowledge won
assert min(rows[2][4:]) > 100  # for Q4_K a shuffled imatrix is worse than none
ql.table(rows, ["type", "none", "imatrix", "all ones", "shuffled 1", "2", "3"])

# %% [markdown] tags=["predict"]
# Q4_K behaves as it should: the true imatrix wins a fifth, a shuffled one is worse than none. But look at Q4_0 and Q2_K, "all
# ones": they gain without knowing anything. Without an imatrix ggml's Q4_0 takes d = M / -8 and is done; with one, *any* one,
# it searches. Part of the famous gain of an imatrix is the search it switches on. Only the control could tell.
#
# 💡 *Below 6 bits use an imatrix, measured on text like yours, and compare it with all ones before you praise your text.*
#
# ## What is in a Q4_K_M?
#
# The last two letters name a **mix**: a recipe which tensor gets which type. M for medium: the base type Q4_K, and Q6_K for
# tensors that hurt more (the head, and in some of the layers the values and the down projection). `ql.export_gguf` follows
# llama-quantize's recipes for any Llama, one tensor at a time.
#
# Then we ask of the whole model what we asked of one layer, and of a second one: `storyteller-outlier`, the same network with a
# planted defect. A few of its inputs were made 32 or 64 times larger and the weights that read them as much smaller; its logits
# are the same to the last bit. Large models grow such outliers by themselves (module 12).
#
# **Predict.** The storyteller has 3.67 million weights. How many bits per weight will "Q4_K_M" have, norms and all? And what
# does the imatrix do for each of the two models?

# %%
folder, (twin, _) = path.parent, ql.load("storyteller-outlier")
report = ql.export_gguf(model, folder / "mix.gguf", "Q4_K_M", importance, tokenizer=tokenizer)
rows = []
for kind in sorted({row.type for row in report.rows}):
    mine = [row for row in report.rows if row.type == kind]
    weights = sum(row.weights for row in mine)
    examples = ", ".join(row.name.removesuffix(".weight") for row in mine[:2])
    rows.append((kind, len(mine), weights, round(100 * weights / report.weights), examples))
print(ql.table(rows, ["type", "tensors", "weights", "% of weights", "such as"]))
real, nominal = ql.digits(report.bits_per_weight, sig=4), f"{report.nominal_bits:g}"
print(
    f"\n{len(report.rows)} tensors, {report.nbytes:,} bytes: {real} bits per weight, not {nominal}"
)
assert not report.fallbacks

# %%
test, found = ql.test_set(tokenizer, samples=6), []
for network, matrix in ((model, importance), (twin, ql.imatrix(twin.double(), calibration))):
    reference = ql.log_probabilities(network.float(), test)
    ones = {key: np.ones_like(values) for key, values in matrix.items()}
    for preset, given in (("Q4_0", None), *(("Q4_K_M", m) for m in (None, ones, matrix))):
        ql.export_gguf(network, folder / "trial.gguf", preset, given, tokenizer=tokenizer)
        back, _ = ql.load_gguf(folder / "trial.gguf")  # as any program would: from the file alone
        found.append(ql.evaluate(back, test, reference=reference))
labels, rows = ("Q4_0", "Q4_K_M", "Q4_K_M, all ones", "Q4_K_M, imatrix"), []
for label, *both in zip(labels, found[:4], found[4:], strict=True):
    rows.append((label, *(part for e in both for part in (e.kl, "± " + ql.digits(e.kl_se, sig=1)))))
assert rows[3][3] < rows[0][3] < rows[2][3]  # with outliers only knowledge saves the K types
ql.table(rows, ["file", "KL, plain", "", "KL, outliers", ""], sig=2)

# %% [markdown] tags=["predict"]
# "Q4_K_M" is a file with three types. A small model has a large head, which is Q6_K here and counts much; a model of 8 billion
# weights comes out near 4.9. Real bits per weight stand in the report, never in the name.
#
# And the second table is a warning against judging by one layer. Most inputs of our plain storyteller are about equally large,
# so knowing them helps the whole model little; the layer above was an exception.
#
# With outliers everything turns. The weights that meet the largest inputs are tiny here, far smaller than a step. Q4_0, the
# oldest type, has a code for exactly 0, gives it to all of them, and no noise is added. Q4_K's grid is shifted by its minimum and
# need not contain 0: the same weights land up to half a step away, and the large inputs multiply that. All ones do not help,
# because nothing in the weights says which of them matter. The imatrix says it, and the damage falls to less than a tenth.
#
# ## Does llama.cpp agree?
#
# We wrote these files by our own understanding of the format. The judge is the program they were made for. It runs in a
# separate process (a file that it dislikes can end it).
#
# Two things could still be wrong without an error message. GGUF's llama rotates *neighboring* pairs of a head's dimensions,
# PyTorch's Llama halves: export must reorder the rows of q and k, or the model talks nonsense. And the tokenizer travels in the
# metadata.
#
# **Predict.** Will the logits of the float32 file agree to a thousandth? Those of Q4_K_M, against our own decoded weights?

# %%
from quantlab.gguf import llama_cpp

prompt, window = tokenizer.encode("Once upon a time"), test[0]
for preset in ("F32", "Q4_K_M") if llama_cpp.available() else ():
    file = folder / f"{preset}.gguf"
    ql.export_gguf(model, file, preset, tokenizer=tokenizer)
    back, _ = ql.load_gguf(file)
    ours = back.requires_grad_(False)(window[None])[0]
    gap = torch.from_numpy(llama_cpp.logits(file, window)) - ours
    rms = (gap.square().mean().sqrt() / ours.std()).item()
    print(f"{preset}: largest difference below 0.001: {gap.abs().max().item() < 1e-3},", end=" ")
    print(f"rms below 3 % of the logits' spread: {rms < 0.03}")
    written = llama_cpp.generate(file, prompt, 24)
    same = [*prompt, *written] == back.generate(torch.tensor([prompt]), 24)[0].tolist()
    print("   it goes on:", tokenizer.decode(written).strip(), "| our own words:", same)
texts = ["Hello, Tim!", " two  spaces", "Zoë's 3 cats"]
if llama_cpp.available():
    ids = llama_cpp.tokenize(folder / "F32.gguf", texts, add_bos=True)
    print("its tokens are ours:", ids == [tokenizer.encode(text) for text in texts])
else:
    print("llama.cpp is not here (package xllamacpp), so nothing was compared.")

# %% [markdown] tags=["predict"]
# Float32 agrees as well as two float programs can. With quantized weights llama.cpp also rounds the *activations* to 8 bits
# before each product, to multiply integers; hence the small difference, which is no error of anybody's.
#
# ## Whom does a reader believe?
#
# Nobody. A model file comes from a stranger, and every number in it is a claim: so many tensors, so many letters, this offset.
# Programs that believed such claims have read foreign memory, hung or crashed; GGUF readers have a row of CVEs for exactly
# that. The rule: **compare each claim with the bytes that are left, before you allocate or loop.** Ours raises
# `gguf.FormatError`, and its message names the byte.
#
# **Predict.** We damage our first file: five times on purpose, then each single bit of its 194 header bytes. Can a flipped bit
# go unnoticed?


# %%
def verdict(damaged):
    try:
        ql.gguf.parse(bytes(damaged), name="three.gguf")
    except ql.gguf.FormatError as error:
        return str(error)
    return "accepted"


def patched(place, form, value):
    return data[:place] + struct.pack("<" + form, value) + data[place + struct.calcsize(form) :]


cases = [data[:100], data[:-100]]  # cut short
cases += [patched(8, "Q", 2**60), patched(78, "Q", 2**62)]  # so many tensors, so long a row
cases += [patched(98, "Q", 32)]  # an offset into another tensor
print(*map(verdict, cases), sep="\n")
flips = [patched(k // 8, "B", data[k // 8] ^ 1 << k % 8) for k in range(8 * 194)]
accepted = [verdict(flip) for flip in flips].count("accepted")
print(f"\nflipped bits: {len(flips) - accepted} refused, {accepted} accepted, none crashed")

# %%
import os

if os.environ.get("QUANTLAB_ONLINE") == "1":  # a real model, from Hugging Face
    real, words = ql.load("HuggingFaceTB/SmolLM2-135M")
    matrix = ql.imatrix(real, ql.calibration_set(words, samples=16))
    for preset, given in (("Q4_K_M", None), ("Q4_K_M", matrix)):  # rows of 576: mind the fallbacks
        print(ql.export_gguf(real, folder / "real.gguf", preset, given, tokenizer=words))
        back, _ = ql.load_gguf(folder / "real.gguf")
        print(ql.evaluate(back, ql.test_set(words, samples=8), reference=real))
else:
    print("Skipped: set QUANTLAB_ONLINE=1 and install transformers to use SmolLM2-135M.")

# %% [markdown] tags=["exercise"]
# The accepted flips leave a legal file: another letter in a name, one tensor less in the count, a shorter last tensor. No
# reader can know that `three` was meant. Only a checksum could, and GGUF has none.
#
# **In the wild.** `llama-quantize` makes such files from a converted model, `llama-imatrix` measures importance, and
# `llama-perplexity` compares logits; Ollama, LM Studio and many others run them. The Python package `gguf` reads most types and
# writes the simple ones, but no K types. When rows do not fill a block, tools fall back to another type: a tensor with rows of
# 172 weights fits no block type at all and stays F16, and a file can come out a quarter larger than its name says. Read the
# report.
#
# ## Exercises
#
# Each has `exercise.hint()` and `exercise.solution()`; a check names the idea behind a wrong answer.
#
# ### Exercise a: A header
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `header(data)` for the beginning of a file whose first pair has a string value: return version, tensors, pairs, the
# first key, and its value.
#
# ### Exercise b: Weight i
# Difficulty: ●●● · Importance: ●●● · 15 min
#
# Write `weight(type, block, i)`: the i-th weight of one block (`bytes`) of type "Q4_0" or "Q4_K". The drawings above have all
# you need.


# %% tags=["exercise"]
def header(data): ...


def weight(type, block, i): ...


ql.exercise("06_gguf.a").check(header)
exercise = ql.exercise("06_gguf.b")
exercise.check(weight)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Pack the 6-bit scales
# Difficulty: ●●● · Importance: ●●○ · 10 min
#
# Write `pack_scales(scales, minima)`: two lists of 8 numbers from 0 to 63; return the 12 bytes of Q4_K as a list.
#
# ### Exercise d: Do not believe it
# Difficulty: ●●○ · Importance: ●●● · 8 min
#
# Write `tensor_data(data, start, blocks, block_bytes)`: return the tensor's bytes, or raise `ql.gguf.FormatError` if the file
# does not hold them all. The numbers come from the file, and may be absurd.


# %% tags=["exercise"]
def pack_scales(scales, minima): ...


def tensor_data(data, start, blocks, block_bytes): ...


ql.exercise("06_gguf.c").check(pack_scales)
exercise = ql.exercise("06_gguf.d")
exercise.check(tensor_data)

# %% [markdown] tags=["exercise"]
# ### Exercise e: The control
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `control(W, importance, order, type)`: quantize the float32 array W with `importance[order]` as imatrix, and once
# without; return the ratio of their squared errors, each column weighted with the *true* importance.


# %% tags=["exercise"]
def control(W, importance, order, type): ...


exercise = ql.exercise("06_gguf.e")
exercise.check(control)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("06_gguf")

# %% [markdown]
# ## Summary
#
# - GGUF is a container: version, counts, metadata, a table of tensors, padded data. Types belong to tensors, sizes stand in reverse.
# - A block is a C struct: Q4_0 has one float16 and 32 codes; Q4_K has 8 six-bit scales and minima under two float16. Both take 4.5 bits.
# - K types search for the scale instead of covering the range; that alone saves a fifth of the error.
# - An imatrix is E[x²] of each input, the diagonal of M. Its knowledge wins another fifth; a shuffled one must lose it.
# - Q4_K_M is a mix of types. Real bits per weight stand in the report, not in the name.
# - A reader compares every claim with the bytes that are there, and refuses with an error of its own type.

# %% [markdown]
# ## What we left out
#
# The lattice types IQ1 to IQ3 (module 20), MXFP4 and NVFP4 (21), kernels that multiply straight from blocks (23), splitting a
# model over several files, and GGUF for other architectures than Llama. bitsandbytes' NF4 (module 08) is another block type
# with a table.
#
# ## Sources
#
# - Format: ggml-org/ggml `docs/gguf.md`; structs and searches: ggml-org/llama.cpp `ggml/src/ggml-common.h`,
#   `ggml/src/ggml-quants.c`; mixes: `src/llama-quant.cpp`; imatrix: `tools/imatrix`.
# - Reversed sizes: llama.cpp issue 6040. Fallbacks that make a file larger: llama.cpp issue 26616. K types by I. Kawrakow:
#   llama.cpp pull request 1684; imatrix: 4861. Bits per weight of mixes at 8 billion weights: `tools/quantize/README.md`.
# - Hostile files: Cisco Talos TALOS-2024-1912 to 1916 (CVE-2024-21802, -21825, -21836, -23496, -23605).
