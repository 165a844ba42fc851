"""The importance matrix: measured as a loop would, and read and written as llama.cpp does."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quantlab as ql
from quantlab.export.imatrix import imatrix
from quantlab.gguf.cursor import FormatError
from quantlab.gguf.imatrix import Imatrix
from quantlab.gguf.writer import write
from quantlab.models.llama import Llama, LlamaConfig

NAME = "blk.0.ffn_up.weight"
KEYS = {
    "general.type": "imatrix",
    "imatrix.datasets": ["stories.txt"],
    "imatrix.chunk_count": 3,
    "imatrix.chunk_size": 512,
}


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def tensors(**changes) -> dict[str, np.ndarray]:
    """One entry of a file, with some of its tensors replaced or, by None, taken out."""
    whole = {"in_sum2": floats(8, 2, 0), "counts": floats(4)} | changes
    return {f"{NAME}.{key}": value for key, value in whole.items() if value is not None}


# ---------------------------------------------------------------- the numbers


@pytest.fixture(scope="module")
def story():
    model, tokenizer = ql.load("storyteller")
    return model, ql.calibration_set(tokenizer, samples=11, length=48)


def slow_imatrix(model, data) -> dict[str, np.ndarray]:
    """Mean squares of every linear's input, in float64, from one window after another."""
    total: dict[str, torch.Tensor] = {}

    def hook(name):
        def watch(module, args):
            total[name] = total.get(name, 0) + args[0].double().square().sum((0, 1))

        return watch

    layers = {k: m for k, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    handles = [m.register_forward_pre_hook(hook(name)) for name, m in layers.items()]
    for window in data:
        model(window[None])
    for handle in handles:
        handle.remove()
    return {name: (value / data.numel()).numpy() for name, value in total.items()}


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@torch.no_grad()
def test_importances_are_the_mean_squares_of_each_linears_inputs(story):
    model, data = story
    found, expected = imatrix(model, data), slow_imatrix(model, data)
    assert len(found) == len(expected) == 28
    for path, means in expected.items():
        _, _, layer, rest = path.split(".", 3)
        name = f"blk.{layer}.{GGUF_NAMES[rest]}.weight"
        assert found[name].dtype == np.float32
        # our sums run in float32 over a batch of windows
        np.testing.assert_allclose(found[name], means, rtol=2e-5)
        assert found.counts[name] == data.numel()
    assert (found.chunk_count, found.chunk_size) == (11, 48)


def test_a_half_precision_model_is_measured_in_float32():
    """Squares of inputs beyond 255 overflow float16, and bfloat16 has two digits."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32)).half()
    model.model.layers[0].input_layernorm.weight.data.fill_(200)
    data, seen = torch.randint(0, 2048, (3, 40)), []
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].double().square().sum((0, 1)))
    )
    found = imatrix(model, data)["blk.0.attn_q.weight"]
    assert sum(seen).max() > 1e5
    np.testing.assert_allclose(found, (sum(seen) / 120).detach().numpy(), rtol=1e-6)


def test_measuring_leaves_the_model_as_it_was(story):
    model, data = story
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    imatrix(model, data[:1], datasets=["a.txt"])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_what_reaches_no_text_or_no_name_is_refused(story):
    model, data = story
    with pytest.raises(ValueError, match="pass token ids"):
        imatrix(model, data.float())
    with pytest.raises(ValueError, match="token id 99999; the vocabulary is"):
        imatrix(model, torch.full((1, 4), 99999))
    tiny = Llama(LlamaConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32))
    ql.quantize_(tiny, ql.RTN(), ql.Scheme(bits=4, group_size=32))
    with pytest.raises(ValueError, match="quantized already"):
        imatrix(tiny, data)
    tiny = Llama(LlamaConfig(hidden_size=32, num_hidden_layers=1, intermediate_size=32))
    tiny.model.layers[0].mlp.router = torch.nn.Linear(32, 4)
    with pytest.raises(
        ql.UnsupportedModelError, match=r"layers\.0\.mlp\.router has no name in GGU"
    ):
        imatrix(tiny, data)
    with pytest.raises(ql.UnsupportedModelError, match="no blocks"):
        imatrix(torch.nn.Sequential(torch.nn.Linear(2, 2)), data)


def test_the_mean_is_llama_quantizes_division_in_float32():
    rng = np.random.default_rng(0)
    sums, tokens = rng.exponential(size=999).astype(np.float32) * 1e5, 12345
    found = Imatrix({NAME: sums}, {NAME: tokens})[NAME]
    assert found.tobytes() == (sums / np.float32(tokens)).tobytes()


def test_what_was_never_seen_counts_as_equally_important():
    matrix = Imatrix({NAME: [[5, 5], [6, 8]]}, {NAME: [0, 2]})
    assert matrix[NAME].tolist() == [[1, 1], [3, 4]]
    assert Imatrix({NAME: [0, 0]}, {NAME: 0})[NAME].tolist() == [1, 1]
    assert Imatrix({NAME: [0, 4]}, {NAME: 2})[NAME].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("sums", "counts", "reason"),
    [
        ([1, np.nan], 1, r"sum of squares at \[0, 1\] is nan; it must be >= 0"),
        ([np.inf], 1, "is inf"),
        ([1e39], 1, "is inf"),
        ([-1e-9], 1, "is -"),
        ([[1, 2], [3, -4]], [1, 1], r"at \[1, 1\] is -4"),
        ([1], -1, r"count at \[0\] is -1.0; it must be a number of tokens"),
        ([1], 0.5, "is 0.5"),
        ([1], np.nan, "is nan"),
        ([1], np.inf, "is inf"),
        ([], 1, r"shape \(0,\)"),
        (3, 1, r"shape \(\)"),
        ([1, 2], [1, 2], r"counts of shape \(2,\)"),
        ([[1, 2]], [1, 2], "pass"),
        ([[[1]]], 1, "pass"),
    ],
)
def test_numbers_that_are_no_importances_are_refused(sums, counts, reason):
    with pytest.raises(ValueError, match=f"{NAME}: .*{reason}"):
        Imatrix({NAME: sums}, {NAME: counts})


def test_sums_without_counts_are_refused():
    with pytest.raises(ValueError, match=r"blk\.0\.x has sums or counts, and not both"):
        Imatrix({NAME: [1], "blk.0.x": [1]}, {NAME: 1})


# ---------------------------------------------------------------- GGUF


def test_the_bytes_of_a_file_are_those_of_llama_imatrix(tmp_path):
    """Written out by hand from the format: names sorted, single experts without their axis."""
    matrix = Imatrix({"b": [1, 2], "a": [[3], [4]]}, {"b": 7, "a": [5, 6]}, ["x"], 9, 512)
    matrix.save(tmp_path / "m.gguf")

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 4, 4)
    head += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    head += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("x")
    head += text("imatrix.chunk_count") + struct.pack("<II", 4, 9)
    head += text("imatrix.chunk_size") + struct.pack("<II", 4, 512)
    head += text("a.in_sum2") + struct.pack("<IQQIQ", 2, 1, 2, 0, 0)
    head += text("a.counts") + struct.pack("<IQQIQ", 2, 1, 2, 0, 32)
    head += text("b.in_sum2") + struct.pack("<IQIQ", 1, 2, 0, 64)
    head += text("b.counts") + struct.pack("<IQIQ", 1, 1, 0, 96)
    data = [[3, 4], [5, 6], [1, 2], [7]]
    padded = [floats(*row).tobytes().ljust(32, b"\0") for row in data]
    expected = head + bytes(-len(head) % 32) + b"".join(padded)
    assert (tmp_path / "m.gguf").read_bytes() == expected


@settings(max_examples=30)  # each writes two files to the disk
@given(
    sums=st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    ),
    tokens=st.integers(0, 2**24),
    experts=st.integers(1, 3),
    datasets=st.lists(st.text(max_size=5), max_size=3),
)
def test_a_file_brings_back_the_same_matrix_and_then_the_same_bytes(
    tmp_path_factory, sums, tokens, experts, datasets
):
    folder = tmp_path_factory.mktemp("round")
    stacked = {name: np.array([row] * experts, np.float32) for name, row in sums.items()}
    counts = {name: [tokens + i for i in range(experts)] for name in sums}
    first = Imatrix(stacked, counts, datasets, 3, 512)
    first.save(folder / "first.gguf")
    second = Imatrix.load(folder / "first.gguf")
    second.save(folder / "second.gguf")
    assert (folder / "first.gguf").read_bytes() == (folder / "second.gguf").read_bytes()
    assert set(second) == set(first)
    assert all(second[name].tobytes() == first[name].tobytes() for name in first)
    assert second.datasets == tuple(datasets)
    assert (second.chunk_count, second.chunk_size) == (3, 512)


def test_the_reference_package_reads_what_we_write(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    Imatrix({NAME: [8, 2, 0], "e": [[1, 2], [3, 4]]}, {NAME: 4, "e": [5, 6]}, [], 3, 64).save(path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if "." in name[4:]}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.chunk_count"], fields["imatrix.chunk_size"] == (3, 64)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [f"{NAME}.in_sum2", f"{NAME}.counts", "e.in_sum2", "e.counts"]
    assert found[f"{NAME}.in_sum2"].data.tolist() == [8, 2, 0]
    assert found["e.in_sum2"].data.tolist() == [[1, 2], [3, 4]]
    assert list(found["e.counts"].shape) == [1, 2]
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}


@pytest.mark.parametrize("names", [[], ["a.txt", "b.txt"]])
def test_we_read_what_the_reference_package_writes(tmp_path, names):
    """In the form of llama.cpp's converter of old files, which keeps an axis of one expert."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "none")
    writer.add_type("imatrix")
    if names:
        writer.add_array("imatrix.datasets", names)
    else:  # the package leaves empty lists out; a file without the key is no imatrix
        writer.add_array("imatrix.datasets", [""])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 128)
    writer.add_tensor(f"{NAME}.in_sum2", floats(8, 2, 0)[None])
    writer.add_tensor(f"{NAME}.in_sum", floats(-4, 1, 0)[None])
    writer.add_tensor(f"{NAME}.counts", floats(4)[None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrix = Imatrix.load(tmp_path / "m.gguf")
    assert list(matrix) == [NAME]
    assert matrix[NAME].tolist() == [2, 0.5, 0]
    assert matrix.datasets == tuple(names or [""])
    assert repr(matrix) == "Imatrix(1 tensors, 7 chunks of 128 tokens)"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"general.type": "model"}, "general.type is 'model', not 'imatrix'"),
        ({"general.type": None}, "general.type is None"),
        ({"imatrix.datasets": None}, "imatrix.datasets is missing"),
        ({"imatrix.datasets": "x"}, r"imatrix.datasets is str; an imatrix stores \[str\]"),
        ({"imatrix.chunk_count": None}, "chunk_count is missing"),
        ({"imatrix.chunk_size": -1}, "chunk_size is i32; an imatrix stores u32"),
        ({"in_sum2": None}, "this imatrix is empty"),
        ({"counts": None}, f"{NAME} has sums or counts, and not both"),
        ({"in_sum2": floats(1, np.nan)}, "is nan"),
        ({"in_sum2": floats(1, -2)}, r"is -2\.0"),
        ({"counts": floats(-1)}, r"is -1\.0"),
        ({"counts": floats(1, 2)}, r"counts of shape \(2,\)"),
        ({"in_sum2": np.ones((1, 1, 2), np.float32)}, r"in_sum2' is F32 \(1, 1, 2\)"),
        ({"in_sum2": np.ones(2, np.float16)}, r"in_sum2' is F16"),
        ({"in_sum2": np.zeros(0, np.float32)}, r"shape \(0,\)"),
    ],
)
def test_a_file_that_is_no_imatrix_is_refused(tmp_path, changed, reason):
    metadata = KEYS | {key: value for key, value in changed.items() if "." in key}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    path = tmp_path / "m.gguf"
    write(path, tensors(**{k: v for k, v in changed.items() if "." not in k}), metadata)
    with pytest.raises(FormatError, match=f"m.gguf: .*{reason}"):
        Imatrix.load(path)


