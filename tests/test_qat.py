"""Training on grids, on the digits: accuracy, control runs, and the shape of MobileNetV2."""

import copy

import pytest
import torch
from torch import nn

import quantlab as ql
from quantlab.layer_table import layer_costs

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits():
    return ql.digit_images()


@pytest.fixture(scope="module")
def trained(digits):
    net = ql.digits_net()
    ql.train_classifier(net, digits.images, digits.labels, epochs=8, learning_rate=0.01)
    return net


def twin_of(net, digits, weight_bits, activation_bits=8):
    options = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    return ql.calibrate(ql.prepare(net, **options), digits.images[:256])


def score(model, digits):
    return ql.accuracy(model, digits.test_images, digits.test_labels)


def test_the_digits_are_split_without_overlap(digits):
    images = torch.cat([digits.images, digits.test_images])
    assert len(images) == 1797
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    again = ql.digit_images()
    assert torch.equal(again.images, digits.images)
    other = ql.digit_images(seed=1)
    assert not torch.equal(other.labels, digits.labels)
    assert torch.equal(
        other.labels.bincount() + other.test_labels.bincount(),
        digits.labels.bincount() + digits.test_labels.bincount(),
    )


def test_eight_bits_lose_nothing_and_integers_say_the_same(digits, trained):
    float_score = score(trained, digits)
    assert float_score > 0.95
    twin = twin_of(trained, digits, 8)
    integers = ql.convert(twin)
    assert abs(score(integers, digits) - float_score) < 0.015
    with torch.no_grad():
        exact = copy.deepcopy(twin).double()(digits.test_images.double()).float()
        logits = integers(digits.test_images)
        assert torch.equal(logits, exact)
        # In float32 a sum may cross the middle of two codes: a step of the grid, and rarely.
        apart = (twin(digits.test_images) - logits).abs()
        assert (apart > 0).double().mean() < 0.02


def test_training_repairs_two_bits(digits, trained):
    twin = twin_of(trained, digits, 2)
    broken = score(twin, digits)
    ql.train_classifier(twin, digits.images, digits.labels, epochs=5, batch_size=128)
    repaired = score(twin, digits)
    assert broken < 0.7 < 0.85 < repaired
    assert score(ql.convert(twin), digits) == pytest.approx(repaired, abs=0.005)


def test_with_the_true_gradient_of_rounding_no_weight_moves(digits, trained, monkeypatch):
    def true_slope(*grid):  # zero nearly everywhere
        return ql.fake_quantize(*grid).detach() + 0 * grid[0]

    monkeypatch.setattr("quantlab.integer.fake_layers.fake_quantize", true_slope)
    twin = twin_of(trained, digits, 2)
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    ql.train_classifier(twin, digits.images[:128], digits.labels[:128], epochs=1)
    moved = {name for name, p in twin.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.endswith("layer.bias")}


def test_a_teacher_is_asked_in_evaluation_mode_and_stays_as_it_was(digits, trained):
    teacher = copy.deepcopy(trained).train()
    state = {name: t.clone() for name, t in teacher.state_dict().items()}
    twin = twin_of(trained, digits, 4)
    losses = ql.train_classifier(
        twin,
        digits.images[:128],
        digits.labels[:128],
        epochs=2,
        teacher=teacher,
        loss=ql.distillation_loss,
    )
    assert teacher.training
    assert all(torch.equal(t, state[name]) for name, t in teacher.state_dict().items())
    assert len(losses) == 2
    assert not twin.training


def test_the_same_seed_trains_the_same_model(digits):
    nets = [ql.digits_net(seed=3) for _ in range(2)]
    state = torch.get_rng_state()
    for net in nets:
        ql.train_classifier(net, digits.images[:64], digits.labels[:64], epochs=2, seed=5)
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), state)


def test_grids_learn_at_their_own_rate(digits, trained):
    twin = ql.learn_steps(twin_of(trained, digits, 4))
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    data = digits.images[:64], digits.labels[:64]
    ql.train_classifier(twin, *data, epochs=1, grid_rate=0.0)
    moved = {name for name, p in twin.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert not [name for name in moved if name.endswith("quantizer.scale")]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epochs": 0}, "choose a positive integer"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "one label for each image"),
        ({"images": torch.full((4, 2), torch.nan)}, "lower learning_rate"),
    ],
)
def test_training_refuses_what_it_cannot_do(change, match):
    given = {"images": torch.ones(4, 2), "labels": torch.zeros(4, dtype=torch.long), "epochs": 1}
    with pytest.raises(ValueError, match=match):
        ql.train_classifier(nn.Linear(2, 2), **(given | change))


# ---------------------------------------------------------------- MobileNetV2 and what layers cost


def test_mobilenet_v2_has_the_published_size():
    costs = layer_costs(ql.mobilenet_v2(), torch.zeros(1, 3, 224, 224, device="meta"))
    assert len(costs) == 53
    macs = sum(cost.macs for cost in costs)
    assert macs == 300_774_272
    linear = [cost for cost in costs if cost.kind == "linear"]
    assert [cost.weights for cost in linear] == [1_280_000]
    assert sum(cost.kind == "depthwise" for cost in costs) == 17
    assert sum(p.numel() for p in ql.mobilenet_v2().parameters()) == 3_504_872


def test_costs_are_counted_by_hand_for_every_kind_of_layer():
    net = nn.Sequential(
        ql.QuantStub(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    x = torch.randn(1, 4, 4, 4)
    costs = layer_costs(net, x)
    assert [cost.kind for cost in costs] == ["conv", "depthwise", "linear"]
    assert [cost.weights for cost in costs] == [8 * 2 * 9, 8 * 9, 160]
    assert [cost.macs for cost in costs] == [4 * 8 * 2 * 9, 4 * 8 * 9, 160]
    assert [cost.nbytes for cost in costs] == [4 * (144 + 8), 4 * 72, 4 * 165]
    integers = ql.convert(ql.calibrate(ql.prepare(net, weight_bits=4), x))
    quantized = layer_costs(integers, x)
    assert [(c.name, c.macs, c.stored) for c in quantized] == [
        (c.name, c.macs, "int4") for c in costs
    ]
    assert quantized[1].nbytes == 8 * 5 + 8 * 2 + 8 * 4
    dynamic = layer_costs(ql.quantize_dynamic(net), x)
    assert [c.stored for c in dynamic] == ["float32", "float32", "int8"]
    assert dynamic[2].nbytes == 160 + 5 * 2 + 5 * 4


def test_costs_refuse_more_than_one_sample_and_nothing_to_count():
    with pytest.raises(ValueError, match="pass one sample"):
        layer_costs(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="nothing to count"):
        layer_costs(nn.Sequential(nn.ReLU()), torch.zeros(1, 2))
