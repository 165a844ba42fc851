"""The walk through a model's blocks: both ways to feed them see what the model itself computes."""

import copy

import pytest
import torch
from nets import BLOCKS, llama, pictures
from torch import nn

from quantlab.models.families import find_blocks
from quantlab.tensor import CalibrationError
from quantlab.walk import captured, chained, check_data, walk


def seen(model: nn.Module, name: str, data: torch.Tensor, batch_size: int) -> list:
    """Watch a module's first arguments and results in ordinary runs of the model."""
    found = []
    module = model.get_submodule(name)
    hook = module.register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    with torch.no_grad():
        for batch in data.split(batch_size):
            model(batch)
    hook.remove()
    return found


def halve_(block) -> None:
    """Change a block, as a method would."""
    for layer in block.linears.values():
        layer.weight.data.mul_(0.5)


def tensor(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("kind", [llama, pictures])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_inputs_come_from_changed_blocks_and_targets_from_the_float_model(kind, batch_size):
    model, data = kind()
    blocks = find_blocks(model, BLOCKS if kind is pictures else None)
    reference = copy.deepcopy(model)
    walked = walk(model, blocks, data, batch_size=batch_size, wants_targets=True, convolutions=True)
    for block in walked:
        now = seen(model, block.name, data, batch_size)
        then = seen(reference, block.name, data, batch_size)
        assert len(block.inputs) == len(now) == -(-len(data) // batch_size)
        rows = zip(block.inputs, block.float_inputs, block.targets, now, then, strict=True)
        for (args, _), (floats, _), target, (x, _), (float_x, y) in rows:
            assert args[0].equal(x)
            assert floats[0].equal(float_x)
            assert target.equal(tensor(y))
        halve_(block)


def test_a_list_may_be_walked_either_way_with_the_same_bits():
    model, data = llama()
    other = copy.deepcopy(model)
    blocks, twins = find_blocks(model), find_blocks(other)
    batches = list(data.split(2))
    with torch.no_grad():
        pairs = zip(
            chained(model, blocks, batches, True),
            captured(other, twins, batches, True),
            strict=True,
        )
        for one, two in pairs:
            for field in ("inputs", "float_inputs"):
                calls = zip(getattr(one, field), getattr(two, field), strict=True)
                assert all(a[0][0].equal(b[0][0]) for a, b in calls)
            assert all(a.equal(b) for a, b in zip(one.targets, two.targets, strict=True))
            for block in (one, two):
                block.module.mlp.up_proj.weight.data.mul_(0.5)


def test_the_first_block_of_named_ones_has_one_stream_only():
    model, data = pictures()
    first = next(walk(model, find_blocks(model, BLOCKS), data, wants_targets=True))
    assert first.float_inputs is first.inputs


def test_without_data_blocks_have_no_inputs():
    model, _ = pictures()
    for block in walk(model, find_blocks(model, BLOCKS), None, wants_targets=True):
        assert list(block.inputs) == list(block.targets) == []


@pytest.mark.parametrize("convolutions", [False, True])
def test_convolutions_count_where_they_are_asked_for(convolutions):
    model, data = pictures()
    walked = walk(model, find_blocks(model, BLOCKS), data, convolutions=convolutions)
    names = [list(block.linears) for block in walked]
    assert names == [["conv", "mix"] if convolutions else [], ["1", "3"]]


def test_a_block_that_is_never_called_is_named():
    model, data = pictures()
    model.spare = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CalibrationError, match="spare is never called; take it out of blocks"):
        next(walk(model, find_blocks(model, ["spare"]), data))
    assert not model.spare._forward_pre_hooks


def test_data_are_tokens_of_the_vocabulary_or_finite_floats():
    model, tokens = llama()
    check_data(model, None)
    check_data(model, tokens)
    with pytest.raises(ValueError, match=r"vocabulary is 0\.\.49"):
        check_data(model, tokens + 50)
    net, images = pictures()
    check_data(net, images)
    for bad in (images[:0], images / 0):
        with pytest.raises(CalibrationError, match="at least one sample, all finite"):
            check_data(net, bad)
