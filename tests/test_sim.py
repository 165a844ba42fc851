"""The simulation: a twin of the model, five steps in order, the same bytes every time."""

import copy

import pytest
import torch
from nets import A8, A16, BLOCKS, W4, bits_of, llama, pictures, same, state
from torch import nn

import quantlab as ql
from quantlab.export.encodings import read_encodings
from quantlab.methods.adascale import AdaScale, AdaScaleWeight
from quantlab.methods.gptq import GPTQ
from quantlab.methods.rtn import RTN
from quantlab.scheme import Scheme
from quantlab.sim import QuantSim
from quantlab.sim.layer import Quantizer

# ------------------------------------------------------------------ the five steps


def test_five_steps_on_the_storyteller(tmp_path):
    model, tokenizer = ql.load("storyteller")
    before = bits_of(model)
    data = ql.calibration_set(tokenizer, samples=8, length=32)
    test = ql.test_set(tokenizer, samples=2)
    plain, sim = (QuantSim(model, weights=Scheme(3), activations=A16) for _ in range(2))
    report = sim.apply(AdaScale(iterations=24), data)
    assert len(report.rows) == 28
    for one in (plain, sim):
        one.compute_encodings(data)
    weights = sim.weights_only()
    numbers = [ql.perplexity(one, test) for one in (model, weights, sim, plain)]
    assert numbers[0] < numbers[1]
    assert numbers[2] == pytest.approx(numbers[1], rel=0.01)  # 16 bits cost next to nothing
    assert numbers[2] != numbers[1]
    assert numbers[2] < numbers[3] - 0.05  # without step 2
    sim.export(tmp_path / "out", "story", onnx=False)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["story.encodings", "story.safetensors"]
    assert same(before, bits_of(model))


@pytest.mark.parametrize("blocks", [BLOCKS, ["stem"], ["head"]])
def test_five_steps_on_convolutions(blocks, tmp_path):
    model, images = pictures()
    before, answer = bits_of(model), model(images)
    plain, sim = (QuantSim(model, weights=Scheme(3), activations=A8) for _ in range(2))
    report = sim.apply(AdaScale(iterations=150), images, blocks=blocks)
    trained = {"stem": ["conv", "mix"], "head": ["1", "3"]}
    assert [row.name for row in report.rows] == [f"{b}.{n}" for b in blocks for n in trained[b]]
    for one in (plain, sim):
        one.compute_encodings(images)
    errors = [(one(images) - answer).square().mean().item() for one in (sim, plain)]
    assert errors[0] < 0.8 * errors[1]
    sim.export(tmp_path / "out", "net", onnx=False)
    assert same(before, bits_of(model))
    assert len(read_encodings(tmp_path / "out" / "net.encodings")) == 12


def test_a_kernel_is_rounded_as_a_matrix_with_a_scale_a_channel():
    model, images = pictures()
    sim = QuantSim(model, weights=W4)
    weight = sim.model.stem.conv.weight
    twin = AdaScaleWeight(model.stem.conv.weight, W4)
    assert weight.equal(twin().detach())
    assert sim.encodings()["stem.conv.weight"].scale.equal(twin.scale().flatten().detach())
    sim.apply(AdaScale(iterations=3), images, blocks=BLOCKS)
    trained = sim.model.stem.conv
    assert trained.weight.shape == (6, 1, 3, 3)
    assert not trained.weight.equal(weight)
    assert trained.weight_encoding.quantize(trained.weight).equal(trained.weight)


def test_blocks_of_a_sequential_are_walked_one_after_the_other():
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    model, data = nn.ModuleDict({"body": nn.Sequential(*body)}), torch.randn(8, 6)
    model.forward = model["body"].forward
    sim = QuantSim(model["body"], weights=W4, activations=A8)
    report = sim.apply(AdaScale(iterations=4), data, blocks=["0", "1", "2"])
    assert [row.name for row in report.rows] == ["0.0", "1.0", "2.0"]
    inside = QuantSim(model, weights=W4)
    again = inside.apply(AdaScale(iterations=4), data, blocks="body")
    assert [row.name for row in again.rows] == ["body.0.0", "body.1.0", "body.2.0"]
    assert inside.model["body"][2][0].weight.equal(sim.model[2][0].weight)


