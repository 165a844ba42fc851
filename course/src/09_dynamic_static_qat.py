# %% [markdown]
# # Model Quantization for Efficiency: dynamic, static, QAT
#
# Duration: 90 min · runs in about 20 s on 2 CPU cores
#
# So far we rounded weights and left the numbers that flow between layers alone. To compute *on integers* both sides of each
# product must be integers, so activations need a grid too. When is that grid found: while the model runs, once before, or during
# training? That is the whole difference between *dynamic*, *static* and *quantization-aware training*. We build all three for a small
# MobileNetV2, train it on real handwritten digits in five seconds, and end with a network that computes on integers only and says,
# bit for bit, what its float simulation said.
#
# ## Objectives
#
# After this module you can
#
# 1. say which layers a way of quantizing reaches, and what share of bytes and products they are. (q1, q2, q3)
# 2. choose between dynamic, static and QAT, and say which data each of them needs. (q4, q5)
# 3. build prepare → calibrate → convert, and carry integers from one grid to the next by hand. (q6, q7)
# 4. find the usual bugs: missing stubs, invisible functions, norms in training mode, wrong calibration data. (q8)
#
# ## Prerequisites
#
# Modules 02 (grids, zero points) and 03 (clipping). Module 07 (integer products) helps.

# %% [markdown] tags=["predict"]
# ## Who gets quantized?
#
# ```
#             weights rounded      grid of an activation found        data needed            integers between layers
#   dynamic   beforehand           at run time, for each token        none                   no: float in, float out
#   static    beforehand           once, from sample inputs           inputs without labels  yes
#   QAT       while training       while training, then frozen        training set, labels   yes
# ```
#
# A favorite example in tutorials is MobileNetV2 and a call that swaps all *linear* layers for dynamic int8 ones. The network for
# ImageNet needs no download here: our class takes any size, and on torch's meta device tensors have shapes but no numbers.
#
# **Predict.** The network has 53 layers with weights. How many does that call change? What share of the parameters do they hold, and
# what share of all multiplications?

# %%
import copy
import warnings

import numpy as np
import torch
from torch import nn

import quantlab as ql
from quantlab.integer.codes import requantize

mobilenet = ql.mobilenet_v2()
costs = ql.layer_costs(mobilenet, torch.zeros(1, 3, 224, 224, device="meta"))
weights, macs = sum(c.weights for c in costs), sum(c.macs for c in costs)
rows = []
for kind in ("conv", "depthwise", "linear"):
    chosen = [c for c in costs if c.kind == kind]
    w, m = sum(c.weights for c in chosen), sum(c.macs for c in chosen)
    rows.append((kind, len(chosen), w, 100 * w / weights, m, 100 * m / macs))
ql.table(rows, ["kind", "layers", "weights", "% of weights", "products", "% of products"])

# %% [markdown] tags=["myth"]
# ### Myth 003-1: "quantizing MobileNetV2's linear layers dynamically is a good showcase"
#
# **Predict** the size of the state dict before and after, if that one linear goes to int8.

# %% tags=["myth"]
parameters = sum(p.numel() for p in mobilenet.parameters())
before = sum(t.numel() * t.element_size() for t in mobilenet.state_dict().values())
linear = mobilenet.classifier.weight
after = before - 4 * linear.numel() + linear.numel() + 2 * len(linear)  # codes, float16 scales
print(f"parameters {parameters:,}, of which in the one linear {linear.numel():,} and its bias")
print("% of parameters:", ql.digits(100 * (linear.numel() + len(linear)) / parameters, sig=4))
print("megabytes before and after:", ql.digits(before / 1e6), ql.digits(after / 1e6))
assert len([c for c in costs if c.kind == "linear"]) == 1
assert linear.numel() / macs < 0.005
print("verdict: 1 of 53 layers, 0.43 % of the products: a convolutional network needs static PTQ")

# %% [markdown]
# Dynamic quantization is made for layers whose *weights* are read once for each token and used once: the linears of a language model
# on a CPU. A convolution uses each activation in many windows, so rounding it anew each time would cost more than it saves.
# (Source of the architecture: Sandler et al., table 2; the counts are ours, from the shapes.)
#
# ## A network to quantize
#
# The same class in small: 8x8 images, 14 layers with weights, inverted residuals with depthwise convolutions, batch norm after each
# convolution, ReLU6. Two details make it *quantizable*: `QuantStub` and `DequantStub` mark where integers begin and end, and the residual
# sum is a module `Add`, not a `+`.
#
# We train in float64, for one reason only: your CPU and ours then take the same path, digit for digit.

