"""Compiled functions are kept on disk, and are never older than what they use."""

import importlib.util
import sys

import pytest

CALLEE = """
from quantlab.native import compiled

STEP = {step}

@compiled
def add(x):
    return x + {literal}
"""
CALLER = """
from callee import STEP, add
from quantlab.native import compiled

@compiled
def work(x):
    return inner(x) + STEP

@compiled
def inner(x):
    return 100 * add(x)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return a function that writes the two files and imports them anew: a fresh ``work``."""

    def write(step, literal):
        (tmp_path / "callee.py").write_text(CALLEE.format(step=step, literal=literal))
        if not (tmp_path / "caller.py").exists():
            (tmp_path / "caller.py").write_text(CALLER)
        for name in ("callee", "caller"):
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        return module.work

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return write


def test_a_function_is_read_from_disk_the_second_time(work):
    assert work(step=1, literal=2)(3) == 501
    again = work(step=1, literal=2)
    assert again(3) == 501
    assert again.stats.cache_hits
    assert not again.stats.cache_misses


def test_an_edit_in_another_file_is_compiled_anew(work):
    assert work(step=1, literal=2)(3) == 501
    assert work(step=1, literal=7)(3) == 1001
    assert work(step=4, literal=7)(3) == 1004


def test_an_earlier_version_is_found_again(work):
    assert work(step=1, literal=2)(3) == 501
    assert work(step=1, literal=7)(3) == 1001
    back = work(step=1, literal=2)
    assert back(3) == 501
    assert back.stats.cache_hits
