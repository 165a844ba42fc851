"""Quantized folders: whole or absent, and the same model when opened again."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantlab as ql
from quantlab import checkpoint
from quantlab.checkpoint import quantize_checkpoint, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "story-w3"
    scheme = ql.Scheme(bits=3, group_size=64, symmetric=False)
    quantize_checkpoint("storyteller", ql.RTN(), scheme, out)
    return out


def test_a_written_folder_opens_as_the_same_model(folder):
    model, tokenizer = ql.load("storyteller")
    ql.quantize_(model, ql.RTN(), ql.Scheme(bits=3, group_size=64, symmetric=False))
    opened, _ = ql.load(folder)
    tokens = ql.test_set(tokenizer, samples=2)
    with torch.no_grad():
        assert torch.equal(model(tokens), opened(tokens))
    assert ql.is_quantized(opened)


def test_the_file_is_as_small_as_the_report_says(folder):
    model, _ = ql.load("storyteller")
    report = ql.quantize_(model, ql.RTN(), ql.Scheme(bits=3, group_size=64, symmetric=False))
    floats = 2 * (524_288 + 9 * 256)  # embedding and norms, float16
    size = (folder / "model.safetensors").stat().st_size
    assert 0 <= size - report.nbytes - floats < 20_000  # the header


def test_others_may_read_what_was_written(folder):
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


def test_a_taken_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an empty folder"):
        quantize_checkpoint("storyteller", ql.RTN(), ql.Scheme(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_full_disk_or_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch, failure):
    def fail(state, path, metadata):
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint, "save_file", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ValueError
    with pytest.raises(expected):
        quantize_checkpoint("storyteller", ql.RTN(), ql.Scheme(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_parent_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="not writable"):
        quantize_checkpoint("storyteller", ql.RTN(), ql.Scheme(), tmp_path / "out")


def test_a_target_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write|not writable|not an empty"):
        quantize_checkpoint("storyteller", ql.RTN(), ql.Scheme(), tmp_path / "file" / "out")


def test_a_foreign_model_is_refused(tmp_path):
    with pytest.raises(ql.UnsupportedModelError, match="small Llama, not Linear"):
        save(torch.nn.Linear(2, 2), ql.load("storyteller")[1], tmp_path / "out")


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda q: q.update(quant_method="gptq"), "'gptq'"),
        (lambda q: q["layers"].update({"model.layers.9.mlp.up_proj": "w4"}), r"layers\.9"),
        (lambda q: q["layers"].update({"model.layers.0.mlp.up_proj": "w4g64asym"}), "codes"),
        (lambda q: q["layers"].update({"model.layers.0.mlp.up_proj": "nonsense"}), "no scheme"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_named(folder, tmp_path, change, match):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    edit(copy, change)
    with pytest.raises(ValueError, match=match):
        ql.load(copy)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("model.norm.weight"), r"lacks model\.norm\.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "unknown extra"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(3)}),
            r"norm\.weight has shape \(3,\)",
        ),
        (lambda s: s.pop(f"{Q}.scale"), r"q_proj\.scale"),
        (lambda s: s.update({f"{Q}.zeros": s[f"{Q}.zeros"][:-1].clone()}), "q_proj: codes, scales"),
        (lambda s: s.update({f"{Q}.data": s[f"{Q}.data"].float()}), "as uint8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, tmp_path, change, match):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")
    with pytest.raises(ql.UnsupportedModelError, match=match):
        ql.load(copy)
