"""The training recipe: seeded, and exact when it is interrupted and started again."""

import argparse
import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantlab.models.loading import EMBEDDED

EXPERIMENTS = Path(__file__).parents[1] / "labs" / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return importlib.import_module("train_storyteller")


def options(out):
    out.mkdir()
    corpus, valid = EMBEDDED / "calibration.txt", EMBEDDED / "evaluation.txt"
    return argparse.Namespace(corpus=corpus, valid=valid, out=out, every=2)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(script, tmp_path, monkeypatch):
    recipe = script.Recipe(steps=4, tokens_per_step=256, length=64, final_length=128, warmup=2)
    monkeypatch.setattr(script, "bits_per_byte", lambda *_: 0.0)  # 20 s of measuring saved
    whole, broken = options(tmp_path / "whole"), options(tmp_path / "broken")
    script.run(whole, recipe)
    real, calls = script.train_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(script, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.run(broken, recipe)
    monkeypatch.setattr(script, "train_step", real)
    script.run(broken, recipe)
    first, second = (load_file(o.out / "model.safetensors") for o in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_rate_warms_up_stays_and_falls_to_zero(script):
    recipe = script.Recipe(steps=1000, warmup=100, decay=0.2)
    rates = [recipe.rate(step) for step in range(1000)]
    assert rates[:100] == pytest.approx([(k + 1) / 100 for k in range(100)])
    assert set(rates[100:800]) == {1.0}
    assert rates[999] == pytest.approx(1 / 200)
    assert recipe.window(799) == 256
    assert recipe.window(800) == 512


def test_every_token_but_the_first_is_predicted_once(script):
    tokens = torch.arange(1, 100)
    for length in (7, 49, 98, 200):
        seen = [t for _, targets in script.windows(tokens, length) for t in targets.flatten()]
        assert [int(t) for t in seen] == list(range(2, 100))
