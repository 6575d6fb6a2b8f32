import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from dcn_projects.checkpoint import load_trained


def make(norm=nn.BatchNorm2d, channels=2, **more):
    layers = {"conv": nn.Conv2d(3, channels, 1), "norm": norm(channels), **more}
    return nn.ModuleDict(layers)


@pytest.fixture
def path(tmp_path):
    torch.save({"model": make().state_dict()}, tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_all_is_loaded(path, norm):
    """BatchNorm2d counts its batches, FrozenBatchNorm2d does not."""
    model = make(norm)
    load_trained(model, path)
    for name, value in torch.load(path)["model"].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[name], value), name


def test_what_does_not_fit_is_named(path):
    with pytest.raises(ValueError) as error:
        load_trained(make(offset=nn.Linear(1, 1)), path)
    assert "model.pth: it is of another model" in str(error.value)
    assert "it lacks offset.weight, offset.bias. Give the config" in str(error.value)

    del (smaller := make()).norm
    with pytest.raises(ValueError, match="the model has no norm.weight, norm.bias.* and 1 more"):
        load_trained(smaller, path)

    with pytest.raises(ValueError) as error:
        load_trained(make(channels=4), path)
    assert "shape conv.weight (2, 3, 1, 1) and not (4, 3, 1, 1)" in str(error.value)
    assert "lacks" not in str(error.value) and "\n" not in str(error.value)


def test_no_parameters(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth: it holds no parameters"):
        load_trained(make(), str(tmp_path / "list.pth"))
