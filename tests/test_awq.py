"""AWQ: equal to its slow twin, never worse than rounding on its own data, exact in its folds."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_awq import scale_of, sizes_of, slow_clip, slow_losses
from torch import nn

import quantlab as ql
import quantlab.methods.awq as module_under_test
from quantlab.block import Block, Scaling, second_moment
from quantlab.clip_search import SHRINKS, clip_and_round, clipped_grid
from quantlab.folding import fold_, foldable, gather, spread
from quantlab.methods.awq import AWQ, awq, input_scale, mean_size, rounded, search_ratio
from quantlab.methods.gptq import GPTQ
from quantlab.methods.rtn import RTN, rtn
from quantlab.models.families import LLAMA_SCALINGS, linears
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, output_error

TINY = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    vocab_size=64,
)
SCHEMES = [Scheme(bits, 8, symmetric) for bits in (2, 3, 4) for symmetric in (True, False)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
ATTENTION, VALUE, MLP, DOWN = LLAMA_SCALINGS


def layer(seed=0, rows=6, columns=24, tokens=40):
    """Make a weight and correlated inputs of very different sizes, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    weight, mixing = torch.randn(rows, columns, **draw), torch.randn(columns, columns, **draw)
    return weight, torch.randn(tokens, columns, **draw) @ mixing * torch.randn(
        columns, **draw
    ).exp()


def joined(rows):
    return [value for row in rows for value in row]


def tiny(seed=0):
    torch.manual_seed(seed)
    model = Llama(TINY).eval()
    for name, weight in model.named_parameters():
        if "layernorm" in name:
            nn.init.uniform_(weight, 0.2, 3.0)
    return model.double()


def tokens(samples=4, length=12):
    return torch.randint(64, (samples, length), generator=torch.Generator().manual_seed(1))


def block_of(model, data=None):
    """Return the first block with the inputs that reach it."""
    module = model.model.layers[0]
    calls = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(tokens() if data is None else data)
    handle.remove()
    return Block(module, linears(module), inputs=calls, scalings=LLAMA_SCALINGS)


def output_of(block):
    with torch.no_grad():
        output = block.module(*block.inputs[0][0], **block.inputs[0][1])
    return output[0] if isinstance(output, tuple) else output


# ---------------------------------------------------------------- the slow twin


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.5, 0.95])
def test_input_scale_equals_its_slow_twin(ratio):
    _, x = layer()
    x[:, 5] = 0
    assert mean_size(x).tolist() == pytest.approx(sizes_of(x.tolist()), rel=1e-12)
    slow = scale_of(sizes_of(x.tolist()), ratio)
    assert input_scale(mean_size(x), ratio).tolist() == pytest.approx(slow, rel=1e-12)


@every_scheme
def test_losses_and_ratio_equal_the_slow_twin(scheme):
    weight, x = layer(seed=scheme.bits)
    slow = slow_losses(
        weight.tolist(), x.tolist(), scheme.bits, 8, symmetric=scheme.symmetric, ratios=7
    )
    _, found = awq(weight, second_moment(x), mean_size(x), scheme, ratios=7)
    assert found.losses == pytest.approx(slow, rel=1e-12)
    assert found.ratio == slow.index(min(slow)) / 7
    assert found.scale.equal(input_scale(mean_size(x), found.ratio))


@every_scheme
def test_clip_search_equals_its_slow_twin(scheme):
    weight, x = layer(seed=10 + scheme.bits)
    steps, slow = slow_clip(weight.tolist(), x.tolist(), scheme.bits, 8, symmetric=scheme.symmetric)
    answer = clip_and_round(weight, second_moment(x), scheme)
    assert answer.dequantize().flatten().tolist() == pytest.approx(joined(slow), rel=1e-12)
    assert len({step for row in steps for step in row}) > 3  # the search has something to choose


@every_scheme
def test_awq_is_the_clip_search_on_the_scaled_weight_and_inputs(scheme):
    weight, x = layer(seed=3)
    answer, found = awq(weight, second_moment(x), mean_size(x), scheme)
    _, slow = slow_clip(
        (weight * found.scale).tolist(),
        (x / found.scale).tolist(),
        scheme.bits,
        8,
        symmetric=scheme.symmetric,
    )
    assert answer.dequantize().flatten().tolist() == pytest.approx(joined(slow), rel=1e-12)


# ---------------------------------------------------------------- laws of the searches


@every_scheme
def test_ratio_0_without_clip_is_rtn_exactly(scheme):
    weight, x = layer()
    weight[0, :8] = torch.tensor([1.0, -1.0, 0.5, -0.5, 0, 0, 0, 0])  # as large on both sides
    for W in (weight, weight.float(), weight.half()):
        answer, found = awq(W, second_moment(x), mean_size(x), scheme, clip=False, ratios=1)
        plain = rtn(W, scheme)
        assert found.ratio == 0
        assert found.scale.equal(torch.ones_like(found.scale))
        assert answer.codes.equal(plain.codes)
        assert answer.scale.equal(plain.scale)
        assert answer.zero_point.equal(plain.zero_point)


@given(seed=st.integers(0, 10**6), bits=st.integers(1, 8), symmetric=st.booleans())
def test_the_search_never_loses_to_rounding_on_its_own_data(seed, bits, symmetric):
    weight, x = layer(seed)
    scheme, moment = Scheme(bits, 8, symmetric), second_moment(x)
    answer, found = awq(weight, moment, mean_size(x), scheme, clip=False)
    plain = output_error(weight, rtn(weight, scheme).dequantize(), moment)
    mine = output_error(weight, answer.dequantize() / found.scale, moment)
    assert mine <= plain * (1 + 1e-12)
    assert mine == pytest.approx(min(found.losses), rel=1e-9)
    assert found.losses[0] == pytest.approx(plain, rel=1e-12)


@given(seed=st.integers(0, 10**6), bits=st.integers(1, 8), symmetric=st.booleans())
def test_no_group_s_own_output_gets_worse_by_clipping(seed, bits, symmetric):
    weight, x = layer(seed)
    scheme = Scheme(bits, 8, symmetric)
    clipped = clip_and_round(weight, second_moment(x), scheme).dequantize()
    plain = rtn(weight, scheme).dequantize()
    for g in range(0, 24, 8):
        moment = second_moment(x[:, g : g + 8])
        for row in range(len(weight)):
            part = [t[row : row + 1, g : g + 8] for t in (weight, clipped, plain)]
            best, most = (output_error(part[0], q, moment) for q in part[1:])
            assert best <= most * (1 + 1e-9)


def test_the_first_of_equal_losses_wins_and_a_broken_one_is_passed_over():
    sizes = torch.tensor([1.0, 4.0], dtype=torch.float64)
    values = iter([3.0, torch.nan, 1.0, 1.0])
    assert search_ratio(sizes, lambda s: next(values), 4).ratio == 0.5
    with pytest.raises(CalibrationError, match="output error is nan at ratio 0"):
        search_ratio(sizes, lambda s: torch.nan, 4)


@pytest.mark.parametrize("ratios", [0, -1, 2.5, True])
def test_a_grid_without_points_is_refused(ratios):
    with pytest.raises(ValueError, match=r"ratios is .* positive integer"):
        search_ratio(torch.ones(2), lambda s: 0.0, ratios)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_group_clipped_on_both_sides_has_the_middle_as_zero_point(bits):
    generator = torch.Generator().manual_seed(bits)
    inner = torch.rand(50, 1, 30, generator=generator) - 0.5
    groups = torch.cat([inner, torch.full((50, 1, 1), 3.1), torch.full((50, 1, 1), -2.9)], -1)
    for shrink in SHRINKS[2:]:
        scale, zero_point = clipped_grid(groups, shrink, Scheme(bits, 32, symmetric=False))
        assert (zero_point == 2 ** (bits - 1)).all()
        assert torch.allclose(scale, torch.tensor(2 * 3.1 * shrink / (2**bits - 1)))
    one_sided = clipped_grid(groups.clamp(min=-1.0), 0.55, Scheme(bits, 32, symmetric=False))
    assert (one_sided[1] < 2 ** (bits - 1)).all()


def test_a_symmetric_clip_keeps_the_side_of_the_extreme_weight():
    groups = torch.tensor([[[1.0, -0.9]], [[0.9, -1.0]]])
    scale, zero_point = clipped_grid(groups, 0.5, Scheme(3, 2))
    assert scale.flatten().tolist() == [-0.125, 0.125]
    assert (zero_point == 4).all()


