"""Codes of RTN and GPTQ in ggml blocks: every weight of the file equals the layer's, to the bit."""

import numpy as np
import pytest
from torch import nn

import quantlab as ql
from quantlab import gguf
from quantlab.export.gguf import export_gguf
from quantlab.export.gguf_load import load_gguf
from quantlab.gguf.grids import Grid
from quantlab.nn import QuantizedLinear
from tests.gguf.tiny import TOKENS, logits, small


def grid(bits, symmetric, groups=2, size=64, rows=5, seed=0):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**bits, (rows, groups * size), dtype=np.uint8)
    scale = random.normal(0, 0.01, (rows, groups)).astype(np.float16)  # of both signs
    scale[0, 0] = 0
    if symmetric:
        return Grid(codes, scale, None, bits)
    scale = np.ldexp(1, random.integers(-9, -4, scale.shape)).astype(np.float16)
    zero = random.integers(0, 2**bits, scale.shape, dtype=np.uint8)
    return Grid(codes, scale, zero, bits)


def slow_dequantize(grid):
    rows, columns = grid.codes.shape
    size = columns // grid.scale.shape[1]
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            zero = (
                2 ** (grid.bits - 1) if grid.zero_point is None else grid.zero_point[i, j // size]
            )
            out[i, j] = float(grid.scale[i, j // size]) * (int(grid.codes[i, j]) - int(zero))
    return out


HOLDERS = {
    (4, True): ("Q4_0", "Q5_0", "Q8_0", "F32"),
    (3, True): ("Q4_0", "Q5_0", "Q8_0", "F32"),
    (2, True): ("Q4_0", "Q5_0", "Q8_0", "F32"),
    (1, True): ("Q4_0", "Q5_0", "Q8_0", "F32"),
    (5, True): ("Q5_0", "Q8_0", "F32"),
    (6, True): ("Q8_0", "F32"),
    (7, True): ("Q8_0", "F32"),
    (8, True): ("Q8_0", "F32"),
    (4, False): ("Q4_1", "Q5_1", "F32"),
    (3, False): ("Q4_1", "Q5_1", "F32"),
    (5, False): ("Q5_1", "F32"),
    (8, False): ("F32",),
}


@pytest.mark.parametrize(("kind", "holders"), HOLDERS.items())
@pytest.mark.parametrize("size", [32, 64, 160])
def test_each_holder_dequantizes_to_the_grids_own_weights(kind, holders, size):
    bits, symmetric = kind
    made = grid(bits, symmetric, size=size)
    expected = slow_dequantize(made)
    assert made.holders == holders
    assert np.array_equal(made.dequantize(), expected)
    for name in holders[:-1]:
        blocks = made.blocks(name)
        assert np.array_equal(gguf.dequantize(blocks, name, expected.shape), expected), name


def test_groups_that_are_no_whole_blocks_are_held_by_f32_only():
    for size in (1, 16, 31, 48):
        made = grid(4, True, size=size)
        assert made.holders == ("F32",)
        assert f"groups of {size} weights are no whole blocks of 32" in made.why_none()


def test_a_minimum_that_float16_cannot_hold_is_not_stored():
    made = grid(4, False)
    made.scale[2, 1] = np.float16(0.1)  # eleven bits; times 15 needs more
    made.zero_point[2, 1] = 15
    assert made.holders == ("F32",)
    assert "do not fit" in made.why_none()
    made = grid(4, False)
    made.scale[2, 1], made.zero_point[2, 1] = np.float16(60000), 15
    assert made.holders == ("F32",)


def quantized(scheme, **changes):
    model = small(**changes)
    ql.quantize_(model, ql.RTN(), scheme)
    return model


def layer_weights(model):
    return {
        name: layer.packed.dequantize()
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear)
    }


@pytest.mark.parametrize(
    ("scheme", "preset", "type"),
    [
        ("w4g32sym", "Q4_0", "Q4_0"),
        ("w4g128sym", "Q4_0", "Q4_0"),
        ("w4sym", "same", "Q4_0"),
        ("w8g64sym", "Q8_0", "Q8_0"),
        ("w4g32sym", "Q8_0", "Q8_0"),
        ("w3g64sym", "same", "Q4_0"),
        ("w4g64asym", "same", "F32"),
        ("w4g16sym", "same", "F32"),
        ("w4g16sym", "F32", "F32"),
    ],
)
def test_a_quantized_model_keeps_every_weight(scheme, preset, type, tmp_path):
    model = quantized(ql.Scheme.parse(scheme))
    report = export_gguf(model, tmp_path / "m.gguf", preset)
    kept = [row for row in report.rows if row.kept]
    assert len(kept) == 14
    assert {row.type for row in kept} == {type}
    back, _ = load_gguf(tmp_path / "m.gguf")
    for name, weight in layer_weights(model).items():
        assert back.get_parameter(f"{name}.weight").equal(weight), name
    if preset in ("same", "F32"):
        assert np.abs(logits(back, TOKENS) - logits(model, TOKENS)).max() < 1e-5


def test_same_says_why_a_layer_became_f32_and_strict_refuses_it(tmp_path):
    model = quantized(ql.Scheme.parse("w4g16sym"))
    report = export_gguf(model, tmp_path / "m.gguf", "same")
    assert set(report.fallbacks.values()) == {"its groups of 16 weights are no whole blocks of 32"}
    with pytest.raises(ValueError, match="no whole blocks of 32"):
        export_gguf(model, tmp_path / "n.gguf", "same", strict=True)


def test_a_minimum_that_fits_exports_as_q4_1(tmp_path):
    model = small()
    scheme = ql.Scheme.parse("w4g32asym")
    layer = model.model.layers[0].mlp.up_proj
    q = ql.rtn(layer.weight.detach(), scheme)
    scale = 2.0 ** q.scale.log2().round()
    rounded = type(q)(q.codes, scale, q.zero_point, scheme)
    model.model.layers[0].mlp.up_proj = QuantizedLinear(rounded.pack())
    report = export_gguf(model, tmp_path / "m.gguf", "Q4_1")
    assert [row.name for row in report.rows if row.kept] == ["blk.0.ffn_up.weight"]
    back, _ = load_gguf(tmp_path / "m.gguf")
    assert back.model.layers[0].mlp.up_proj.weight.equal(rounded.dequantize())


@pytest.mark.parametrize(
    ("scheme", "preset", "match"),
    [
        ("w4g32sym", "Q4_K_M", r"layers.0.*w4g32sym codes, which Q4_K would.*Q4_0 keeps them"),
        ("w8g32sym", "Q4_0", "which Q4_0 would round again; Q8_0 keeps them"),
        ("w4g16sym", "Q4_0", "groups of 16 weights are no whole blocks"),
        ("w4g32asym", "Q4_1", "scale x zero_point as a float16"),
        ("w8g32asym", "Q8_0", "no type with minima has 8 bits"),
    ],
)
def test_codes_are_not_rounded_again_unless_asked(scheme, preset, match, tmp_path):
    model = quantized(ql.Scheme.parse(scheme))
    with pytest.raises(ValueError, match=match):
        export_gguf(model, tmp_path / "m.gguf", preset)
    assert list(tmp_path.iterdir()) == []
    report = export_gguf(model, tmp_path / "m.gguf", preset, requantize=True)
    assert not any(row.kept for row in report.rows)
    expected = gguf.quantize(layer_weights(model)["model.layers.1.mlp.up_proj"].numpy(), preset[:4])
    if preset in gguf.TYPES:
        file = gguf.read(tmp_path / "m.gguf")
        assert np.array_equal(file.tensors["blk.1.ffn_up.weight"].data, expected)


def test_a_quantized_layer_of_transformers_keeps_bias_and_codes(tmp_path):
    from tests.gguf.tiny import hugging_face

    model = hugging_face(attention_bias=True)
    ql.quantize_(model, ql.RTN(), ql.Scheme.parse("w4g32sym"))
    export_gguf(model, tmp_path / "m.gguf", "same")
    back, _ = load_gguf(tmp_path / "m.gguf")
    assert isinstance(back.model.layers[0].self_attn.q_proj, nn.Linear)
    assert np.abs(logits(back, TOKENS) - logits(model, TOKENS)).max() < 1e-5
