"""The doctor: healthy here, and able to find every illness it looks for."""

import dataclasses

import pytest
import torch

from quantlab import cli, doctor
from quantlab.methods import gptq, rtn


def test_this_machine_is_healthy(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    for word in ("Python", "torch", "processor", "threads", "cache", "GPTQ", "storyteller"):
        assert word in out


def test_an_old_python_is_named_with_the_way_out(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "PYTHON", (4, 0))
    assert cli.main(["doctor"]) == 1
    assert "install Python 3.11 or newer" in capsys.readouterr().out


def test_a_missing_extra_is_no_illness_and_names_its_pip_line():
    finding = doctor.optional("notebook", ("no_such_package",), "figures")
    assert finding.state == "-"
    assert "pip install 'quantlab[notebook]'" in finding.detail


def test_a_cache_that_cannot_be_written_is_no_illness(monkeypatch):
    def nowhere(**_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(doctor.numba, "njit", nowhere)
    assert "NUMBA_CACHE_DIR" in doctor.compiled_cache().detail


def wrong_codes(function):
    def broken(*args, **kwargs):
        good = function(*args, **kwargs)
        return dataclasses.replace(good, codes=good.codes ^ 1, scale=good.scale * 3)

    return broken


@pytest.mark.parametrize(
    ("name", "check"),
    [("rtn", doctor.check_rounding), ("gptq", doctor.check_gptq)],
)
def test_the_self_check_sees_a_broken_method(name, check, monkeypatch):
    original = {"rtn": rtn.rtn, "gptq": gptq.gptq}[name]
    monkeypatch.setattr(doctor, name, wrong_codes(original))
    finding = doctor.self_check(name, check)
    assert finding.state == "FAIL"
    assert "ArithmeticError" in finding.detail


def test_the_self_check_sees_a_missing_model(monkeypatch):
    def missing(_):
        raise ValueError("no model here")

    monkeypatch.setattr(doctor, "load", missing)
    assert (
        doctor.self_check("storyteller", doctor.check_model).detail == "ValueError: no model here"
    )


def test_the_accelerator_line_does_not_need_one():
    assert doctor.accelerator().state in ("-", "ok")
    assert torch.cuda.is_available() == (doctor.accelerator().state == "ok")