# ------------------------------------------------------------------ what a twin is


def test_before_apply_the_weights_are_plainly_rounded_by_the_range_adascale_starts_from():
    model, tokens = llama()
    sim = QuantSim(model, weights=W4)
    layer = model.model.layers[1].mlp.down_proj
    twin = sim.model.model.layers[1].mlp.down_proj
    assert twin.weight.equal(AdaScaleWeight(layer.weight, W4)().detach())
    assert (twin.weight_encoding.scale > 0).all()
    assert not sim(tokens).equal(model(tokens))


@pytest.mark.parametrize(
    ("scheme", "scale", "zero_point"),
    [(A8, 0.00627451, 80), (A16, 1.6 / 65535, 20480), (Scheme(8), 1.1 / 127, 128)],
)
def test_a_range_of_activations_holds_zero_and_all_that_was_seen(scheme, scale, zero_point):
    quantizer = Quantizer(scheme)
    quantizer.observe()
    for values in ([-0.5, 0.3], [0.1, 1.1]):
        quantizer(torch.tensor(values))
    quantizer.settle()
    assert quantizer.encoding.scale.item() == pytest.approx(scale, rel=1e-6)
    assert quantizer.encoding.zero_point.item() == zero_point
    assert quantizer(torch.tensor([0.0])).item() == 0
    low, high = quantizer(torch.tensor([-9.0, 9.0])).tolist()
    offset, steps = -zero_point, 2**scheme.bits - 1
    assert low == pytest.approx(scale * offset, rel=1e-6)
    assert high == pytest.approx(scale * (offset + steps), rel=1e-6)


def test_a_range_of_one_sign_begins_at_zero():
    quantizer = Quantizer(A8)
    quantizer.observe()
    quantizer(torch.tensor([2.0, 5.1]))
    quantizer.settle()
    assert quantizer.encoding.zero_point.item() == 0
    assert quantizer.encoding.scale.item() == pytest.approx(0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_keeps_its_own(dtype):
    model, images = pictures()
    sim = QuantSim(model.to(dtype), weights=W4, activations=A16)
    sim.compute_encodings(images.to(dtype))
    assert sim(images.to(dtype)).dtype == dtype
    weight = sim.model.head[1].weight
    assert weight.dtype == dtype
    assert sim.encodings()["head.1.weight"].quantize(weight).equal(weight)


def test_one_layer_in_two_places_stays_one_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU(), nn.Sequential())
    model[2].append(model[0][0])
    data = torch.randn(5, 4)
    sim = QuantSim(model, weights=Scheme(2))
    assert sim.model[0][0] is sim.model[2][0]
    sim.apply(AdaScale(iterations=5), data, blocks=["0"])
    assert sim.model[0][0] is sim.model[2][0]
    assert sim.model[0][0].weight_encoding.scale.ndim == 1
    plain = sim.weights_only()
    assert plain[0][0] is plain[2][0]
    assert isinstance(plain[0][0], nn.Linear)


def test_names_that_contain_the_word_layer_are_kept(tmp_path):
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.layer = nn.Linear(4, 4)
    sim = QuantSim(model, weights=W4)
    assert state(sim).keys() == model.state_dict().keys()


