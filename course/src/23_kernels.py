# %% [markdown]
# # Kernels: Packing, GEMV, W8A8, Triton
#
# Duration: 90 min · runs in about 15 s on 2 CPU cores (once compiled; the first run takes about twice as long)
#
# Quantizing a weight makes a file smaller. Whether it makes a model *faster* is decided by one loop, the kernel, and this module
# is about that loop. You will see the same product in the same language take 75 milliseconds and a tenth of one, count the bytes
# that explain it, and read the kernel line by line.
#
# ## Objectives
#
# 1. Count the bytes that a product moves, and compare a loop with a byte budget. (q1, q2, q3)
# 2. Read and write a product that decodes 4-bit codes where it uses them. (q4, q5)
# 3. Say why sixteen rows lie side by side, and what VPDPBUSD does with them. (q6)
# 4. Say what int8 activations cost, and when a 4-bit model is faster at all. (q7, q8)
#
# ## Prerequisites
#
# Module 07 (packing, integer products, zero points). Module 24 measures what is counted here.

# %% [markdown] tags=["predict"]
# ## One product, eight programs
#
# A 4-bit weight of 1024 rows and 1024 columns, one vector of activations: 1 million multiplications. `VERSIONS` holds eight
# programs for this product. All are Python, compiled by Numba but for the first; each is the one before it plus one idea.
#
# **Predict.** Version 0 is what most tutorials show: unpack the codes to a float matrix, then call `@`. The last one reads the codes
# directly. How many times faster is it: 2, 10, or more than 100? And is version 0 faster or slower than a plain float32 matrix?

# %%
import timeit
from functools import partial

import numpy as np
import torch

import quantlab as ql
from quantlab.kernels import paths, reference, traffic
from quantlab.kernels.integer_kernels import integer_block
from quantlab.kernels.tiles import Tiles
from quantlab.kernels.versions import VERSIONS

generator = torch.Generator().manual_seed(23)
W = torch.randn(1024, 1024, generator=generator) * 0.02
x = torch.randn(1024, generator=generator)
packed = ql.rtn(W, ql.Scheme(bits=4, group_size=32)).pack()
tiles = Tiles.of(packed)
exact, integers = reference.matmul(x, packed), reference.matmul(x, packed, activation_bits=8)


def best(work, repeats=25):
    work()  # the first call compiles
    return min(timeit.repeat(work, number=1, repeat=repeats))


# %% tags=["signature"]
seconds, rows = {"float32": best(lambda: W @ x)}, []
for name, (product, tiled) in VERSIONS.items():
    weight = tiles if tiled else packed
    seconds[name], y = best(partial(product, x, weight)), product(x, weight)
    error = ((y - exact).norm() / exact.norm()).item()
    rows.append((name, "bit for bit" if torch.equal(y, integers) else "to rounding", error > 1e-5))
print(ql.table(rows, ["version", "equal to its definition", "int8 error"]))
slower = seconds["unpack"] > 2 * seconds["float32"]
faster = seconds["unpack"] > 10 * seconds["four_tiles"]
print("version 0 is more than 2 times slower than float32:", slower)
print("version 6 is more than 10 times faster than version 0:", faster)
assert slower
assert faster

# %% tags=["nbval-ignore-output"]
print(
    ql.table(
        [(n, 1e6 * s, seconds["unpack"] / s) for n, s in seconds.items()],
        ["on this machine", "µs", "times version 0"],
    )
)

# %% [markdown]
# Four bits instead of thirty-two, and the model became *slower*; then, with nothing but a different loop, hundreds of times faster
# than that. So "quantization speeds up inference" (myth 001-8) is true **only with a kernel**: the format allows a speed, and somebody
# has to write the loop that takes it. On a 4096 x 4096 matrix, 2 threads of an AMD server, the eight programs took 75,000, 29,000, 12,400, 12,800, 2,700, 200,
# 171 and 114 µs.
#
# From version 3 on the results are equal **in every bit**: sums of integers do not depend on their order. That is why integer
# kernels can be tested for equality, on every processor, and why ours are.
#
# ## Count the bytes
#
# A product with one vector uses each weight once: two operations, and gone. Arithmetic is cheap, so what counts is how many bytes
# move between memory and the processor. They can be counted without any clock: `Memory` holds arrays that notice every load and
# every store. What stands in a variable of the loop stands in a register, and costs nothing.

# %%
small = ql.rtn(torch.randn(8, 32, generator=generator), ql.Scheme(bits=4, group_size=16))
vector = torch.randn(32, generator=generator)


def memory_of(quantized, vector):
    rows = quantized.shape[0]
    codes, scale = quantized.pack().data, quantized.pack().scale
    return traffic.Memory(codes=codes, scale=scale, x=vector, y=np.zeros(rows, np.float32))


