"""Layers handed to bitsandbytes and taken back, and the hazards on the way.

Each hazard is shown twice: that the installed bitsandbytes has it (if the processor brings it
about), and that a layer made here does not.
"""

import copy
import sys

import pytest
import torch
from torch import nn

import quantlab as ql
from quantlab.export.bitsandbytes import linear4bit, linear8bit, pack_nibbles
from quantlab.nn_codebook import CodebookLinear

bnb = pytest.importorskip("bitsandbytes")
F = bnb.functional
SCHEMES = {
    "nf4": ql.NormalFloat(),
    "nf4 double": ql.NormalFloat(double_quantize=True),
    "fp4": ql.Float4(block_size=32),
    "fp4 double": ql.Float4(double_quantize=True),
}
every_scheme = pytest.mark.parametrize("method", SCHEMES.values(), ids=SCHEMES)
repacks = pytest.mark.skipif(not F.has_avx512bf16(), reason="needs AVX512-BF16")
avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs AVX-512"
)


class Model(nn.Module):
    """Two blocks of two linears, with and without bias."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 96), nn.Tanh(), nn.Linear(96, width, bias=False))
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., width) to the same shape."""
        for layer in self.layers:
            x = x + layer(x)
        return x


def quantized(method, width: int = 64) -> Model:
    """Return a model whose linears are quantized; 96 inputs are one block and a half of 64."""
    model = Model(width).eval()
    size = min(method.block_size, 32)
    method = type(method)(block_size=size, double_quantize=method.double_quantize)
    ql.quantize_(model, method, None, blocks="layers")
    return model


def layer4(method=None, out: int = 64, columns: int = 128) -> CodebookLinear:
    """Return one quantized layer of ours."""
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(columns, out))])
    ql.quantize_(model, method or ql.NormalFloat(), None, blocks="layers")
    return model.layers[0][0]


def theirs(linear: nn.Linear, block: int = 64, double: bool = False) -> nn.Module:
    """Return what bitsandbytes itself makes of a float layer."""
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=double,
        quant_type="nf4",
    )
    layer.weight = bnb.nn.Params4bit(
        linear.weight.data.clone(),
        requires_grad=False,
        blocksize=block,
        compress_statistics=double,
        quant_type="nf4",
        module=layer,
    )
    layer.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.clone())
    return layer.to("cpu")


# ------------------------------------------------------------------ there and back


@every_scheme
def test_there_and_back_keeps_every_bit(method):
    model = quantized(method)
    state, x = copy.deepcopy(model.state_dict()), torch.randn(5, 64)
    y = model(x)
    names = ql.to_bitsandbytes_(model)
    assert names == ("layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2")
    assert isinstance(model.layers[0][0], bnb.nn.Linear4bit)
    assert torch.allclose(model(x), y, atol=1e-6)
    assert ql.from_bitsandbytes_(model) == names
    assert model(x).equal(y)
    back = model.state_dict()
    assert back.keys() == state.keys()
    assert all(back[name].equal(state[name]) for name in state)


@every_scheme
def test_their_dequantized_weight_is_ours(method):
    ours = layer4(method)
    layer = linear4bit(ours)
    decoded = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert decoded.equal(ours.packed.dequantize())


@pytest.mark.parametrize("double", [False, True])
def test_their_own_quantization_is_read_back_as_ours(double):
    linear = nn.Linear(128, 64)
    model = nn.Sequential(theirs(linear, double=double))
    ql.from_bitsandbytes_(model)
    mine = ql.nf4(linear.weight, double_quantize=double)
    assert model[0].packed.unpack().codes.equal(mine.codes)
    assert model[0].packed.dequantize().equal(mine.dequantize())
    assert model[0].bias.equal(linear.bias)


