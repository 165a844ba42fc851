"""Writing GGUF files: what comes back, what is refused, and which other readers agree."""

import errno
import os
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab import gguf
from tests.gguf.ggml_reader import what_ggml_reads

SCALARS = {
    "u8": np.uint8,
    "i8": np.int8,
    "u16": np.uint16,
    "i16": np.int16,
    "u32": np.uint32,
    "i32": np.int32,
    "f32": np.float32,
    "bool": np.bool_,
    "u64": np.uint64,
    "i64": np.int64,
    "f64": np.float64,
}
NUMBERS = (
    "u8",
    "i8",
    "u16",
    "i16",
    "u32",
    "i32",
    "f32",
    "bool",
    "str",
    "array",
    "u64",
    "i64",
    "f64",
)


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "story.gguf"


def write(path, metadata=None, tensors=None, **options):
    gguf.write(path, tensors or {}, metadata or {}, **options)
    return gguf.read(path)


# ---------------------------------------------------------------- what comes back


def values_of(kind):
    """Return a strategy of the values of a kind, as NumPy scalars or strings."""
    if kind == "str":
        return st.text(max_size=20)
    if kind == "bool":
        return st.booleans().map(np.bool_)
    if kind in ("f32", "f64"):
        return st.floats(width=int(kind[1:])).map(SCALARS[kind])
    limits = np.iinfo(SCALARS[kind])
    return st.integers(int(limits.min), int(limits.max)).map(SCALARS[kind])


@st.composite
def any_value(draw):
    """Return a value, and how it should be stored."""
    kind = draw(st.sampled_from([*SCALARS, "str"]))
    if draw(st.booleans()):
        return draw(values_of(kind)), kind
    elements = draw(st.lists(values_of(kind), max_size=8))
    return (elements if kind == "str" else np.array(elements, SCALARS[kind])), f"[{kind}]"


metadata = st.dictionaries(st.text(min_size=1, max_size=30), any_value(), max_size=8)
names = st.text(max_size=15)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
arrays = st.tuples(shapes, st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8"])).map(
    lambda pick: np.arange(np.prod(pick[0], dtype=int)).reshape(pick[0]).astype(pick[1])
)


@settings(max_examples=150)
@given(metadata, st.dictionaries(names, arrays, max_size=5), st.sampled_from([1, 8, 32, 256]))
def test_what_was_written_is_read_and_what_was_read_is_written(
    tmp_path_factory, meta, tensors, step
):
    meta = {key: pick for key, pick in meta.items() if key != "general.alignment"}
    folder = tmp_path_factory.mktemp("round")
    types = {key: kind for key, (_, kind) in meta.items()}
    values = {key: value for key, (value, _) in meta.items()}
    file = write(folder / "a", values, tensors, types=types, alignment=step)
    assert file.alignment == step
    assert list(file.tensors) == list(tensors)
    for name, array in tensors.items():
        assert file.tensors[name].shape == array.shape
        assert file.tensors[name].data.tobytes() == array.tobytes()
        assert file.tensors[name].offset % step == 0
    assert [key for key in file.metadata if key != "general.alignment"] == list(values)
    for key, value in values.items():
        assert file.types[key] == types[key]
        np.testing.assert_array_equal(file.metadata[key], value)
    gguf.write(folder / "b", file.tensors, file.metadata, types=file.types)
    assert (folder / "b").read_bytes() == (folder / "a").read_bytes()


def test_plain_python_values_find_their_types(path):
    values = {
        "u32": [0, 7, 2**32 - 1, np.uint32(7)],
        "i32": [-1, -(2**31), np.int32(7)],
        "u64": [2**32, 2**64 - 1, np.uint64(1)],
        "i64": [-(2**31) - 1, -(2**63)],
        "f32": [0.5, np.float32(0.5)],
        "f64": [np.float64(0.1)],
        "bool": [True, np.bool_(False)],
        "str": ["", "naïve", np.str_("x")],
        "[u32]": [[1, 2], (3,), np.array([1], np.uint32)],
        "[i32]": [[1, -2]],
        "[i64]": [[2**32, -2]],
        "[u64]": [[2**63, 2]],
        "[f32]": [[0.5, 1], [np.float32(1)]],
        "[f64]": [np.array([0.1]), [np.float64(0.1)]],
        "[u8]": [np.zeros(3, np.uint8)],
        "[i16]": [np.zeros(0, ">i2")],
        "[bool]": [[True, False], np.array([True])],
        "[str]": [["a", "b"], np.array(["a", "bc"])],
    }
    flat = {f"{kind} {n}": value for kind, group in values.items() for n, value in enumerate(group)}
    file = write(path, flat)
    assert file.types == {key: key.split()[0] for key in flat}
    for key, value in flat.items():
        np.testing.assert_array_equal(file.metadata[key], value)


def test_a_value_takes_the_type_that_was_asked_for(path):
    types = {"a": "u64", "b": "[i32]", "c": "f64", "d": "[str]", "e": "[f32]", "not there": "u8"}
    values = {"a": 1, "b": np.arange(3), "c": 1, "d": [], "e": [1, 2]}
    file = write(path, values, types=types)
    assert file.types == {key: types[key] for key in values}
    assert file.metadata["b"].dtype == np.int32
    assert file.metadata["d"] == []


def test_metadata_comes_back_as_plain_python(path):
    file = write(path, {"a": np.uint8(3), "b": np.float64(0.1), "c": np.bool_(True), "d": ["x"]})
    assert [type(value) for value in file.metadata.values()] == [int, float, bool, list]
    assert file.metadata["b"] == 0.1


def test_the_alignment_stands_in_the_metadata_when_it_is_not_the_usual_one(path):
    assert "general.alignment" not in write(path, {}).metadata
    assert write(path, {}, alignment=64).types == {"general.alignment": "u32"}
    assert write(path, {"general.alignment": 64}).alignment == 64
    assert write(path, {"general.alignment": np.uint32(32), "a": 1}).alignment == 32
    with pytest.raises(ValueError, match="alignment is 32, and the metadata says 64"):
        write(path, {"general.alignment": 64}, alignment=32)
    for wrong in (0, 24, -32, 2**32):
        with pytest.raises(ValueError, match="power of two"):
            write(path, {}, alignment=wrong)


# ---------------------------------------------------------------- what the writer refuses


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (None, None, "no type follows"),
        (b"raw", None, "no type follows"),
        ([], None, "no type follows"),
        ([1, "a"], None, "no type follows"),
        ([True, 1], None, "no type follows"),
        ([[1], [2]], None, "no type follows"),
        (np.float16(1), None, "no type follows"),
        (np.zeros(2, np.complex64), None, "no type follows"),
        (2**64, None, "no type follows"),
        ([2**63, -1], None, "no type follows"),
        (1e300, None, "does not fit f32"),
        (256, "u8", "does not fit u8"),
        (-1, "u32", "does not fit u32"),
        (1.5, "u32", "which is no u32"),
        (True, "u32", "which is no u32"),
        (1, "bool", "which is no bool"),
        (1, "str", "must be a string"),
        ("x", "f32", "which is no f32"),
        (1, "[u32]", "holds lists"),
        ("text", "[str]", "holds lists"),
        ([1], "u32", "which is no u32"),
        (np.zeros((2, 2)), None, "2 axes"),
        (1, "uint32", "no type 'uint32'"),
        (1, "array", "no type 'array'"),
        (1, "[[u32]]", "no type"),
        ("\ud800", None, "cannot be written as UTF-8"),
    ],
)
def test_a_value_that_fits_no_type_is_refused(path, value, kind, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        write(path, {"key": value}, types={"key": kind} if kind else None)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"n" * 64: rows(1)}, "64 bytes; at most 63"),
        ({"ß" * 32: rows(1)}, "64 bytes; at most 63"),
        ({"\ud800": rows(1)}, "UTF-8"),
        ({3: rows(1)}, "must be a string"),
        ({"w": rows(1, 1, 1, 1, 1)}, "5 dimensions"),
        ({"w": np.zeros(3, np.uint8)}, "dtype uint8"),
        ({"w": np.zeros(3, np.complex64)}, "dtype complex64"),
        ({"w": gguf.Raw("Q4_0", np.zeros(18, np.uint8), (33,))}, "rows of 33 weights"),
        ({"w": gguf.Raw("Q4_0", np.zeros(17, np.uint8), (32,))}, "has 17 bytes"),
        ({"w": gguf.Raw("Q4_0", lambda: np.zeros(36, np.uint8), (32,))}, "has 36 bytes"),
        ({"w": gguf.Raw("F32", rows(2), (2**62,))}, "more weights"),
        ({"w": gguf.Raw("F32", rows(2), (-2,))}, "dimension of -2"),
        ({"w": gguf.Raw("Q4_0_0", rows(2), (2,))}, "unknown ggml type"),
    ],
)
def test_a_tensor_that_breaks_a_rule_is_refused_and_nothing_is_left(path, tensors, words):
    with pytest.raises(ValueError, match=words):
        write(path, {}, tensors)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "words"), [("", "key is empty"), ("k" * 65_536, "65536 bytes"), (7, "must be a string")]
)
def test_a_key_that_breaks_a_rule_is_refused(path, key, words):
    with pytest.raises(ValueError, match=words):
        write(path, {key: 1})


def test_a_value_longer_than_the_format_allows_is_refused(path, monkeypatch):
    with pytest.raises(ValueError, match="'key' has 1073741825 elements"):
        write(path, {"key": np.broadcast_to(np.uint8(0), 2**30 + 1)})
    monkeypatch.setattr("quantlab.gguf.metadata.LONGEST_TEXT", 3)
    with pytest.raises(ValueError, match="has 4 bytes; at most 2"):
        write(path, {"key": "long"})