# %%
data = ql.digit_images()
train, test = data.images.double(), data.test_images.double()
net = ql.digits_net().double()
_ = ql.train_classifier(net, train, data.labels, epochs=6, learning_rate=0.01)


def score(model):
    """Return the percentage of 500 test images that a model names right."""
    return 100 * ql.accuracy(model, test, data.test_labels)


print(net.blocks[1].body.depthwise, net.blocks[2].add)
small = ql.layer_costs(net.float(), torch.zeros(1, 1, 8, 8))
net.double()
print(f"{len(small)} layers, {sum(p.numel() for p in net.parameters()):,} parameters")
print("float accuracy in %:", ql.digits(score(net)))

# %% [markdown]
# ## Step 1: fold the batch norms
#
# In evaluation mode a batch norm is a multiplication and an addition for each channel, fixed numbers both. They belong into the convolution
# before it:
#
# $$W' = \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}\,W, \qquad b' = \beta + \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}\,(b-\mu).$$
#
# One layer less, and the weight that is rounded is the weight that is used. There is a price: each row of W is multiplied by another factor.
#
# **Predict.** After folding, how much larger is the largest row of a depthwise convolution than its smallest?

# %%
folded = ql.folded(net)
with torch.no_grad():
    gap = (folded(test) - net(test)).abs().max().item()
print("same function after folding:", gap < 1e-10)
rows = []
for k, (ours, original) in enumerate(zip(folded.blocks, net.blocks, strict=True)):
    spread = []
    for block in (original, ours):
        sizes = block.body.depthwise.conv.weight.detach().abs().flatten(1).amax(1)
        spread.append((sizes.max() / sizes.min()).item())
    rows.append((f"blocks.{k} depthwise", *map(round, spread)))
ql.table(rows, ["largest row / smallest row", "before folding", "after"])

# %% [markdown]
# A row four times smaller than the largest loses two of its eight bits if all share one scale. In MobileNets trained on ImageNet the rows are much
# further apart, and one scale a layer brings them down to chance (Krishnamoorthi, section 3.1). So weights get **one scale a row** (an output
# channel), which costs two bytes each and keeps the product integer: the scale comes out of the sum.
#
# ## Step 2: prepare and calibrate
#
# `prepare` copies the model, folds, fuses each ReLU into the layer before it, and puts a quantizer behind every layer: weights symmetric, a
# scale a row; activations asymmetric, one scale a tensor; biases int32 in units of input scale times weight scale. `calibrate` runs some
# training images through it, without labels, and keeps the smallest and the largest value that each tensor took.

# %%
twin = ql.calibrate(ql.prepare(net), train[:256])
places = {
    "image": twin.quant,
    "stem, after ReLU6": twin.stem.conv,
    "blocks.2 narrow, no ReLU": twin.blocks[2].body.narrow.conv,
    "blocks.2 sum": twin.blocks[2].add,
    "logits": twin.classifier,
}
rows = []
for name, place in places.items():
    scale, zero = place.quantizer.grid(test)
    rows.append((name, *place.quantizer.range(), scale.item(), int(zero)))
print("accuracy of the simulation in %:", ql.digits(score(twin)))
ql.table(rows, ["tensor", "low", "high", "scale", "code of 0"])

# %% [markdown]
# Zero lies on every grid, exactly: a padded border and a closed ReLU mean zero, and must not become 0.003. After a ReLU the range begins at
# 0 and so does the code. `range` and `grid` are all that calibration leaves behind: two numbers a tensor.
#
# ## Step 3: convert
#
# A layer of the converted model computes (Jacob et al., section 2.2)
#
# ```
#   sums  = Σ (code_x - zero_x) (code_w - zero_w) + bias            int32, exact
#   code  = clip( round( sums · scale_x·scale_w / scale_y ) + zero_y )
# ```
#
# Where others approximate the ratio of scales by a fixed-point number, we hold scales in float16, with eleven significant bits: the
# ratio is then a fraction of two small integers, and the rounding is one whole-number division. So the result is no approximation at all, and
# it equals the simulation in float64, which has room for each product and each sum.
#
# **Predict.** 500 images, 10 logits each. In how many of the 5,000 numbers does the integer model differ from the simulation in float64? And from the
# same simulation in float32?

# %%
integers = ql.convert(twin)
with torch.no_grad():
    logits, simulated = integers(test), twin(test).float()
    single = copy.deepcopy(twin).float()(test.float())
