"""What an export writes, reports and refuses."""

import numpy as np
import pytest
import torch

from quantlab import gguf
from quantlab.export.gguf import export_gguf
from quantlab.export.gguf_load import load_gguf
from quantlab.export.imatrix import imatrix
from quantlab.models.families import UnsupportedModelError
from quantlab.models.llama import Llama
from tests.gguf.tiny import TOKENS, hugging_face, logits, small


def test_the_report_lists_types_fallbacks_and_true_bits(tmp_path):
    model = small(hidden_size=96, intermediate_size=160, num_attention_heads=6)
    report = export_gguf(model, tmp_path / "m.gguf", "Q4_K_M")
    file = gguf.read(tmp_path / "m.gguf")
    assert {row.name: row.type for row in report.rows} == {
        name: tensor.type for name, tensor in file.tensors.items()
    }
    assert report.nbytes == file.nbytes
    assert report.bits_per_weight == 8 * file.nbytes / report.weights
    assert set(report.fallbacks) == {row.name for row in report.rows if len(row.shape) == 2}
    assert report.nominal_bits == 4.5
    assert report.planned_bits < report.bits_per_weight
    text = str(report)
    assert "! not Q4_K: rows of 96 weights do not fill blocks of 256" in text
    assert "fallbacks: 15 tensors" in text
    assert "pass tokenizer=" in text


def test_strict_refuses_fallbacks_before_anything_is_written(tmp_path):
    model = small(hidden_size=96, intermediate_size=160, num_attention_heads=6)
    with pytest.raises(ValueError, match=r"first token_embd.weight as Q8_0 instead of Q6_K"):
        export_gguf(model, tmp_path / "m.gguf", "Q4_K_M", strict=True)
    assert list(tmp_path.iterdir()) == []
    model = small()
    assert export_gguf(model, tmp_path / "m.gguf", "Q4_K_M", strict=True).fallbacks == {}


def test_bits_differ_from_the_plan_only_by_the_fallbacks(tmp_path):
    report = export_gguf(small(), tmp_path / "m.gguf", "Q4_K_M")
    assert report.fallbacks == {}
    assert report.planned_bits == report.bits_per_weight


def test_an_imatrix_reaches_the_tensor_of_its_name(tmp_path):
    model = small()
    data = TOKENS.reshape(2, -1)
    importance = imatrix(model, data)
    report = export_gguf(model, tmp_path / "m.gguf", "Q4_0", imatrix=importance)
    assert report.unweighted == ("token_embd.weight",)  # its rows are looked up: no input to weigh
    file = gguf.read(tmp_path / "m.gguf")
    name = "blk.1.ffn_down.weight"
    weight = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    expected = gguf.quantize(weight, "Q4_0", importance[name])
    assert np.array_equal(file.tensors[name].data, expected)
    assert not np.array_equal(expected, gguf.quantize(weight, "Q4_0"))
    assert file.metadata["quantize.imatrix.entries_count"] == len(importance)
    importance.save(tmp_path / "i.gguf")
    export_gguf(model, tmp_path / "again.gguf", "Q4_0", imatrix=tmp_path / "i.gguf")
    assert np.array_equal(gguf.read(tmp_path / "again.gguf").tensors[name].data, expected)


def test_tensors_without_an_imatrix_entry_are_named(tmp_path):
    importance = dict(imatrix(small(), TOKENS[None]))
    del importance["blk.0.attn_q.weight"]
    report = export_gguf(small(), tmp_path / "m.gguf", "Q4_0", imatrix=importance)
    assert report.unweighted == ("token_embd.weight", "blk.0.attn_q.weight")
    assert "without an imatrix entry: token_embd.weight, blk.0.attn_q.weight" in str(report)


BAD_IMATRIX = {
    "of another model": ({"blk.0.other.weight": np.ones(256)}, "no entry for this model"),
    "too short": ({"blk.0.attn_q.weight": np.ones(255)}, r"blk.0.attn_q.weight: imatrix has"),
    "negative": ({"blk.0.attn_q.weight": -np.ones(256)}, "blk.0.attn_q.weight: imatrix is -1"),
}