def test_scaling_one_column_alone_shrinks_its_error_while_the_step_stands():
    W = torch.tensor([[0.19, 1.0, -0.4, 0.7]], dtype=torch.float64)
    s = torch.tensor([4.0, 1, 1, 1], dtype=torch.float64)  # 0.76 stays below the largest, 1.0
    plain, scaled = (rounded(W, c, Scheme(4)) - W for c in (torch.ones_like(s), s))
    assert plain[0, 1:].equal(scaled[0, 1:])
    assert scaled[0, 0].abs() < plain[0, 0].abs() / 2


# ---------------------------------------------------------------- odd inputs


def test_zero_columns_zero_groups_and_silent_inputs_do_no_harm():
    weight, x = layer()
    weight[:, 3] = 0
    weight[2, 8:16] = 0
    x[:, 4] = 0
    for scheme in SCHEMES:
        answer, found = awq(weight, second_moment(x), mean_size(x), scheme)
        Q = answer.dequantize() / found.scale
        assert torch.isfinite(Q).all()
        assert (Q[2, 8:16] == 0).all()
        assert found.scale.min() > 0
    awake = (Q[:, 4] - weight[:, 4]).abs().mean() / weight[:, 4].abs().mean()
    assert awake < 0.5  # rounded with a step of its size, not lost
    nothing, found = awq(weight, torch.zeros(24, 24), torch.zeros(24), SCHEMES[0])
    assert found.ratio == 0
    assert nothing.codes.equal(rtn(weight, SCHEMES[0]).codes)


def test_wrong_shapes_and_values_are_named():
    weight, x = layer()
    moment, sizes, scheme = second_moment(x), mean_size(x), Scheme(4, 8)
    with pytest.raises(ValueError, match=r"24 inputs, moment has shape \(24, 24\) and sizes \(23,"):
        awq(weight, moment, sizes[1:], scheme)
    with pytest.raises(ValueError, match="not a multiple of group_size 7"):
        awq(weight, moment, sizes, Scheme(4, 7))
    with pytest.raises(ValueError, match="bits is 16"):
        awq(weight, moment, sizes, Scheme(16))
    with pytest.raises(ValueError, match="non-finite"):
        awq(weight.index_fill(0, torch.tensor(1), torch.nan), moment, sizes, scheme)
    with pytest.raises(CalibrationError, match="NaN, infinity or a negative size"):
        awq(weight, moment, -sizes, scheme)
    with pytest.raises(CalibrationError, match="NaN, infinity"):
        awq(weight, moment * torch.inf, sizes, scheme)


@every_scheme
def test_float32_and_half_follow_float64_and_nothing_is_changed(scheme):
    weight, x = layer(seed=5)
    moment, sizes = second_moment(x), mean_size(x)
    before = weight.clone(), moment.clone(), sizes.clone()
    wide, found = awq(weight, moment, sizes, scheme)
    narrow, other = awq(weight.float(), moment, sizes, scheme)
    assert found.ratio == other.ratio
    assert (wide.codes != narrow.codes).double().mean() < 0.01
    half, _ = awq(weight.half(), moment, sizes, scheme)
    assert half.scale.dtype == torch.float32
    assert all(map(torch.equal, before, (weight, moment, sizes)))


def test_one_row_and_one_column_and_negative_weights_pass():
    x = torch.tensor([[2.0], [1.0]])
    for W in (torch.tensor([[-0.3]]), torch.tensor([[-0.3], [-2.0]])):
        answer, _ = awq(W, second_moment(x), mean_size(x), Scheme(4, 1))
        assert torch.allclose(answer.dequantize(), W)


# ---------------------------------------------------------------- folds


class Bent(nn.Module):
    """A norm before two linears, of which one feeds a third."""

    def __init__(self, norm, bias):
        super().__init__()
        self.norm = norm
        self.gate, self.up = (nn.Linear(16, 24, bias=bias) for _ in range(2))
        self.down = nn.Linear(24, 16, bias=bias)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(torch.tanh(self.gate(y)) * self.up(y))


PLACES = (Scaling("norm", ("gate", "up"), ""), Scaling("up", ("down",), "down"))


