# %% [markdown]
# # Benchmarking Honestly: Roofline and Statistics
#
# Duration: 75 min · runs in about 12 s on 2 CPU cores
#
# Module 23 said that one kernel is faster than another. How would you know? A stopwatch always shows a number, and the number is
# always true of *something*: of a compiler, of a cache, of a neighbor, of a quota. This module is about which.
#
# ## Objectives
#
# 1. Predict tokens a second from bytes and bandwidth, and say which limit counts. (q1, q2)
# 2. Reject samples from which nothing can be concluded. (q3, q8)
# 3. State a speed-up with an interval, and know what the interval cannot know. (q4, q5)
# 4. Explain times by caches, threads and quotas. (q6, q7)
#
# ## Prerequisites
#
# Module 23 (bytes, W4A8 and W4A16). Medians and percentiles.

# %% [markdown] tags=["predict"]
# ## One kernel, three races against itself
#
# All times below were really taken, with one 4-bit kernel (W4A8, 4096 x 4096, one vector, 9.4 MB of weights), and stored. So
# everybody gets the same numbers, and the same chance to be fooled.
#
# **Predict.** The kernel runs against *itself* three times: with a warm-up against without; on one weight again and again against many
# weights in turn; and simply once more, the two taking turns. How often is there a clear winner, by the mean of the calls and by their median?

# %%
import numpy as np

import quantlab as ql
from quantlab.kernels.bench import race
from quantlab.kernels.contest import Product
from quantlab.kernels.machine import Machine
from quantlab.kernels.own import own_contestants
from quantlab.kernels.samples import check_samples, compare, complaints, summarize
from quantlab.kernels.stored_samples import stored_samples
from quantlab.plot_samples import timing_dots

stored = stored_samples()
limits = stored.machine.limit(1)

# %% tags=["signature"]
races = [
    ("warmed up", "hot, 1 threads", "not warmed up", "no warm-up"),
    ("one weight, again and again", "hot, 1 threads", "many weights in turn", "cold, 1 threads"),
    ("A", "A", "A again, alternating", "A again"),
]
rows = []
for name, a, other, b in races:
    mean, middle = stored[b].mean() / stored[a].mean(), compare(stored[a], stored[b])
    rows.append((name, other, mean, middle.ratio, middle.verdict))
titles = ["the kernel", "against itself", "by the mean", "by the median", "verdict, 99 %"]
print(ql.table(rows, titles))
hot = stored.weight_bytes / np.median(stored["hot, 1 threads"])
speeds = [ql.digits(speed / 1e9) for speed in (hot, limits.read["memory"])]
print("hot, GB/s of weights:", speeds[0], " memory gives:", speeds[1])
assert rows[0][2] > 10
assert rows[1][4] == "faster"
assert rows[2][4] == "no difference"
assert hot > limits.read["memory"]
timing_dots({name: stored[b] for _, _, name, b in races} | {"warmed up": stored["hot, 1 threads"]})

# %% [markdown]
# The same code, the same processor: by the mean, two clear winners in three races. Nobody cheated:
#
# - **Without warm-up** the first call loads the compiled kernel, starts threads and fills caches. It took two thousand times as long as
#   the others. A mean never recovers from it. The median does here, with 60 calls; with three it would not.
# - **One weight again and again** stays in the third cache, so the kernel "reads memory" faster than memory can be read. A model has
#   many layers; by the time the first comes up again, it is gone. *Hot* and *cold* are two different questions.
# - **Alternating**, the same kernel twice is the control of every benchmark, an **A/A test**: it must end in "no difference".
#
# ## The limit that is known before you measure
#
# A product with one vector uses each weight once. So no kernel is faster than bytes / bandwidth, and for a whole model
#
# $$\text{tokens/s} \;\le\; \frac{\text{bytes a second}}{\text{weights} \cdot \text{bits} / 8}.$$
#
# **Predict.** The machine of the samples; a model of one billion weights. How many tokens a second in float32, in 8.5 and in 4.5 bits?
# And do twice the threads give twice the tokens?