@pytest.mark.parametrize(("bad", "match"), BAD_IMATRIX.values(), ids=BAD_IMATRIX)
def test_a_wrong_imatrix_is_refused_before_anything_is_written(bad, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        export_gguf(small(), tmp_path / "m.gguf", "Q4_0", imatrix=bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_bad_weight_is_named_and_nothing_is_written(value, tmp_path):
    model = small()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.down_proj.weight.*3, 5"):
        export_gguf(model, tmp_path / "m.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_norm_is_named(tmp_path):
    model = small()
    with torch.no_grad():
        model.model.norm.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"model.norm.weight holds 1 non-finite"):
        export_gguf(model, tmp_path / "m.gguf", "F32")


def refused_models():
    yield "no llama", torch.nn.Linear(4, 4), "Linear cannot be written to GGUF"
    model = small()
    model.extra = torch.nn.Linear(4, 4)
    yield "an extra layer", model, "extra.bias is no part of a llama"
    model = small()
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    yield "a wrapped linear", model, "model.layers.0.mlp.up_proj is a Sequential"
    model = small()
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(256, 511, bias=False)
    yield "a wrong shape", model, r"up_proj.weight is of shape \(511, 256\)"


@pytest.mark.parametrize(
    ("model", "match"),
    [case[1:] for case in refused_models()],
    ids=[c[0] for c in refused_models()],
)
def test_what_a_llama_in_gguf_cannot_hold_is_named(model, match, tmp_path):
    with pytest.raises(UnsupportedModelError, match=match):
        export_gguf(model, tmp_path / "m.gguf", "F32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}},
            "'dynamic'",
        ),
    ],
)
def test_a_transformers_llama_of_another_kind_is_refused(changes, match, tmp_path):
    with pytest.raises(UnsupportedModelError, match=match):
        export_gguf(hugging_face(**changes), tmp_path / "m.gguf", "F32")


def test_an_unknown_preset_is_refused_before_the_model_is_looked_at(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'Q4_K_M'"):
        export_gguf(small(), tmp_path / "m.gguf", "Q4_KM")


def test_same_rounds_nothing(tmp_path):
    model = small()
    with torch.no_grad():
        for weight in model.model.layers[0].parameters():
            weight.copy_(weight.half())
        for weight in model.model.layers[1].parameters():
            weight.copy_(weight.bfloat16())
    report = export_gguf(model, tmp_path / "m.gguf", "same")
    types = {row.name: row.type for row in report.rows}
    assert types["blk.0.attn_q.weight"] == "F16"
    assert types["blk.1.attn_q.weight"] == "BF16"
    assert types["token_embd.weight"] == "F32"
    back, _ = load_gguf(tmp_path / "m.gguf")
    assert np.array_equal(logits(back, TOKENS), logits(model, TOKENS))


def test_a_half_precision_model_exports_as_its_float_copy_does(tmp_path):
    model = small()
    export_gguf(model.half().float(), tmp_path / "float.gguf", "Q8_0", name="m")
    export_gguf(model.half(), tmp_path / "half.gguf", "Q8_0", name="m")
    assert (tmp_path / "float.gguf").read_bytes() == (tmp_path / "half.gguf").read_bytes()


WRONG_ARGUMENTS = {
    "a name that is no text": ({"name": 3}, "name is 3; pass a string"),
    "no preset": ({"preset": None}, "preset is None; pass its name"),
    "an empty imatrix": ({"imatrix": {}}, "holds no entry; pass None"),
    "a list for an imatrix": ({"imatrix": [1.0]}, "imatrix is a list; pass what ql.imatrix gave"),
    "another tokenizer": ({"tokenizer": object()}, "tokenizer is a object; pass what ql.load gave"),
}


@pytest.mark.parametrize(("words", "match"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named_in_one_line(words, match, tmp_path):
    with pytest.raises(ValueError, match=match) as caught:
        export_gguf(small(), tmp_path / "m.gguf", **({"preset": "Q8_0"} | words))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_entries_of_an_imatrix_that_no_tensor_has_are_noted(tmp_path):
    ones = np.ones(256, np.float32)
    importance = {"blk.0.attn_q.weight": ones, "output.weight": ones}
    report = export_gguf(small(), tmp_path / "m.gguf", "Q4_0", imatrix=importance)
    line = "of no use here, entries of the imatrix: output.weight"
    assert line in report.notes
    assert line in str(report)
    importance |= {f"blk.{i}.attn_q.weight": ones for i in range(2, 9)}
    report = export_gguf(small(), tmp_path / "m.gguf", "Q4_0", imatrix=importance)
    assert report.notes[0].endswith("blk.6.attn_q.weight and 3 more")
    known = {"blk.1.attn_q.weight": ones}
    report = export_gguf(small(), tmp_path / "m.gguf", "Q4_0", imatrix=known, name="m")
    assert not any("of no use" in note for note in report.notes)


def test_a_model_without_numbers_is_refused(tmp_path):
    with torch.device("meta"):
        model = Llama(small().config)
    match = "model.embed_tokens.weight is on the meta device and has no numbers; load"
    with pytest.raises(ValueError, match=match):
        export_gguf(model, tmp_path / "m.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []
