# %% [markdown]
# # Learned Rounding and Clipping: AdaRound, FlexRound, OmniQuant
#
# Duration: 90 min · runs in about 15 s on 2 CPU cores
#
# A weight lies between two levels. Down or up? With 65,536 weights in one small layer there are
# 2^65,536 answers, and nearest rounding is one of them. Here you let a gradient look for better ones,
# although rounding has no gradient, and you see what it found: weight by weight.
#
# ## Objectives
#
# After this module you can
#
# 1. write AdaRound's soft rounding h(V) and its penalty, and say why both are needed. (q1, q2)
# 2. compute a FlexRound code, and say what S2 moves and what it leaves alone. (q3, q4)
# 3. explain learned clipping: where it starts, which way it can go, what stays. (q5, q6)
# 4. judge a learned rounding by held-out data and by a control that must fail. (q7, q8)
#
# ## Prerequisites
#
# Modules 02 (grids), 03 (error measures) and 04 (output error tr(D M Dᵀ), GPTQ). What a gradient
# step is; no optimizer is derived here.

# %% [markdown] tags=["predict"]
# ## How good is nearest, among all roundings?
#
# Take real weights and real inputs: one linear layer of the storyteller and what it receives on
# calibration text. From each of its 256 rows we cut the first 12 weights, put them on a 3-bit grid,
# and try *all* 2¹² ways to round each weight to one of its two neighbors.
#
# ```
#   level   ──●────────●────────●────────●──
#                  ↙ w ↘                        down or up: 2 choices, 12 weights, 4,096 ways
# ```
#
# **Predict.** In how many of the 256 rows is nearest the best of the 4,096? And how many of the
# others beat it, in a typical row: one, ten, a hundred?

# %%
import torch

import quantlab as ql
from quantlab.block import Block
from quantlab.models.families import find_blocks
from quantlab.walk import walk

model, tokenizer = ql.load("storyteller")
model.double().requires_grad_(False)
linear = model.model.layers[1].self_attn.o_proj
seen = []
hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
model(ql.calibration_set(tokenizer, samples=8))
model(ql.test_set(tokenizer, samples=8))
hook.remove()
W, (x, test) = linear.weight.detach(), seen
print(f"W {tuple(W.shape)}, {len(x)} inputs to learn from, {len(test)} to judge")

# %%
three = ql.Scheme(bits=3)
choices = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 12)


def all_roundings(rows, M):
    """Return for each row how many roundings beat nearest, and what share the best saves."""
    better, saved = [], []
    for row in rows:
        scale, zero = three.grid(row[None])
        D = scale * ((row / scale).floor() + choices).clamp(-zero, 7 - zero) - row
        errors = ((D @ M) * D).sum(1)
        nearest = ql.output_error(row[None], ql.rtn(row[None], three).dequantize(), M)
        better.append((errors < nearest * (1 - 1e-9)).sum().item())
        saved.append(1 - errors.min().item() / nearest)
    return torch.tensor(better), torch.tensor(saved)


better, saved = all_roundings(W[:, :12], ql.second_moment(x[:, :12]))
best, share = (better == 0).sum().item(), ql.digits(100 * saved.median().item(), sig=2)
print(f"nearest is the best of 4,096 in {best} of 256 rows")
print(f"middle row: {better.median().item()} roundings beat it, and the best saves {share} %")