def bent(norm, bias):
    module = Bent(norm(16), bias).double()
    nn.init.normal_(module.norm.weight)
    if getattr(module.norm, "bias", None) is not None:
        nn.init.normal_(module.norm.bias)
    inputs = [((torch.randn(3, 10, 16).double() * torch.randn(16).exp(),), {}) for _ in range(2)]
    return Block(module, linears(module), inputs=inputs, scalings=PLACES)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("powers", [True, False])
def test_folding_leaves_the_float_block_s_output_unchanged(norm, bias, powers):
    torch.manual_seed(0)
    block = bent(norm, bias)
    before, old = output_of(block), copy.deepcopy(block.module)
    for place in PLACES:
        _, outputs = block.linears[place.linears[0]].weight.shape
        s = 2.0 ** torch.randint(-3, 4, (outputs,)) if powers else torch.rand(outputs) + 0.5
        fold_(block, place, s.double())
    assert not block.linears["down"].weight.equal(old.down.weight)
    assert not block.module.norm.weight.equal(old.norm.weight)
    if powers:
        assert output_of(block).equal(before)
    assert torch.allclose(output_of(block), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", LLAMA_SCALINGS, ids=lambda place: place.previous)
def test_folds_of_a_llama_with_grouped_heads_keep_its_output(place):
    block = block_of(tiny())
    assert foldable(block, place)
    before = output_of(block)
    outputs = len(block.module.get_submodule(place.previous).weight)
    old = {name: weight.clone() for name, weight in block.module.named_parameters()}
    fold_(block, place, 2.0 ** torch.randint(-3, 4, (outputs,)).double())
    assert output_of(block).equal(before)
    changed = {n for n, w in block.module.named_parameters() if not w.equal(old[n])}
    assert changed == {f"{place.previous}.weight", *(f"{name}.weight" for name in place.linears)}


def test_query_heads_that_share_a_value_head_share_a_scale():
    block = block_of(tiny())
    sizes = torch.arange(32.0)  # 4 query heads of 8; heads 0 and 1 read value head 0
    shared = gather(sizes, block, VALUE)
    assert shared.tolist() == [*torch.arange(4.0, 12.0), *torch.arange(20.0, 28.0)]
    wide = spread(shared, block, VALUE)
    assert wide.tolist() == joined([shared[:8], shared[:8], shared[8:], shared[8:]])
    assert gather(sizes, block, MLP).equal(sizes)
    assert spread(sizes, block, MLP).equal(sizes)


def test_a_scale_that_cannot_be_undone_is_refused():
    block = block_of(tiny())
    before = block.module.input_layernorm.weight.clone()
    for bad in (torch.zeros(32), torch.full((32,), torch.inf), -torch.ones(32), torch.ones(31)):
        with pytest.raises(ValueError, match=r"block.input_layernorm: scale .* positive, finite"):
            fold_(block, ATTENTION, bad)
    assert block.module.input_layernorm.weight.equal(before)


def test_a_place_without_its_modules_or_head_size_is_not_foldable():
    block = block_of(tiny())
    assert not foldable(block, Scaling("no_such_norm", ATTENTION.linears, "self_attn"))
    assert not foldable(block, Scaling("input_layernorm", ("self_attn.qkv",), "self_attn"))
    assert not foldable(block, Scaling("mlp.gate_proj", ("self_attn.q_proj",), "self_attn"))
    block.module.self_attn.head_dim = 5
    assert not foldable(block, VALUE)


def test_planted_outliers_are_taken_back_exactly():
    plain, _ = ql.load("storyteller")
    planted, tokenizer = ql.load("storyteller-outlier")
    data = ql.calibration_set(tokenizer, samples=1, length=32)
    scheme = Scheme(3, 64)
    for number, layer_ in enumerate(planted.model.layers):
        block = block_of(planted, data)
        block.module, block.linears = layer_, linears(layer_)
        original = plain.model.layers[number]
        for place in (ATTENTION, MLP):
            gain = layer_.get_submodule(place.previous).weight
            s = (gain / original.get_submodule(place.previous).weight).detach()
            assert s.max() >= 32
            fold_(block, place, s)
            assert gain.equal(original.get_submodule(place.previous).weight)
        for name in ("self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            mine, theirs = block.linears[name].weight, original.get_submodule(name).weight
            assert mine.equal(theirs)
            assert rtn(mine, scheme).codes.equal(rtn(theirs, scheme).codes)


# ---------------------------------------------------------------- a block


def test_every_search_of_a_block_sees_its_original_weights_and_inputs():
    scheme, together = Scheme(3, 16), block_of(tiny())
    alone = {}
    for place in LLAMA_SCALINGS:
        block = block_of(tiny())
        block.scalings = (place,)
        found = AWQ(clip=False).quantize_block(block, scheme)
        alone |= {name: found[name].notes[0] for name in place.linears}
    notes = {n: t.notes[0] for n, t in AWQ(clip=False).quantize_block(together, scheme).items()}
    assert notes == alone
    assert len(set(notes.values())) > 2


def test_linears_that_share_inputs_get_one_scale_judged_by_their_module():
    block = block_of(tiny())
    scheme, sizes = Scheme(3, 16), block.collect(mean_size)["mlp.up_proj"]
    mlp, calls = copy.deepcopy(block.module.mlp), []
    handle = mlp.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    with torch.no_grad():
        block.module.mlp, kept = mlp, block.module.mlp
        output_of(block)
        handle.remove()
        block.module.mlp, target, losses = kept, mlp(calls[0]), []
        for step in range(20):
            s = input_scale(sizes, step / 20)
            for name in ("gate_proj", "up_proj"):
                W = kept.get_submodule(name).weight
                mlp.get_submodule(name).weight.copy_(rtn(W * s, scheme).dequantize() / s)
            losses.append((mlp(calls[0]) - target).square().sum(-1).mean().item())
    found = module_under_test.search_block(block, MLP, scheme, 20, 512)
    assert found.losses == pytest.approx(losses, rel=1e-9)
    assert found.ratio == losses.index(min(losses)) / 20


def test_a_block_is_searched_folded_once_clipped_and_rounded():
    scheme, block, twin = Scheme(3, 16), block_of(tiny()), block_of(tiny())
    answers = AWQ().quantize_block(block, scheme)
    searches = [
        module_under_test.search_block(twin, place, scheme, 20, 512) for place in LLAMA_SCALINGS
    ]
    for place, found in zip(LLAMA_SCALINGS, searches, strict=True):
        fold_(twin, place, found.scale)
    twin.forget()
    for name, weight in twin.module.named_parameters():
        assert block.module.get_parameter(name).equal(weight)
    moments = twin.collect(second_moment)
    for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        expected = clip_and_round(twin.linears[name].weight.detach(), moments[name], scheme)
        assert answers[name].codes.equal(expected.codes)
        assert answers[name].scale.equal(expected.scale)


def test_the_module_is_run_on_as_many_tokens_as_asked_for_and_at_least_one_batch():
    block, counts = block_of(tiny()), []
    block.inputs = [block.inputs[0]] * 3  # 48 tokens each
    for inspected in (1, 48, 49, 10**6):
        calls = module_under_test.recorded(block, block.module.mlp, inspected)
        counts.append(len(calls))
    assert counts == [1, 1, 2, 3]


def test_queries_and_keys_are_never_clipped():
    scheme = Scheme(3, 16)
    block, twin = block_of(tiny()), block_of(tiny())
    clipped = AWQ().quantize_block(block, scheme)
    AWQ(clip=False).quantize_block(twin, scheme)  # folds the same scales
    for name, linear in twin.linears.items():
        same = clipped[name].codes.equal(rtn(linear.weight, scheme).codes)
        assert same == (name in ("self_attn.q_proj", "self_attn.k_proj")), name


def test_a_block_without_scalings_only_clips_and_says_so():
    scheme, block = Scheme(3, 16), block_of(tiny())
    before = {name: weight.clone() for name, weight in block.module.named_parameters()}
    block.scalings = ()
    answers = AWQ().quantize_block(block, scheme)
    assert all(weight.equal(before[name]) for name, weight in block.module.named_parameters())
    assert {t.notes for t in answers.values()} == {(module_under_test.UNSCALED,)}
    down, moment = block.linears["mlp.down_proj"].weight, block.collect(second_moment)
    best = clip_and_round(down.detach(), moment["mlp.down_proj"], scheme)
    assert answers["mlp.down_proj"].codes.equal(best.codes)


def test_without_calibration_data_the_way_out_is_named():
    block = block_of(tiny())
    block.inputs = ()
    with pytest.raises(CalibrationError, match="needs calibration data"):
        AWQ().quantize_block(block, Scheme(4, 16))


# ---------------------------------------------------------------- whole models


def test_calibration_data_is_not_changed_and_a_run_repeats():
    data, reports, weights = tokens(), [], []
    for _ in range(2):
        model = tiny()
        reports.append(ql.quantize_(model, AWQ(), Scheme(3, 16), data))
        weights.append(model.state_dict())
    assert data.equal(tokens())
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert [row.notes for row in reports[0].rows] == [row.notes for row in reports[1].rows]
    assert all(row.notes[0].startswith("ratio 0") for row in reports[0].rows)


def test_if_a_later_block_fails_the_model_is_as_before_norms_included(monkeypatch):
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    search = module_under_test.search_block
    folded = []

    def failing(block, *rest):
        if block.name.endswith("1"):
            gain = model.model.layers[0].input_layernorm.weight
            folded.append(not gain.equal(before["model.layers.0.input_layernorm.weight"]))
            raise KeyboardInterrupt
        return search(block, *rest)

    monkeypatch.setattr(module_under_test, "search_block", failing)
    with pytest.raises(KeyboardInterrupt):
        ql.quantize_(model, AWQ(), Scheme(3, 16), tokens())
    assert folded == [True]  # the first block had been scaled by then
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].equal(before[name]) for name in before)