def test_an_unchanged_file_is_read(tmp_path):
    write(tmp_path / "m.gguf", tensors(), KEYS)
    assert Imatrix.load(tmp_path / "m.gguf")[NAME].tolist() == [2, 0.5, 0]


def test_no_tensor_and_too_long_a_name_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="holds no tensor"):
        Imatrix({}, {}).save(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="64 bytes"):
        Imatrix({"n" * 56: [1]}, {"n" * 56: 1}).save(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    Imatrix({"n" * 55: [1]}, {"n" * 55: 1}).save(tmp_path / "m.gguf")


# ---------------------------------------------------------------- the old .dat


def entry(name: bytes, calls: int, *values: float) -> bytes:
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
    return head + floats(*values).tobytes()


TWO = struct.pack("<i", 2) + entry(b"a", 4, 8, 2, 0) + entry("b\u00e9".encode(), 0, 5, 6)
ENDING = struct.pack("<ii", 11, 5) + b"x.txt"


def load_bytes(folder, data: bytes) -> Imatrix:
    (folder / "old.dat").write_bytes(data)
    return Imatrix.load(folder / "old.dat")


@pytest.mark.parametrize(
    ("ending", "chunks", "datasets"),
    [(b"", 0, ()), (ENDING, 11, ("x.txt",)), (struct.pack("<ii", 11, 0), 11, ())],
)
def test_the_old_format_is_read(tmp_path, ending, chunks, datasets):
    matrix = load_bytes(tmp_path, TWO + ending)
    assert {name: row.tolist() for name, row in matrix.items()} == {
        "a": [2, 0.5, 0],
        "b\u00e9": [1, 1],
    }
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (chunks, 0, datasets)
    matrix.save(tmp_path / "new.gguf")
    again = Imatrix.load(tmp_path / "new.gguf")
    assert {name: row.tolist() for name, row in again.items()} == {
        name: row.tolist() for name, row in matrix.items()
    }


def test_every_cut_of_an_old_file_is_refused_and_only_the_whole_is_read(tmp_path):
    whole = TWO + ENDING
    for length in range(len(whole)):
        if length == len(TWO):  # without the ending it is whole, too
            continue
        with pytest.raises(FormatError):
            load_bytes(tmp_path, whole[:length])
    with pytest.raises(FormatError, match="1 bytes follow the end"):
        load_bytes(tmp_path, whole + b"\0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "byte 0: the number of entries takes 4 bytes and 0 are left"),
        (struct.pack("<i", 0), "the number of entries is 0"),
        (struct.pack("<i", -1) + bytes(99), "the number of entries is -1"),
        (struct.pack("<i", 2**31 - 1) + TWO[4:], "the number of entries is 2147483647"),
        (b"once upon a time, in a land", "the number of entries is 1701015151"),
        (struct.pack("<ii", 1, 2**31 - 1) + TWO[8:], "byte 4: the length of the name of entry 0"),
        (struct.pack("<ii", 1, 0) + TWO[8:], "the length of the name of entry 0 is 0"),
        (struct.pack("<i", 1) + entry(b"\xff", 1, 1), "byte 8: .* is not UTF-8"),
        (struct.pack("<i", 1) + entry(b"a", -1, 1), "the calls of 'a' is -1"),
        (struct.pack("<i", 1) + entry(b"a", 1) + bytes(9), "the columns of 'a' is 0"),
        (
            struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**30) + bytes(9),
            "columns of 'a' is 1073741824, and 9 bytes follow",
        ),
        (struct.pack("<i", 2) + 2 * entry(b"a", 1, 1), "'a' stands here a second time"),
        (struct.pack("<i", 1) + entry(b"a", 1, np.nan), "old.dat: a: .* is nan"),
        (struct.pack("<i", 1) + entry(b"a", 1, -1), "old.dat: a: .* is -1"),
        (TWO + struct.pack("<ii", -1, 0), "the number of chunks is -1"),
        (TWO + struct.pack("<ii", 1, 9), "the length of the name of the data set is 9"),
    ],
)
def test_a_hostile_old_file_is_refused_with_the_byte(tmp_path, data, reason):
    with pytest.raises(FormatError, match=reason):
        load_bytes(tmp_path, data)