# %% [markdown] tags=["predict"]
# Only twelve weights, and already three rows in four have something better than nearest. Trying everything ends here:
# each further weight doubles the work. GPTQ takes the weights one by one and never looks back. The
# three methods of this module look at all of them together, and follow a gradient.
#
# ## AdaRound: make the choice soft, then make it choose
#
# **The parametrization.** Each weight gets a number V and is rounded *down plus a share h of one step*:
#
# $$Q = s\,\Big(\mathrm{clip}\big(\lfloor W/s\rfloor + h(V) + z,\;0,\;N\big) - z\Big), \qquad h(V)=\mathrm{clip}\big(1.2\,\sigma(V)-0.1,\;0,\;1\big).$$
#
# h is smooth, so V has a gradient: dQ/dV = s·1.2·σ(V)(1 − σ(V)) while 0 < h < 1. We start V where h is the
# weight's own fraction: then Q *is* W, clipped, and the loss starts near 0. The grid never moves.
#
# **The penalty.** With h free, everything would stay in the middle, where the loss is 0 and nothing is
# quantized. So we add
#
# $$f(V)=\sum\nolimits_{ij} 1-|\,2h(V_{ij})-1\,|^{\beta},$$
#
# which is 0 only where every h is 0 or 1. β falls from 20 to 2 during training. A large β is flat nearly
# everywhere, so V may still wander; later the sides grow steep, and each weight has to decide.
#
# **Predict.** A plain sigmoid would also go from 0 to 1. Why stretch it by 1.2 and cut it off? Look at the
# column h for V = 3, and at β = 20 and 2 for h a little off the middle.

# %%
from quantlab.methods.adaround import rectified_sigmoid, rounding_penalty

V = torch.tensor([-3.0, -1.2, -0.2, 0.0, 0.2, 1.2, 3.0], dtype=torch.float64)
rows = []
for v in V:
    penalties = [rounding_penalty(v[None], beta).item() for beta in (20.0, 2.0)]
    rows.append((v.item(), torch.sigmoid(v).item(), rectified_sigmoid(v).item(), *penalties))
assert rectified_sigmoid(torch.tensor(3.0)) == 1 > torch.sigmoid(torch.tensor(3.0))
print(ql.show(rectified_sigmoid))
ql.table(rows, ["V", "sigmoid", "h", "penalty, beta 20", "penalty, beta 2"])

# %% [markdown]
# At V = 3 the plain sigmoid still says 0.95, and it would take V = ∞ to say 1, with a gradient that dies on
# the way. The stretched one reaches 1 exactly at V = ln 11 = 2.4. And at V = 0.2 the penalty with β = 20 is
# flat, while β = 2 already pulls.
#
# ## Three hundred steps
#
# Library code does the training; it is one loop for all methods of this module and the next
# (`quantlab/training.py`): Adam, a rate that falls as a cosine, one batch a step. We hand it a block
# that is a single linear and 8 batches of 256 tokens. The error is that of the layer's output,
# E|(Q − W)x|², on the tokens it learned from and on *other* text.

# %%
scheme = ql.Scheme(bits=3, group_size=64)


def one_linear(W, x):
    """Return a block of one linear, with batches of 256 inputs and their float outputs."""
    module = torch.nn.Sequential(torch.nn.Linear(*W.T.shape, bias=False, dtype=W.dtype))
    module[0].weight.data.copy_(W)
    calls = [((part[None],), {}) for part in x.split(256)]
    targets = [module(*args).detach() for args, _ in calls]
    return Block(module, {"0": module[0]}, calls, calls, targets)


def learn(method, W, x, scheme=scheme):
    """Return the linear quantized by a method that learns."""
    return method.quantize_block(one_linear(W, x), scheme)["0"]


def percent(q, inputs):
    """Return an output error, that of rounding to nearest being 100."""
    near = inputs @ (ql.rtn(W, scheme).dequantize() - W).T
    return 100 * ((inputs @ (q.dequantize() - W).T).norm() / near.norm()).item() ** 2


# %%
ada = learn(ql.AdaRound(iterations=300), W, x)
nearest = scheme.encode(W, ada.scale, ada.zero_point)  # on AdaRound's own grid
turned = (ada.codes != nearest).double().mean().item()
gptq = ql.gptq(W, ql.second_moment(x), scheme)
same_grid = ql.QuantizedTensor(nearest, ada.scale, ada.zero_point, scheme)
kept = {
    "RTN": ql.rtn(W, scheme),
    "nearest, AdaRound's grid": same_grid,
    "GPTQ": gptq,
    "AdaRound": ada,
}
assert percent(ada, test) < 0.8 * percent(same_grid, test)  # not the grid: the choices
print(f"turned away from nearest: {ql.digits(100 * turned, sig=3)} % of the weights")
rows = [(name, percent(q, x), percent(q, test)) for name, q in kept.items()]
ql.table(rows, ["% of RTN's output error", "learned from", "held out"])