def test_a_state_dict_goes_into_a_fresh_bitsandbytes_model():
    model = quantized(ql.NormalFloat(double_quantize=True))
    x = torch.randn(5, 64)
    y = model(x)
    ql.to_bitsandbytes_(model)
    state = model.state_dict()
    stats = {
        key.removeprefix("layers.0.0.weight."): value
        for key, value in state.items()
        if key.startswith("layers.0.0.weight.")
    }
    weight = bnb.nn.Params4bit.from_prequantized(state["layers.0.0.weight"], stats, device="cpu")
    read = F.dequantize_4bit(weight.data, weight.quant_state)
    ql.from_bitsandbytes_(model)
    assert torch.allclose(read, model.layers[0][0].packed.dequantize(), atol=1e-6)
    assert model(x).equal(y)


def test_int8_layers_go_there_and_back():
    model, _ = ql.load("storyteller")
    ql.llm_int8_(model, threshold=5.0)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(7, 256)
    x[:, 3] *= 9
    y = layer(x)
    names = ql.to_bitsandbytes_(model)
    assert len(names) == 28
    other = model.model.layers[0].mlp.up_proj.eval()
    assert isinstance(other, bnb.nn.Linear8bitLt)
    assert other.state.threshold == 5.0
    assert (
        other(x) - y
    ).norm() < 3e-5 * y.norm()  # their constant for 1 / 127^2 is 1.8e-5 too large
    ql.from_bitsandbytes_(model)  # the first forward has moved the codes inside the layer
    assert model.model.layers[0].mlp.up_proj(x).equal(y)


def test_int8_in_train_mode_multiplies_by_the_dequantized_weight():
    ours = ql.Int8Linear.of(nn.Linear(64, 8))
    x = torch.randn(4, 64)
    trained = linear8bit(ours).train()(x)
    exact = x @ ours.rows.dequantize().T + ours.bias
    assert torch.allclose(trained, exact, atol=1e-5)
    assert not torch.allclose(ours(x), exact, atol=1e-4)


# ------------------------------------------------------------------ hazards


@repacks
def test_hazard_1_an_eval_forward_computes_in_bfloat16_unless_told_not_to():
    linear = nn.Linear(128, 64)
    wild, tame = theirs(linear).eval(), linear4bit(layer_of(linear)).eval()
    x = torch.randn(5, 128)
    exact = x @ ql.nf4(linear.weight).dequantize().T + linear.bias
    with torch.no_grad():
        assert (wild(x) - exact).norm() > 1e-3 * exact.norm()
        assert torch.allclose(tame(x), exact, atol=1e-6)


@repacks
@pytest.mark.parametrize("double", [False, True])
def test_hazard_2_saving_after_an_eval_forward_breaks_the_layer_but_not_ours(double):
    linear = nn.Linear(128, 64)
    linear.weight.data[::2] *= 5  # scales that differ: it matters whose is whose
    wild = theirs(linear, double=double).eval()
    tame = linear4bit(layer_of(linear, double=double)).eval()
    clean = copy.deepcopy(tame.state_dict())
    x = torch.randn(5, 128)
    with torch.no_grad():
        before = wild(x), tame(x)
        saved, kept = wild.state_dict(), tame.state_dict()
        after = tame(x)
    assert not saved["weight.absmax"].flatten().equal(clean["weight.absmax"].flatten())
    assert after.equal(before[1])
    assert all(kept[name].equal(clean[name]) for name in clean)
    if not double:  # with double quantization the way back quantizes again: rounded, but in order
        read = F.dequantize_4bit(wild.weight.data, wild.weight.quant_state)
        assert (read - linear.weight).norm() > 0.15 * linear.weight.norm()  # NF4 itself: 0.09


@repacks
def test_hazard_2_layers_in_that_state_are_refused_and_the_model_left_alone():
    linear = nn.Linear(128, 64)
    model = nn.Sequential(theirs(linear), theirs(nn.Linear(64, 64))).eval()
    with torch.no_grad():
        model[1](torch.randn(2, 64))
    with pytest.raises(ValueError, match=r"1: an eval\(\) forward has repacked its weight"):
        ql.from_bitsandbytes_(model)
    model.state_dict()  # restores the packing, but not the scales
    with pytest.raises(ValueError, match=r"1: an eval\(\) forward has repacked its weight"):
        ql.from_bitsandbytes_(model)
    assert isinstance(model[0], bnb.nn.Linear4bit)