# ---------------------------------------------------------------- whole or not at all


def stop():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("no such shard")


@pytest.mark.parametrize(("promise", "error"), [(stop, KeyboardInterrupt), (fail, RuntimeError)])
def test_a_failure_halfway_leaves_the_old_file_and_nothing_else(path, promise, error):
    path.write_bytes(b"precious")
    with pytest.raises(error):
        write(path, {}, {"a": rows(9), "b": gguf.Raw("F32", promise, (4,))})
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path.write_bytes(b"precious")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left on device; nothing written") as caught:
        write(path, {}, {"a": rows(9)})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_can_be_written_over_the_one_it_was_read_from(path):
    file = write(path, {"a": 1}, {"w": rows(4, 32)})
    gguf.write(path, file.tensors, {**file.metadata, "a": 2})
    assert file.tensors["w"].dequantize().tolist() == rows(4, 32).tolist()  # the old file, mapped
    assert gguf.read(path).metadata == {"a": 2}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/story\.gguf"):
        write(tmp_path / "none" / "story.gguf")


def test_promised_tensors_are_made_one_at_a_time(path):
    size = 2**20
    made = []

    def promise(number):
        def make():
            made.append(number)
            return np.full(size, number, np.float32)

        return gguf.Raw("F32", make, (size,))

    tracemalloc.start()
    file = write(path, {}, {str(n): promise(n) for n in range(8)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made == list(range(8))
    assert peak < 2.5 * 4 * size  # one tensor and the next, of eight
    assert [float(tensor.dequantize()[-1]) for tensor in file.tensors.values()] == made


# ---------------------------------------------------------------- the other readers and writers


def every_kind():
    """Return metadata with every type, and tensors of several."""
    meta = {"general.architecture": "none", "text": "naïve", "[str]": ["a", "", "ß"]}
    for kind, scalar in SCALARS.items():
        meta[kind] = scalar(1)
        meta[f"[{kind}]"] = np.array([0, 1, 1], scalar)
    tensors = {
        "floats": rows(5, 64),
        "half": rows(5, 3).astype(np.float16),
        "blocks": gguf.Raw("Q8_0", gguf.quantize(rows(5, 64), "Q8_0"), (5, 64)),
        "deep": gguf.Raw("Q4_0", gguf.quantize(rows(2, 3, 4, 32), "Q4_0"), (2, 3, 4, 32)),
        "ints": np.arange(7),
    }
    return meta, tensors


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_ggml_reads_what_we_write(path, alignment):
    meta, tensors = every_kind()
    file = write(path, meta, tensors, alignment=alignment)
    [answer] = what_ggml_reads(path)
    assert answer["version"] == 3
    assert answer["alignment"] == alignment
    outer = ["array" if kind.startswith("[") else kind for kind in file.types.values()]
    expected = [[key, NUMBERS.index(kind)] for key, kind in zip(file.types, outer, strict=True)]
    assert answer["values"] == expected
    assert answer["tensors"] == [
        [name, gguf.TYPES[tensor.type].id, tensor.offset, tensor.nbytes]
        for name, tensor in file.tensors.items()
    ]


def test_the_reference_package_reads_what_we_write(path):
    reference = pytest.importorskip("gguf")
    meta, tensors = every_kind()
    file = write(path, meta, tensors, alignment=64)
    reader = reference.GGUFReader(path)
    for key, value in meta.items():
        np.testing.assert_array_equal(reader.get_field(key).contents(), value)
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert theirs.tensor_type.name == ours.type
        assert tuple(reversed(theirs.shape.tolist())) == ours.shape
        assert theirs.data.tobytes() == ours.data.tobytes()


def test_we_read_what_the_reference_package_writes(path):
    reference = pytest.importorskip("gguf")
    writer = reference.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint32("a", 7)
    writer.add_float64("b", 0.1)
    writer.add_bool("c", True)
    writer.add_int64("d", -(2**40))
    writer.add_array("e", ["x", "yß"])
    writer.add_array("f", [1, -2, 3])
    writer.add_string("g", "naïve")
    blocks = gguf.quantize(rows(3, 64), "Q8_0")
    writer.add_tensor("w", rows(3, 64))
    writer.add_tensor("q", blocks, raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.read(path)
    assert file.alignment == 64
    assert file.types["f"] == "[i32]"
    expected = {"a": 7, "b": 0.1, "c": True, "d": -(2**40), "e": ["x", "yß"], "g": "naïve"}
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.metadata["f"].tolist() == [1, -2, 3]
    assert file.tensors["w"].dequantize().tolist() == rows(3, 64).tolist()
    assert file.tensors["q"].shape == (3, 64)
    assert file.tensors["q"].data.tobytes() == blocks.tobytes()
    copy = path.with_name("copy.gguf")
    gguf.write(copy, file.tensors, file.metadata, types=file.types)
    assert copy.read_bytes() == path.read_bytes()