def test_a_block_that_fails_between_its_folds_is_put_back(monkeypatch):
    model, calls = tiny(), []
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("no memory left")
        fold_(*arguments)

    monkeypatch.setattr(module_under_test, "fold_", failing)
    with pytest.raises(RuntimeError, match="no memory left"):
        ql.quantize_(model, AWQ(), Scheme(3, 16), tokens())
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


def test_then_hands_the_scaled_block_to_another_method():
    scheme, block, twin = Scheme(3, 16), block_of(tiny()), block_of(tiny())
    answers = AWQ(then=GPTQ()).quantize_block(block, scheme)
    AWQ(clip=False).quantize_block(twin, scheme)
    twin.forget()
    plain = GPTQ().quantize_block(twin, scheme)
    for name, answer in answers.items():
        assert answer.codes.equal(plain[name].codes)
        assert answer.notes[0].startswith("ratio")
    assert AWQ(then=GPTQ()).wants_targets is False
    model = tiny()
    report = ql.quantize_(model, AWQ(then=GPTQ()), scheme, tokens())
    assert len(report.rows) == 14
    assert torch.isfinite(model(tokens())).all()


def test_then_forwards_the_wish_for_targets():
    seen = []

    class Wishing(RTN):
        wants_targets = True

        def quantize_block(self, block, scheme):
            seen.append((len(block.targets), (output_of(block) - block.targets[0]).abs().max()))
            return super().quantize_block(block, scheme)

    assert AWQ(then=Wishing()).wants_targets
    ql.quantize_(tiny(), AWQ(then=Wishing()), Scheme(8, 16), tokens(2))
    assert [count for count, _ in seen] == [1, 1]
    assert seen[0][1] < 1e-12  # targets of the float block still hold after the folds


FAMILIES = ["llama", "qwen2", "mistral"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_models_of_transformers_are_scaled_clipped_and_still_speak(model_type):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "layernorm" in name:
            nn.init.uniform_(weight, 0.2, 2.0)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        target = model(tokens()).logits
    rows = ql.quantize_(model, AWQ(), Scheme(8, 16), tokens()).rows
    assert len(rows) == 14
    assert all(row.notes[0].startswith("ratio") for row in rows)
    norm = "model.layers.0.post_attention_layernorm"
    assert not model.get_submodule(norm).weight.equal(plain.get_submodule(norm).weight)
    with torch.no_grad():
        output = model(tokens()).logits
    assert (output - target).abs().max() < 0.05 * target.abs().max()


def test_an_architecture_without_known_places_is_clipped_only():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(16, 16)) for _ in range(2)])

        def forward(self, x):
            for part in self.layers:
                x = part(x)
            return x

    torch.manual_seed(0)
    report = ql.quantize_(Plain(), AWQ(), Scheme(3, 16), torch.randn(4, 6, 16), blocks="layers")
    assert {row.notes for row in report.rows} == {(module_under_test.UNSCALED,)}
