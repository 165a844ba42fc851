"""Encodings as files: the documented entries, all three versions there and back, damaged files."""

import copy
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import A8, A16, BLOCKS, W4, llama, pictures
from safetensors.torch import load_file
from torch import nn

from quantlab.export.encodings import (
    VERSIONS,
    Encoding,
    encoding_of,
    read_encodings,
    write_encodings,
)
from quantlab.methods.adascale import AdaScale
from quantlab.scheme import Scheme
from quantlab.sim import QuantSim
from quantlab.sim.layer import Quantizer, plain

WEIGHT = torch.tensor([[0.30, -0.10], [-0.30, 0.10]])  # two channels of 4 bits


def documented() -> dict[str, Encoding]:
    """Return the encodings of one int4 weight and of one uint8 activation from -0.5 to 1.1."""
    quantizer = Quantizer(A8)
    quantizer.observe()
    quantizer(torch.tensor([-0.5, 1.1]))
    quantizer.settle()
    tensor = plain(WEIGHT, W4, "fc")
    weight = encoding_of(W4, tensor.scale, tensor.zero_point, "weight")
    return {"x": quantizer.encoding, "fc.weight": weight}


def rounded(value):
    """Round floats as the documents print them."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 8) if isinstance(value, float) else value


def written(encodings, version, tmp_path):
    path = tmp_path / f"{version}.encodings"
    write_encodings(path, encodings, version)
    top = json.loads(path.read_text(encoding="utf-8"))
    assert top["version"] == version
    assert top["producer"].keys() == {"package", "version"}
    assert top["producer"]["package"] == "quantlab"
    return rounded(top)


# ------------------------------------------------------------------ the documented entries


def test_version_0_6_1_has_a_dict_a_channel_and_true_in_quotes(tmp_path):
    top = written(documented(), "0.6.1", tmp_path)
    one = {"bitwidth": 4, "dtype": "int", "is_symmetric": "True", "offset": -8}
    channels = [
        one | {"max": 0.3, "min": -0.34285714, "scale": 0.04285714},
        one | {"max": 0.2625, "min": -0.3, "scale": 0.0375},
    ]
    assert near(top["param_encodings"], {"fc.weight": channels})
    activation = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "offset": -80}
    numbers = {"max": 1.09803922, "min": -0.50196078, "scale": 0.00627451}
    assert near(top["activation_encodings"], {"x": [activation | numbers]})


def near(one, other) -> bool:
    """Tell whether two JSON values agree, floats to float32."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float):
        return abs(one - other) < 1e-7
    return one == other and type(one) is type(other)


def test_version_1_0_0_has_a_dict_a_tensor(tmp_path):
    top = written(documented(), "1.0.0", tmp_path)
    assert near(
        top["param_encodings"],
        [
            {
                "name": "fc.weight",
                "dtype": "INT",
                "bw": 4,
                "is_sym": True,
                "scale": [0.04285714, 0.0375],
                "offset": [-8, -8],
                "enc_type": "PER_CHANNEL",
            }
        ],
    )
    assert near(
        top["activation_encodings"],
        [
            {
                "name": "x",
                "dtype": "INT",
                "bw": 8,
                "is_sym": False,
                "scale": [0.00627451],
                "offset": [-80],
                "enc_type": "PER_TENSOR",
            }
        ],
    )
    assert top["excluded_layers"] == []
    assert top["quantizer_args"] == {
        "quant_scheme": "min_max",
        "param_bitwidth": 4,
        "activation_bitwidth": 8,
        "dtype": "int",
        "is_symmetric": True,
        "per_channel_quantization": True,
    }


def test_version_2_0_0_has_one_list_and_signed_codes(tmp_path):
    top = written(documented(), "2.0.0", tmp_path)
    assert near(
        top["encodings"],
        [
            {"name": "x", "output_dtype": "uint8", "y_scale": 0.00627451, "y_zero_point": 80},
            {
                "name": "fc.weight",
                "output_dtype": "int4",
                "y_scale": [0.04285714, 0.0375],
                "axis": 0,
            },
        ],
    )


