"""The momentum of a parameter stays with it where the modules come in another order."""

import pytest
import torch
from torch import nn

from dcn_projects.engine.resumed_optimizer import in_own_order


def make(names, rate=0.1, slow=()):
    """Layers in this order, each with a gradient of its own, and an optimizer after two steps."""
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in names})
    groups = [
        {"params": [model[n].weight for n in names if (n in slow) == is_slow], "lr": lr}
        for is_slow, lr in ((False, rate), (True, rate / 10))
    ]
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=rate, momentum=0.9)
    return model, optimizer


def train(model, optimizer):
    for _ in range(2):
        for name, layer in model.items():
            layer.weight.grad = torch.full((2, 2), float(ord(name[0])))
        optimizer.step()


def momentum(model, optimizer):
    return {name: optimizer.state[layer.weight]["momentum_buffer"] for name, layer in model.items()}


@pytest.mark.parametrize("rate", [0.1, 0.001], ids=["same rate", "other BASE_LR"])
@pytest.mark.parametrize("slow", [(), ("y",), ("x", "z")])
def test_momentum_follows_the_name(rate, slow):
    before = make("xyzw", slow=slow)
    train(*before)
    model, optimizer = make("wzyx", slow=slow, rate=rate)
    saved, order = before[1].state_dict(), [name for name, _ in before[0].named_parameters()]
    optimizer.load_state_dict(in_own_order(saved, order, optimizer, model))
    expected = momentum(*before)
    for name, value in momentum(model, optimizer).items():
        assert torch.equal(value, expected[name]), name
    # Without it, another layer's momentum would have been taken.
    optimizer.load_state_dict(saved)
    assert any(not torch.equal(v, expected[n]) for n, v in momentum(model, optimizer).items())


def test_old_names():
    """The offset layer of a block came before its convolution, under another name."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    saved = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    for p, value in zip(weights, (1.0, 2.0)):
        p.grad = torch.full((1,), value)
    saved.step()
    block = nn.Module()
    block.conv2 = nn.Module()
    block.conv2.weight = nn.Parameter(torch.zeros(1))
    block.conv2.conv_offset = nn.Module()
    block.conv2.conv_offset.weight = nn.Parameter(torch.zeros(1))
    model = nn.ModuleList([block])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = ["0.conv2_offset.weight", "0.conv2.weight"]
    optimizer.load_state_dict(in_own_order(saved.state_dict(), order, optimizer, model))
    assert optimizer.state[block.conv2.weight]["momentum_buffer"] == 2
    assert optimizer.state[block.conv2.conv_offset.weight]["momentum_buffer"] == 1


def test_the_same_order_changes_nothing():
    before = make("xyz", slow="y")
    train(*before)
    saved, order = before[1].state_dict(), [name for name, _ in before[0].named_parameters()]
    model, optimizer = make("xyz", slow="y", rate=0.01)
    assert in_own_order(saved, order, optimizer, model) is saved


@pytest.mark.parametrize("names, slow", [("zyx", "xy"), ("xyz", ""), ("xyz", "xz")])
def test_other_groups_are_refused(names, slow):
    """Whether the order is the same or not."""
    before = make("xyz", slow="y")
    train(*before)
    saved, order = before[1].state_dict(), [name for name, _ in before[0].named_parameters()]
    model, optimizer = make(names, slow=slow)
    message = "other parameters share a learning rate .*SOLVER.LR_FACTORS, BIAS_LR_FACTOR"
    with pytest.raises(ValueError, match=message):
        in_own_order(saved, order, optimizer, model)


@pytest.mark.parametrize("names", ["xy", "zy", "xyzw"])
def test_other_parameters_are_refused(names):
    before = make("xyz")
    train(*before)
    saved, order = before[1].state_dict(), [name for name, _ in before[0].named_parameters()]
    model, optimizer = make(names)
    message = f"training of 3 parameters, .* {len(names)} that are .*MODEL.BACKBONE.FREEZE_AT"
    with pytest.raises(ValueError, match=message):
        in_own_order(saved, order, optimizer, model)