# %% [markdown] tags=["predict"]
# The second row is the honest baseline: AdaRound's grid comes from a search of its own, so part of its
# gain over RTN is only a better grid. The rest is the choices: one weight in eight is turned.
#
# ## Which weights did it turn, and what did each save?
#
# A piece of 8 rows and 32 inputs fits on a screen. We learn its rounding alone, then go back to nearest
# and turn the learned weights one by one, each time the one that saves most.
#
# **Predict.** Are the turned weights spread evenly, or do they lie near the middle between two levels?
# And does *every* turned weight lower the error by itself?

# %% tags=["signature"]
piece, inputs = W[:8, :32], x[:, :32]
small = learn(ql.AdaRound(iterations=1000), piece, inputs, three)
rounding = ql.widgets.RoundingMap(piece, small, ql.second_moment(inputs))
steps, errors = len(rounding.errors) - 1, rounding.errors
share, harm = (
    ql.digits(100 * errors[-1] / errors[0], sig=2),
    (torch.tensor(errors).diff() > 0).sum().item(),
)
print(f"{steps} of {piece.numel()} weights turned; {share} % of nearest's error is left")
print(f"on this way {steps - harm} of the turns lower the error, {harm} raise it")
rounding

# %% [markdown]
# Dark cells are weights near the middle: turning them is cheap, and most arrows stand there. A lighter cell
# that was turned all the same pays a price for its neighbors: which weights to turn depends on which others are
# turned, so no rule for one weight finds them. The curve shows it too: near its end some turns *raise* the error,
# and only the next ones take more back. A search that accepts nothing but improvements would have stopped there.
#
# ## FlexRound: divide before rounding
#
# AdaRound can only reach the two neighbors. FlexRound gives each weight a divisor, and each row one more:
#
# $$Q = s_1\,\Big(\mathrm{clip}\big(\mathrm{round}\big(W/(s_1\,S_2\,s_3)\big)+z,\;0,\;N\big) - z\Big).$$
#
# Nothing is multiplied back: S₂ moves a *weight* across thresholds, s₁ moves the *levels*. All start at
# 1 (we learn logarithms, as the authors' code does, so that they stay positive). The gradient goes **straight through**
# the rounding, d round(x) = dx, where the code is not clipped. Then dQ/d log S₂ = −W/(S₂ s₃): a step of
# the divisor moves a weight *in proportion to its size*. Large weights, which matter most, travel furthest.
#
# | | learned | reaches | gradient through rounding | what stays (the fold) |
# |---|---|---|---|---|
# | AdaRound | V | two neighbors | none needed: h is smooth | ⌊W/s⌋ + [h ≥ ½] |
# | FlexRound | s₁, S₂, s₃ | any level | straight through | codes and s₁ |
# | LWC | two numbers a group | nearest, on a narrower grid | straight through | codes, s, z |

# %%
from quantlab.methods.flexround import FlexRoundWeight
from quantlab.training import straight_through

w = torch.tensor([[0.42, -0.77, 0.10, 0.25]], dtype=torch.float64)
flex = FlexRoundWeight(w, ql.Scheme(bits=8))
flex().sum().backward()
print("dQ / d log S2 =", ql.digits(flex.log_S2.grad[0], sig=3))
assert flex.log_S2.grad.equal(-w)
rows = []
for S2 in (0.8, 0.95, 1.0, 1.1, 1.3):  # by hand, s1 = 0.1, 4 bits, z = 8
    code = straight_through(w[0, :1] / (0.1 * S2)).clamp(-8, 7) + 8
    rows.append((S2, 0.42 / (0.1 * S2), int(code), 0.1 * (int(code) - 8)))