# %%
rows = []
for name, bits in {"float32": 32, "bfloat16": 16, "Q8_0": 8.5, "Q4_0": 4.5}.items():
    token = 1e9 * bits / 8  # bytes
    rows.append((name, bits, *(stored.machine.limit(n).read["memory"] / token for n in (1, 2))))
assert rows[3][3] < 1.5 * rows[3][2]  # memory is shared
ql.table(rows, ["weights", "bits", "tokens/s at most, 1 thread", "2 threads"])

# %% [markdown] tags=["predict"]
# Two threads add nothing: both wait for the same memory. In the caches, where each core has its own, they do.
#
# ## Two limits make a roof
#
# Bytes are one limit, operations the other. Their ratio is a property of the *product*: the **intensity**, operations for each byte moved. Their
# limits are properties of the *machine*. So attainable speed = min(intensity x bandwidth, peak): a slope, then a level, the **roofline** (Williams
# et al., 2009). A batch of n tokens uses each weight n times: it moves to the right, for free, until it hits the level.
#
# **Predict.** At which batch does a 4-bit product on this machine stop being limited by bytes? Is it the same for W4A16 and W4A8?

# %%
rows = []
for name, peak in {
    "W4A16 (float32 products)": limits.float32,
    "W4A8 (byte products)": limits.int8,
}.items():
    for cache in ("memory", "L3"):
        bend = peak / limits.read[cache]  # operations for each byte, where slope meets level
        rows.append((name, cache, bend, bend * 4.5 / 16))
print(ql.table(rows, ["product", "weights in", "bend, operations a byte", "batch there"], sig=2))
assert rows[2][3] > 3 * rows[0][3]
moved, operations = stored.weight_bytes + 4 * 2 * 4096, 2 * 4096**2
measured = {name: np.median(stored[f"{name}, 1 threads"]) for name in ("hot", "cold")}
points = {name: (operations / moved, operations / s) for name, s in measured.items()}
ql.widgets.LiveRoofline(limits, points, form="W4A8 g32")

# %% [markdown] tags=["predict"]
# The circle is the most that this machine allows; the diamonds are our two samples, hot and cold. Move the batch: intensity grows, then the roof is
# reached, and from there on a larger batch only waits longer. Byte products have a level four times as high, so W4A8 pays as soon as
# bytes are not the limit: at large batch, or with weights in the cache (there W4A16 is limited by operations even at batch 1: 0.79 is below 1).
#
# **Try it.** `LiveRoofline(limits, {"mine": (intensity, speed)})` draws a point of yours. A point *above* the roof is no miracle: it is a measurement of
# something else, mostly of a cache. Our hot point lies above the memory's line, and even a little above the third cache's: limits are measured too, and these were
# measured in another second of a shared machine. A limit that was measured once is a sample like any other.
#
# ## What to report: not the mean
#
# Noise on a computer only *adds* time: an interrupt, a neighbor, a page fault. No call is ever a little faster than the machine can. So times have a wall on the left
# and a long tail on the right, and a mean ± standard deviation describes neither.
#
# **Predict.** Of minimum, median, mean and p90, which changes most when one call of 200 takes 100 times as long?

# %%
calm = stored["hot, 1 threads"]
hit = calm.copy()
hit[100] *= 100
rows = []
for name, times in {"as taken": calm, "one call x 100": hit}.items():
    told = summarize(times)
    rows.append(
        (name, *(1e6 * t for t in (told.minimum, told.median, told.p90, times.mean(), times.std())))
    )
print(ql.table(rows, ["µs", "minimum", "median", "p90", "mean", "deviation"]))
assert rows[1][2] < 1.01 * rows[0][2]
assert rows[1][4] > 1.3 * rows[0][4]

# %% [markdown]
# The minimum says what the machine can do, the median what it mostly does, p90 what a user notices. State the median with p10 and p90, and all three are there.
#
# ## A speed-up is an estimate
#
# Two medians from 200 calls each: their ratio would come out a little different tomorrow. How different? Draw 200 of the 200 calls *with replacement*, again
# and again, and look at the ratios: the **bootstrap**. The middle 99 % of them are the interval.
#
# **Predict.** W4A8 against W4A16, hot, alternating, 200 calls each: is the interval a hundredth, a tenth or a half wide? With 10 calls?

