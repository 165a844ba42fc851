"""Reading GGUF files: what is refused and where, what is accepted, and what it costs."""

import os
import re
import time
import tracemalloc

import numpy as np
import pytest

from quantlab import gguf
from tests.gguf import malformed
from tests.gguf.ggml_reader import what_ggml_reads

# ggml reads these: it keeps bytes, we make Python strings of them; its bools are any byte; it
# leaves the sizes to whoever maps the data; and one product of sizes wraps.
ONLY_WE_REFUSE = {
    "a key of 65,536 bytes",
    "a key that is no UTF-8",
    "a string that is no UTF-8",
    "a string of an array that is no UTF-8",
    "tensor name that is no UTF-8",
    "a bool of 2",
    "an array with a bool of 7",
    "a product beside a zero",
    "a size that wraps to 2",
    "a size that nothing holds",
    "data cut short",
}


def rows(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "story.gguf"


def write(path, metadata=None, tensors=None, **options):
    gguf.write(path, tensors or {}, metadata or {}, **options)
    return gguf.read(path)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("broken", malformed.BROKEN.values(), ids=malformed.BROKEN)
def test_a_broken_file_is_refused_in_one_line_that_names_the_byte(broken):
    with pytest.raises(gguf.FormatError) as caught:
        gguf.parse(broken.data, name="story.gguf")
    message = str(caught.value)
    assert message.startswith(f"story.gguf, byte {broken.byte}: ")
    assert broken.words in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("data", malformed.ODD.values(), ids=malformed.ODD)
def test_an_unusual_file_is_read(data, path):
    path.write_bytes(data)
    with gguf.read(path) as file:
        for tensor in file.tensors.values():
            assert tensor.data.nbytes == tensor.nbytes
            assert tensor.dequantize().shape == tensor.shape


def test_ggml_accepts_and_refuses_the_same_files(tmp_path):
    data = malformed.ODD | {name: broken.data for name, broken in malformed.BROKEN.items()}
    paths = [tmp_path / f"{number}.gguf" for number in range(len(data))]
    for path, raw in zip(paths, data.values(), strict=True):
        path.write_bytes(raw)
    answers = dict(zip(data, what_ggml_reads(*paths), strict=True))
    accepted = {name for name, answer in answers.items() if answer is not None}
    assert accepted == set(malformed.ODD) | ONLY_WE_REFUSE


def test_a_file_cut_anywhere_is_refused():
    for length in range(len(malformed.SOUND)):
        with pytest.raises(gguf.FormatError):
            gguf.parse(malformed.SOUND[:length])


def test_the_byte_of_a_file_on_disk_is_named_as_well(path):
    path.write_bytes(malformed.SOUND[:100])
    with pytest.raises(gguf.FormatError, match=re.escape(f"{path}, byte ")):
        gguf.read(path)
    path.write_bytes(b"")
    with pytest.raises(gguf.FormatError, match="byte 0: "):
        gguf.read(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    with pytest.raises(gguf.FormatError, match="is not a file"):
        gguf.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(gguf.FormatError, match="is not a file"):
        gguf.read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        gguf.read(tmp_path / "none")


def test_a_name_that_would_upset_a_terminal_is_escaped_and_cut():
    hostile = b"\x1b[2J\n" + b"k" * 5000
    pair = malformed.pair(hostile, malformed.BOOL, b"\2")
    with pytest.raises(gguf.FormatError) as caught:
        gguf.parse(malformed.whole([pair]))
    assert "\\x1b[2J\\nkkk" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_an_array_of_more_than_2_to_30_elements_is_refused_even_where_they_exist(path):
    head = malformed.value(malformed.ARRAY, malformed.array(malformed.U8, 2**30 + 1, b""))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(2**31)  # a hole: it takes no space
    with pytest.raises(gguf.FormatError, match=r"byte 46: .*1073741825 elements; at most 2"):
        gguf.read(path)


def test_a_string_of_more_than_2_to_30_bytes_is_refused_even_where_they_exist(path):
    words = malformed.array(malformed.STRING, 1, malformed.text(b"", 2**30 + 1))
    with path.open("wb") as file:
        file.write(malformed.value(malformed.ARRAY, words))
        file.truncate(2**31)
    with pytest.raises(gguf.FormatError, match=r"byte 54: element 0 .*at most 2\^30"):
        gguf.read(path)


def test_a_lie_costs_no_memory():
    tracemalloc.start()
    for broken in malformed.BROKEN.values():
        with pytest.raises(gguf.FormatError):
            gguf.parse(broken.data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # the longest file has 65 kB


# ---------------------------------------------------------------- reading


def test_a_file_of_ten_gigabytes_opens_at_once_and_takes_no_memory(path):
    columns = 2**30
    sizes = [malformed.entry(b"weight", (columns, 10), malformed.U8 + 24)]  # I8
    with path.open("wb") as file:
        file.write(malformed.whole([malformed.ARCH], sizes))
        file.truncate(malformed.START + 200 + 10 * columns)
    tracemalloc.start()
    start = time.perf_counter()
    with gguf.read(path) as file:
        assert file.tensors["weight"].data.shape == (10, columns)
        assert int(file.tensors["weight"].data[9, -1]) == 0
        assert time.perf_counter() - start < 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_data_is_a_read_only_view_of_the_file(path):
    file = write(path, tensors={"w": rows(2, 32)})
    data = file.tensors["w"].data
    assert np.shares_memory(data, file.tensors["w"].data)
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1
    assert data.view("<f4").tolist() == rows(2, 32).tolist()


def test_a_closed_file_says_so_and_a_copy_outlives_its_file(path):
    with write(path, tensors={"w": rows(1, 8)}) as file:
        kept = file.tensors["w"].data
    with pytest.raises(ValueError, match="'w' is closed"):
        file.tensors["w"].dequantize()
    assert kept.view("<f4").tolist() == rows(1, 8).tolist()
    copy = gguf.read(path, copy=True)
    path.write_bytes(b"")  # a mapped file would end this process here
    assert copy.tensors["w"].dequantize().tolist() == rows(1, 8).tolist()


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, lambda raw: np.frombuffer(raw, "u1")]
)
def test_any_buffer_can_be_parsed_and_none_written_to(wrap):
    tensor = gguf.parse(wrap(malformed.SOUND)).tensors["weight"]
    assert not tensor.data.flags.writeable


def test_a_tensor_knows_its_type_shape_place_and_weights(path):
    blocks = gguf.quantize(rows(3, 64), "Q4_0")
    file = write(path, tensors={"w": gguf.Raw("q4_0", blocks, (3, 64)), "s": np.float32(2.5)})
    tensor = file.tensors["w"]
    assert (tensor.name, tensor.type, tensor.shape) == ("w", "Q4_0", (3, 64))
    assert (tensor.nbytes, tensor.bits_per_weight) == (108, 4.5)
    assert path.read_bytes()[tensor.offset :][:108] == blocks.tobytes()
    assert tensor.dequantize().tolist() == gguf.dequantize(blocks, "Q4_0").tolist()
    assert file.tensors["s"].dequantize().shape == ()
    assert file.tensors["s"].dequantize() == 2.5
    assert file.nbytes == 112


def test_a_file_prints_as_a_short_table(path):
    file = write(path, {"a": 1}, {f"blk.{i}.weight": rows(2, 32) for i in range(50)})
    lines = repr(file).splitlines()
    assert lines[0] == "GGUF version 3: 1 metadata values, 50 tensors, 12,800 bytes of weights"
    assert lines[1].split() == ["blk.0.weight", "F32", "2", "x", "32", "256"]
    assert lines[-1].strip() == "and 38 more"