ql.table(rows, ["S2", "0.42 / (s1 S2)", "code", "stands for"])

# %% [markdown] tags=["predict"]
# ## LWC: learn where to clip
#
# OmniQuant's *learnable weight clipping* leaves rounding alone and moves only the two ends of each group's
# range:
#
# $$s=\frac{\sigma(g)\max W-\sigma(b)\min W}{N},\qquad z=\mathrm{round}\big(-\sigma(b)\min W/s\big),\qquad Q=s\,(\mathrm{clip}(\mathrm{round}(W/s)+z,0,N)-z).$$
#
# g and b start at 4. Then all methods run on the same linear, for the same 300 steps. **Predict.** (1) How wide is the range before the first step, as a share of the full one?
# (2) The loss would like a *wider* range; how wide can it get? (3) With exp in place of σ, as
# AdaScale has it (module 15), what would change in (1) and (2)?

# %%
from quantlab.methods.omniquant import OmniQuantWeight

asymmetric = ql.Scheme(bits=3, group_size=64, symmetric=False)
weight = OmniQuantWeight(W, asymmetric)
groups = asymmetric.group(W)
full, _ = asymmetric.grid(groups)
step, _ = weight.grid(groups)
rows = [("4 (the start)", (step / full).mean().item())]
for value in (0.0, 2.0, 40.0):
    weight.g.data.fill_(value), weight.b.data.fill_(value)
    rows.append((value, (weight.grid(groups)[0] / full).mean().item()))
widest = weight.grid(groups)[0]  # at 40 the sigmoid is 1: the full range, and no more
assert (widest <= full * (1 + 1e-12)).all()
print(ql.table(rows, ["g = b", "share of the full range"]))
kept["FlexRound"] = learn(ql.FlexRound(iterations=300), W, x)
kept["LWC"] = learn(ql.OmniQuant(iterations=300), W, x)
error = {name: (percent(q, x), percent(q, test)) for name, q in kept.items()}
for name in ("AdaRound", "FlexRound"):
    assert error[name][1] < 0.9 * error["LWC"][1] < 0.9 * error["RTN"][1]
rows = [(name, *pair) for name, pair in error.items()]
ql.table(rows, ["% of RTN's output error", "learned from", "held out"])

# %% [markdown]
# The range starts at σ(4) = 0.982, and no g makes it wider than the full one. With exp in place of σ it would
# start at the full range and could also grow. LWC has one or two numbers a group and cannot choose for a single weight: it gains least, and nearly
# all of its gain is a better grid. AdaRound and FlexRound have one number a *weight*: they gain most, and the gap
# between the two columns shows what was learned by heart.
#
# (OmniQuant's other half, *learnable equivalent transformation* or LET, learns AWQ's input scales together with
# the clipping and folds them into the norm before. A single linear has no norm, so here only LWC acts.)
#
# And GPTQ? On a single linear it does as well, in a hundredth of the time: it solves the very problem that the
# others descend. What it cannot do is look beyond its own layer, and that comes next.
#
# 💡 *Take at least eight tokens for each input of a layer (here 2,048 for 256), and judge by text that was not learned from.*
#
# ## A whole block at once
#
# The paper of AdaRound trains layer after layer. BRECQ showed that it pays to train the layers of a block
# together, on the *block's* output: an error of the values can be taken back by the projection behind them.
# Every `quantize_block` here does so. Sixty steps of FlexRound on the first block of the storyteller,
# 16 windows of 64 tokens. The loss before and after, on another 8 windows:


# %%
def block_error(block, tensors):
    """Return the squared error of a block's outputs, float weights replaced by these."""
    new = {f"{name}.weight": q.dequantize() for name, q in tensors.items()}
    calls = zip(block.inputs, block.targets, strict=True)
    return sum(
        (torch.func.functional_call(block.module, new, *call)[0] - y).square().sum().item()
        for call, y in calls
    )


def first_block(tokens):
    """Return the first block with its inputs and targets."""
    return next(walk(model, find_blocks(model), tokens, batch_size=1, wants_targets=True))


