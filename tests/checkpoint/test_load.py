import pickle

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from dcn_projects.checkpoint import (
    load_to_start,
    load_trained,
    training_only_entries,
    training_only_names,
)
from dcn_projects.modeling.renamed_parameters import HasRenamedParameters


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


class Statistics(nn.Module):
    """Numbers that only training reads, and a scale that inference needs."""

    training_only = ("window",)

    def __init__(self, size=3):
        super().__init__()
        self.register_buffer("window", torch.full((size,), float(size)))
        self.register_buffer("scale", torch.ones(1))


def test_names_of_what_only_training_reads():
    model = make(statistics=Statistics(), plain=nn.ModuleDict({"window": nn.Linear(1, 1)}))
    counter = "norm.num_batches_tracked"
    assert training_only_names(model) == {"statistics.window", counter}
    model.training_only = ("conv", "plain")  # children, with all that is below them
    plain, conv = ("plain.window.weight", "plain.window.bias"), ("conv.weight", "conv.bias")
    assert training_only_names(model) == {"statistics.window", counter, *plain, *conv}
    model.training_only = ("con",)
    with pytest.raises(AttributeError, match="con"):
        training_only_names(model)


def test_what_only_training_reads_may_be_missing_or_left_over(path, tmp_path):
    with pytest.raises(ValueError, match="it lacks statistics.scale. Give"):
        load_trained(make(statistics=Statistics()), path)

    trained = make(statistics=Statistics())
    content = {"model": trained.state_dict(), "training_only": training_only_names(trained)}
    torch.save(content, tmp_path / "trained.pth")
    with pytest.raises(ValueError, match="the model has no statistics.scale. Give"):
        load_trained(make(), str(tmp_path / "trained.pth"))

    del content["model"]["statistics.window"]
    torch.save(content, tmp_path / "stripped.pth")
    load_trained(make(statistics=Statistics()), str(tmp_path / "stripped.pth"))


def test_what_only_training_reads_may_have_another_shape(tmp_path):
    trained, other = make(statistics=Statistics(3)), make(statistics=Statistics(4))
    nn.init.zeros_(trained["statistics"].scale)
    torch.save({"model": trained.state_dict()}, tmp_path / "trained.pth")
    for load in (load_trained, load_to_start):
        load(other, str(tmp_path / "trained.pth"))
        assert other["statistics"].window.tolist() == [4] * 4 and other["statistics"].scale == 0


@pytest.mark.parametrize("name", ["mimic_score.weight", "roi_heads.dynamic.window"])
def test_version_0_1_does_not_say_what_only_training_reads(name, path):
    content = torch.load(path)
    content["model"][name] = torch.zeros(1)
    torch.save(content, path)
    load_trained(make(), path)
    assert training_only_entries(content) == {name, "norm.num_batches_tracked"}
    torch.save(content | {"training_only": []}, path)
    with pytest.raises(ValueError, match=f"the model has no {name}"):
        load_trained(make(), path)


def make_resnet(**blocks):
    """make_resnet(res2=3, res4=6) has one convolution in each block."""
    stages = {
        stage: nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(count)))
        for stage, count in blocks.items()
    }
    return nn.ModuleDict({"backbone": nn.ModuleDict(stages), "head": nn.Linear(2, 2)})


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("saved,wanted", [(6, 23), (23, 6)])
def test_training_does_not_start_from_another_depth(saved, wanted, suffix, tmp_path):
    """As of a detector, and as of a classifier without the prefix, whose names are matched."""
    weights = make_resnet(res2=3, res4=saved)
    if suffix == "pth":
        torch.save({"model": weights.state_dict()}, tmp_path / "a.pth")
    else:
        arrays = {k: v.numpy() for k, v in weights["backbone"].state_dict().items()}
        content = {"model": arrays, "__author__": "me", "matching_heuristics": True}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    message = rf"a.{suffix}: .*depth.* {saved} blocks in res4.* {wanted}"
    with pytest.raises(ValueError, match=message):
        load_to_start(make_resnet(res2=3, res4=wanted), str(tmp_path / f"a.{suffix}"))


def test_training_starts_from_a_part(path, tmp_path):
    """Of the same depth; heads and stages may be others."""
    model = make(offset=nn.Linear(1, 1))
    load_to_start(model, path)
    assert torch.equal(model["conv"].weight, torch.load(path)["model"]["conv.weight"])
    torch.save({"model": make_resnet(res2=3, res5=3).state_dict()}, tmp_path / "a.pth")
    model = make_resnet(res2=3, res4=6)
    load_to_start(model, str(tmp_path / "a.pth"))
    saved = torch.load(tmp_path / "a.pth")["model"]
    assert torch.equal(model["backbone"]["res2"][2].weight, saved["backbone.res2.2.weight"])
    load_to_start(model, "")


def test_no_parameters(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth holds no parameters"):
        load_trained(make(), str(tmp_path / "list.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite(value, path):
    content = torch.load(path)
    content["model"]["norm.bias"][1] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match="model.pth: it has values in norm.bias that are not fin"):
        load_trained(make(), path)


@pytest.mark.parametrize(
    "content",
    [
        ({"model": {0: torch.zeros(1)}}, "is no checkpoint of detectron2"),
        ({"model": {"module": make()}}, "holds objects of torch.nn.modules.container.ModuleDict. "),
        (torch.zeros(3), "holds no parameters with names"),
    ],
    ids=["name", "code", "tensor"],
)
@pytest.mark.parametrize("load", [load_trained, load_to_start])
def test_no_checkpoint_of_detectron2(load, content, path):
    content, message = content
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"model.pth {message}") as error:
        load(make(), path)
    assert "\n" not in str(error.value)


def test_the_checkpoint_is_returned(path):
    assert "iteration" not in load_trained(make(), path)
    torch.save({**torch.load(path), "iteration": 3}, path)
    assert load_trained(make(), path)["iteration"] == 3


class Renamed(HasRenamedParameters, nn.Module):
    """A module whose layer had another name."""

    renamed_parameters = {r"old\.(.*)": r"new.\1"}

    def __init__(self, channels):
        super().__init__()
        self.new = nn.Linear(2, channels)


@pytest.mark.parametrize("load", [load_trained, load_to_start])
def test_old_names(load, tmp_path):
    state = {f"inner.old.{k}": v for k, v in nn.Linear(2, 3).state_dict().items()}
    torch.save({"model": state}, tmp_path / "model.pth")
    model = nn.Module()
    model.inner = Renamed(3)
    load(model, str(tmp_path / "model.pth"))
    assert torch.equal(model.inner.new.bias, state["inner.old.bias"])


def test_old_names_with_other_shapes(tmp_path):
    """As of a detector that is fine-tuned for other classes: the layer starts anew."""
    trained, model = (nn.ModuleDict({"head": Renamed(k), "neck": nn.Linear(2, 2)}) for k in (3, 5))
    state = {name.replace("new", "old"): value for name, value in trained.state_dict().items()}
    torch.save({"model": state}, tmp_path / "model.pth")
    assert load_to_start(model, str(tmp_path / "model.pth")) == {"head.new.weight", "head.new.bias"}
    assert torch.equal(model["neck"].weight, state["neck.weight"])
    with pytest.raises(
        ValueError, match=r"another shape head.new.weight \(3, 2\) and not \(5, 2\)"
    ):
        load_trained(model, str(tmp_path / "model.pth"))