def test_groups_are_blocks_where_the_version_knows_them(tmp_path):
    scheme = Scheme(4, 2)
    tensor = plain(torch.tensor([[0.30, -0.10, -0.30, 0.10]]).repeat(3, 1), scheme, "fc")
    groups = {"fc.weight": encoding_of(scheme, tensor.scale, tensor.zero_point, "weight")}
    (entry,) = written(groups, "1.0.0", tmp_path)["param_encodings"]
    assert (entry["enc_type"], entry["block_size"], len(entry["scale"])) == ("PER_BLOCK", 2, 6)
    (entry,) = written(groups, "2.0.0", tmp_path)["encodings"]
    assert (entry["axis"], entry["block_size"]) == (1, 2)
    assert near(entry["y_scale"], [[0.04285714, 0.0375]] * 3)
    with pytest.raises(ValueError, match=r"fc\.weight has groups of 2; version 0\.6\.1 has no"):
        write_encodings(tmp_path / "x", groups, "0.6.1")
    for version in ("1.0.0", "2.0.0"):
        again = read_encodings(tmp_path / f"{version}.encodings")["fc.weight"]
        assert again.quantize(tensor.dequantize()).equal(tensor.dequantize())


# ------------------------------------------------------------------ there and back


def simulation(kind: str) -> tuple[QuantSim, torch.Tensor]:
    if kind == "groups":
        torch.manual_seed(0)
        model, data = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), torch.randn(9, 8)
        sim = QuantSim(model, weights=Scheme(3, 2), activations=A8)
    elif kind == "pictures":
        model, data = pictures()
        sim = QuantSim(model, weights=Scheme(3), activations=A8)
        sim.apply(AdaScale(iterations=20), data, blocks=BLOCKS)
    elif kind == "asymmetric":
        model, data = pictures()
        sim = QuantSim(model, weights=Scheme(5, symmetric=False), activations=Scheme(8))
    else:
        model, data = llama()
        sim = QuantSim(model, weights=W4, activations=A16)
        sim.apply(AdaScale(iterations=10), data)
    sim.compute_encodings(data)
    return sim, data


def rebuilt(sim: QuantSim, weights: dict, encodings: dict[str, Encoding]) -> nn.Module:
    """Build the simulation again from the files alone, on the float model's skeleton."""
    fresh = QuantSim(unwrapped(sim), weights=sim.weights)
    for name, twin in fresh.simulated_layers().items():
        weight = encodings[f"{name}.weight"].quantize(weights[f"{name}.weight"])
        twin.layer.weight.data = weight
        if twin.layer.bias is not None:
            twin.layer.bias.data = weights[f"{name}.bias"]
        for side in ("input", "output"):
            quantizer = Quantizer(A8)
            quantizer.encoding = encodings[f"{name}.{side}"]
            setattr(twin, side, quantizer)
    return fresh


def unwrapped(sim: QuantSim) -> nn.Module:
    """Return the model with its original float layers."""
    with sim.swapped(lambda twin: twin.float_layer) as model:
        return copy.deepcopy(model)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["llama", "pictures", "asymmetric", "groups"])