memory = memory_of(small, vector)
traffic.tiled_gemv(memory, group_size=16, tile=1)
right = np.allclose(memory.y.values, reference.matmul(vector, small.pack()), atol=1e-5)
print("right:", right, " bytes loaded:", memory.loaded, " stored:", memory.stored["y"])
assert right
assert memory.loaded | {"y": memory.stored["y"]} == traffic.gemv_bytes(8, 32, 16, tile=1)

# %% [markdown]
# Look at `x`: its 128 bytes were loaded once for each of 8 rows. The codes, which this is all about, are a tenth of the traffic!
# The remedy is a **tile**: compute several rows at a time, and use each activation for all of them while it is in a register.

# %%
sizes = {
    f"{tile} rows together": traffic.gemv_bytes(4096, 4096, 32, tile=tile) for tile in (1, 4, 16)
}
sizes["unpack first"] = sizes["16 rows together"] | {"float matrix": 2 * 4 * 4096 * 4096}
sizes["float32"] = {"float matrix": 4 * 4096 * 4096, "x": 4 * 4096, "y": 4 * 4096}
total = {name: sum(parts.values()) for name, parts in sizes.items()}
print(ql.table([(name, size / 1e6) for name, size in total.items()], ["4096 x 4096", "MB moved"]))
assert total["unpack first"] > 2 * total["float32"] > 8 * total["16 rows together"]
ql.plot.bytes_bar(sizes)

# %% [markdown]
# Unpacking writes 67 MB and reads them again, so no cleverness inside can make it faster than the float product. The tiled loop
# moves 13.6 MB. A machine that reads 40 GB/s from memory needs at least 0.34 ms for them, and 1.7 ms for float32. **Time at batch
# 1 is bytes divided by bandwidth**; module 24 draws the picture of this sentence, the roofline.
#
# The widget walks through the loop, byte by byte.

# %%
ql.widgets.TrafficTracer(small, vector, tile=2, step=30)

# %% [markdown] tags=["myth"]
# ### Myth 000-9: Quantization reduces the computation
#
# **Claim.** "4-bit weights need fewer operations than float weights."
#
# **Predict.** For the product above, count multiplications for float32 and for 4-bit weights with float activations.

# %% tags=["myth"]
weights, groups = 4096 * 4096, 4096 * 4096 // 32
operations = {"float32": 2 * weights, "W4A16": 2 * weights + weights + weights + 2 * groups}
moved = {"float32": total["float32"], "W4A16": total["16 rows together"]}
rows = [
    (name, operations[name] / 1e6, moved[name] / 1e6, operations[name] / moved[name])
    for name in moved
]
print(ql.table(rows, ["weights", "million operations", "MB", "operations a byte"]))
assert operations["W4A16"] > operations["float32"]
assert moved["W4A16"] < moved["float32"] / 4
print("more operations, fewer bytes")

# %% [markdown]
# Verdict: **false.** Every multiplication and addition is still there, and a mask, a shift and a scale come on top. What shrinks is
# the traffic. So 4-bit weights help where bytes are the limit (a chat, one token after the other) and not where arithmetic is (a
# long prompt, a large batch), unless the arithmetic itself becomes cheaper: that is what int8 activations are for.
#
# ## Sixteen rows side by side
#
# A register of 512 bits holds 64 bytes: 128 codes. Fill it from *one* row, and the row's sum ends up in pieces across the register;
# a group of 32 codes is over before the register is full. Fill it with one 32-bit word from each of *sixteen* rows, and each lane
# adds up its own output with its own scale. Nothing ever crosses a lane:
#
#     packed rows   row 0   a0 a1 a2 ...         tile   a0 b0 c0 ... p0   a1 b1 c1 ... p1   ...
#                   row 1   b0 b1 b2 ...                ^ one load of 64 bytes: 8 codes of each of 16 rows
#
# It is a transposition of whole words: no bit inside a word moves, and no byte is added.
#
# ## One instruction: 64 products
#
# VPDPBUSD multiplies 64 unsigned bytes with 64 signed bytes, adds the products in fours, and adds these to sixteen 32-bit sums.
# One instruction. Codes are unsigned (0 to 15), activations rounded to int8 are signed: they fit without any conversion. Here it is
# in NumPy, and then a whole group of 32 weights for 16 rows at once: mask, shift, two products a word.
#
# In quantlab these lines are what the compiled kernel says as well; its vocabulary (`load_words`, `add_products`) is Python that
# emits one or two machine instructions a word. The cell ends with its source: the loop that ran fastest above.

# %%
word = packed.data.view(torch.int32)  # (1024 rows, 128 words of 8 codes)
assert torch.equal(tiles.words[3, 5], word[48:64, 5])  # word 5 of rows 48 to 63
print("bytes of rows and of tiles:", packed.nbytes, tiles.nbytes)