calibration = ql.calibration_set(tokenizer, samples=16)[:, :64]
block, unseen = first_block(calibration), first_block(ql.test_set(tokenizer, samples=8)[:, :64])
plain = {name: ql.rtn(one.weight, scheme) for name, one in block.linears.items()}
trained = ql.FlexRound(iterations=60).quantize_block(block, scheme)
shares = [block_error(b, trained) / block_error(b, plain) for b in (block, unseen)]
assert shares[1] < 0.9
rows = [(100 * shares[0], 100 * shares[1])]
ql.table(rows, ["% of RTN's block error, learned from", "held out"])

# %% [markdown]
# ## The control that must fail
#
# Three hundred steps with 65,536 free numbers could fit almost anything. Does the gain come from *these*
# inputs? We shuffle the channels of the inputs by one permutation: the same numbers, the same correlations,
# but for the wrong columns of W. If AdaRound still gained on the true inputs, the inputs would not be where its gain comes from.

# %% tags=["control"]
import numpy as np

rows = [("true channels", percent(ada, test))]
for seed in (0, 1):
    order = torch.tensor(np.random.default_rng(seed).permutation(256))
    wrong = learn(ql.AdaRound(iterations=100), W, x[:, order])
    judged = percent(wrong, test)
    assert judged > 1.1 * percent(same_grid, test)  # the gain is gone, and it does harm
    rows.append((f"shuffled, seed {seed}", judged))
rows.append(("nothing: nearest, its grid", percent(same_grid, test)))
ql.table(rows, ["AdaRound learned from", "% of RTN's output error, held out"])

# %% [markdown] tags=["myth"]
# ## Myth G13: rounding to nearest is optimal
#
# **Claim.** "Each weight goes to its nearest level, so the error cannot be smaller."
#
# **Predict.** It cannot be smaller *for which inputs*? In the cell, the 256 rows from the beginning, once with
# inputs that have nothing to do with each other (M = identity), and once with the real ones.

# %% tags=["myth"]
white, _ = all_roundings(W[:, :12], torch.eye(12, dtype=torch.float64))
assert (white == 0).all()  # uncorrelated inputs of equal size: nearest is best, in every row
assert best < 128  # real inputs: in the smaller part of the rows
assert turned > 0.05
print(f"nearest is best in {(white == 0).sum().item()} of 256 rows for unrelated inputs")
print(f"and in {best} of 256 for the real ones. Verdict: G13 is false")
print("Source: Nagel et al. 2020, section 3; the mixed terms of D M D^T")

# %% [markdown]
# ## What they cost, and what they win
#
# | | GPTQ | AdaRound, FlexRound, OmniQuant |
# |---|---|---|
# | needs | second moments of inputs | inputs and float outputs of each block, gradients inside the block |
# | time for the storyteller | seconds | a minute (300 steps a block) |
# | knobs | damping, order | steps, rates, penalty, data |
# | changes | codes | codes; FlexRound and LWC also the scales |
#
# `labs/experiments/methods.py` compares all of them on whole models with error bars; the README has its table.
#
# 💡 *AdaRound's rate and strength are not decoration: if the penalty is too weak for the number of steps, most h
# end in the middle, and the final cut at ½ undoes what was learned. The paper takes 10,000 small steps; for 300, V
# needs a rate near 0.1 to travel from one end to the other at all.*
#
# **In the wild.** AIMET ships AdaRound and sequential block-wise variants; OpenGVLab/OmniQuant is the authors'
# code; Intel's auto-round learns rounding *and* clipping with signed gradient steps, and llm-compressor can run
# it. All of them store ordinary codes and scales: the engine that runs the model cannot tell how the codes were found.

# %% [markdown]
# ## Exercises

# %% [markdown] tags=["exercise"]
# ### Exercise a: h(V) and its penalty
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `soft(V, beta)` for two floats: return `(h, f)`, the share of a step upwards and the penalty of this
# one weight. Use `math.exp`. Stuck: `hint()`, then `solution()`.

# %% tags=["exercise"]
exercise = ql.exercise("14_learned_rounding.a")


def soft(V, beta): ...


exercise.check(soft)
# exercise.hint()
# exercise.solution()

# %% [markdown] tags=["exercise"]
# ### Exercise b: a FlexRound code
# Difficulty: ●●○ · Importance: ●●● · 8 min
#
# Write `flex(w, s1, S2, bits)` for one weight on a symmetric grid (zero point 2^(bits − 1), codes from 0; s₃ = 1;
# s₁ may be negative): return `(code, value)`. `hint()` and `solution()` as always.

# %% tags=["exercise"]
exercise = ql.exercise("14_learned_rounding.b")


def flex_code(w, s1, S2, bits): ...


exercise.check(flex_code)
# exercise.hint()
# exercise.solution()

# %% [markdown] tags=["exercise"]
# ### Exercise c: LWC's sigmoid against exp
# Difficulty: ●●○ · Importance: ●●○ · 10 min
#
# Write `lwc(low, high, g, b, bits, kind)` for a group from `low` < 0 to `high` > 0: return `(step, zero point)` of the range
# [factor(b)·low, factor(g)·high], where factor is the sigmoid if `kind == "sigmoid"` and exp if `kind == "exp"`. Then
# look at both for g = b = 0. `hint()` and `solution()` as always.

# %% tags=["exercise"]
exercise = ql.exercise("14_learned_rounding.c")


def lwc(low, high, g, b, bits, kind): ...


exercise.check(lwc)
# exercise.hint()
# exercise.solution()

# %% [markdown] tags=["exercise"]
# ### Exercise d: the control, written by you
# Difficulty: ●●● · Importance: ●●● · 12 min
#
# `learn(W, inputs)` returns a rounded W (3 bits, one scale a row). Write `control(learn, W, x, test, order)`: learn once from
# `x`, once from `x` with its channels shuffled by `order`; return a list of two numbers, the output errors on `test`, each
# divided by that of `ql.rtn` with `ql.Scheme(bits=3)`. The first should be below 1, the second should not. `hint()` and
# `solution()` as always.

# %% tags=["exercise"]
exercise = ql.exercise("14_learned_rounding.d")


def control(learn, W, x, test, order): ...


exercise.check(control)
# exercise.hint()
# exercise.solution()

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("14_learned_rounding")

# %% [markdown]
# ## Summary
#
# - Nearest rounding is best for unrelated inputs; real inputs are related, and most rows have better choices.
# - AdaRound: down plus h(V) of a step, h = clip(1.2 σ(V) − 0.1, 0, 1), and a penalty that empties the middle.
# - FlexRound: divide by s₁ S₂ s₃ before rounding, multiply by s₁ alone; gradients go straight through.
# - LWC: two sigmoids a group; starts at σ(4) = 0.982 of the range, and can only shrink it.
# - What stays is always codes and a grid; everything learned is folded away.
# - Held-out text and a shuffled control tell learning from luck.

# %% [markdown]
# ## What we left out
#
# OmniQuant's shifts and its transformation between queries and keys; FlexRound for convolutions (a fourth
# factor; AdaScale in module 15 has it); AdaRound's derivation from a Taylor expansion of the task loss;
# activation quantization during training (QDrop); signed-gradient variants.

# %% [markdown]
# ## Sources
#
# - Nagel, Amjad, van Baalen, Louizos, Blankevoort, *Up or Down? Adaptive Rounding for Post-Training Quantization*, ICML 2020, arXiv:2004.10568.
# - Li, Gong, Tan et al., *BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction*, ICLR 2021, arXiv:2102.05426.
# - Lee, Kim, Kwon, Lee, *FlexRound: Learnable Rounding based on Element-wise Division*, ICML 2023, arXiv:2306.00317.
# - Shao, Chen, Zhang et al., *OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models*, ICLR 2024, arXiv:2308.13137; OpenGVLab/OmniQuant `quantize/quantizer.py` (initial value 4).