print("numbers that differ from float64:", int((logits != simulated).sum()))
print("differ from float32, fewer than 1 %:", ((logits != single).float().mean() < 0.01).item())
print("parameters in float:", len(list(integers.parameters())))
kinds = {b.dtype for m in integers.modules() for b in m.buffers(recurse=False)}
print("what it holds:", ", ".join(sorted(str(kind)[6:] for kind in kinds)))
assert torch.equal(logits, simulated)
print("accuracy of the integers in %:", ql.digits(score(integers)))

# %%
layer, codes = integers.classifier, integers.quant(test[:1])
for part in (integers.stem, *integers.blocks, integers.head, integers.pool, integers.flatten):
    codes = part(codes)
x, w = codes.shifted()[0], layer.codes()[3].long() - 128
total = int((x * w).sum() + layer.bias[3])
top, bottom = int(layer.numerator[3]), int(layer.denominator[3])
by_hand = int(np.clip(round(total * top / bottom) + layer.grid.zero_point, 0, 255))
print(f"48 products and a bias make {total}; times {top} / {bottom} is", end=" ")
print(
    f"{ql.digits(total * top / bottom, sig=4)}; plus {layer.grid.zero_point} gives code {by_hand}"
)
assert by_hand == layer(codes).codes[0, 3]
print(ql.show(requantize))

# %% [markdown]
# In float32 a sum of hundreds of products is itself rounded, and once in a while it falls on the other side of the middle between two codes: that
# is the tolerance that you meet in other libraries. The integers above need none: a product, a sum, one division. (What is held: codes as uint8, scales as
# float16, biases as int32, and the ratios of scales as pairs of int64, which follow from the scales and are not saved.)
#
# ## And dynamic?
#
# `quantize_dynamic` swaps the linears for int8 ones that find a scale for each token as it comes: no calibration, no stubs, and between the
# layers everything stays float. Compare what each way reaches. In bytes it is the weights that count; in time, the products.

# %%
plain = copy.deepcopy(net).float()
narrow = ql.convert(ql.calibrate(ql.prepare(net, weight_bits=4), train[:256]))
versions = {
    "float": plain,
    "dynamic int8": ql.quantize_dynamic(plain),
    "static W8A8": integers,
    "static W4A8": narrow,
}
tree = ql.widgets.ModuleTree(versions, torch.zeros(1, 1, 8, 8))
for version in (1, 2, 4, 3):
    tree.move(version=version)
    print(tree.sentence)
tree

# %% [markdown] tags=["predict"]
# ## Step 4: when rounding hurts, train with it
#
# At 8 bits next to nothing is lost. Below, the rounding error of weights is no longer small noise, and the network can do something about it: *learn
# weights that round well*. QAT is an ordinary training loop on the prepared model. Its one trick is the gradient of round(), which is zero
# nearly everywhere: we pass the gradient straight through where the number lies inside the grid, and stop it where it was clipped (module 18 takes this
# apart).
#
# QAT **starts from the trained, calibrated network**, keeps the ranges frozen, and trains for a short time at a small rate: here three epochs on half of the training images.
#
# **Predict.** Accuracy after PTQ at W8A8, W4A8, W3A8, W2A8 and W2A4 (bits of weights, bits of activations), and after QAT where PTQ breaks.

# %% tags=["signature"]
rows, half = [], (train[:640], data.labels[:640])
for name, epochs in {"W8A8": 0, "W4A8": 0, "W3A8": 0, "W2A8": 3, "W2A4": 3}.items():
    model = ql.prepare(net, weight_bits=int(name[1]), activation_bits=int(name[3]))
    rows.append([name, score(ql.calibrate(model, train[:256])), ""])
    if epochs:
        ql.train_classifier(model, *half, epochs=epochs, batch_size=32)
        rows[-1][2] = score(ql.convert(model))
_, ptq, qat = rows[3]
assert ptq < 60 < 85 < qat
ql.table(rows, ["", "% right after PTQ", "after QAT, on integers"])

# %% [markdown]
# One seed and 500 images: a difference of one percent is five images, and means nothing (module 11). The rows at 2 bits mean something: PTQ breaks the
# network, and two seconds of training bring most of it back. What is scored after QAT is the *converted* model. It equals the trained simulation in every bit, so
# nothing can be lost on the way.
#
# 💡 *Try PTQ first: it takes a second and no labels. QAT is for what PTQ cannot do.*
#
# ## Control: does calibration data matter?
#
# We calibrate W8A8 on images that are not what the network will see: dimmed, black, noise; and on a single digit. The weights are the same in all rows, only
# the ranges differ.
#
# **Predict.** Which of these is harmless, and why? Mind the direction: a range that is too small, or one that is too large?

