"""SmoothQuant: the scales are the paper's, the float model stays, and W8A8 is rescued."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_smoothquant import slow_scales, slow_w8a8
from torch import nn

import quantlab as ql
from quantlab.block import Block, Scaling
from quantlab.methods.smoothquant import block_scales, largest_inputs, smooth_block_, smooth_scales
from quantlab.models.families import LLAMA_SCALINGS
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.sim.dynamic import round_tokens
from quantlab.tensor import CalibrationError

ALPHA = st.floats(0, 1)
SEED = st.integers(0, 2**20)


class Normed(nn.Module):
    """A gain and two linears that read what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        y = self.norm(x)
        return torch.cat([self.one(y), self.two(y)], -1)


def normed(seed: int = 0, batches: int = 2) -> Block:
    """Return a block of it in float64, with channel 2 thirty times louder than the others."""
    torch.manual_seed(seed)
    module = Normed().double()
    with torch.no_grad():
        module.norm.bias.normal_()
        module.norm.weight[2] *= 30
    inputs = [((torch.randn(2, 5, 6).double(),), {}) for _ in range(batches)]
    place = Scaling("norm", ("one", "two"), inspect="")
    return Block(module, {"one": module.one, "two": module.two}, inputs=inputs, scalings=(place,))


def read_by(block: Block) -> torch.Tensor:
    """Return what the linears of ``normed`` read."""
    return torch.cat([block.module.norm(args[0]).flatten(0, -2) for args, _ in block.inputs])


@given(SEED, ALPHA)
@settings(max_examples=30, deadline=None)
def test_scales_of_a_block_equal_the_slow_twin(seed, alpha):
    block = normed(seed)
    with torch.no_grad():
        block.module.norm.weight[4] = block.module.norm.bias[4] = 0  # a silent input
        block.module.one.weight[:, 1] = block.module.two.weight[:, 1] = 0  # nobody reads it
        tokens = read_by(block).tolist()
    (scale,) = block_scales(block, alpha).values()
    weights = [block.module.one.weight.tolist(), block.module.two.weight.tolist()]
    expected = torch.tensor(slow_scales(tokens, weights, alpha), dtype=torch.float64)
    assert torch.allclose(scale, expected, rtol=1e-12, atol=0)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), SEED, ALPHA)
def test_the_product_of_both_ranges_stays_and_alpha_shares_it_out(inputs, seed, alpha):
    x = torch.tensor(inputs, dtype=torch.float64)
    w = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)).double() + 0.01
    s = smooth_scales(x, w, alpha)
    assert torch.allclose(x / s, (x * w) ** (1 - alpha), rtol=1e-10)
    assert torch.allclose(w * s, (x * w) ** alpha, rtol=1e-10)


def test_the_ends_of_alpha_flatten_one_side_each():
    x, w = torch.tensor([64.0, 1.0, 3.0]), torch.tensor([0.25, 0.5, 2.0])
    assert torch.allclose(x / smooth_scales(x, w, 1), torch.ones(3).double())
    assert torch.allclose(w * smooth_scales(x, w, 0), torch.ones(3).double())


def test_zeros_everywhere_leave_everything_as_it_is():
    zeros = torch.zeros(3)
    assert smooth_scales(zeros, zeros).tolist() == [1, 1, 1]


