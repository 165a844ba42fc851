# %% [markdown]
# # Rotations: Hadamard, QuaRot, SpinQuant
#
# Duration: 90 min · runs in about 25 s on 2 CPU cores
#
# A loud channel spoils the grid for all quiet ones. Module 5 scaled it down, and had to know which one it was. A rotation need not know:
# it deals every number out evenly over all coordinates. If the model turns back wherever it must, nobody can tell that anything was turned,
# except the quantizer.
#
# ## Objectives
#
# After this module you can
#
# 1. compute a Hadamard transform by sums and differences, and say what it costs. (q1, q5)
# 2. measure how evenly numbers are spread, and predict when a rotation cannot help. (q2, q7)
# 3. fold a rotation into a model in the right order and places, and prove that its function stays. (q3, q4, q6)
# 4. take a step among rotations that stays one, and learn R on the quantized loss. (q8)
#
# ## Prerequisites
#
# Modules 02 (grids), 03 (clipping) and 05 (folding). Module 22 treats the KV cache at length.

# %% [markdown] tags=["predict"]
# ## One loud number, turned
#
# A token has four activations, one of them loud, and a linear layer takes their product with w:
#
# ```
#   x = ( 16.0,  0.9, -0.6,  0.4 )        4-bit grid: step 16 / 8 = 2, so the three quiet ones become 0
#   w = (  0.1,  1.0, -1.0,  1.0 )        y = w · x
# ```
#
# Let R be a rotation: R Rᵀ = 1. Turn both, x R and w R: the product is the same, because (w R)(x R)ᵀ = w R Rᵀ xᵀ = w xᵀ. What we round is another vector.
#
# **Predict.** R holds only ±1/2. What do the four numbers look like after the turn, how fine is their grid, and what becomes of y?

# %%
import torch

import quantlab as ql
from quantlab.sim.dynamic import round_tokens

A4 = ql.Scheme(bits=4)
x = torch.tensor([16.0, 0.9, -0.6, 0.4], dtype=torch.float64)
w = torch.tensor([0.1, 1.0, -1.0, 1.0], dtype=torch.float64)
R = ql.hadamard_matrix(4) / 2
rows = []
for name, turn in (("as it is", torch.eye(4, dtype=torch.float64)), ("turned", R)):
    y, v = x @ turn, w @ turn
    step = A4.grid(y)[0].abs().item()
    numbers = ", ".join(ql.digits(value) for value in y.tolist())
    rows.append((name, numbers, step, (y @ v).item(), (round_tokens(y, A4) @ v).item()))
print((2 * R).int().tolist())
ql.table(rows, ["x", "numbers to round", "step", "w·x", "after rounding x"])

# %% [markdown]
# The loud number was shared out: four numbers of about 8, a grid twice as fine, and what distinguished them survives. In n dimensions a lone spike
# of size a becomes n numbers of size a/√n. QuIP's measure for it is the *incoherence* μ: the largest entry over the root mean square of all entries.
# It is 1 for numbers of one size and √n for a lone spike, and the step of a grid is proportional to it.
#
# ## Hadamard matrices, without multiplications
#
# ```
#   H1 = [1]      H2 = [1  1]      H2n = [Hn  Hn]          entries ±1, rows orthogonal: H Hᵀ = n·1
#                      [1 -1]            [Hn -Hn]
# ```
#
# The recursion is an algorithm: at distance 1, 2, 4 … replace each pair (a, b) by (a + b, a − b). That is k stages of n additions for n = 2ᵏ.
# Our down_proj reads 768 = 12 · 64 numbers, no power of two. There are Hadamard matrices of order 12, though: Paley built them in 1933 from the squares
# modulo 11. Then H768 = H12 ⊗ H64: the 768 numbers as a 12 × 64 table, H12 along one axis and six stages along the other.
#
# **Predict.** How many additions does a matrix of ±1 need for 768 numbers, and how many does the split need?

# %%
import numpy as np

from quantlab.hadamard import butterflies, residues, split