def test_a_claim_allocates_nothing(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    data = struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1) + bytes(99)
    tracemalloc.start()
    with pytest.raises(FormatError):
        load_bytes(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(st.data())
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    Imatrix({"a": [8, 2], "b": [[1], [2]]}, {"a": 4, "b": [1, 2]}, ["x"], 1, 2).save(folder / "g")
    good = data.draw(st.sampled_from([TWO + ENDING, (folder / "g").read_bytes()]))
    at = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    try:
        matrix = load_bytes(folder, good[:at] + patch + good[at + len(patch) :])
    except FormatError:
        return
    for row in matrix.values():
        assert np.isfinite(row).all()
        assert (row >= 0).all()


def test_a_folder_is_no_imatrix(tmp_path):
    with pytest.raises(FormatError, match="is not a file"):
        Imatrix.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Imatrix.load(tmp_path / "missing.gguf")


def test_the_file_is_free_again_after_loading(tmp_path):
    """Nothing keeps it mapped: it can shrink without ending this process."""
    write(tmp_path / "m.gguf", tensors(), KEYS)
    matrix = Imatrix.load(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")
    old = load_bytes(tmp_path, TWO)
    (tmp_path / "old.dat").write_bytes(b"")
    assert matrix[NAME].tolist() == [2, 0.5, 0]
    assert old["a"].tolist() == [2, 0.5, 0]