@pytest.mark.parametrize("norms_only", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_a_float64_model_keeps_its_function_to_1e_10(norms_only, alpha):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Llama(LlamaConfig(vocab_size=50, **sizes, **heads)).double()
    tokens = torch.randint(50, (3, 12))
    before = model(tokens)
    names = ql.smooth_(model, tokens, alpha=alpha, norms_only=norms_only)
    assert len(names) == 2 * (2 if norms_only else 4)
    assert all((scale != 1).any() for scale in names.values())
    assert (model(tokens) - before).abs().max() < 1e-10 * before.abs().max()


def test_powers_of_two_keep_every_bit_of_a_float32_model():
    model, tokenizer = ql.load("storyteller-outlier")
    tokens = ql.test_set(tokenizer, samples=1, length=32)
    before = model(tokens)
    data = ql.calibration_set(tokenizer, samples=2, length=64)
    ql.smooth_(model, data, change=lambda s: s.log2().round().exp2())
    assert model(tokens).equal(before)


def test_at_one_half_both_sides_have_equal_ranges_in_each_channel():
    block = normed()
    smooth_block_(block, block_scales(block, 0.5))
    inputs = largest_inputs(block)["one"]
    weights = torch.cat([block.module.one.weight, block.module.two.weight]).abs().amax(0)
    assert torch.allclose(inputs, weights.detach(), rtol=1e-9)


def test_value_heads_that_serve_several_queries_take_the_largest_of_them():
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = Llama(LlamaConfig(vocab_size=9, **sizes, num_attention_heads=4, num_key_value_heads=2))
    layer = next(iter(model.blocks()))
    seen = []
    output = layer.self_attn.o_proj
    handle = output.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    tokens = torch.randint(9, (2, 6))
    model(tokens)
    handle.remove()
    W, x = output.weight.detach().abs().amax(0), seen[0].abs().flatten(0, 1).amax(0)
    x, w = (v.double().view(2, 2, 2).amax(1).flatten() for v in (x, W))  # kv head, query, size
    found = ql.smooth_(copy.deepcopy(model), tokens, norms_only=False, alpha=0.3)
    expected = smooth_scales(x, w, 0.3)
    assert torch.allclose(found["model.layers.0.self_attn.v_proj"], expected, rtol=1e-4)


@given(SEED, st.booleans())
@settings(max_examples=20, deadline=None)
def test_simulated_w8a8_of_one_layer_equals_the_slow_twin(seed, per_token):
    torch.manual_seed(seed)
    x, W = torch.randn(5, 6).double(), torch.randn(4, 6).double()
    eight = ql.Scheme(8)
    flat = x if per_token else x.flatten()[None]
    y = round_tokens(flat, eight).view_as(x) @ ql.rtn(W, eight).dequantize().T
    slow = torch.tensor(slow_w8a8(x.tolist(), W.tolist(), 8, per_token=per_token)).double()
    assert torch.allclose(y, slow, atol=1e-12)


# ------------------------------------------------------------------ the outlier model


@pytest.fixture(scope="module")
def text():
    base, tokenizer = ql.load("storyteller")
    tokens = ql.test_set(tokenizer, samples=2, length=192)
    data = ql.calibration_set(tokenizer, samples=4, length=192)
    return tokens, data, ql.log_probabilities(base, tokens)


def losses(text, variant, *, grouped=True, **smoothing):
    """Return KL of W8, static W8A8, W8A8 per token, and int8 products in groups of 64."""
    tokens, data, reference = text
    model, _ = ql.load(variant)
    if smoothing:
        ql.smooth_(model, data, **smoothing)
    other = copy.deepcopy(model)
    ql.quantize_(model, ql.RTN(), ql.Scheme(8))
    sims = [model, ql.StaticSim(model, data, activations=ql.Scheme(8))]
    sims.append(ql.DynamicSim(model, activations=ql.Scheme(8)))
    if grouped:
        ql.quantize_(other, ql.RTN(), ql.Scheme(8, 64))
        ql.activation_bits_(other, 8)
        sims.append(other)
    return [ql.evaluate(sim, tokens, reference=reference).kl for sim in sims]


@pytest.fixture(scope="module")
def oracle(text):
    """The same function with nothing planted."""
    return losses(text, "storyteller", grouped=False)


def test_w8a8_collapses_on_loud_channels_and_smoothing_rescues_it(text, oracle):
    naive = losses(text, "storyteller-outlier")
    smooth = losses(text, "storyteller-outlier", alpha=0.5)
    weights, static, token, groups = range(4)
    assert naive[static] > 0.2 > 10 * oracle[static]
    assert smooth[static] < 1.3 * oracle[static]
    assert naive[token] > 20 * smooth[token]
    assert naive[groups] > 5 * smooth[groups]
    assert naive[static] > 3 * naive[token] > 3 * naive[groups]
    assert smooth[weights] < naive[weights] / 5  # the shrunken columns are back as well


def test_the_same_scales_on_other_channels_do_not_rescue(text, oracle):
    shuffled = losses(
        text, "storyteller-outlier", grouped=False, alpha=0.5, change=lambda s: s.flip(0)
    )
    assert shuffled[1] > 10 * oracle[1]


def test_the_plain_model_gains_almost_nothing(text, oracle):
    smooth = losses(text, "storyteller", grouped=False, alpha=0.5)
    assert smooth[1] == pytest.approx(oracle[1], rel=0.2)


# ------------------------------------------------------------------ static ranges


def test_a_static_simulation_rounds_each_linear_on_the_grid_of_its_calibration_text():
    model, tokenizer = ql.load("storyteller")
    data = ql.calibration_set(tokenizer, samples=2, length=32)
    sim = ql.StaticSim(model, data, activations=ql.Scheme(4, symmetric=False))
    seen = []
    layer = model.model.layers[0].self_attn.q_proj  # nothing before it is rounded
    layer.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model(data)
    sim(data)
    sim(ql.test_set(tokenizer, samples=1, length=32))
    before, after, other = seen
    assert len(after.unique()) <= 16
    assert torch.isin(other.unique(), after.unique()).float().mean() > 0.5  # no grid of its own
    low, high = before.aminmax()
    assert (after - before).abs().max() <= (high - low) / 15
    assert len(after.unique()) > 8
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_static_ranges_are_refused_with_groups_without_text_and_for_strange_models():
    model, tokenizer = ql.load("storyteller")
    data = ql.calibration_set(tokenizer, samples=1, length=16)
    with pytest.raises(ValueError, match="w8g32sym has groups; one grid a tensor"):
        ql.StaticSim(model, data, activations=ql.Scheme(8, 32))
    with pytest.raises(ValueError, match="not empty"):
        ql.StaticSim(model, data[:0], activations=ql.Scheme(8))
    with pytest.raises(ql.UnsupportedModelError, match="no linear layer"):
        ql.StaticSim(nn.Linear(2, 2), torch.ones(1, 2), activations=ql.Scheme(8))
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.nan
    with pytest.raises(CalibrationError, match=r"linear 7 of the blocks saw the range"):
        ql.StaticSim(model, data, activations=ql.Scheme(8))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_0_to_1_is_refused_before_anything_changes(alpha):
    model, tokenizer = ql.load("storyteller")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="choose a migration strength from 0 to 1"):
        ql.smooth_(model, ql.calibration_set(tokenizer, samples=1, length=16), alpha=alpha)
    with pytest.raises(ValueError, match="choose a migration strength"):
        smooth_scales(torch.ones(2), torch.ones(2), alpha)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("x", "w", "words"),
    [
        (torch.ones(2), torch.ones(3), "inputs have shape"),
        (torch.ones(2, 2), torch.ones(2, 2), "one largest size a channel"),
        (torch.tensor([1.0, -1.0]), torch.ones(2), "negative or not finite"),
        (torch.ones(2), torch.tensor([1.0, torch.inf]), "negative or not finite"),
    ],
)
def test_sizes_that_cannot_be_are_refused(x, w, words):
    with pytest.raises(ValueError, match=words):
        smooth_scales(x, w)


