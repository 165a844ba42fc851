"""``quantlab quantize --format gguf``: the file, the report, and errors of one line."""

import errno
import os

import pytest

import quantlab as ql
from quantlab import cli, gguf
from quantlab.export import gguf as export
from quantlab.gguf.imatrix import Imatrix

COMMAND = ("quantize", "storyteller", "--format", "gguf", "--out", "story.gguf")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def few(tokenizer, *, path=None):
        return ql.calibration_set(tokenizer, samples=2, length=32, path=path)

    monkeypatch.setattr("quantlab.export.gguf_convert.calibration_set", few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_storyteller_becomes_a_q4_k_m_file_with_its_tokenizer(folder, capsys):
    assert cli.main([*COMMAND]) == 0
    printed = capsys.readouterr().out
    assert "Q4_K_M: 38 tensors" in printed
    assert printed.endswith("written to story.gguf\n")
    file = gguf.read(folder / "story.gguf")
    assert file.metadata["general.file_type"] == 15
    assert file.metadata["general.name"] == "storyteller"
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert "quantize.imatrix.entries_count" not in file.metadata
    assert len(ql.load(folder / "story.gguf")[1]) == 2048


def test_an_imatrix_is_measured_on_request_or_read_from_a_file(folder):
    model, tokenizer = ql.load("storyteller")
    assert cli.main([*COMMAND, "--type", "Q4_0", "--imatrix", "auto"]) == 0
    auto = (folder / "story.gguf").read_bytes()
    metadata = gguf.read(folder / "story.gguf").metadata
    assert metadata["quantize.imatrix.entries_count"] == 28
    assert metadata["quantize.imatrix.dataset"] == "embedded stories"
    from quantlab.export.imatrix import imatrix

    data = ql.calibration_set(tokenizer, samples=2, length=32)
    imatrix(model, data, datasets=["embedded stories"]).save(folder / "i.gguf")
    assert Imatrix.load(folder / "i.gguf").chunk_count == 2
    assert cli.main([*COMMAND, "--type", "Q4_0", "--imatrix", "i.gguf"]) == 0
    assert (folder / "story.gguf").read_bytes() == auto
    assert cli.main([*COMMAND, "--type", "Q4_0", "--imatrix", "none"]) == 0
    assert (folder / "story.gguf").read_bytes() != auto


def test_a_methods_codes_are_kept(folder, capsys):
    assert cli.main([*COMMAND, "--method", "rtn"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Q4_0     4.5000  codes kept") == 28
    assert "same: 38 tensors" in printed


WRONG = {
    "no such type": ([*COMMAND, "--type", "Q4_KM"], "did you mean 'Q4_K_M'"),
    "no such format": ([*COMMAND[:3], "ggml", *COMMAND[4:]], "invalid choice: 'ggml'"),
    "no such imatrix": ([*COMMAND, "--imatrix", "missing.gguf"], "missing.gguf"),
    "no such model": (["quantize", "nowhere", *COMMAND[2:]], "nowhere"),
    "out is a folder": ([*COMMAND[:-1], "."], ". cannot be a file"),
    "out in no folder": ([*COMMAND[:-1], "no/story.gguf"], "cannot be a file"),
    "type without format": (
        ["quantize", "storyteller", "--type", "Q4_0", "--out", "x"],
        "--format",
    ),
    "bits without method": ([*COMMAND, "--bits", "3"], "add --method"),
    "group size without method": ([*COMMAND, "--group-size", "128"], "add --method"),
    "calibration that nobody reads": ([*COMMAND, "--calibration", "t.txt"], "imatrix auto"),
    "an empty type": ([*COMMAND, "--type", ""], "unknown GGUF preset ''"),
    "rounded again": ([*COMMAND, "--method", "rtn", "--type", "Q4_K_M"], "round again"),
}


@pytest.mark.parametrize(("words", "hint"), WRONG.values(), ids=WRONG)
def test_every_expected_error_is_one_line_and_writes_nothing(
    words, hint, folder, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(words) == 2
    _, error = capsys.readouterr()
    assert error.startswith("quantlab: error: ")
    assert error.count("\n") == 1
    assert hint in error
    assert list(folder.iterdir()) == []


def test_a_gguf_file_of_rounded_weights_is_not_rounded_again(folder, capsys):
    assert cli.main([*COMMAND, "--type", "Q8_0"]) == 0
    assert cli.main(["quantize", "story.gguf", *COMMAND[2:-1], "again.gguf"]) == 2
    error = capsys.readouterr().err
    assert "token_embd.weight in story.gguf is rounded to Q8_0 already; start from" in error
    assert cli.main([*COMMAND, "--type", "F16"]) == 0
    assert cli.main(["quantize", "story.gguf", *COMMAND[2:-1], "again.gguf"]) == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["again.gguf", "story.gguf"]


def test_a_pipe_or_device_is_not_replaced_by_a_file(folder, capsys):
    os.mkfifo(folder / "pipe")
    assert cli.main([*COMMAND[:-1], "pipe"]) == 2
    assert "pipe cannot be a file" in capsys.readouterr().err
    with pytest.raises(OSError, match="is no regular file; nothing written"):
        gguf.write(folder / "pipe", {}, {})
    assert [path.name for path in folder.iterdir()] == ["pipe"]
    assert (folder / "pipe").is_fifo()


def test_an_interrupt_in_the_middle_leaves_nothing_behind(folder, capsys, monkeypatch):
    done = []

    def interrupted(rows, *_):
        done.append(rows)
        if len(done) == 5:
            raise KeyboardInterrupt
        return quantize(rows, *_)

    quantize = export.quantize
    monkeypatch.setattr(export, "quantize", interrupted)
    assert cli.main([*COMMAND]) == 130
    assert capsys.readouterr().err == "quantlab: error: interrupted; nothing written\n"
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(folder, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("quantlab.gguf.writer.os.fsync", full)
    assert cli.main([*COMMAND]) == 2
    error = capsys.readouterr().err
    assert error == "quantlab: error: story.gguf: No space left on device; nothing written\n"
    assert list(folder.iterdir()) == []