def vpdpbusd(sums, codes, activations):
    products = codes.view(np.uint8).astype(np.int32) * activations.view(np.int8).astype(np.int32)
    return sums + products.reshape(16, 4).sum(1)


codes8, scale8 = reference.quantize_activations(x[None], 32)
even_odd = codes8.numpy().reshape(-1, 4, 2).swapaxes(1, 2).copy()  # of 8: 4 even, 4 odd ones
words, sums = tiles.words[0].numpy().view(np.uint32), np.zeros(16, np.int32)
for w in range(4):  # four words of eight codes are a group
    low, high = words[w] & 0x0F0F0F0F, words[w] >> 4 & 0x0F0F0F0F
    sums = vpdpbusd(sums, low, np.tile(even_odd[w, 0], 16))
    sums = vpdpbusd(sums, high, np.tile(even_odd[w, 1], 16))
sums -= 8 * codes8[0, :32].int().sum().item()  # the zero point of all codes is 8
plain = (packed.unpack().codes[:16, :32].int() - 8) @ codes8[0, :32].int()
print("sixteen sums:", sums.tolist())
assert sums.tolist() == plain.tolist()
ql.show(integer_block)

# %% [markdown] tags=["predict"]
# `minus_zero_point` starts each group's sum at -zero · Σx instead of 0, so the correction of module 07 costs nothing inside the loop.
#
# **The trap of version 3.** It computes with integers and is no faster than floats. Numba gives `int32 * int32` the type int64, as
# Python would; the machine then works on 8 numbers at a time instead of 64. Version 4 says `np.int32(...)` around every product and
# sum, and is five times faster. The same lines, the same results.
#
# ## Not every processor has it
#
# Four paths compute the same sums: VPDPBUSD on 64 bytes or on 32, the older VPMADDUBSW (whose 16-bit sums overflow with 8-bit codes,
# so those are split into nibbles), and plain 16-bit products for all others. The fastest one present is taken; any can be forced.
#
# ## What int8 activations cost
#
# `activation_bits=16` multiplies floats (W4A16), `activation_bits=8` rounds the activations first (W4A8). The rounding adds an error
# of its own, and it depends on how many activations share a scale.
#
# **Predict.** One activation of 1024 is 100 times larger than the rest. What happens to the error if all 1024 share one scale, and if
# each group of 32 has its own?

# %%
for path in paths.available():
    with paths.force(path):
        assert torch.equal(ql.int4_matmul(x, tiles, activation_bits=8), integers)
print("all paths give the same bits")

loud = x.clone()
loud[7] *= 100
rows = []
for name, vector_ in {"plain": x, "one loud": loud}.items():
    for group in (32, 128, None):
        q = ql.rtn(W, ql.Scheme(bits=8, group_size=group))
        target = reference.matmul(vector_.double(), q.pack())
        y = ql.int8_matmul(vector_, q.pack(), activation_bits=8)
        rows.append((name, group or "whole row", ((y - target).norm() / target.norm()).item()))
print(ql.table(rows, ["activations", "group", "error of rounding them"], sig=2))
assert rows[5][2] > 2 * rows[3][2]

# %% [markdown]
# In a group of its own the loud one spoils 31 neighbors; with one scale for all it spoils everybody. Models do have such channels
# (module 12), so our kernels give activations the groups of the weights. A benchmark that sets W4A8 against W4A16 without saying so
# compares two different results.
#
# ## The control: right, and over budget
#
# A kernel that unpacks to a temporary matrix gives the right result. A test of results alone can never tell. The byte budget can.


# %% tags=["control"]
def unpacking_gemv(memory):
    rows, columns = memory.codes.shape[0], 2 * memory.codes.shape[1]
    matrix, groups = memory.allocate("matrix", (rows, columns)), memory.scale.shape[1]
    for r in range(rows):
        byte, scale = memory.codes[r], memory.scale[r].astype(np.float32)
        codes = np.stack([byte & 15, byte >> 4], axis=1).reshape(groups, -1)
        matrix[r] = ((codes.astype(np.float32) - 8) * scale[:, None]).reshape(-1)
    memory.y[:] = matrix[...] @ memory.x[...]


budget = sum(traffic.gemv_bytes(8, 32, 16, tile=8).values())
honest, wasteful = memory_of(small, vector), memory_of(small, vector)
traffic.tiled_gemv(honest, 16, tile=8)
unpacking_gemv(wasteful)
print("same result:", np.allclose(honest.y.values, wasteful.y.values, atol=1e-5))
print("bytes:", honest.moved, "and", wasteful.moved, " budget:", budget)
assert honest.moved == budget
assert wasteful.moved > 5 * budget

# %% [markdown]
# ## A model on these kernels
#
# `QuantizedLinear` multiplies with them. In a small model another cost appears: a framework's hundred calls a token take longer than
# the arithmetic. `FastDecoder` compiles the whole step, so that Python is entered once a token.

