"""The training loop that learned methods share: its rates, its inputs, and what it leaves alone."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from quantlab.block import Block
from quantlab.methods.adascale import AdaScale
from quantlab.nn import QuantizedLinear
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import CalibrationError, QuantizedTensor
from quantlab.training import LearnedWeight, cosine, finite, mix, squared_error, train


class Shift(LearnedWeight):
    """The simplest learned weight: W + d, with one rate for all of d."""

    def __init__(self, weight, rate=1e-2, scale=1.0):
        super().__init__()
        self.weight, self.rate, self.factor = weight.detach(), rate, scale
        self.shift = nn.Parameter(torch.zeros_like(self.weight))
        self.done = []

    def forward(self):
        return self.factor * (self.weight + self.shift)

    def quantized(self):
        zero = torch.zeros(len(self.weight), 1)
        return QuantizedTensor(self.weight.to(torch.uint8), zero + 1, zero, Scheme(8))

    def rates(self):
        return [([self.shift], self.rate)]

    def penalty(self, done):
        self.done.append(done)
        return 0.0


class Layer(nn.Module):
    """A block that takes positions and keywords, and answers in a tuple."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x, positions=None, *, factor=1.0, mask=None):
        """Map (batch, tokens, 4) to ((batch, tokens, 3), nothing)."""
        self.seen.append((x, positions, factor))
        return self.dropout(self.linear(x)) * factor, None


def block(batches=2, *, same=True) -> Block:
    torch.manual_seed(1)
    module = Layer()
    inputs = [((torch.randn(2, 5, 4),), {}) for _ in range(batches)]
    floats = inputs if same else [((torch.randn(2, 5, 4),), {}) for _ in range(batches)]
    targets = [torch.randn(2, 5, 3) for _ in range(batches)]
    return Block(
        module, {"linear": module.linear}, inputs=inputs, float_inputs=floats, targets=targets
    )


def shift_of(made: Block, **numbers) -> dict[str, LearnedWeight]:
    return {"linear": Shift(made.linears["linear"].weight, **numbers)}


# ------------------------------------------------------------------ loss and rates


def test_the_loss_is_summed_over_axis_one_and_averaged_over_the_rest():
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    assert squared_error(x, y).item() == pytest.approx(5 * ((x - y) ** 2).mean().item(), rel=1e-6)
    picture, other = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    expected = sum(((picture - other)[:, c] ** 2).mean().item() for c in range(5))
    assert squared_error(picture, other).item() == pytest.approx(expected, rel=1e-6)
    far = torch.full((1, 300, 1), 100.0, dtype=torch.float16)
    assert squared_error(far, -far).item() == 300 * 200**2  # beyond what float16 holds


def test_each_step_moves_by_its_share_of_the_cosine():
    # A loss with a constant gradient makes Adam move by exactly the rate, against its sign.
    made = block()
    weights = shift_of(made, rate=1e-2)
    places = [0.0]

    def read(step, weights):
        assert step == len(places)
        places.append(weights["linear"].shift[0, 0].item())

    ones = [((torch.ones(1, 1, 4),), {})]
    made.inputs = made.float_inputs = ones
    made.targets = [torch.zeros(1, 1, 3)]
    train(made, weights, iterations=8, loss=lambda y, _: y.sum(), after_step=read)
    moves = [before - after for before, after in itertools.pairwise(places)]
    expected = [1e-2 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert moves == pytest.approx(expected, rel=1e-4)


def test_the_cosine_falls_from_one_to_nothing():
    assert cosine(0) == 1
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1) == pytest.approx(0, abs=1e-15)


def test_parameters_keep_their_own_rates():
    made = block()
    other = Shift(torch.zeros(3, 4), rate=1e-3)
    fast = Shift(made.linears["linear"].weight, rate=1e-2)

    class Both(LearnedWeight):
        def __init__(self):
            super().__init__()
            self.fast, self.slow = fast, other

        def forward(self):
            return self.fast() + self.slow()

        def rates(self):
            return self.fast.rates() + self.slow.rates()

    train(made, {"linear": Both()}, iterations=1)
    assert torch.allclose(fast.shift.abs(), torch.full((3, 4), 1e-2), rtol=1e-3)
    assert torch.allclose(other.shift.abs(), torch.full((3, 4), 1e-3), rtol=1e-3)


def test_the_first_loss_is_that_of_the_start_and_training_lowers_it():
    made = block()
    losses = train(made, shift_of(made), iterations=200)
    made.module.eval()
    with torch.no_grad():
        outputs = [made.module(*args)[0] for args, _ in made.inputs]
    start = [squared_error(y, t).item() for y, t in zip(outputs, made.targets, strict=True)]
    assert losses[0] == start[0]
    assert sum(losses[-2:]) < 0.9 * sum(start)