# %%
a, b = stored["W4A8"], stored["W4A16"]
rows = []
for count in (10, 50, 200):
    told = compare(a[:count], b[:count])
    rows.append((count, told.ratio, told.low, told.high, told.verdict))
assert rows[0][3] - rows[0][2] > rows[2][3] - rows[2][2]
assert rows[2][4] == "faster"
ql.table(rows, ["calls of each", "times as fast", "low", "high", "verdict, 99 %"])

# %% [markdown]
# An interval that holds 1 means *no difference was shown*. It does not mean that there is none, and "1.04 times faster" without an interval means nothing at all.
#
# ## The control: what must not be claimed
#
# A judge is trusted if it says "no difference" about A and A, and refuses samples that are no comparison. But can it be fooled all the same? Below, the same kernel
# on cold weights is timed 200 times alone, then 200 times while a *neighbor*, another process, reads memory. One after another, as most people do it.

# %% tags=["control"]
assert compare(stored["A"], stored["A again"]).verdict == "no difference"
assert complaints(stored["A"]) == []
try:
    check_samples(stored["no warm-up"])
except ValueError as reason:
    refused = str(reason)
print("A against A:", compare(stored["A"], stored["A again"]).verdict)
print("without warm-up: refused,", refused.split(":")[0])
assert refused.startswith("taken without warm-up")
turns = {
    "one after another": ("alone", "with a neighbor"),
    "alternating": ("first of two", "second of two"),
}
verdicts = {name: compare(stored[x], stored[y]) for name, (x, y) in turns.items()}
rows = [(name, v.ratio, v.low, v.high, v.verdict) for name, v in verdicts.items()]
assert [v.verdict for v in verdicts.values()] == ["faster", "no difference"]
ql.table(rows, ["the kernel against itself", "times as fast", "low", "high", "verdict, 99 %"])

# %% [markdown] tags=["predict"]
# With 99 % confidence the kernel beats itself! The interval is right about what it was asked: those 200 calls *were* faster. It cannot know that the machine
# had changed. **Statistics repair small samples, not a bad design.** In the second row the neighbor woke up in the middle, just as rudely, but A and A
# took turns, so it hit both.
#
# ## The 16 millisecond plateau
#
# A container with one core's worth of processor time on a two-core machine. Three products, 4096 x 4096: float32, bfloat16, int8. With two threads the
# program spends its allowance twice as fast, and then it is stopped until the next period. (Emulated: 32 ms periods, two threads used up after 16 ms, the
# process stopped by a signal for the other 16.)
#
# **Predict.** Two threads against one: who wins by the median, and who by the total time?

# %%
rows = []
for kind in ("float32", "bfloat16", "int8"):
    one, two = (stored[f"quota, {kind}, {n} threads"] for n in (1, 2))
    stopped = two > np.median(two) + 0.008
    plateau = np.median(two[stopped]) - np.median(two)
    rows.append(
        (kind, compare(two, one).ratio, one.sum() / two.sum(), 1e3 * plateau, 100 * stopped.mean())
    )
titles = ["2 threads against 1", "by the median", "by the sum", "a stop, ms", "% of calls stopped"]
print(ql.table(rows, titles))
assert all(15.5 < row[3] < 18 for row in rows)
assert all(row[2] < 0.9 * row[1] for row in rows)
timing_dots({kind: stored[f"quota, {kind}, 2 threads"] for kind, *_ in rows})

# %% [markdown]
# On the right, each curve is level (the kernel) and then jumps to a plateau 16 to 17 ms higher, *the same step for all three*. On a plot from 0 to 20 ms all three would seem to take
# "16 ms or so". That step is no property of any kernel: it is how long the program stood still. A slow kernel meets it more often, so its p90 looks terrible; a fast one hides it in its last percent. The median does not see
# it at all. **The sum does**, and the sum is what a user pays.
#
# The real thing has periods of 100 ms (`cpu.cfs_quota_us`, Docker's `--cpus`). Ask for it with `cat /sys/fs/cgroup/cpu.max`, and set threads to the quota, not to the cores.