# %% tags=["control"]
noise = np.random.default_rng(0).random((256, 1, 8, 8))
choices = {
    "256 training images": train[:256],
    "one training image": train[:1],
    "uniform noise": torch.from_numpy(noise),
    "dimmed to 50 %": 0.5 * train[:256],
    "dimmed to 10 %": 0.1 * train[:256],
    "black images": 0 * train[:256],
}
found = {}
for name, images in choices.items():
    model = ql.calibrate(ql.prepare(net), images)
    _, high = model.stem.conv.quantizer.range()
    found[name] = (score(model), high)
assert found["dimmed to 10 %"][0] < found["256 training images"][0] - 30
assert found["uniform noise"][0] > found["256 training images"][0] - 5
rows = [(name, *pair) for name, pair in found.items()]
ql.table(rows, ["calibrated on", "% right", "top of the stem's range"])

# %% [markdown] tags=["myth"]
# The control says what calibration is: *ranges*. Noise is no digit, but it drives the layers as far as digits do, so its ranges serve. Dimmed digits look
# like digits to us and are poison: every range ends too early, and everything bright is clipped. (Black images do less harm than very dim ones: an
# empty range falls back to scale 1, so that each pixel is rounded to black or white, at least at the right brightness; the later ranges come from biases alone.) Too large a range costs a bit of
# resolution; too small a range cuts off what matters. Module 10 asks how many samples are enough.
#
# ### Myths 001-9, 001-10, 001-15, 003-2 and 003-5: a few lines of `torch.ao`
#
# "`quantize_dynamic(nn.Linear(...))` quantizes it", "print its `.weight` to see the integers", "the print is one line", "this is *the* way to
# do it"; and a QAT example without stubs that nobody ran after `convert`. **Predict** the type of the first result, of `.weight`, and what a run says.

# %% tags=["myth"]
from torch.ao import quantization as ao

no_stubs = nn.Sequential(nn.Linear(8, 4)).train()
no_stubs.qconfig = ao.get_default_qat_qconfig("x86")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    bare = ao.quantize_dynamic(nn.Linear(8, 4), {nn.Linear}, dtype=torch.qint8)
    child = ao.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)
    converted = ao.convert(ao.prepare_qat(no_stubs).eval())
print(type(bare).__name__, bare.weight.dtype, "- a root is never swapped, only children are")
print(child)
print("weight is a method:", callable(child[0].weight), child[0].weight().int_repr().dtype)
deprecated = any(issubclass(w.category, DeprecationWarning) for w in caught)
print("torch says that it is deprecated:", deprecated)
assert isinstance(bare, nn.Linear)
assert deprecated
try:
    converted(torch.zeros(1, 8))
except NotImplementedError as error:
    print("QAT without stubs:", str(error).split(" with ")[0])
print("verdict: five myths; ours takes a root too:", type(ql.quantize_dynamic(bare)).__name__)

# %% [markdown] tags=["myth"]
# ### Myth 003-6: "the order of steps does not matter", and functions do not either
#
# A tutorial's network calls `relu` as a function, has no stubs, and is converted in training mode. **Predict** what our `convert` says to it, without
# stubs and with them.


