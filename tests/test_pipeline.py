"""The walk over a model: what it changes, what it reports, and what it puts back."""

import copy

import pytest
import torch

import quantlab as ql
from quantlab.block import Block, second_moment
from quantlab.models.families import find_blocks, linears
from quantlab.nn import QuantizedLinear, weight_bytes
from quantlab.pipeline import quantize_
from quantlab.walk import first_calls


@pytest.fixture(scope="module")
def storyteller():
    return ql.load("storyteller")


@pytest.fixture(scope="module")
def data(storyteller):
    return ql.calibration_set(storyteller[1], samples=10, length=64)


def test_every_linear_of_every_block_ends_packed(storyteller, data):
    model = copy.deepcopy(storyteller[0])
    report = quantize_(model, ql.GPTQ(), ql.Scheme(bits=3, group_size=32), data)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == len(report.rows) == 28
    assert not any(linears(block) for block in find_blocks_of(model))
    assert report.nbytes == sum(layer.nbytes for layer in layers)
    assert report.bits_per_weight == 3.5
    assert list(report.left_in_float) == ["model.embed_tokens"]
    assert "GPTQ: 28 linears" in str(report)


def find_blocks_of(model):
    return list(model.model.layers)


def test_memory_really_shrinks(storyteller):
    model = copy.deepcopy(storyteller[0])
    before = weight_bytes(model)
    report = quantize_(model, ql.RTN(), ql.Scheme(bits=4, group_size=64))
    saved = sum(4 * row.weights for row in report.rows) - report.nbytes
    assert before - weight_bytes(model) == saved


def test_each_block_sees_what_the_quantized_blocks_before_it_produce(storyteller, data):
    seen = []

    class Spy:
        def quantize_block(self, block, scheme):
            seen.append([args[0].clone() for args, _ in block.inputs])
            return ql.RTN().quantize_block(block, scheme)

    model = copy.deepcopy(storyteller[0])
    quantize_(model, Spy(), ql.Scheme(bits=2, group_size=64), data)
    again = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda m, args: again.append(args[0].clone()))
    with torch.no_grad():
        for batch in data.split(8):
            model(batch)
    batches = len(seen[0])
    for index, block in enumerate(seen):
        for number, x in enumerate(block):
            assert torch.equal(x, again[number * len(seen) + index])
    assert batches == 2


def test_a_report_s_output_error_is_the_mean_squared_error_of_the_layer(storyteller, data):
    model = copy.deepcopy(storyteller[0])
    layer = model.model.layers[0].self_attn.q_proj
    calls = first_calls(model, find_blocks(model), list(data.split(8)))
    report = quantize_(model, ql.RTN(), ql.Scheme(bits=3, group_size=64), data)
    norm, packed = model.model.layers[0].input_layernorm, model.model.layers[0].self_attn.q_proj
    x = torch.cat([norm(args[0]) for args, _ in calls]).flatten(0, 1).detach()
    error = (packed(x) - layer(x)).square().sum() / layer(x).square().sum()
    # The report goes through the second moment in float32 instead of through the outputs.
    assert report.rows[0].output_error == pytest.approx(error.item(), rel=1e-4)


def test_calibration_data_is_not_changed_and_the_result_is_deterministic(storyteller, data):
    kept = data.clone()
    results = []
    for _ in range(2):
        model = copy.deepcopy(storyteller[0])
        quantize_(model, ql.GPTQ(), ql.Scheme(bits=4, group_size=64), data)
        results.append(model.state_dict())
    assert torch.equal(kept, data)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_failure_midway_puts_the_model_back(storyteller, data):
    class Fails:
        blocks = 0

        def quantize_block(self, block, scheme):
            self.blocks += 1
            if self.blocks == 3:
                raise KeyboardInterrupt
            return ql.RTN().quantize_block(block, scheme)

    model = copy.deepcopy(storyteller[0])
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(KeyboardInterrupt):
        quantize_(model, Fails(), ql.Scheme(), data)
    assert {name: id(module) for name, module in model.named_modules()} == before