# %%
model, tokenizer = ql.load("storyteller")
_ = ql.quantize_(model, ql.RTN(), ql.Scheme(bits=4, group_size=32))
prompt = torch.tensor([tokenizer.encode("The little dog")])
fast = ql.FastDecoder(model, activation_bits=16, head_bits=32)
same = torch.equal(fast.generate(prompt, 24), model.generate(prompt, 24))
slow_s, fast_s = (
    best(lambda: model.generate(prompt, 24), 2),
    best(lambda: fast.generate(prompt, 24), 2),
)
print("the same words:", same, " faster than twice:", slow_s > 2 * fast_s)
print(tokenizer.decode(fast.generate(prompt, 24)[0].tolist()))
assert same
assert slow_s > 2 * fast_s

# %% [markdown]
# On one thread of our server the modules wrote 240 tokens a second, the compiled step 5,200 (W4A16) and 10,200 (W4A8); llama.cpp wrote
# 4,000 from the same model exported as Q4_0.
#
# **In the wild.** llama.cpp rounds activations to int8 and repacks some types side by side as we do; torch has
# `_weight_int4pack_mm_for_cpu` (floats in bfloat16); bitsandbytes looks codes up in a table; on GPUs Marlin (2408.11743) orders the codes so that
# each thread finds its own where it needs them, and LUT-GEMM (2206.09557) replaces products by table look-ups. Our GPU kernels are
# in `quantlab/kernels/gpu_float.py`, in Triton: the same tiles, the same loop, one program for each block of rows.
#
# ## Exercises
#
# Scores are bytes moved: fewer is better, and the budget is met or not.

# %% [markdown] tags=["exercise"]
# ### Exercise a: The missing operation
# Difficulty: ●○○ · Importance: ●●● · 6 min
#
# `decode(byte)` must return the two codes of a packed byte, the first one in the low four bits, as values -8 to 7. What is missing?
# Stuck? `exercise.hint()`; `exercise.solution()` shows ours.

# %% tags=["exercise"]
exercise = ql.exercise("23_kernels.a")


def decode(byte): ...


exercise.check(decode)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Hoist the scale
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# `dot(memory, group_size)` multiplies one row: `memory.codes` (columns / 2 bytes, as above), `memory.scale` (groups, float16),
# `memory.x` (columns, float32); store the sum in `memory.y[0]`. Budget: **each scale is loaded once.** `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("23_kernels.b")


def dot(memory, group_size): ...


exercise.check(dot)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Read x once
# Difficulty: ●●● · Importance: ●●● · 15 min
#
# `gemv(memory, group_size)` multiplies all rows; shapes as in `memory_of`. Budget: **every byte of codes, scales and x is loaded once,
# every output stored once**. Sums may stand in ordinary NumPy arrays: call them registers. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("23_kernels.c")


def gemv(memory, group_size): ...


exercise.check(gemv)

# %% [markdown] tags=["exercise"]
# ### Exercise d: The control
# Difficulty: ●●○ · Importance: ●●● · 8 min
#
# `within_budget(kernel, memory, target)` runs `kernel(memory)` and returns True only if the result in `memory.y.values` is right (to
# 1e-4) **and** no byte was moved beyond what codes, scales, x and y take once. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("23_kernels.d")


def within_budget(kernel, memory, target): ...


exercise.check(within_budget)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("23_kernels")

# %% [markdown]
# ## Summary
#
# - A format allows a speed; a kernel takes it. The same product took 75 ms and 0.11 ms in the same language.
# - At batch 1, time is bytes divided by bandwidth: count them, with tiles so that activations are loaded once.
# - 4-bit weights do not save operations; they save traffic.
# - Sixteen rows side by side: each lane of a register keeps its own sum and its own scale.
# - Integer sums are exact: kernels on all paths are equal bit for bit, and tested so.
# - W4A8 and W4A16 are different products; say which, and how many activations share a scale.

# %% [markdown]
# ## What we left out
#
# Caches in detail (lines, prefetching, sets); large batches, where tiles of tokens matter as much as tiles of rows (`cpu.py` takes 4 x 4);
# AMX and bfloat16 matrix units; sparse kernels; how a GPU shares a tile among threads.

# %% [markdown]
# ## Sources
#
# - Park et al., LUT-GEMM, arXiv 2206.09557. Frantar et al., Marlin, arXiv 2408.11743.
# - Jacob et al., arXiv 1712.05877v1, equations 7 and 8: the zero-point correction.
# - Intel, *Intrinsics Guide*: VPDPBUSD (`_mm512_dpbusd_epi32`), VPMADDUBSW.
# - The form of the exercises follows Sasha Rush's Triton Puzzles.