def test_every_tensor_is_rebuilt_from_the_files_equal_to_the_simulation(kind, version, tmp_path):
    sim, data = simulation(kind)
    if kind == "groups" and version == "0.6.1":
        with pytest.raises(ValueError, match=r"version 0\.6\.1 has no field"):
            sim.export(tmp_path / "out", "net", version=version, onnx=False)
        assert not (tmp_path / "out").exists()
        return
    sim.export(tmp_path / "out", "net", version=version, onnx=False)
    weights = load_file(tmp_path / "out" / "net.safetensors")
    encodings = read_encodings(tmp_path / "out" / "net.encodings")
    told = sim.encodings()
    assert {n for n, e in encodings.items() if e.kind != "bias"} == told.keys()
    state = sim.weights_only().state_dict()
    assert weights.keys() == state.keys()
    assert all(weights[name].equal(state[name]) for name in state)
    for name, mine in told.items():
        read = encodings[name]
        assert (read.kind, read.bits, read.symmetric) == (mine.kind, mine.bits, mine.symmetric)
        if mine.kind == "weight":  # ordinary rounding leaves what is on the grid
            assert read.quantize(weights[name]).equal(weights[name])
        noise = torch.randn(weights[name].shape if mine.kind == "weight" else (7, 5)) * 2
        assert read.quantize(noise).equal(mine.quantize(noise))
    assert rebuilt(sim, weights, encodings)(data).equal(sim(data))


def test_biases_of_version_2_lie_on_the_grid_of_their_products(tmp_path):
    sim, _ = simulation("pictures")
    sim.export(tmp_path / "out", "net", version="2.0.0", onnx=False)
    encodings = read_encodings(tmp_path / "out" / "net.encodings")
    found = {name: one for name, one in encodings.items() if one.kind == "bias"}
    assert found.keys() == {"stem.conv.bias", "head.1.bias", "head.3.bias"}
    for name, one in found.items():
        layer = name.removesuffix(".bias")
        scale = encodings[f"{layer}.input"].scale * encodings[f"{layer}.weight"].scale
        assert one.scale.equal(scale)
        bias = sim.model.get_submodule(layer).bias.detach()
        assert ((one.quantize(bias) - bias).abs() <= scale.double() / 2 * (1 + 1e-6)).all()


@settings(max_examples=60)
@given(
    bits=st.sampled_from([2, 4, 8, 16]),
    symmetric=st.booleans(),
    low=st.floats(-100, 0),
    high=st.floats(1e-3, 100),
    version=st.sampled_from(VERSIONS),
)
def test_any_activation_range_survives_every_version(
    tmp_path_factory, bits, symmetric, low, high, version
):
    quantizer = Quantizer(Scheme(bits, symmetric=symmetric))
    quantizer.low, quantizer.high = low, high
    quantizer.settle()
    path = tmp_path_factory.mktemp("e") / "x"
    write_encodings(path, {"x": quantizer.encoding}, version)
    again = read_encodings(path)["x"]
    values = torch.linspace(1.5 * low, 1.5 * high, 50)
    assert again.quantize(values).equal(quantizer(values))
    assert again.quantize(torch.zeros(1)).item() == 0


def test_the_grid_of_an_activation_is_that_of_the_documents():
    # x ~ (u + offset) * scale, u = clamp(round(x / scale) - offset, 0, 2^b - 1)
    one = documented()["x"]
    scale, offset = one.scale.item(), -80
    for x in (-0.9, -0.5, -0.003, 0.0, 0.0032, 0.77, 1.1, 3.0):
        u = min(max(round(x / scale) - offset, 0), 255)
        assert one.quantize(torch.tensor(x)).item() == pytest.approx((u + offset) * scale, abs=1e-7)


# ------------------------------------------------------------------ refusals


