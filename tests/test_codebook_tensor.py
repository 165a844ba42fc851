"""Codes into a table under stored scales, and the layer that holds them."""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quantlab.codebook_tensor import (
    CodebookTensor,
    Scales,
    code_bits,
    spread,
    tensor_bytes,
    tensors,
    with_tensors,
)
from quantlab.floats import E8M0, FP4_E2M1, FP6_E2M3, FP8_E4M3, NF4, Codebook
from quantlab.nn_codebook import CodebookLinear


def example(rows: int = 3, columns: int = 10) -> CodebookTensor:
    codes = torch.arange(rows * columns).view(rows, columns).remainder(16).to(torch.uint8)
    data = torch.tensor([[120, 130, 127], [128, 126, 125]], dtype=torch.uint8)
    scales = Scales(data, E8M0, torch.tensor(3.0))
    return CodebookTensor(codes, scales, NF4, (2, 4), "example", ("a note",))


def test_each_weight_is_its_level_times_its_tile_s_scale():
    q = example()
    Q = q.dequantize()
    for row in range(3):
        for column in range(10):
            scale = 2.0 ** (int(q.scales.data[row // 2, column // 4]) - 127) * 3
            expected = torch.tensor(NF4.levels[q.codes[row, column]]) * scale
            assert Q[row, column] == expected
    assert q.pack().dequantize(torch.float64).equal(Q.double())
    assert q.nbytes == q.pack().nbytes == 3 * 5 + 6 + 4


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tile=st.tuples(st.integers(1, 10), st.integers(1, 10)),
)
def test_every_weight_gets_the_scale_of_its_tile(shape, tile):
    tiles = [-(-size // side) for size, side in zip(shape, tile, strict=True)]
    scale = torch.rand(tiles)
    whole = spread(scale, tile, shape)
    assert whole.shape == shape
    for row in range(shape[0]):
        for column in range(shape[1]):
            assert whole[row, column] == scale[row // tile[0], column // tile[1]]


def test_a_wrong_number_of_scales_is_refused():
    with pytest.raises(ValueError, match=r"3 x 10 matrix in tiles of 2 x 4 has \(2, 3\)"):
        spread(torch.ones(2, 4), (2, 4), (3, 10))


def test_codes_are_as_wide_as_their_table_needs():
    assert [code_bits(t) for t in (FP4_E2M1, FP6_E2M3, FP8_E4M3, NF4)] == [4, 6, 8, 4]
    assert [code_bits(Codebook("x", tuple(range(n)))) for n in (2, 3, 5, 256)] == [1, 2, 3, 8]


def test_scales_may_be_floats_or_codes():
    assert Scales(torch.tensor([[1.5]], dtype=torch.float16)).values().tolist() == [[1.5]]
    assert Scales(torch.tensor([[0x38]], dtype=torch.uint8), FP8_E4M3).values().item() == 1


@dataclass(frozen=True)
class Nest:
    """A record with a tensor, another record, and something else."""

    top: Tensor
    inner: Scales
    word: str = "kept"


def test_tensors_of_a_record_can_be_taken_out_and_put_back():
    record = Nest(torch.ones(3), Scales(torch.ones(1, 2), None, torch.tensor(2.0)))
    parts = tensors(record)
    assert list(parts) == ["top", "inner_data", "inner_factor"]
    assert tensor_bytes(record) == 4 * (3 + 2 + 1)
    doubled = with_tensors(record, {name: 2 * part for name, part in parts.items()})
    assert doubled.top.tolist() == [2, 2, 2]
    assert doubled.inner.values().tolist() == [[8, 8]]
    assert doubled.word == "kept"
    assert record.top.tolist() == [1, 1, 1]


def test_the_layer_holds_the_packed_tensors_and_nothing_else():
    q, bias = example(), torch.arange(3.0)
    layer = CodebookLinear(q.pack(), bias)
    assert sum(t.numel() * t.element_size() for t in layer.state_dict().values()) == layer.nbytes
    assert layer.nbytes == q.nbytes + 3 * 4
    assert layer.data.data_ptr() == layer.packed.data.data_ptr()
    assert tensor_bytes(layer.form) == 0
    x = torch.randn(2, 5, 10)
    assert layer(x).equal(nn.functional.linear(x, q.dequantize(), bias))
    assert layer(x.double()).dtype == torch.float64
    assert "10, 3, example, 37 bytes" in repr(layer)


def test_the_layer_can_be_copied_saved_and_loaded():
    one = CodebookLinear(example().pack())
    twin = copy.deepcopy(one)
    twin.data.zero_()
    assert not twin.packed.dequantize().equal(one.packed.dequantize())
    twin.load_state_dict(one.state_dict())
    assert twin.packed.dequantize().equal(one.packed.dequantize())
    assert list(one.parameters()) == []