# %% tags=["myth"]
class Tutorial(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


inputs, model, refused = torch.linspace(-1, 1, 32).view(8, 4), Tutorial(), 0
for attempt in (model, nn.Sequential(ql.QuantStub(), model, ql.DequantStub())):
    try:
        ql.convert(ql.calibrate(ql.prepare(attempt), inputs))
    except ValueError as error:
        refused += 1
        print(error)
assert refused == 2

# %% [markdown] tags=["exercise"]
# What is left is one list: `nn.ReLU` as a module, both stubs, `eval()` before the norms are folded (`prepare` does it). Exercise b repairs such a network.
#
# The same document has smaller slips: a class body that is not indented (003-4, Python refuses it), `torch.hub` with `pretrained=True`, which needs the
# network and a keyword that torchvision dropped in favor of `weights=` (003-3), a tensor called `input`, which hides a builtin (003-11), and the claim
# that the dynamic call *is* post-training quantization (003-10): static PTQ, the pipeline above, is missing from it. Its tip to give QAT a
# calibration set mixes two things (003-9): calibration belongs to static PTQ; QAT sees the training set.
#
# ## In the wild
#
# - PyTorch: `torch.ao.quantization` is deprecated. The maintained way is **torchao**: `quantize_(model, Int8DynamicActivationInt8WeightConfig())` for dynamic int8 linears, its QAT configs for
#   training, and PT2E (`prepare_pt2e`, `convert_pt2e`), which sees functions and sums because it works on an exported graph. No stubs are needed there: the
#   graph shows where tensors flow.
# - LiteRT (TensorFlow Lite) made this scheme common: int8, a scale a channel, int32 biases, fixed-point multipliers. ONNX Runtime has `quantize_dynamic` and
#   `quantize_static` with a calibration reader.
# - Large language models: weights in 4 bits and activations dynamic or in 16 bits, because their activations have outliers (modules 08 and 12).
#
# ## Exercises
#
# ### Exercise a: Which layers are swapped?
# Difficulty: ●○○ · Importance: ●●● · 8 min
#
# `swapped(model, kinds, skip)` returns the sorted names of the modules that a dynamic call would replace: children at any depth whose type is exactly one of `kinds`, never the
# root itself, never a name in `skip`. Use `model.named_modules()`. `exercise.hint()` helps, `exercise.solution()` shows one.

# %% tags=["exercise"]
exercise = ql.exercise("09_dynamic_static_qat.a")


def swapped(model, kinds, skip): ...


exercise.check(swapped)

# %% [markdown] tags=["exercise"]
# ### Exercise b: Place the stubs
# Difficulty: ●●○ · Importance: ●●● · 12 min
#
# `quantizable(a, b)` gets two linear layers and returns a module that computes b(relu(a(x))) + x, so that
# `ql.convert(ql.calibrate(ql.prepare(module), data))` works and runs on integers. Use `ql.QuantStub`, `ql.DequantStub`, `ql.Add` and `nn.ReLU`.

# %% tags=["exercise"]
exercise = ql.exercise("09_dynamic_static_qat.b")


def quantizable(a, b): ...


exercise.check(quantizable)

# %% [markdown] tags=["exercise"]
# ### Exercise c: Static PTQ of one layer, by hand
# Difficulty: ●●● · Importance: ●●● · 15 min
#
# `static_linear(W, b, samples, x)` returns W x + b for each row of `x` (tokens, in), float64, computed as an integer machine does it.
# Input: asymmetric uint8, range = min and max of `samples`, stretched to hold 0; scale = (high - low) / 255, zero point = round(-low / scale). Weight: int8, scale a row =
# max|w| / 127, no zero point. Bias: rounded to multiples of input scale times weight scale. Round half to even everywhere, clip codes, and turn the sums into floats at the very end.

# %% tags=["exercise"]
exercise = ql.exercise("09_dynamic_static_qat.c")


def static_linear(W, b, samples, x): ...


exercise.check(static_linear)

# %% [markdown] tags=["exercise"]
# ### Exercise d: The control
# Difficulty: ●●○ · Importance: ●●○ · 10 min
#
# `after_calibration(net, samples, images, labels)` returns the accuracy (0 to 1) of a W8A8 twin of `net` that was calibrated on `samples` and judged on `images`. The check calls it with
# honest samples, with dimmed ones and with noise, and wants your numbers to tell them apart.

# %% tags=["exercise"]
exercise = ql.exercise("09_dynamic_static_qat.d")


def after_calibration(net, samples, images, labels): ...


exercise.check(after_calibration)

# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
ql.quiz.practice("09_dynamic_static_qat")

# %% [markdown]
# ## Summary
#
# - Dynamic: weights beforehand, activation scales at run time; reaches linears only. In MobileNetV2 that is 1 of 53 layers and 0.43 % of the products.
# - Static: observe ranges on sample inputs, freeze them, convert. Integers flow from stub to stub; every sum and every pool needs a grid of its own.
# - Fold batch norms first, use one scale a row, keep 0 on the grid; biases are int32.
# - Integer inference can equal its simulation in every bit. Float32 adds rounding of its own.
# - QAT is training on a model that rounds; it starts from trained weights and pays at 4 bits and below.
# - Calibration gives ranges. Too small is worse than too large, and looking right is no criterion.

# %% [markdown]
# ## What we left out
#
# Observers other than min-max and moving averages (module 10), the straight-through estimator, LSQ, PACT and distillation in depth (module 18: `ql.learn_steps`, `ql.learn_clips`,
# `ql.distillation_loss`), activations with outliers (module 12), integer softmax and layer norms, and fast convolution kernels: ours unfold, and are exact rather than quick.
#
# ## Sources
#
# - B. Jacob et al.: *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, arXiv:1712.05877v1; sections 2.2 to 2.4 and 3.
# - R. Krishnamoorthi: *Quantizing deep convolutional networks for efficient inference*, arXiv:1806.08342v1.
# - M. Sandler et al.: *MobileNetV2*, arXiv:1801.04381v4, table 2.
# - PyTorch's own deprecation notes: the warning of `torch.ao.quantization`, and issue 184982 of pytorch/pytorch.