@avx512
def test_hazard_3_their_dequantize_is_wrong_where_blocks_cross_rows():
    weight = torch.randn(8, 96)
    data, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    right = ql.quantize_blocks(weight, ql.NF4, 64).dequantize()
    wrong = F.dequantize_4bit(data, state)
    assert (right - weight).norm() < 0.12 * weight.norm()
    assert (wrong - weight).norm() > 0.15 * weight.norm()


def test_hazard_3_such_layers_are_refused_in_both_directions():
    with pytest.raises(ValueError, match="block_size is 64, in_features 96"):
        ql.nf4(torch.randn(8, 96))
    model = nn.Sequential(theirs(nn.Linear(96, 8)))
    with pytest.raises(ValueError, match="blocks of 64 cross from row to row of 96"):
        ql.from_bitsandbytes_(model)


@repacks
def test_hazard_3_shapes_that_their_eval_forward_refuses_work_in_layers_made_here():
    linear = nn.Linear(64, 24)  # 24 is no multiple of 32
    x = torch.randn(3, 64)
    with torch.no_grad():
        with pytest.raises(AssertionError, match="divisible"):
            theirs(linear).eval()(x)
        ours = layer_of(linear)
        assert torch.allclose(linear4bit(ours).eval()(x), ours(x), atol=1e-6)


@repacks
def test_hazard_4_gemv_4bit_is_garbage_and_a_single_token_does_not_go_through_it():
    linear = nn.Linear(128, 64, bias=False)
    ours, x = layer_of(linear), torch.randn(1, 128)
    layer = linear4bit(ours).eval()
    garbage = F.gemv_4bit(x, layer.weight.data, state=layer.weight.quant_state)
    assert (garbage - ours(x)).norm() > 0.5 * ours(x).norm()
    with torch.no_grad():
        assert torch.allclose(layer(x), ours(x), atol=1e-6)


def layer_of(linear: nn.Linear, double: bool = False) -> CodebookLinear:
    """Return our NF4 layer of a float layer."""
    return CodebookLinear(ql.nf4(linear.weight, double_quantize=double).pack(), linear.bias)


# ------------------------------------------------------------------ refused


def test_tables_and_blocks_that_bitsandbytes_does_not_know_are_refused():
    wide = CodebookLinear(ql.nf4(torch.randn(4, 96), block_size=48).pack())
    model = nn.Sequential(layer4(), wide)
    with pytest.raises(ValueError, match="1: NF4g48 is unknown to bitsandbytes"):
        ql.to_bitsandbytes_(model)
    assert isinstance(model[0], CodebookLinear)  # nothing was replaced


def test_models_without_such_layers_are_refused():
    with pytest.raises(ValueError, match="Model contains no NF4, FP4 or int8 layers"):
        ql.to_bitsandbytes_(Model())
    with pytest.raises(ValueError, match="Model contains no bitsandbytes layers"):
        ql.from_bitsandbytes_(Model())


def test_layers_that_were_never_moved_are_refused():
    four = nn.Sequential(bnb.nn.Linear4bit(64, 8, quant_type="nf4"))
    with pytest.raises(ValueError, match="0: its weight was never quantized"):
        ql.from_bitsandbytes_(four)
    for options in ({}, {"has_fp16_weights": False}):
        with pytest.raises(ValueError, match="0: its weight was never quantized"):
            ql.from_bitsandbytes_(nn.Sequential(bnb.nn.Linear8bitLt(64, 8, **options)))


def test_an_odd_number_of_codes_fills_no_bytes():
    with pytest.raises(ValueError, match="3 codes do not fill whole bytes"):
        pack_nibbles(torch.zeros(3, dtype=torch.uint8))


def test_without_bitsandbytes_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"bitsandbytes is not installed; pip install"):
        ql.to_bitsandbytes_(quantized(ql.NormalFloat()))