def test_the_report_tells_of_every_tensor_how_it_is_quantized_or_why_not():
    model, images = pictures()
    sim = QuantSim(model, weights=W4, activations=A8)
    report = sim.apply(AdaScale(iterations=2), images, blocks=["stem"])
    tensors = report.tensors
    assert tensors["stem.conv.weight"] == "int4, symmetric, a scale a channel, by AdaScale"
    assert tensors["head.1.weight"] == "int4, symmetric, a scale a channel, rounded to nearest"
    assert tensors["head.3.output"] == "uint8, asymmetric, a scale a tensor"
    assert tensors["stem.norm.weight"] == "float: BatchNorm2d is not simulated"
    assert tensors["head.2.output"] == "float: ReLU is not simulated"
    assert set(model.state_dict()) - set(tensors) == {
        "stem.norm.running_mean",
        "stem.norm.running_var",
        "stem.norm.num_batches_tracked",
    }
    assert report.left_in_float["stem.norm.bias"] == "BatchNorm2d is not simulated"
    assert "activations: 8 tensors, uint8, asymmetric" in str(report)
    bare = QuantSim(model, weights=Scheme(4, symmetric=False)).tensors()
    assert bare["head.1.input"] == "float: activations=None"
    assert bare["head.1.weight"] == "int4, asymmetric, a scale a channel, rounded to nearest"


def test_a_method_that_takes_linears_only_leaves_convolutions_rounded():
    model, images = pictures()
    sim = QuantSim(model, weights=W4)
    before = sim.model.stem.conv.weight.clone()
    report = sim.apply(RTN(), images, blocks=["head"])
    assert [row.name for row in report.rows] == ["head.1", "head.3"]
    assert sim.model.stem.conv.weight.equal(before)


# ------------------------------------------------------------------ the same bytes


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    model, tokens = llama()
    states = []
    for seed in (0, 0, 1):
        sim = QuantSim(model, weights=W4)
        sim.apply(AdaScale(iterations=6, seed=seed), tokens)
        states.append(state(sim))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("kind", [llama, pictures])
def test_a_run_killed_in_the_second_block_resumes_to_the_same_bytes(kind, tmp_path, monkeypatch):
    model, data = kind()
    blocks = BLOCKS if kind is pictures else None
    whole = QuantSim(model, weights=W4)
    whole.apply(AdaScale(iterations=6), data, blocks=blocks)
    train, calls = AdaScale.quantize_block, []

    def dying(self, block, scheme):
        calls.append(block.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, block, scheme)

    half = QuantSim(model, weights=W4)
    before = state(half)
    with monkeypatch.context() as patch:
        patch.setattr(AdaScale, "quantize_block", dying)
        with pytest.raises(KeyboardInterrupt):
            half.apply(AdaScale(iterations=6), data, blocks=blocks, checkpoint=tmp_path)
    assert same(before, state(half))
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            AdaScale,
            "quantize_block",
            lambda self, block, scheme: calls.append(block.name) or train(self, block, scheme),
        )
        half.apply(AdaScale(iterations=6), data, blocks=blocks, checkpoint=tmp_path)
    assert calls == (["head"] if blocks else ["model.layers.1", "model.layers.2"])
    assert same(state(whole), state(half))


def test_simulation_and_packed_layers_are_one_road():
    model, tokens = llama()
    sim = QuantSim(model, weights=W4)
    sim.apply(AdaScale(iterations=6), tokens)
    packed = copy.deepcopy(model)
    ql.quantize_(packed, AdaScale(iterations=6), W4, tokens)
    for name in ("self_attn.q_proj", "mlp.down_proj"):  # later blocks see float16 scales
        twin = sim.model.model.layers[0].get_submodule(name)
        stored = packed.model.layers[0].get_submodule(name).packed.unpack()
        codes = twin.weight / twin.weight_encoding.scale[:, None] + 8
        assert codes.round().equal(stored.codes.float())
        assert stored.scale.flatten().equal(twin.weight_encoding.scale.half().float())


def test_gptq_gives_symmetric_grids_that_no_encoding_can_express(tmp_path):
    model, tokens = llama()
    sim = QuantSim(model, weights=W4, activations=A8)
    sim.apply(GPTQ(), tokens)
    sim.compute_encodings(tokens)
    with pytest.raises(ValueError, match=r"has a scale of -.*has none below 0; apply a method"):
        sim.export(tmp_path / "out", "x")
    assert not list(tmp_path.iterdir())
    sim = QuantSim(model, weights=Scheme(4, symmetric=False), activations=A8)
    sim.apply(GPTQ(), tokens)
    sim.compute_encodings(tokens)
    sim.export(tmp_path / "out", "x", onnx=False)