def spoiled(model, value):
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[17, 9] = value
    return model


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf")])
def test_a_weight_that_is_not_finite_is_found_before_anything_changes(storyteller, value, word):
    model = spoiled(copy.deepcopy(storyteller[0]), value)
    with pytest.raises(
        ValueError, match=rf"layers\.2\.mlp\.up_proj holds 1 .* {word} at \[17, 9\]"
    ):
        quantize_(model, ql.RTN(), ql.Scheme())
    assert not ql.is_quantized(model)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((ql.RTN(), ql.Scheme(bits=4, group_size=100)), "q_proj: in_features 256 .* choose"),
        ((ql.RTN(), ql.Scheme(bits=16)), "1..8 bits"),
        ((ql.RTN, ql.Scheme()), "method is"),
        (("gptq", ql.Scheme()), "method is 'gptq'"),
        ((ql.GPTQ(), ql.Scheme()), "needs calibration data"),
        ((ql.GPTQ(), ql.Scheme(), torch.zeros(2, 8)), "torch.float32"),
        ((ql.GPTQ(), ql.Scheme(), torch.zeros(0, 8, dtype=torch.long)), r"\(0, 8\)"),
        ((ql.GPTQ(), ql.Scheme(), torch.zeros(8, dtype=torch.long)), r"\(8,\)"),
        ((ql.GPTQ(), ql.Scheme(), torch.full((1, 8), 2048)), "id 2048; the vocabulary is 0..2047"),
        ((ql.GPTQ(), ql.Scheme(), torch.full((1, 8), -1)), "id -1"),
        ((ql.GPTQ(), ql.Scheme(), "text"), "data is str"),
    ],
)
def test_bad_input_gets_one_plain_error_and_leaves_the_model_alone(storyteller, arguments, match):
    model = copy.deepcopy(storyteller[0])
    with pytest.raises(ValueError, match=match):
        quantize_(model, *arguments)
    assert not ql.is_quantized(model)


def test_activations_that_are_not_finite_are_named(storyteller, data):
    model = copy.deepcopy(storyteller[0])
    with torch.no_grad():
        model.model.embed_tokens.weight[int(data[0, 3])] = float("nan")
    with pytest.raises(ql.CalibrationError, match="non-finite values, first at token"):
        quantize_(model, ql.GPTQ(), ql.Scheme(), data)


def test_a_named_path_of_blocks_serves_an_unknown_architecture():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.ModuleList(
                torch.nn.Sequential(torch.nn.Linear(8, 8)) for _ in "ab"
            )

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    model = Odd()
    report = quantize_(model, ql.RTN(), ql.Scheme(bits=8), blocks="steps")
    assert [row.name for row in report.rows] == ["steps.0.0", "steps.1.0"]


def test_collect_averages_over_all_tokens_of_all_batches():
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 3)
    batches = [torch.randn(n, 6, generator=generator) for n in (5, 11)]
    block = Block(torch.nn.Sequential(layer), {"0": layer}, [((x,), {}) for x in batches])
    x = torch.cat(batches).double()
    moment = block.collect(second_moment)["0"]
    # Batches are multiplied in float32 and summed in float64.
    assert torch.allclose(moment, x.T @ x / 16, atol=1e-6)
    assert block.collect(second_moment)["0"] is moment


def test_a_linear_that_no_token_reaches_is_named():
    seen, unseen = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    block = Block(
        torch.nn.Sequential(seen), {"0": seen, "idle": unseen}, [((torch.ones(2, 4),), {})]
    )
    with pytest.raises(ql.CalibrationError, match="idle saw no token"):
        block.collect(second_moment)


def test_a_bias_is_kept():
    linear = torch.nn.Linear(8, 4)
    packed = ql.rtn(linear.weight.detach(), ql.Scheme(bits=8)).pack()
    layer, x = QuantizedLinear(packed, linear.bias), torch.ones(2, 8)
    expected = torch.nn.functional.linear(x, packed.dequantize(), linear.bias)
    assert torch.equal(layer(x), expected.detach())


def test_is_quantized_looks_at_storage_not_at_values():
    rounded = torch.nn.Linear(8, 8)
    with torch.no_grad():
        rounded.weight.copy_((rounded.weight * 8).round() / 8)
    assert not ql.is_quantized(rounded)
    integers = torch.nn.Linear(8, 8)
    integers.weight = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    assert ql.is_quantized(integers)