def test_a_penalty_is_trained_on_but_not_told():
    made = block()

    class Tied(Shift):
        def penalty(self, done):
            super().penalty(done)
            return 1e6 * (self.shift - 1).square().sum()

    tied = Tied(made.linears["linear"].weight, rate=0.1)
    losses = train(made, {"linear": tied}, iterations=60)
    assert tied.done == [step / 60 for step in range(60)]
    assert torch.allclose(tied.shift, torch.ones(3, 4), atol=0.05)
    assert max(losses) < 1e6


# ------------------------------------------------------------------ inputs


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_an_element_comes_from_the_quantized_stream_with_the_given_probability(probability):
    generator = torch.Generator().manual_seed(3)
    drawn = mix(torch.ones(100, 100), torch.zeros(100, 100), probability, generator)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(probability, abs=0.02)


def test_every_use_draws_anew_and_the_seed_decides():
    one, zero = torch.ones(10, 10), torch.zeros(10, 10)
    generator, again, other = (torch.Generator().manual_seed(seed) for seed in (3, 3, 4))
    first, second = mix(one, zero, 0.5, generator), mix(one, zero, 0.5, generator)
    assert not first.equal(second)
    assert first.equal(mix(one, zero, 0.5, again))
    assert not first.equal(mix(one, zero, 0.5, other))


def test_positions_tuples_and_keywords_come_from_the_quantized_stream():
    made = block(1)
    x, y = torch.ones(2, 5, 4), torch.zeros(2, 5, 4)
    angles, others = (torch.ones(5), torch.ones(5)), (torch.zeros(5), torch.zeros(5))
    made.inputs = [((x, angles), {"factor": 2.0})]
    made.float_inputs = [((y, others), {"factor": 3.0})]
    train(made, shift_of(made), iterations=3)
    assert len(made.module.seen) == 3
    for mixed, positions, factor in made.module.seen:
        assert set(mixed.unique().tolist()) == {0.0, 1.0}
        assert positions is angles
        assert factor == 2.0
    whole, generator = torch.arange(5), torch.Generator()
    assert mix(whole, torch.zeros(5, dtype=torch.long), 0.5, generator) is whole


def test_the_first_block_has_one_stream_and_no_chance():
    results = []
    for seed in (0, 1):
        made = block()
        weights = shift_of(made)
        train(made, weights, iterations=6, seed=seed)
        results.append(weights["linear"].shift)
    assert results[0].equal(results[1])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    results = []
    for seed in (0, 0, 1):
        made = block(same=False)
        weights = shift_of(made)
        losses = train(made, weights, iterations=6, seed=seed)
        results.append((losses, weights["linear"].shift))
    assert results[0][0] == results[1][0]
    assert results[0][1].equal(results[1][1])
    assert not results[0][1].equal(results[2][1])


def test_batches_are_used_in_order_and_repeated():
    made = block(3)
    train(made, shift_of(made), iterations=7)
    used = [x for x, _, _ in made.module.seen]
    assert all(x is made.inputs[step % 3][0][0] for step, x in enumerate(used))


def test_training_moves_toward_the_targets_not_the_inputs():
    made = block()
    W = torch.randn(3, 4)
    made.targets = [args[0] @ W.T + made.module.linear.bias.detach() for args, _ in made.inputs]
    weights = shift_of(made, rate=5e-2)
    losses = train(made, weights, iterations=400)
    assert losses[-1] < 1e-3 * losses[0]
    assert torch.allclose(weights["linear"](), W, atol=0.1)


# ------------------------------------------------------------------ what is left alone


def test_the_module_and_the_data_stay_as_they_were():
    made = block(same=False)
    made.module.linear.eval()  # a mode of its own
    before = copy.deepcopy(made)
    train(made, shift_of(made), iterations=4)
    for name, value in before.module.state_dict().items():
        assert value.equal(made.module.state_dict()[name])
    assert [m.training for m in made.module.modules()] == [
        m.training for m in before.module.modules()
    ]
    for kind in ("inputs", "float_inputs"):
        for one, other in zip(getattr(before, kind), getattr(made, kind), strict=True):
            assert one[0][0].equal(other[0][0])
    assert all(map(torch.equal, before.targets, made.targets))
    assert all(parameter.grad is None for parameter in made.module.parameters())
    assert all(parameter.requires_grad for parameter in made.module.parameters())


def test_modes_come_back_after_a_failure_too():
    made = block()
    with pytest.raises(CalibrationError, match=r"block: the loss is (inf|nan) at step 1"):
        train(made, shift_of(made, scale=1e38), iterations=4)
    assert all(m.training for m in made.module.modules())


def test_training_works_where_gradients_are_switched_off():
    made = block()
    weights = shift_of(made)
    with torch.no_grad():
        train(made, weights, iterations=2)
    assert weights["linear"].shift.abs().max() > 0


class Stack(nn.Module):
    """A model of two blocks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_comes_back_whole_when_training_fails_in_its_second_block():
    class Fails(AdaScale):
        def quantize_block(self, block, scheme):
            if block.name == "layers.1":
                block.targets = [target * math.nan for target in block.targets]
            return super().quantize_block(block, scheme)

    model, tokens = Stack(), torch.randint(0, 7, (3, 5))
    before, linears = model(tokens), [layer[0] for layer in model.layers]
    with pytest.raises(CalibrationError, match=r"layers\.1: batch 0 holds NaN"):
        quantize_(model, Fails(iterations=3), Scheme(4), tokens, blocks="layers")
    assert [layer[0] for layer in model.layers] == linears
    assert model(tokens).equal(before)
    quantize_(model, AdaScale(iterations=3), Scheme(4), tokens, blocks="layers")
    assert all(isinstance(layer[0], QuantizedLinear) for layer in model.layers)


def test_the_second_block_is_trained_on_the_float_blocks_answers():
    seen = {}

    class Spy(AdaScale):
        def quantize_block(self, block, scheme):
            seen[block.name] = block
            return super().quantize_block(block, scheme)

    model, tokens = Stack(), torch.randint(0, 7, (3, 5))
    with torch.no_grad():
        x = model.embed(tokens)
        answers = [x := layer(x) for layer in model.layers]
    quantize_(model, Spy(iterations=3), Scheme(2), tokens, blocks="layers")
    for name, answer in zip(("layers.0", "layers.1"), answers, strict=True):
        assert torch.allclose(torch.cat(list(seen[name].targets)), answer, atol=1e-6)
    first, second = seen["layers.0"], seen["layers.1"]
    assert first.inputs[0][0][0] is first.float_inputs[0][0][0]
    assert len(first.inputs) == 3  # a window a batch
    assert torch.allclose(second.float_inputs[0][0][0], answers[0][:1], atol=1e-6)
    assert not torch.allclose(second.inputs[0][0][0], answers[0][:1], atol=1e-6)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("iterations", [0, -1, 2.0, True])
def test_a_number_of_steps_is_a_positive_integer(iterations):
    made = block()
    with pytest.raises(ValueError, match="choose a positive integer, such as 1500"):
        train(made, shift_of(made), iterations=iterations)


def test_a_mix_is_a_probability():
    made = block()
    with pytest.raises(ValueError, match=r"input_mix is -0\.1; choose a probability"):
        train(made, shift_of(made), iterations=1, input_mix=-0.1)


def test_nothing_to_train_or_to_train_on_is_refused():
    made = block()
    with pytest.raises(ValueError, match="block has no weight to train"):
        train(made, {}, iterations=1)
    weights = shift_of(made)
    for kind in ("inputs", "float_inputs", "targets"):
        lacking = block()
        setattr(lacking, kind, [])
        with pytest.raises(CalibrationError, match="one target a batch"):
            train(lacking, weights, iterations=1)


@pytest.mark.parametrize("kind", ["inputs", "float_inputs", "targets"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_data_that_is_not_finite_is_refused(kind, value):
    made = block(same=False)
    data = getattr(made, kind)
    (data[1] if kind == "targets" else data[1][0][0])[0, 2, 1] = value
    with pytest.raises(CalibrationError, match="block: batch 1 holds NaN or infinity"):
        train(made, shift_of(made), iterations=1)


def test_masks_with_infinities_among_the_keywords_are_fine():
    made = block(1)
    mask = torch.tensor([0.0, -math.inf])
    made.inputs = made.float_inputs = [(made.inputs[0][0], {"mask": mask})]
    assert len(train(made, shift_of(made), iterations=1)) == 1
    assert finite(torch.arange(3))
    assert finite((math.nan,))  # a tuple is none of our business


def test_an_unfinished_learned_weight_says_what_it_lacks():
    bare = LearnedWeight()
    for call, word in [(bare, "forward"), (bare.quantized, "quantized"), (bare.rates, "rates")]:
        with pytest.raises(TypeError, match=f"LearnedWeight defines no {word}"):
            call()
    assert bare.penalty(0.5) == 0
