"""What every method that brings its own grid promises, tried on each one in quantlab/methods."""

import dataclasses
import math

import pytest
import torch
from test_contract import FORMATS, Gated, block
from torch import nn

from quantlab.codebook_tensor import tensor_bytes
from quantlab.nn import QuantizedLinear, is_quantized, weight_bytes
from quantlab.nn_codebook import CodebookLinear
from quantlab.pipeline import quantize_
from quantlab.scheme import Scheme
from quantlab.tensor import QuantizedTensor

every_format = pytest.mark.parametrize("method", FORMATS, ids=lambda cls: cls.__name__)
SIZE = 256  # every block size divides it


class Model(nn.Module):
    """Two blocks behind each other, found by the path of their list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Gated(SIZE), Gated(SIZE)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, length, SIZE) to the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


def test_the_format_methods_are_found():
    assert {"FloatRTN", "Ternary", "KMeans", "Lattice"} <= {cls.__name__ for cls in FORMATS}


@every_format
def test_is_a_documented_frozen_dataclass_with_defaults(method):
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    assert not method.__doc__.startswith(f"{method.__name__}(")  # the text dataclass makes up
    assert method.quantize_block.__doc__
    assert method() == method()


@every_format
def test_each_linear_gets_what_its_stored_bytes_decode_to(method):
    made = block(SIZE)
    answers = method().quantize_block(made, None)
    assert answers.keys() == made.linears.keys()
    for name, answer in answers.items():
        weight, packed = made.linears[name].weight, answer.pack()
        assert answer.shape == packed.shape == weight.shape
        if isinstance(answer, QuantizedTensor):  # packing rounds its scale to float16
            assert torch.allclose(answer.dequantize(), packed.dequantize(), rtol=2**-11)
        else:
            assert answer.dequantize().equal(packed.dequantize())
        assert answer.nbytes == packed.nbytes == tensor_bytes(packed)
        assert math.isclose(answer.bits_per_weight, 8 * answer.nbytes / weight.numel())
        assert torch.isfinite(answer.dequantize()).all()
        assert str(answer.scheme)
        assert answer.notes == ()
        # No format here has fewer than three levels: a Gaussian keeps more than half its energy.
        assert (answer.dequantize() - weight).square().sum() < weight.square().sum() / 2


@every_format
def test_the_same_block_gives_the_same_answer_and_stays_as_it_was(method):
    made, untouched = block(SIZE), block(SIZE)
    one, other = (method().quantize_block(made, None) for _ in range(2))
    assert all(one[name].dequantize().equal(other[name].dequantize()) for name in one)
    for name, parameter in untouched.module.named_parameters():
        assert parameter.equal(made.module.get_parameter(name))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.module.modules())


@every_format
def test_rows_of_zeros_stay_zero_and_nan_is_refused(method):
    made = block(SIZE)
    with torch.no_grad():
        made.linears["up"].weight.zero_()
    assert (method().quantize_block(made, None)["up"].dequantize() == 0).all()
    with torch.no_grad():
        made.linears["gate"].weight[3, 7] = torch.nan
    with pytest.raises(ValueError, match="non-finite"):
        method().quantize_block(made, None)


@every_format
def test_a_quantized_model_computes_with_the_stored_bytes_only(method):
    model = Model()
    x = torch.randn(2, 5, SIZE)
    weights = {name: layer.weight for name, layer in linears(model)}
    report = quantize_(model, method(), None, torch.randn(4, 8, SIZE), blocks="layers")
    assert is_quantized(model)
    assert report.nbytes == weight_bytes(model)
    assert len(report.rows) == 6
    twin = Model()
    for name, layer in linears(twin):
        stored = model.get_submodule(name)
        assert isinstance(stored, CodebookLinear | QuantizedLinear)
        layer.weight = nn.Parameter(stored.packed.dequantize())
        assert not layer.weight.equal(weights[name])
    assert torch.allclose(model(x), twin(x), atol=1e-6)


@every_format
def test_a_scheme_and_a_checkpoint_are_refused(method, tmp_path):
    name = method.__name__
    with pytest.raises(ValueError, match=f"{name} brings its own grid; pass None, not .* w4g16sym"):
        quantize_(Model(), method(), Scheme(4, 16), blocks="layers")
    with pytest.raises(ValueError, match=f"not the codes of {name}; leave it out"):
        quantize_(Model(), method(), None, blocks="layers", checkpoint=tmp_path)


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