def test_a_quantized_model_a_strange_one_and_missing_text_are_refused():
    model, tokenizer = ql.load("storyteller")
    data = ql.calibration_set(tokenizer, samples=1, length=16)
    with pytest.raises(ql.UnsupportedModelError, match="could take its scales"):
        ql.smooth_(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    with pytest.raises(ValueError, match="not empty"):
        ql.smooth_(model, data[:0])
    ql.quantize_(model, ql.RTN(), ql.Scheme(8))
    with pytest.raises(ValueError, match="smooth it in float"):
        ql.smooth_(model, data)
    with pytest.raises(CalibrationError, match="one saw no token"):
        block_scales(normed(batches=0))


def test_no_hook_stays_behind_and_the_statistics_are_forgotten():
    block = normed()
    block.collect(ql.second_moment)
    smooth_block_(block, block_scales(block))
    assert not block._collected
    assert not any(m._forward_pre_hooks for m in block.module.modules())


def test_only_norms_are_divided_unless_asked_otherwise():
    previous = {place.previous for place in LLAMA_SCALINGS}
    model, tokenizer = ql.load("storyteller")
    data = ql.calibration_set(tokenizer, samples=1, length=16)
    norms = ql.smooth_(copy.deepcopy(model), data)
    everything = ql.smooth_(model, data, norms_only=False)
    assert {name.split(".", 3)[3] for name in norms} == {p for p in previous if "norm" in p}
    assert {name.split(".", 3)[3] for name in everything} == previous
