"""Looking into model files: what is shown, what it costs, and what a damaged file answers."""

import json
import os
import time
import tracemalloc
from math import prod

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quantlab import cli, gguf
from quantlab.inspect_file import inspect_file
from quantlab.safetensors_file import BITS
from quantlab.weight_histogram import MOST_SAMPLED, Histogram

F32 = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def story(tmp_path):
    """Return a GGUF file with two types and a vocabulary."""
    blocks = gguf.quantize(rows(4, 512), "Q4_K")
    tensors = {"norm": rows(64), "blk.0.w": gguf.Raw("Q4_K", blocks, (4, 512))}
    words = {
        "general.name": "A tale\x1b[2J " + "long " * 50,
        "tokens": [f"t{i}" for i in range(999)],
    }
    path = tmp_path / "story.gguf"
    gguf.write(path, tensors, words | {"scores": np.arange(999.0), "nan": float("nan"), "on": True})
    return path


def tensors_file(path, header, data=bytes(32), length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


# ---------------------------------------------------------------- what is shown


def test_the_text_holds_metadata_tensors_and_real_bits_per_weight(story):
    text = str(inspect_file(story))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [f"{story}:", "GGUF", "version", "3,", f"{story.stat().st_size:,}", "bytes"]
    assert ["norm", "64", "F32", "32", "256"] in lines
    assert ["blk.0.w", "4", "x", "512", "Q4_K", "4.5", "1,152"] in lines
    assert ["Q4_K", "1", "2,048", "1,152", "4.5000"] in lines
    assert ["all", "2", "2,112", "1,408", "5.3333"] in lines
    assert "999 values: 't0', 't1', 't2', 't3', 't4', 't5', ..." in text


def test_the_text_is_short_and_cannot_upset_a_terminal(story):
    gguf.write(story, {"a\nb\x1b[1m": rows(2)}, gguf.read(story).metadata | {"\x07": 1})
    text = str(inspect_file(story))
    assert text.replace("\n", "").isprintable()
    assert "'a\\nb\\x1b[1m'" in text
    assert max(map(len, text.splitlines())) < 120


def test_json_holds_everything(story, capsys):
    assert cli.main(["inspect", str(story), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["format"] == "GGUF version 3"
    assert found["metadata"]["tokens"][998] == "t998"
    assert found["metadata"]["scores"] == list(range(999))
    assert found["metadata"]["nan"] == "nan"
    assert found["metadata"]["on"] is True
    assert found["tensors"][1] == {
        "name": "blk.0.w",
        "shape": [4, 512],
        "type": "Q4_K",
        "bits_per_weight": 4.5,
        "bytes": 1152,
    }
    assert list(found["types"]) == ["Q4_K", "F32"]
    assert found["total"] == {
        "tensors": 2,
        "weights": 2112,
        "bytes": 1408,
        "bits_per_weight": 8 * 1408 / 2112,
    }


def test_safetensors_files_are_shown_alike(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.zeros(3, 8, dtype=torch.bfloat16),
        "b": torch.tensor(1.5),
        "c": torch.zeros(0),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    found = inspect_file(path).to_dict()
    assert found["format"] == "safetensors"
    assert found["metadata"] == {"format": "pt"}
    kinds = {
        tensor["name"]: (tensor["type"], tensor["shape"], tensor["bytes"])
        for tensor in found["tensors"]
    }
    assert kinds == {"a": ("BF16", [3, 8], 48), "b": ("F32", [], 4), "c": ("F32", [0], 0)}
    assert found["types"]["BF16"]["bits_per_weight"] == 16
    assert inspect_file(tmp_path).to_dict() == found  # the folder's only model


def test_files_that_an_index_names_are_one_model(tmp_path):
    for number in (1, 2):
        save_file({f"w{number}": torch.ones(number, 4)}, tmp_path / f"part-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    names = {f"w{number}": f"part-{number}.safetensors" for number in (1, 2)}
    index.write_text(json.dumps({"weight_map": names}))
    found = inspect_file(tmp_path)
    assert found.format == "safetensors in 2 files"
    assert [tensor.name for tensor in found.tensors] == ["w1", "w2"]
    assert found.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("part*"))
    assert found.histogram("w2", 1).counts == [8]
    index.write_text(json.dumps({"weight_map": {"w1": "../part-1.safetensors"}}))
    with pytest.raises(ValueError, match="does not lie beside it"):
        inspect_file(index)
    index.write_text("[1]")
    with pytest.raises(ValueError, match="is no index"):
        inspect_file(index)
    save_file({"w1": torch.ones(1)}, tmp_path / "part-2.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ValueError, match="'w1', which an earlier file has as well"):
        inspect_file(index)


def test_without_tensors_or_metadata_the_text_still_reads(tmp_path):
    gguf.write(tmp_path / "empty.gguf", {}, {})
    text = str(inspect_file(tmp_path / "empty.gguf"))
    assert "no metadata" in text
    assert text.splitlines()[-1].split() == ["all", "0", "0", "0", "0.0000"]


# ---------------------------------------------------------------- histograms


def test_a_histogram_counts_every_weight(story):
    weights = gguf.read(story).tensors["blk.0.w"].dequantize()
    found = inspect_file(story).histogram("blk.0.w", 7)
    counts, edges = np.histogram(weights.astype(np.float64), 7)
    assert found == Histogram(edges.tolist(), counts.tolist(), 2048, 2048, 0)
    lines = str(found).splitlines()
    assert len(lines) == 8
    assert max(line.count("█") for line in lines) == 50
    assert lines[-1] == "2,048 weights"


COMMON = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"
)


@pytest.mark.parametrize("kind", COMMON.split())
def test_every_common_dtype_has_a_histogram(tmp_path, kind):
    values = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]).to(getattr(torch, kind))
    save_file({"w": values}, tmp_path / "w.safetensors")
    assert inspect_file(tmp_path / "w.safetensors").histogram("w", 2).counts == [2, 3]


def test_weights_that_are_not_finite_are_counted_apart(tmp_path):
    values = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    save_file({"w": values, "bad": values[1:3].clone()}, tmp_path / "w.safetensors")
    found = inspect_file(tmp_path / "w.safetensors")
    assert found.histogram("w", 1).counts == [2]
    assert "2 are NaN or infinite" in str(found.histogram("w"))
    assert found.histogram("bad").counts == []


def test_a_large_tensor_is_sampled_and_the_text_says_so(tmp_path):
    big = np.zeros((3, MOST_SAMPLED), np.float16)
    big[2, -1] = 1  # an even sample reaches the last weight
    gguf.write(tmp_path / "big.gguf", {"w": big}, {})
    save_file({"w": torch.from_numpy(big)}, tmp_path / "big.safetensors")
    found = inspect_file(tmp_path / "big.gguf").histogram("w", 2)
    assert found == inspect_file(tmp_path / "big.safetensors").histogram("w", 2)
    assert found.counts == [MOST_SAMPLED - 1, 1]
    assert "12,582,912 weights, sampled: 4,194,304 in runs of 4,096" in str(found)


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_file_that_shrinks_before_its_histogram_is_read_says_so(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "gguf":
        gguf.write(path, {"w": rows(8, 8)}, {})
    else:
        save_file({"w": torch.ones(8, 8)}, path)
    found = inspect_file(path)
    os.truncate(path, path.stat().st_size - 32)
    with pytest.raises(ValueError, match="has become shorter"):
        found.histogram("w")


def test_a_histogram_is_printed_on_request(story, capsys):
    assert cli.main(["inspect", str(story), "--histogram", "norm", "--bins", "3"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4
    assert cli.main(["inspect", str(story), "--histogram", "norm", "--bins", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["histogram"]
    assert sum(found["counts"]) == found["weights"] == found["sampled"] == 64


@pytest.mark.parametrize(
    ("name", "bins", "words"),
    [
        ("nrom", 5, "near it: norm"),
        ("zzz", 5, "see: quantlab"),
        ("norm", 0, "bins is 0"),
        ("norm", 1001, "bins is 1001"),
    ],
)
def test_a_histogram_of_nothing_is_refused(story, name, bins, words):
    with pytest.raises(ValueError, match=words):
        inspect_file(story).histogram(name, bins)


# ---------------------------------------------------------------- what it costs


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_ten_gigabytes_are_inspected_in_less_than_a_second(tmp_path, kind):
    shape = (20, 2**18, 2**10)
    size = 2 * prod(shape)
    path = tmp_path / f"big.{kind}"
    if kind == "gguf":
        gguf.write(path, {"w": np.zeros(1, np.float16)}, {})
        data = path.read_bytes()
        one = b"\1\0\0\0" + (1).to_bytes(8, "little")  # one dimension, of one
        sizes = b"".join(n.to_bytes(8, "little") for n in reversed(shape))
        head = data[: data.index(one)] + b"\3\0\0\0" + sizes + data[data.index(one) + 12 :][:12]
        head += bytes(-len(head) % 32)
    else:
        entry = {"w": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}
        head = json.dumps(entry).encode()
        head = len(head).to_bytes(8, "little") + head
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)  # a hole: ten gigabytes that take no space
    tracemalloc.start()
    start = time.perf_counter()
    text = str(inspect_file(path))
    assert time.perf_counter() - start < 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert "10,737,418,240" in text
    assert inspect_file(path).histogram("w", 1).counts == [MOST_SAMPLED]


# ---------------------------------------------------------------- damaged files

DAMAGED = {
    "cut inside the length": (b"", bytes(0), None, "byte 0: the header claims"),
    "a header longer than the file": ({"w": F32}, bytes(32), 10_000, "claims 10000 bytes"),
    "a header of 2^64 - 1": ({"w": F32}, bytes(32), 2**64 - 1, "claims 18446744073709551615"),
    "no JSON": (b"{not json}", bytes(32), None, "is no JSON"),
    "no UTF-8": (b'{"\xff":1}', bytes(32), None, "is no JSON"),
    "JSON too deep": (b"{" + b'"a":{' * 100_000, bytes(32), None, "is no JSON"),
    "a list": (b"[1, 2]", bytes(32), None, "not a table"),
    "a name twice": (b'{"w":{},"w":{}}', bytes(32), None, "'w' stands in it twice"),
    "metadata that is no table": ({"__metadata__": 3}, b"", None, "__metadata__ is 3"),
    "an entry that is no table": ({"w": 3}, b"", None, "lacks dtype"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [8]}}, bytes(32), None, "lacks dtype"),
    "an unknown dtype": ({"w": F32 | {"dtype": "F5"}}, bytes(32), None, "dtype 'F5'"),
    "a dtype that is a list": ({"w": F32 | {"dtype": []}}, bytes(32), None, "dtype []"),
    "a negative size": ({"w": F32 | {"shape": [-2, -4]}}, bytes(32), None, "integers >= 0"),
    "a fractional size": ({"w": F32 | {"shape": [2.0, 4]}}, bytes(32), None, "integers >= 0"),
    "a size of True": ({"w": F32 | {"shape": [True, 8]}}, bytes(32), None, "integers >= 0"),
    "too many sizes": ({"w": F32 | {"shape": [1] * 99}}, bytes(32), None, "integers >= 0"),
    "three offsets": ({"w": F32 | {"data_offsets": [0, 32, 64]}}, bytes(32), None, "integers >= 0"),
    "bytes that do not fill the shape": (
        {"w": F32 | {"shape": [9]}},
        bytes(32),
        None,
        "are not F32",
    ),
    "offsets outside": (
        {"w": F32 | {"data_offsets": [32, 64]}},
        bytes(32),
        None,
        "gap or an overlap",
    ),
    "an overlap": ({"w": F32, "v": F32}, bytes(32), None, "gap or an overlap"),
    "data cut short": ({"w": F32}, bytes(31), None, "the file has"),
    "bytes after the end": ({"w": F32}, bytes(33), None, "the tensors end here"),
}


@pytest.mark.parametrize(("header", "data", "length", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_safetensors_file_is_one_line(tmp_path, capsys, header, data, length, words):
    path = tensors_file(tmp_path / "model.safetensors", header, data, length)
    if header == b"":
        path.write_bytes(b"\1\2\3")
    assert cli.main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert len(error) < 700


def test_a_damaged_gguf_file_is_one_line_that_names_the_byte(story, capsys):
    story.write_bytes(story.read_bytes()[:-800])
    assert cli.main(["inspect", str(story)]) == 2
    error = capsys.readouterr().err
    assert f"{story}, byte " in error
    assert error.count("\n") == 1


def test_what_is_no_model_is_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("Once upon a time")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / f"{name}.gguf").touch()
    cases = {
        "notes.txt": "neither a GGUF nor a safetensors file",
        "pipe": "is not a file",
        "empty": "holds no GGUF",
        "two": "holds 2 files *.gguf",
        "none": "No such file",
    }
    for name, words in cases.items():
        assert cli.main(["inspect", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_a_type_without_floats_says_so(tmp_path):
    assert BITS["F4"] == 4
    path = tensors_file(
        tmp_path / "x.safetensors", {"w": {"dtype": "F4", "shape": [64], "data_offsets": [0, 32]}}
    )
    found = inspect_file(path)
    assert found.tensors[0].bits_per_weight == 4
    with pytest.raises(ValueError, match="no histogram of F4"):
        found.histogram("w")
