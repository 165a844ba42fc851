"""The command line: what it prints, and that every expected error is one line and exit code 2."""

import errno
import os
import subprocess
import sys

import pytest

import quantlab
from quantlab import cli, cli_quantize, demo
from quantlab.methods.gptq import GPTQ
from quantlab.methods.rtn import RTN

WRONG = {
    "no such command": (["quantise"], "did you mean 'quantize'"),
    "no model": (["quantize", "--out", "x"], "required: MODEL"),
    "no such method": (["quantize", "storyteller", "--method", "gtpq", "--out", "x"], "'gptq'"),
    "no such option": (
        ["quantize", "storyteller", "--option", "dump=1", "--out", "x"],
        "did you mean 'damp'",
    ),
    "option without value": (
        ["quantize", "storyteller", "--option", "damp", "--out", "x"],
        "NAME=VALUE",
    ),
    "bits out of range": (["quantize", "storyteller", "--bits", "9", "--out", "x"], "bits is 9"),
    "bits no number": (["quantize", "storyteller", "--bits", "four", "--out", "x"], "'four'"),
    "groups do not divide": (
        ["quantize", "storyteller", "--method", "rtn", "--group-size", "100", "--out", "x"],
        "100",
    ),
    "no such model": (["evaluate", "no-such-folder"], "no-such-folder"),
    "no such text": (["evaluate", "storyteller", "--text", "missing.txt"], "missing.txt"),
    "no samples": (["evaluate", "storyteller", "--samples", "0"], "0"),
    "no such quiz": (["quiz", "99"], "99"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    def few(tokenizer, *, path=None):
        return quantlab.calibration_set(tokenizer, samples=2, length=32, path=path)

    monkeypatch.setattr("quantlab.checkpoint.calibration_set", few)  # seconds, not a minute
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "hint"), WRONG.values(), ids=WRONG)
def test_every_expected_error_is_one_line_and_exit_code_2(words, hint, folder, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(words) == 2
    _, error = capsys.readouterr()
    assert error.startswith("quantlab: error: ")
    assert error.count("\n") == 1
    assert hint in error
    assert list(folder.iterdir()) == []  # and nothing is left behind


def test_an_output_folder_that_holds_something_is_left_alone(folder, capsys):
    (folder / "mine.txt").write_text("precious")
    assert cli.main(["quantize", "storyteller", "--method", "rtn", "--out", str(folder)]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_quantize_writes_a_folder_that_evaluate_reads(folder, capsys):
    words = ["quantize", "storyteller", "--method", "rtn", "--bits", "3", "--out", "small"]
    assert cli.main(words) == 0
    assert "written to small" in capsys.readouterr().out
    assert cli.main(["evaluate", "small", "--samples", "2", "--reference", "storyteller"]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out
    assert "flips" in out


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("quantlab.checkpoint.save_file", full)
    assert cli.main(["quantize", "storyteller", "--method", "rtn", "--out", "small"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_ctrl_c_is_one_line_and_leaves_nothing(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantlab.checkpoint.save_file", interrupted)
    assert cli.main(["quantize", "storyteller", "--method", "rtn", "--out", "small"]) == 130
    assert capsys.readouterr().err == "quantlab: error: interrupted; nothing written\n"
    assert list(folder.iterdir()) == []


def test_a_surprise_is_not_hidden(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run_demo", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_methods_are_found_by_looking_not_by_registering():
    assert cli_quantize.make_method("GPTQ", ["damp=0.5"]) == GPTQ(damp=0.5)
    assert cli_quantize.make_method("rtn", ["clip=mse"]) == RTN(clip="mse")
    assert cli_quantize.find_methods().keys() >= {"gptq", "rtn"}


def test_no_words_print_the_commands(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f"    {command}" in out


def test_every_command_has_help(capsys):
    for command in cli.COMMANDS:
        assert cli.main([command, "--help"]) == 0
    assert "error" not in capsys.readouterr().err


def test_a_reader_that_leaves_early_causes_no_traceback():
    command = [sys.executable, "-m", "quantlab.cli", "--help"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    reader.stdout.close()
    _, error = reader.communicate(timeout=120)
    assert error == ""


def test_the_versions_agree(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"quantlab {quantlab.__version__}\n"
