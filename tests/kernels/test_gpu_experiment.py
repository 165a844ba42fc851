"""The GPU's benchmark, as far as it can be tested without a GPU: who is timed, and what is said."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch

from labs.experiments import gpu_contestants, gpu_kernels
from quantlab.kernels.contest import Calls, Contestant, Product

CARD = gpu_kernels.Card("a card", processors=100, cache=1 << 20, copy=1e12, peak=1e14)
SAMPLES = {"minimum": 9e-6, "p10": 9e-6, "median": 1e-5, "p90": 1.1e-5, "count": 50}


def made_up(name, microseconds, *, batch=1, share=0.5, ours=False, cache="cold", **facts):
    times = SAMPLES | {"median": microseconds / 1e6}
    row = gpu_kernels.Row(
        name=name,
        activations="bfloat16",
        bits=4.25,
        ours=ours,
        shape=(4096, 4096, batch),
        cache=cache,
        times=times,
        rounds=tuple(microseconds / 1e6 * (1 + 0.001 * k) for k in range(8)),
        bandwidth=share * CARD.copy,
        bandwidth_share=share,
        speed=1e13,
        intensity=4.0,
        error=1e-3,
    )
    return replace(row, **facts)


def on_the_cpu(product, name, off=0.0):
    """Return a contestant that is right, or off by so much."""
    return Contestant(
        name=name,
        activations="float32",
        weight_bytes=product.weight.nbytes,
        truth=product.truth(product.weight),
        prepare=lambda sets: Calls([lambda: product.x @ product.weight.T + off] * sets),
        bits=32.0,
        ours=True,
    )


def absent():
    raise ModuleNotFoundError("No module named 'bitsandbytes'")


@pytest.fixture
def product():
    return Product.random(64, 128, 2)


def test_without_a_gpu_it_ends_with_one_line_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_kernels.main(["--out", str(tmp_path / "x.json")]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no CUDA GPU here: nothing was measured, nothing written\n")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_and_a_wrong_kernel_are_named_and_not_timed(product):
    refused = {}
    makers = [
        ("bitsandbytes", absent),
        ("wrong", partial(on_the_cpu, product, "wrong", off=1.0)),
        ("right", partial(on_the_cpu, product, "right")),
    ]
    ready = gpu_kernels.admitted(makers, CARD, refused)
    assert [made.name for made in ready] == ["right"]
    assert refused["bitsandbytes"] == "ModuleNotFoundError: No module named 'bitsandbytes'"
    assert refused["wrong"].startswith("WrongKernel: wrong gives")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they can be made")
def test_no_real_contestant_is_made_without_a_gpu_and_each_says_why(product):
    refused = {}
    assert gpu_kernels.admitted(gpu_contestants.entrants(product, False), CARD, refused) == {}
    assert len(refused) == 2 * len(gpu_contestants.SCHEMES) + 4
    assert all(": " in reason and "\n" not in reason for reason in refused.values())


def test_rows_hold_speeds_shares_and_errors(product):
    ready = gpu_kernels.admitted([("a", partial(on_the_cpu, product, "a"))], CARD, {})
    [row] = gpu_kernels.timed(product, ready, CARD, "cold", rounds=5)
    moved = 64 * 128 * 4 + 2 * 2 * (64 + 128)
    median = row.times["median"]
    assert row.bandwidth == pytest.approx(moved / median)
    assert row.bandwidth_share == pytest.approx(moved / median / 1e12)
    assert row.speed == pytest.approx(2 * 64 * 128 * 2 / median)
    assert row.intensity == pytest.approx(row.speed / row.bandwidth)
    assert len(row.rounds) == 5
    assert 0 <= row.error < 1e-6
    assert "GB/s" in gpu_kernels.shown(row)


def test_cold_weights_exceed_the_cache_four_times():
    assert gpu_kernels.weight_sets(1 << 20, 50 << 20) == 201
    assert gpu_kernels.weight_sets(1 << 40, 50 << 20) == 2


def test_goals_compare_our_fastest_float_product_with_cold_weights():
    rows = [
        made_up("quantlab a", 20, ours=True, share=0.4),
        made_up("quantlab b", 10, ours=True, share=0.81),
        made_up("quantlab c", 5, ours=True, share=0.99, activations="int8"),
        made_up("quantlab d", 1, ours=True, share=0.99, cache="hot"),
        made_up("torch tinygemm g128", 12),
        made_up("bitsandbytes NF4", 9),
        made_up("cuBLAS bfloat16", 40),
    ]
    found = gpu_kernels.goals(rows)
    label = "4096 x 4096, batch 1: "
    assert set(found) == {
        label + "share of copy bandwidth",
        label + "against torch tinygemm g128",
        label + "against bitsandbytes NF4",
    }
    assert found[label + "share of copy bandwidth"] == {"value": 0.81, "met": True}
    assert found[label + "against torch tinygemm g128"]["value"] == 1.2
    assert found[label + "against torch tinygemm g128"]["met"]
    assert not found[label + "against bitsandbytes NF4"]["met"]


@pytest.mark.parametrize(
    ("batch", "microseconds", "reached"),
    [(16, 13.0, True), (64, 13.1, False), (128, 10.1, False), (128, 10.0, True)],
)
def test_at_batch_16_to_64_the_best_peer_may_be_faster_by_three_tenths(
    batch, microseconds, reached
):
    rows = [
        made_up("quantlab", microseconds, batch=batch, ours=True),
        made_up("torch tinygemm g128", 10, batch=batch),
    ]
    [goal] = gpu_kernels.goals(rows).values()
    assert goal["met"] is reached
    assert goal["interval"][0] <= goal["value"] <= goal["interval"][1]


def test_goals_without_a_product_of_ours_or_without_peers_are_few():
    assert gpu_kernels.goals([made_up("torch tinygemm g128", 10)]) == {}
    assert len(gpu_kernels.goals([made_up("quantlab", 10, ours=True)])) == 1


def test_everything_is_written_as_json_and_drawn(tmp_path):
    rows = [made_up("quantlab", 10, ours=True), made_up("bitsandbytes NF4", 11, batch=16)]
    path = tmp_path / "gpu.json"
    gpu_kernels.write(path, CARD, rows, {"torch tinygemm": "RuntimeError: none"})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["card"] == asdict(CARD)
    assert read["refused"] == {"torch tinygemm": "RuntimeError: none"}
    assert read["rows"][0] == json.loads(json.dumps(asdict(rows[0])))
    assert read["versions"]["torch"] == torch.__version__
    assert path.with_suffix(".svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_roofline_is_the_lower_of_two_limits():
    picture = gpu_kernels.roofline(CARD, [made_up("quantlab", 10, ours=True)])
    roof, point = picture.figure.axes[0].lines
    at, height = roof.get_data()
    assert np.allclose(height, np.minimum(at * 1e12, 1e14) / 1e12)
    assert point.get_xydata().tolist() == [[4.0, 10.0]]
    assert "copies 1.00 TB/s, bfloat16 100 Top/s; 1 products" in str(picture)