# %% [markdown] tags=["myth"]
# ### Myth G20: More threads are faster
#
# **Claim.** "Two threads are up to twice as fast; more cannot hurt."
#
# **Predict.** Which of four cases gain at least a quarter: weights in the caches, weights from memory, bfloat16 under the quota by the median, and by the sum?

# %% tags=["myth"]
one, two = stored.machine.limit(1).read, stored.machine.limit(2).read
halves = stored["quota, bfloat16, 1 threads"], stored["quota, bfloat16, 2 threads"]
gains = {
    "reading from L2": two["L2"] / one["L2"],
    "reading from memory": two["memory"] / one["memory"],
}
gains |= {"quota, by the median": np.median(halves[0]) / np.median(halves[1])}
gains |= {"quota, by the sum": halves[0].sum() / halves[1].sum()}
for name, gain in gains.items():
    print(f"{name}: {'a quarter faster or more' if gain > 1.25 else 'no gain'}")
assert [gain > 1.25 for gain in gains.values()] == [True, False, True, False]
print("more threads help where each has something of its own")

# %% [markdown] tags=["myth"]
# Verdict: **only where a core brings its own resource**: arithmetic, its own caches. Memory is shared, and so is a quota. On a loaded machine it gets worse: threads
# that wait for one another wait for the slowest. GPTQ of a 1024 x 1024 layer once took us 9.29 s with two threads and 0.58 s with one.
#
# ### Myth 001-17: Evaluate "performance" with a benchmarking tool
#
# **Claim.** "A tool measures the performance of a quantized model." **Predict.** Here are one table of quality and one of speed for the same products. Do they agree on who is best?

# %% tags=["myth"]
product = Product.random(256, 1024, batch=4, seed=24)
exact = product.x.double() @ product.weight.double().T
quality = {"float32": product.x @ product.weight.T}
for bits, matmul in ((8, ql.int8_matmul), (4, ql.int4_matmul)):
    packed = ql.rtn(product.weight, ql.Scheme(bits, 32)).pack()
    quality[f"W{bits}A16"] = matmul(product.x, packed)
    quality[f"W{bits}A8"] = matmul(product.x, packed, activation_bits=8)
errors = {n: 100 * ((y - exact).norm() / exact.norm()).item() for n, y in quality.items()}
least = {name: {"f": 32, "8": 8.5, "4": 4.5}[name.strip("W")[0]] for name in quality}
speed = {n: limits.read["memory"] / (1e9 * bits / 8) for n, bits in least.items()}
rows = [(n, errors[n] if errors[n] > 0.01 else "below 0.01", speed[n]) for n in quality]
print(
    ql.table(rows, ["product", "quality: error, %", "speed: tokens/s at most, 1e9 weights"], sig=2)
)
assert min(errors, key=errors.get) == min(speed, key=speed.get) == "float32"
print("the best of one table is the last of the other: two measurements, two protocols")

# %% [markdown]
# Verdict: **two questions.** Quality needs a test set, error bars over texts, and no clock (module 11). Speed needs a clock, a quiet machine, and no test set, only
# a check that the result is right. And myth 001-8, "quantization speeds up inference": the slope of the roof says when it *may*. A kernel that unpacks first never touches the roof.
#
# ## Your machine
#
# `Machine.measure` reads and multiplies in plain loops to find your roof; `race` lets contestants take turns. `quantlab bench` does all of this for many shapes and peers.

# %% tags=["nbval-ignore-output"]
mine = Machine.measure((1,), seconds=0.01)
entries = {
    c.name: c.prepare(1) for c in own_contestants(Product.random(1024, 1024), [ql.Scheme(4, 32)])
}
taken = {
    name: np.concatenate(rounds) for name, rounds in race(entries, rounds=8, turn=0.005).items()
}
print(mine)
rows = [
    (n, *(1e6 * t for t in (s.p10, s.median, s.p90)), not complaints(x))
    for n, x in taken.items()
    for s in [summarize(x)]
]
print(ql.table(rows, ["1024 x 1024, µs", "p10", "median", "p90", "fair"]))
print("W4A8 against W4A16:", compare(*reversed(taken.values())))