def test_other_versions_and_scales_below_zero_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"version is '3\.0'; choose one of 0\.6\.1, 1\.0\.0"):
        write_encodings(tmp_path / "x", documented(), "3.0")
    scale, middle = torch.tensor([0.1, -0.2]), torch.tensor([8.0, 8.0])
    negative = {"fc.weight": Encoding("weight", 4, True, scale, middle)}
    for version in VERSIONS:
        with pytest.raises(ValueError, match=r"fc\.weight has a scale of -0\.2, and a symmetric"):
            write_encodings(tmp_path / "x", negative, version)
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_and_an_odd_prefix_are_refused(tmp_path):
    sim, _ = simulation("groups")
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        sim.export(tmp_path, "net", onnx=False)
    for prefix in ("", "a/b"):
        with pytest.raises(ValueError, match="choose a file name without a folder"):
            sim.export(tmp_path / "out", prefix, onnx=False)
    with pytest.raises(ValueError, match=r"version is '1\.0'"):
        sim.export(tmp_path / "out", "net", version="1.0", onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def damaged(value, random_: random.Random):
    """Return the JSON value with one part of it dropped or replaced."""
    bad = [None, "x", -1, 0, [], {}, 1e400, True, "int99", [[1, 2], [3]]]
    if isinstance(value, dict | list) and value and random_.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        copy, key = value.copy(), random_.choice(keys)
        if random_.random() < 0.25:
            del copy[key]
        else:
            copy[key] = damaged(value[key], random_)
        return copy
    return random_.choice(bad)


@pytest.mark.parametrize("version", VERSIONS)
def test_damaged_files_give_errors_of_one_line_or_sound_encodings(version, tmp_path):
    path, random_, refused = tmp_path / "x.encodings", random.Random(0), 0
    write_encodings(path, documented(), version)
    whole = json.loads(path.read_text())
    for _ in range(300):
        path.write_text(json.dumps(damaged(whole, random_)))
        message, found = read(path)
        refused += bool(message)
        assert "\n" not in message
        assert message.startswith(str(path) if message else "")
        for one in found.values():
            assert 1 <= one.bits <= 32
            assert torch.isfinite(one.scale).all()
            assert one.scale.shape == one.zero_point.shape
    assert refused > 50


def read(path) -> tuple[str, dict[str, Encoding]]:
    """Return the refusal, or what was read."""
    try:
        return "", read_encodings(path)
    except ValueError as error:
        return str(error), {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no encodings"),
        ("[]", "holds no encodings"),
        ("{}", "holds no encodings .no field 'version'"),
        ('{"version": "2.1.0"}', r"version '2\.1\.0'; known: 0\.6\.1"),
        ('{"version": "2.0.0"}', "holds no encodings .no field 'encodings'"),
        ('{"version": "1.0.0", "activation_encodings": [], "param_encodings": [{"name": "w"}]}',
         "w: the entry is damaged .no field 'scale'"),
    ],
)  # fmt: skip
def test_text_that_is_no_encodings_file_is_refused(text, words, tmp_path):
    path = tmp_path / "x.encodings"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_encodings(path)


# ------------------------------------------------------------------ ONNX


def test_onnx_is_refused_in_words_where_it_cannot_be_made(monkeypatch, tmp_path):
    sim, data = simulation("groups")
    monkeypatch.setattr("quantlab.sim.export.PACKAGES", ("onnx_that_nobody_has",))
    with pytest.raises(ValueError, match="onnx=True needs the packages onnx_that_nobody_has"):
        sim.export(tmp_path / "out", "net", onnx=True)
    sim.export(tmp_path / "one", "net")
    assert not (tmp_path / "one" / "net.onnx").exists()
    monkeypatch.setattr("quantlab.sim.export.PACKAGES", ())
    fresh = QuantSim(unwrapped(sim), weights=W4, activations=A8)
    fresh.compute_encodings(lambda net: net(data))
    with pytest.raises(ValueError, match="traces a sample; call compute_encodings with a tensor"):
        fresh.export(tmp_path / "out", "net", onnx=True)


@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_the_weights_of_the_safetensors_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    sim, data = simulation("pictures")
    sim.export(tmp_path / "out", "net")
    weights = load_file(tmp_path / "out" / "net.safetensors")
    model = onnx.load(tmp_path / "out" / "net.onnx")
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    for name in sim.simulated_layers():
        assert torch.tensor(held[f"{name}.weight"]).equal(weights[f"{name}.weight"])
    inputs = {model.graph.input[0].name: data[:1].numpy()}
    (answer,) = ReferenceEvaluator(model).run(None, inputs)
    expected = sim.weights_only()(data[:1]).detach()
    assert torch.allclose(torch.tensor(answer), expected, atol=1e-5)