print(ql.show(butterflies))
rows = []
for n in (4, 32, 256, 768, 14336):
    m = split(n)
    stages = (n // m).bit_length() - 1
    rows.append((n, f"{m} x 2^{stages}", n * n, n * (m + stages if m > 1 else stages)))
print(ql.table(rows, ["n", "split", "additions, as a matrix", "split and staged"]))
print("first row of H12 below its ones:", residues(11)[0].int().tolist(), "(0 becomes 1)")
H, v = ql.hadamard_matrix(768), torch.randn(5, 768, dtype=torch.float64)
print("H H' = 768:", torch.equal(H @ H.T, 768 * torch.eye(768, dtype=torch.float64)))
print("fast = slow:", torch.allclose(ql.hadamard_transform(v), v @ H.T / 768**0.5, atol=1e-12))

# %% [markdown]
# Not every multiple of four has such a simple construction (an error message names the nearest orders), and whether one exists for *every* multiple of four is
# unproved. A rotation drawn uniformly among all of them works for every n but costs n² multiplications at run time. Folded into weights both cost nothing.
#
# ## Turn a vector by hand
#
# The slider turns a vector gradually: every stage uses the matrix ((cos, sin), (sin, −cos)), so that 45° is the Hadamard transform. Three vectors: a real
# activation of the outlier variant (module 05: six channels of each norm planted 32 or 64 times louder), the same after its norm's gain was folded away, and Gaussian noise.
#
# **Predict.** For which of the three does the rounding error fall, and where is it back at 90°?

# %%
(plain, tokenizer), planted = ql.load("storyteller"), ql.load("storyteller-outlier")[0]
plain.double(), planted.double()  # a number near a rounding boundary falls to one side everywhere
text = ql.calibration_set(tokenizer, samples=2)


def inputs(model, path="model.layers.1.self_attn.q_proj"):  # (tokens, channels)
    seen = []
    layer = model.get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(text)
    hook.remove()
    return seen[0].flatten(0, 1).double()


loud = inputs(planted)
gain = planted.model.layers[1].input_layernorm.weight.detach().double()
noise = torch.tensor(np.random.default_rng(0).standard_normal(256))
ql.widgets.VectorRotator({"loud token": loud[40], "gain folded": (loud / gain)[40], "noise": noise})

# %% [markdown]
# A small turn makes the loud token worse: the loud numbers leak to their neighbors and are hardly smaller themselves. Its error is least around 45° and rises again: at 90° the transform
# only reverses the order. Many rotations that mix thoroughly will do; 45° is the one without multiplications. Noise stays noise at every angle, and a vector that is even already has nothing to gain.
#
# ## Where a rotation may stand
#
# Between two blocks of a Llama runs the *residual stream*. It is written by the embedding, o_proj and down_proj, and read, through an RMSNorm, by q, k, v,
# gate, up and the head. RMSNorm divides by a length and multiplies by gains g:
#
# $$\mathrm{norm}(x)=\frac{x}{\mathrm{rms}(x)}\,\mathrm{diag}(g),\qquad \mathrm{rms}(xR)=\mathrm{rms}(x),\qquad \frac{xR}{\mathrm{rms}(xR)}=\frac{x}{\mathrm{rms}(x)}\,R .$$
#
# Without gains, the turn passes. With gains it does not: diag(g) R ≠ R diag(g). So the order is: **first** fold g into the columns of all readers, **then** turn.
# With rows as vectors, y = x Wᵀ:
#
# | module | new weight | why |
# |---|---|---|
# | embedding | E R | its rows are stream vectors |
# | q, k, v, gate, up, head | (W diag(g)) R | reads x R: (x R)(W R)ᵀ = x Wᵀ |
# | o, down | Rᵀ W | writes y R |
# | v, o, per head | R₂ᵀ W_v, W_o R₂ | values pass the softmax unmixed within a head |
# | q, k | nothing within a head | RoPE turns pairs by position: no other turn commutes |
# | down's input | Hadamard *online* | SiLU and the product stand before it |
#
# The tied embedding cannot stay tied: the head absorbs the last gain, the embedding must not. `rotate_` gives the model a head of its own (0.5 M more weights here)
# and says so; an alternative would keep it tied and turn at run time.
#
# **Predict.** By how much do logits change in float64? And if we turn *without* folding the gains first?

# %%
tokens, rows = ql.test_set(tokenizer, samples=1), []
with torch.no_grad():
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        for kind in ("hadamard", "random"):
            model, _ = ql.load("storyteller-outlier")
            before = model.to(dtype)(tokens)
            ql.rotate_(model, kind, seed=1)
            change = (model(tokens) - before).abs().max().item()
            assert change < limit
            rows.append((kind, str(dtype)[6:], f"below {limit:g}"))
ql.table(rows, ["rotation", "computed in", "largest change of a logit"])

# %% tags=["control"]
with torch.no_grad():
    wrong = ql.load("storyteller")[0].double()
    R = ql.rotation_matrix(256)
    for name, weight in wrong.named_parameters():
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        if weight.ndim == 2:  # every matrix is turned, every gain stays where it is
            weight.copy_(R.T @ weight if writes else weight @ R)
    change = (wrong(tokens) - plain(tokens)).abs().max().item()
assert change > 1
print("Hadamard, gains left in place: a logit changes by", ql.digits(change, sig=1))

# %% [markdown]
# ## How loud is each channel now?
#
# What does a linear have to round? We take the input of block 1's q, k, v in the outlier variant: as it is, with the gains folded (no turn yet), and turned.

# %%
cases = {"as it is": planted, "gains folded": None, "turned": None}
for name, kind in (("gains folded", "identity"), ("turned", "hadamard")):
    cases[name] = ql.load("storyteller-outlier")[0].double()
    ql.rotate_(cases[name], kind)
seen = {name: inputs(model) for name, model in cases.items()}


def relative(x, scheme=A4):
    """Return the rounding error of tokens, as a share of their energy."""
    return ((round_tokens(x, scheme) - x).square().sum() / x.square().sum()).item()


rows = [(k, x.abs().max().item(), ql.incoherence(x), 100 * relative(x)) for k, x in seen.items()]
print(ql.table(rows, ["inputs of q, k, v", "largest", "mu", "4-bit error, % of energy"]))
ql.plot.channel_sizes({name: x.abs().amax(0) for name, x in seen.items()})

# %% [markdown]
# An honest surprise: folding alone removes all that was planted, because it was planted *into the gains*. The rotation spreads what is left, the model's own
# unevenness. Large models have loud channels in the stream itself, which no fold removes; we shall make such a model below.
#
# ## W4A4KV4
#
# Now all of it: weights in 4 bits (one grid a row), every linear's input rounded to 4 bits with a grid for each token, keys and values to 4 bits with a grid for each
# head and token. `DynamicSim` rounds them as they arrive. Keys are rounded after RoPE, where no turn can be folded: `rotate_keys` transforms queries and keys
# online (together with the other online transforms, in the last two rows).
#
# **Predict.** Which step rescues the activations, and which the cache?

# %%
KV4 = ql.Scheme(bits=4, symmetric=False)
test = ql.test_set(tokenizer, samples=3)
reference = ql.log_probabilities(plain, test)


def kl(model, activations=None, cache=None, turn=False):
    """Return 1,000 times the KL from the float model."""
    sim = ql.DynamicSim(model, activations=activations, cache=cache, rotate_keys=turn)
    return round(1000 * ql.evaluate(sim, test, reference=reference).kl)


print("float model, storyteller-outlier, KL:", kl(planted))

# %% tags=["signature"]
steps = {
    "as it is": (None, False),
    "gains folded": ("identity", False),
    "folded, stream and values turned": ("hadamard", False),
    "folded, Hadamards online": ("identity", True),
    "folded, turned, Hadamards online": ("hadamard", True),
}
table = {}
for name, (kind, online) in steps.items():
    model = ql.load("storyteller-outlier")[0].double()
    if kind:
        ql.rotate_(model, kind, online=online)
    table[name] = [kl(model, A4), kl(model, None, KV4, online)]
    ql.quantize_(model, ql.RTN(), ql.Scheme(4))
    table[name] += [kl(model, A4), kl(model, A4, KV4, online)]
ql.table([(k, *v) for k, v in table.items()], ["1,000 KL", "A4", "KV4", "W4A4", "W4A4KV4"])

# %% [markdown]
# As it is the model is destroyed (a model that gives every token the same probability has a KL of about 5 nats, 5,000 here). The fold brings it back, since that is what this defect was. Turning
# the stream adds little *here*: the roughest input is that of down_proj, whose loud numbers arise behind SiLU and the product, and only the online Hadamard reaches it. Once it is
# there, the turned stream takes off another fifth at W4A4. Keys are like down's input: planted behind the projection, out of reach of R, and spread by the transform after RoPE.
#
# 💡 *Measure each rotation by itself. "We rotate" can mean four different places, and the one you left out may be the one that mattered.*
#
# ### An outlier that no fold removes
#
# Rotations can also do harm, and we can use that to make a model with outliers in its stream: turn the plain storyteller to its *principal axes*, the eigenvectors of
# the stream's second moment. Its function stays. Its first coordinates become as loud as anything can make them.
#
# **Predict.** A4 after that, and after one more turn by a random Hadamard matrix?

# %%
stream = torch.cat([inputs(plain, f"model.layers.{k}") for k in range(4)])
stream /= stream.norm(dim=-1, keepdim=True)
axes = torch.linalg.eigh(stream.T @ stream)[1]
heads = tuple(ql.rotation_matrix(32, "identity") for _ in range(4))
rows = []
for name, R in {
    "its own coordinates": torch.eye(256, dtype=torch.float64),
    "principal axes": axes,
    "principal axes, then Hadamard": axes @ ql.rotation_matrix(256),
    "principal axes, then random": axes @ ql.rotation_matrix(256, "random"),
}.items():
    model = ql.load("storyteller")[0].double()
    ql.rotate_(model, ql.Rotations(R, heads, True, name))
    rows.append((name, ql.incoherence(inputs(model)), kl(model, A4)))
assert rows[1][2] > 1.5 * rows[0][2] > 1.5 * 0.7 * rows[2][2]
ql.table(rows, ["stream of the plain model in", "mu", "1,000 KL, A4"])

# %% [markdown]
# All four models compute the same function, and all four transforms are rotations. What counts is how *evenly* the coordinates share the stream.
#
# ## Learning the rotation
#
# Random rotations differ from one another. Can we choose the best? R must stay a rotation, and a gradient step leaves them. The Cayley transform never does: with
# the skew part A = (G Rᵀ − R Gᵀ)/2 of the gradient G,
#
# $$R' = \left(1+\tfrac{\eta}{2}A\right)^{-1}\left(1-\tfrac{\eta}{2}A\right)R ,$$
#
# and the factor before R is orthogonal for every skew A, as (1 − ia)/(1 + ia) is a number of size 1. First a goal that is smooth: the mean kurtosis of the tokens, 200 steps from
# the identity, on the loud model's principal axes.
#
# **Predict.** Does descent beat the Hadamard matrix at evenness? Does the kurtosis fall below that of Gaussian noise, which is 3?

# %%
print(ql.show(ql.cayley_step))
ours = inputs(plain, "model.layers.1")[::2] @ axes


def kurtosis(y):
    return ((y**4).mean(-1) / y.square().mean(-1).square()).mean()


turns = {kind: ql.rotation_matrix(256, kind) for kind in ("identity", "random", "hadamard")}
R = turns["identity"]
for step in range(200):
    R = R.requires_grad_()
    (G,) = torch.autograd.grad(kurtosis(ours @ R), R)
    R = ql.cayley_step(R.detach(), G, 30 * (1 - step / 200))
assert torch.allclose(R @ R.T, turns["identity"].detach(), atol=1e-10)
better = kurtosis(ours @ R) < 2.8 and relative(ours @ R) < relative(ours @ turns["hadamard"])
print("200 Cayley steps: kurtosis below 2.8, and less error than Hadamard:", bool(better))
rows = [(k, kurtosis(ours @ R).item(), 100 * relative(ours @ R)) for k, R in turns.items()]
ql.table(rows, ["rotation", "kurtosis", "4-bit error, % of energy"], sig=2)

# %% [markdown]
# Descent goes below 3: noise is not the best there is for a uniform grid, equal sizes are. SpinQuant descends on the next-token loss of the model with rounded
# activations (and weights, if nothing repairs them later), with straight-through gradients. R₁ turns the stream, one R₂ per block the values; the online ones stay
# Hadamard, since a learned matrix would cost n² at run time. The authors take 100 steps, we take 8, and try a second goal: the KL from the float model (`distill=True`).
#
# **Predict.** Does either goal lower the KL on text that was not trained on?

# %%
learning = ql.calibration_set(tokenizer, samples=20, length=128)
small = ql.load("storyteller-outlier")[0]  # float32: steps are slow enough
options = {"weights": ql.Scheme(4), "steps": 8, "rate": 2.0}
turns = {
    "Hadamard": "hadamard",
    "learned on the next token": ql.learn_rotations(small, learning, **options),
    "learned on the float model": ql.learn_rotations(small, learning, distill=True, **options),
}
for name, found in list(turns.items())[1:]:
    print(f"{name}: the loss fell:", sum(found.losses[-3:]) < sum(found.losses[:3]))

# %%
measured = {}
for name, kind in turns.items():
    model = ql.load("storyteller-outlier")[0].double()
    ql.rotate_(model, kind)
    ql.quantize_(model, ql.RTN(), ql.Scheme(4))
    measured[name] = kl(model, A4)
best = measured.pop("Hadamard")
for name, value in measured.items():
    print(f"{name}: KL within a quarter of Hadamard's:", 0.75 < value / best < 1.25)

# %% [markdown]
# An honest result: the loss on the learning text falls with both goals, and the KL on other text stays where it was. A Hadamard matrix leaves nothing here that a few steps could
# find, and the table above told us why: in this model the turn of the stream matters little. With more steps the next-token loss goes on falling, and so does the perplexity, while
# the KL rises: it begins to fit the text. SpinQuant's gains are for models of billions of parameters, whose random rotations differ by up to 13 points on its tasks.
#
# 💡 *A rotation with parameters can overfit like any other. Judge it on other text, by a measure it was not trained on.*
#
# ## What a rotation cannot do
#
# If it works by making numbers even, it must fail where they are even already. Gaussian rows stay Gaussian rows in every basis.

# %% tags=["control"]
rng = np.random.default_rng(3)
gaussian = torch.tensor(rng.standard_normal((512, 256)))
heavy = torch.tensor(rng.standard_t(3, (512, 256)))
spiked = gaussian.clone()
spiked[:, 7] *= 50
rows = []
for name, x in (("Gaussian", gaussian), ("heavy tails, t(3)", heavy), ("one loud channel", spiked)):
    turns = [x @ ql.rotation_matrix(256, seed=seed) for seed in range(3)]
    ratios = [relative(x) / relative(y) for y in turns]
    rows.append((name, ql.incoherence(x), ql.incoherence(turns[0]), np.mean(ratios)))
assert abs(rows[0][3] - 1) < 0.05 < 1 < rows[1][3] < rows[2][3]
ql.table(rows, ["rows of", "mu before", "mu after", "error before / after"], sig=2)

# %% [markdown] tags=["myth"]
# ### Myth G12: any rotation may be inserted anywhere
#
# Claim: rotations are orthogonal, so R and Rᵀ cancel wherever we put a pair of them.
#
# **Predict.** Which of these four pairs leaves the logits alone: between v and o (within heads), between q and k before RoPE, between up and down (no online transform), and
# in the stream with gains in place (the control above)?

# %% tags=["myth"]
small, big = ql.rotation_matrix(32, "random", seed=2), ql.rotation_matrix(768)
eight, four = torch.block_diag(*[small] * 8), torch.block_diag(*[small] * 4)  # query, value heads
places = {
    "v and o": (("v_proj", four, "left"), ("o_proj", eight, "right")),
    "q and k, before RoPE": (("q_proj", eight, "left"), ("k_proj", four, "left")),
    "up and down, around a product": (("up_proj", big, "left"), ("down_proj", big, "right")),
}
changes = {}
for name, pair in places.items():
    model = ql.load("storyteller")[0].double().requires_grad_(False)
    for layer in model.blocks():
        modules = dict([*layer.self_attn.named_children(), *layer.mlp.named_children()])
        for path, R, side in pair:
            weight = modules[path].weight
            weight.copy_(R.T @ weight if side == "left" else weight @ R)
    changes[name] = (model(tokens) - plain(tokens)).abs().max().item()
print([(name, "unchanged" if change < 1e-3 else "changed") for name, change in changes.items()])
assert changes.pop("v and o") < 1e-3 < 1 < min(changes.values())
print("Verdict: G12 is false; R and its transpose cancel only with nothing but linear maps between")

# %% [markdown] tags=["exercise"]
# Source: 2404.00456, sections 3 and 4.
#
# ## In the wild
#
# | work | rotates | how |
# |---|---|---|
# | QuIP (2307.13304), QuIP# (2402.04396) | each weight, both sides | random orthogonal, later randomized Hadamard; undone at run time |
# | SliceGPT (2401.15024) | the stream, to principal axes | then cuts the quiet ones off: our bad example, put to use |
# | QuaRot (2404.00456) | stream, values, keys, inner activations | randomized Hadamard, W4A4KV4 with GPTQ |
# | SpinQuant (2405.16406) | the same places | R₁ and R₂ learned, 100 Cayley steps |
#
# The names R₁ to R₄ (stream, values, keys after RoPE, down's input) are SpinQuant's. Configurations without R₃ and R₄ exist, because they need no new operation: what is left is a plain Llama,
# which `rotate_(model, online=False)` gives you and GGUF can hold. Ask of every figure which of the four it used.
#
# ## Exercises
#
# Each has `exercise.hint()` and `exercise.solution()`; a check names the idea behind a wrong answer.
#
# ### Exercise a: H4 x, and on
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# Write `transform(x)`: the orthonormal Walsh-Hadamard transform of 4, 8 or 16 numbers (a float64 tensor), by sums and differences. Do not use the library's.


# %% tags=["exercise"]
def transform(x): ...


exercise = ql.exercise("13_rotations.a")
exercise.check(transform)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Which weights take R, and which Rᵀ?
# Difficulty: ●●● · Importance: ●●● · 15 min
#
# A network: `x = embedding[tokens]; x = x + tanh((norm(x) * gain1) @ up.T) @ down.T; y = (norm(x) * gain2) @ head.T`. Write `fuse(w, R)` that takes the dict of these six tensors
# (embedding, gain1, up, down, gain2, head) and returns a new one: the stream turned by R, both gains all ones, the same y.


# %% tags=["exercise"]
def fuse(w, R): ...


exercise = ql.exercise("13_rotations.b")
exercise.check(fuse)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Incoherence
# Difficulty: ●○○ · Importance: ●●○ · 6 min
#
# Write `mu(W)`: the largest size of an entry as a multiple of the root mean square of all entries.
#
# ### Exercise d: Gain, and its control
# Difficulty: ●●○ · Importance: ●●● · 10 min
#
# Write `gain(x, R, scheme)`: how many times smaller the squared rounding error of the rows of x (one grid a row, a share of the energy) is after the turn. The check tries rows
# with a loud channel, and Gaussian ones, where your answer must be close to 1.


# %% tags=["exercise"]
def mu(W): ...


def gain(x, R, scheme): ...


ql.exercise("13_rotations.c").check(mu)
exercise = ql.exercise("13_rotations.d")
exercise.check(gain)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("13_rotations")

# %% [markdown]
# ## Summary
#
# - A rotation changes what is rounded and not what is computed. It helps as far as it makes numbers more even, and not at all where they are.
# - A Hadamard matrix mixes everything with everything by additions: n log n for 2ᵏ, a small dense factor for 12 · 2ᵏ.
# - First fold the gains, then turn: readers R, writers Rᵀ. The head cannot stay tied to the embedding.
# - What stands behind a nonlinearity or RoPE is turned online or not at all, and there may lie the outliers that matter.
# - Cayley steps stay among the rotations; whether descent beats a draw must be seen on other text.

# %% [markdown]
# ## What we left out
#
# Kernels for online transforms and 4-bit products; incoherence of weights on both sides and lattice codebooks (QuIP#; module 20); affine transforms that are no rotations (FlatQuant); clipping of
# activations, which the papers add; the cost of a learned R for models whose stream is 4,096 wide.
#
# ## Sources
#
# - Ashkboos et al., *QuaRot: outlier-free 4-bit inference in rotated LLMs*, arXiv:2404.00456
# - Liu et al., *SpinQuant: LLM quantization with learned rotations*, arXiv:2405.16406
# - Chee et al., *QuIP: 2-bit quantization of large language models with guarantees*, arXiv:2307.13304; Tseng et al., *QuIP#*, arXiv:2402.04396
# - Ashkboos et al., *SliceGPT*, arXiv:2401.15024; Li et al., *Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform*, arXiv:2002.01113
# - Paley, *On orthogonal matrices*, 1933
