"""LoRA on quantized models: exact at the start, frozen below, and what a merge loses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quantlab as ql
from quantlab.adapters import adapted
from quantlab.models.llama import Llama, LlamaConfig
from quantlab.pipeline import matrix

SMALL = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    vocab_size=64,
)
BASES = {
    "int4": lambda model: ql.quantize_(model, ql.RTN(), ql.Scheme(4, 32)),
    "nf4": lambda model: ql.quantize_(model, ql.NormalFloat(block_size=32), None),
}


def model_on(base: str = "int4", **options) -> Llama:
    torch.manual_seed(0)
    model = Llama(SMALL)
    BASES[base](model)
    ql.add_adapters_(model, **options)
    return model


def stories(samples: int = 8) -> torch.Tensor:
    """Make tokens that follow a rule: each is the last plus three."""
    return (torch.arange(16) * 3 + torch.arange(samples)[:, None]) % 64


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict().items()
    return {n: t.clone() for n, t in state if not n.endswith((".A", ".B"))}


@pytest.mark.parametrize("base", BASES)
def test_with_b_at_zero_the_model_is_the_base_exactly(base):
    torch.manual_seed(0)
    plain = Llama(SMALL)
    BASES[base](plain)
    tokens = stories()
    assert torch.equal(model_on(base, rank=4)(tokens), plain(tokens))


@pytest.mark.parametrize("base", BASES)
def test_training_lowers_the_loss_and_leaves_every_stored_byte(base):
    model = model_on(base, rank=4)
    before = frozen(model)
    losses = ql.train_adapters_(model, stories(), steps=30, learning_rate=0.02)
    assert losses[-1] < 0.5 * losses[0]
    after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    layers = adapted(model).values()
    assert all(layer.B.abs().sum() > 0 for layer in layers)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith((".A", ".B")) for name in learning)


def test_output_and_gradients_are_those_of_the_dense_sum():
    torch.manual_seed(0)
    packed = ql.rtn(torch.randn(16, 32), ql.Scheme(4, 32)).pack()
    layer = ql.LoRALinear(ql.QuantizedLinear(packed, torch.randn(16)), rank=3, alpha=6.0)
    with torch.no_grad():
        layer.B.normal_()
    x = torch.randn(5, 32, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    assert layer.A.grad is not None
    assert layer.B.grad is not None
    A, B = (p.detach().double().requires_grad_() for p in layer.adapter())
    X = x.detach().double().requires_grad_()
    W = packed.dequantize(torch.float64)
    wanted = X @ (W + 2.0 * B @ A).T + layer.base.bias.double()
    wanted.square().sum().backward()
    assert torch.allclose(y.double(), wanted, atol=1e-4)  # float32 sums of 32 products
    for here, there in ((x, X), (layer.A, A), (layer.B, B)):
        assert torch.allclose(here.grad.double(), there.grad, rtol=1e-4, atol=1e-3)


def test_bytes_are_counted_by_hand():
    model = model_on(rank=2, layers=("q_proj", "down_proj"))
    a_layer = 2 * (32 + 32) + 2 * (64 + 32)
    assert ql.adapter_bytes(model) == 2 * 4 * a_layer
    assert len(adapted(model)) == 4


def test_a_merge_in_float_keeps_the_function():
    model = model_on(rank=4)
    ql.train_adapters_(model, stories(), steps=5, learning_rate=0.02)
    before = model(stories())
    merges = ql.merge_adapters_(model, requantized=False)
    assert all(merge.changed is None for merge in merges.values())
    assert max(merge.lost for merge in merges.values()) < 1e-8
    assert torch.allclose(model(stories()), before, atol=1e-5)


@pytest.mark.parametrize(("base", "quantize"), [("int4", None), ("nf4", "nf4")])
def test_a_requantized_merge_equals_its_definition(base, quantize):
    model = model_on(base, rank=4)
    ql.train_adapters_(model, stories(), steps=10, learning_rate=0.02)
    rounded = (lambda w: ql.nf4(w, block_size=32)) if quantize else None
    layers = dict(adapted(model))
    merges = ql.merge_adapters_(model, rounded)
    for name, layer in layers.items():
        target = matrix(layer.base) + layer.delta().detach()
        again = ql.nf4(target, block_size=32) if quantize else ql.rtn(target, ql.Scheme(4, 32))
        stored = again.pack().dequantize()
        assert torch.equal(matrix(model.get_submodule(name)), stored)
        old = layer.base.packed.unpack().codes
        assert merges[name].changed == (old != again.codes).double().mean().item()
        lost = (stored - target).square().sum() / layer.delta().square().sum()
        assert merges[name].lost == pytest.approx(lost.item(), rel=1e-5)
    assert max(merge.changed for merge in merges.values()) > 0


def test_an_untrained_adapter_merges_back_into_the_same_codes():
    model = model_on(rank=2)
    before = {n: layer.base.packed for n, layer in adapted(model).items()}
    merges = ql.merge_adapters_(model)
    for name, packed in before.items():
        merged = model.get_submodule(name).packed
        assert torch.equal(merged.data, packed.data)
        assert torch.equal(merged.scale, packed.scale)
        assert merges[name].changed == 0
        assert merges[name].lost == 0


def test_a_float_linear_can_be_adapted_by_name():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    assert ql.add_adapters_(net, rank=2, layers=("2",)) == ["2"]
    assert not net[0].weight.requires_grad
    x = torch.randn(3, 8)
    with torch.no_grad():
        net[2].B.normal_()
    wanted = F.linear(net[1](net[0](x)), net[2].base.weight + net[2].delta())
    assert torch.allclose(net(x), wanted, atol=1e-5)


def test_the_same_seed_gives_the_same_adapters():
    one, two, other = (model_on(rank=2, seed=seed) for seed in (4, 4, 5))
    pairs = zip(adapted(one).values(), adapted(two).values(), strict=True)
    assert all(torch.equal(a.A, b.A) for a, b in pairs)
    assert not torch.equal(
        next(iter(adapted(other).values())).A, next(iter(adapted(one).values())).A
    )


def test_what_cannot_be_adapted_or_merged_is_refused():
    with pytest.raises(ValueError, match="no layer to adapt"):
        ql.add_adapters_(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"choose 1\.\.4"):
        ql.LoRALinear(nn.Linear(8, 4), rank=5)
    with pytest.raises(ValueError, match="has no adapters"):
        ql.merge_adapters_(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="pass a function such as"):
        ql.merge_adapters_(model_on("nf4", rank=2))
    with pytest.raises(ValueError, match="positive integer"):
        ql.train_adapters_(model_on(rank=2), stories(), steps=0)