# %% [markdown]
# **In the wild.** `llama-bench` states batch and threads and gives mean ± deviation, with a warm-up run; look at the deviation first. MLPerf Inference fixes scenario, quality target and
# percentile. `torch.utils.benchmark` reports median and interquartile range and sets threads to 1 unless told otherwise: ask which it was. On a GPU a call returns
# before it is done; time with events, or after `torch.cuda.synchronize()`.
#
# 💡 **A good line of a report:** "W4A8 g32, 4096 x 4096, batch 1, hot, 1 thread, [processor], median of 200 alternating calls, result checked, 1.90 times as fast as W4A16, 99 % interval 1.75 to 2.03."
#
# ## Exercises

# %% [markdown] tags=["exercise"]
# ### Exercise a: Tokens a second
# Difficulty: ●○○ · Importance: ●●● · 6 min
#
# `tokens_per_second(parameters, bits, bandwidth)`: the most that memory allows at batch 1; bandwidth in bytes a second. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("24_benchmarking.a")


def tokens_per_second(parameters, bits, bandwidth): ...


exercise.check(tokens_per_second)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Explain the plateau
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# `explain(samples)` gets the seconds of calls under a quota (a NumPy array). A call that took longer than the median + 8 ms was stopped; what it took *beyond the median* is the time of
# its stop. Return two numbers: the median time of a stop in seconds, and the part of all time in which the program really ran. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("24_benchmarking.b")


def explain(samples): ...


exercise.check(explain)

# %% [markdown] tags=["exercise"]
# ### Exercise c: The interval of a speed-up
# Difficulty: ●●○ · Importance: ●●● · 15 min
#
# `interval(a, b)`: the 95 % bootstrap interval (low, high) of median(b) / median(a), both NumPy arrays of seconds. Write it without `compare`. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("24_benchmarking.c")


def interval(a, b): ...


exercise.check(interval)

# %% [markdown] tags=["exercise"]
# ### Exercise d: The control
# Difficulty: ●●● · Importance: ●●● · 12 min
#
# `verdict(a, b)` returns `"faster"`, `"slower"` or `"no difference"` for a against b, or `"rejected"` if either was taken unfairly. It is tried on stored samples: A against A, and a cold start
# that must not pass. You may use `compare` and `complaints`. `hint()` and `solution()` help.

# %% tags=["exercise"]
exercise = ql.exercise("24_benchmarking.d")


def verdict(a, b): ...


exercise.check(verdict)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("24_benchmarking")

# %% [markdown]
# ## Summary
#
# - Predict first: at batch 1, tokens a second are at most bandwidth divided by the model's bytes.
# - The roofline has a slope (bytes) and a level (operations); a point above it is a measurement of something else.
# - Warm up, alternate, check the result, and run A against A: it must end in "no difference".
# - Report median, p10 and p90; a speed-up has an interval, or it is an anecdote.
# - Intervals repair small samples, never a bad design.
# - Times that are equal for different kernels are times of something else: a quota, a clock, a neighbor.

# %% [markdown]
# ## What we left out
#
# Frequency scaling and turbo; energy; serving many users (queues, continuous batching, time to first token); profilers and hardware counters; multiple comparisons: among twenty kernels
# and 95 % intervals, one "winner" is expected by chance.
#
# ## Sources
#
# - Williams, Waterman, Patterson, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*, Communications of the ACM 52(4), 2009.
# - Efron, Tibshirani, *An Introduction to the Bootstrap*, 1993. McCalpin, STREAM, 1995.
# - Linux kernel documentation, *CFS Bandwidth Control*. Reddi et al., *MLPerf Inference Benchmark*, arXiv 1911.02549.
# - The stored samples: `quantlab/kernels/stored_samples.json`; taken by `labs/experiments/timing_samples.py`.
