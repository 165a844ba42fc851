"""Counted bytes: the counter, the formula, and the tracer that draws them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quantlab as ql
from quantlab.kernels import reference
from quantlab.kernels.traffic import Memory, gemv_bytes, tiled_gemv
from quantlab.widgets import TrafficTracer
from quantlab.widgets.traffic_tracer import ARRAYS, STAGES, memory_of


def problem(rows=8, columns=32, group=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = ql.rtn(torch.randn(rows, columns, generator=generator), ql.Scheme(4, group))
    return weight, torch.randn(columns, generator=generator)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 16, 32]), st.integers(0, 99))
def test_the_loop_is_right_and_moves_what_the_formula_says(tile, group, seed):
    weight, vector = problem(group=group, seed=seed)
    memory = memory_of(weight, vector)
    tiled_gemv(memory, group, tile)
    target = reference.matmul(vector, weight.pack())
    np.testing.assert_allclose(memory.y.values, target, atol=1e-4)
    counted = memory.loaded | {"y": memory.stored["y"]}
    assert counted == gemv_bytes(8, 32, group, tile=tile)
    assert memory.moved == sum(counted.values())


def test_every_way_to_touch_an_array_is_counted():
    memory = Memory(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros(2, np.int64))
    assert memory.a[1, 2] == 5
    assert memory.a[0].tolist() == [0, 1, 2]
    assert np.asarray(memory.a).sum() == 15
    memory.b[:] = 7
    assert len(memory.a) == 2
    assert memory.a.shape == (2, 3)
    temporary = memory.allocate("t", 4)
    temporary[1:3] = 1
    assert memory.loaded == {"a": 4 + 12 + 24, "b": 0, "t": 0}
    assert memory.stored == {"a": 0, "b": 16, "t": 8}


def test_a_part_that_was_loaded_is_a_copy():
    memory = Memory(a=np.zeros(4, np.float32))
    part = memory.a[:2]
    part += 1
    assert memory.a.values.sum() == 0


def test_an_unknown_array_is_named():
    with pytest.raises(AttributeError, match="no array 'w' in this memory"):
        _ = Memory(a=[1.0]).w


def test_the_tracer_ends_at_the_counted_bytes():
    weight, vector = problem()
    tracer = TrafficTracer(weight, vector)
    for tile in (1, 2, 4, 8):
        tracer.move(tile=tile, step=STAGES)
        assert tracer.state["moved"] == gemv_bytes(8, 32, 16, tile=tile)
        assert max(tracer.state["touched"]["x"]) == 8 // tile
        tracer.move(step=0)
        assert sum(tracer.state["moved"].values()) == 0
    assert tracer.table["once"] == sum(gemv_bytes(8, 32, 16, tile=8).values())


def test_the_tracer_s_counts_only_grow_and_add_up_to_its_bytes():
    weight, vector = problem()
    table = TrafficTracer(weight, vector).table
    sizes = {"codes": 1, "scale": 2, "x": 4, "y": 4}
    for run in table["runs"].values():
        before = dict.fromkeys(ARRAYS, 0)
        for stage in run:
            for name in ARRAYS:
                assert sum(stage["touched"][name]) * sizes[name] == stage["moved"][name]
                assert stage["moved"][name] >= before[name]
            before = stage["moved"]
    assert len(json.dumps(table)) < 300_000


def test_the_tracer_shows_a_picture_with_its_sentence():
    weight, vector = problem()
    tracer = TrafficTracer(weight, vector, tile=4, step=20)
    assert "4 rows at a time" in tracer.sentence
    data = tracer.picture()._repr_mimebundle_()[0]
    assert data["image/png"]
    assert "bytes moved so far" in data["text/plain"]


def test_other_weights_are_refused():
    weight = ql.rtn(torch.randn(8, 32), ql.Scheme(4, 16, symmetric=False))
    with pytest.raises(ValueError, match="symmetric 4-bit weights; this one is w4g16asym"):
        TrafficTracer(weight, torch.ones(32))
