"""Checkpoints of programs that wrap a model, and files of which nothing fits the model."""

import logging
import pickle
import types

import pytest
import torch
from torch import nn

from dcn_projects.checkpoint import load_to_start, load_trained
from dcn_projects.checkpoint.wrapped_names import unwrapped_names


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


class Lightning(nn.Module):
    """As LightningModule, which holds the model as an attribute."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def averaged(model):
    """The state that torch.optim.swa_utils has, with a counter of its own."""
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def compiled_backbone(model):
    model.backbone = torch.compile(model.backbone)
    return model.state_dict()


def prefixed(prefix):
    return lambda model: {prefix + name: value for name, value in model.state_dict().items()}


WRAPPED = {
    "torch.compile": lambda model: {"model": torch.compile(model).state_dict()},
    "torch.compile, bare": lambda model: torch.compile(model).state_dict(),
    "torch.compile of a part": lambda model: {"model": compiled_backbone(model)},
    "parallel and compiled": lambda model: {"model": prefixed("module._orig_mod.")(model)},
    "compiled and parallel": lambda model: {"model": prefixed("_orig_mod.module.")(model)},
    "average of weights": lambda model: averaged(model),
    "under ema": lambda model: {"ema": {"module": model.state_dict(), "updates": 7}},
    "under model_ema": lambda model: {"model_ema": averaged(model), "epoch": 3},
    "ema in names": lambda model: {"model": prefixed("ema.")(model)},
    "Lightning": lambda model: {"state_dict": Lightning(model).state_dict(), "epoch": 2},
    "Lightning, compiled": lambda model: {
        "state_dict": Lightning(torch.compile(model)).state_dict()
    },
    "mmcv": lambda model: {"meta": {"epoch": 12}, "state_dict": model.state_dict()},
    "checkpointed activations": lambda model: {
        "model": {
            name.replace("backbone.", "backbone._checkpoint_wrapped_module."): value
            for name, value in model.state_dict().items()
        }
    },
    "old file format": lambda model: {"state_dict": prefixed("module.model.")(model)},
}


def save(content, tmp_path, kind=""):
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=kind != "old file format")
    return str(path)


@pytest.mark.parametrize("load", [load_trained, load_to_start])
@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_of_wrapped_models_are_found(kind, load, tmp_path, caplog):
    trained, model = Detector(), Detector()
    expected = {name: value.clone() for name, value in trained.state_dict().items()}
    path = save(WRAPPED[kind](trained), tmp_path, kind)
    with caplog.at_level(logging.INFO):
        load(model, path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    said = [r.getMessage() for r in caplog.records if "wrapped model" in r.getMessage()]
    assert len(said) == 1 and "\n" not in said[0]
    if kind == "torch.compile of a part":
        assert said[0] == (
            "The checkpoint is of a wrapped model: 6 names are read without what wraps them, "
            "backbone._orig_mod.0.weight as backbone.0.weight"
        )
    if kind == "under ema":
        assert (
            said[0]
            == "The checkpoint is of a wrapped model: its weights are those under ema.module"
        )


def test_a_wrapped_model_reads_a_plain_checkpoint(tmp_path):
    trained, model = Detector(), torch.compile(Detector())
    load_trained(model, save({"model": trained.state_dict()}, tmp_path))
    assert torch.equal(model.head.weight, trained.head.weight)


def test_plain_checkpoints_say_nothing(tmp_path, caplog):
    path = save({"model": Detector().state_dict()}, tmp_path)
    with caplog.at_level(logging.INFO):
        load_to_start(Detector(), path)
    assert "wrapped model" not in caplog.text
    assert "7 of the 7 parameters and buffers of the model are loaded\n" in caplog.text


def test_how_much_is_loaded_is_said_in_one_line(tmp_path, caplog):
    state = Detector().backbone.state_dict()
    path = save({"model": {f"backbone.{n}": v for n, v in state.items()}}, tmp_path)
    with caplog.at_level(logging.INFO):
        assert load_to_start(Detector(), path) == {"head.weight", "head.bias"}
    assert "5 of the 7 parameters and buffers of the model are loaded; " in caplog.text
    assert "; 2 start anew: head.weight, head.bias\n" in caplog.text


def test_models_that_use_such_words_themselves():
    own = ["model.head.weight", "net.backbone.weight"]
    assert unwrapped_names(own, own) == {}
    assert unwrapped_names(["head.weight"], own) == {"head.weight": "model.head.weight"}
    assert unwrapped_names(["model.head.weight"], ["model.head.weight", "head.weight"]) == {}


def test_parameters_that_are_there_twice(tmp_path):
    state, other = Detector().state_dict(), Detector().state_dict()
    both = {f"model.{n}": v for n, v in state.items()} | {f"ema.{n}": v for n, v in other.items()}
    for load in (load_trained, load_to_start):
        with pytest.raises(
            ValueError, match="twice, as model.backbone.0.weight and as ema.backbon"
        ):
            load(Detector(), save({"state_dict": both}, tmp_path))
    both = state | {f"ema.{n}": v for n, v in other.items()}
    path = save({"model": both}, tmp_path)
    load_to_start(model := Detector(), path)
    assert torch.equal(model.head.weight, state["head.weight"])
    with pytest.raises(ValueError, match="the model has no ema.backbone.0.weight"):
        load_trained(Detector(), path)


def larger():
    model = Detector()
    model.more = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    return model


def of_another_project(model):
    return {f"net.layer{i}.{n}": v for i, (n, v) in enumerate(model.state_dict().items())}


def with_the_name_of_a_predictor(model):
    """A few names are common to most detectors."""
    others = {f"body.layer{i}.weight": torch.zeros(4) for i in range(40)}
    return others | {"head.weight": model.head.weight.data}


def with_other_shapes(model):
    return {name: value.new_zeros(9) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "change, named",
    [
        (
            of_another_project,
            "it has net.layer0.backbone.0.weight, .*the model has backbone.0.weig",
        ),
        (
            with_the_name_of_a_predictor,
            "it has body.layer0.weight.*the model has backbone.0.weight",
        ),
        (with_other_shapes, r"shape backbone.0.weight \(9,\) and not \(4, 3, 1, 1\)"),
        (lambda model: {}, "none of its 0 arrays.*the model has backbone.0.weight"),
    ],
)
def test_training_does_not_start_where_nothing_fits(change, named, tmp_path):
    model = larger()
    path = save({"model": change(Detector())}, tmp_path)
    with pytest.raises(ValueError, match=named) as error:
        load_to_start(model, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "fit the model" in message and "\n" not in message
    with pytest.raises(ValueError, match="it is of another model"):
        load_trained(model, path)


def test_names_that_detectron2_guesses(tmp_path):
    """Of a classifier without prefix; of another's, where `conv1.weight` alone has a namesake."""
    model, path = Detector(), tmp_path / "a.pkl"

    def write(arrays):
        content = {"model": arrays, "__author__": "me", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content))

    state = {name: value.numpy() for name, value in Detector().backbone.state_dict().items()}
    write(state | {"fc1000.weight": torch.zeros(1000, 4).numpy()})
    assert load_to_start(model, str(path)) == {"head.weight", "head.bias"}
    assert torch.equal(model.backbone[0].weight, torch.from_numpy(state["0.weight"]))
    others = {f"layer1.{i}.conv1.weight": torch.zeros(7).numpy() for i in range(40)}
    write(others | {"0.weight": state["0.weight"]})
    with pytest.raises(ValueError, match=r"a.pkl: only 1 of its 41 arrays fit the model"):
        load_to_start(larger(), str(path))


@pytest.mark.parametrize("load", [load_trained, load_to_start])
def test_objects_in_a_file_are_named(load, tmp_path):
    content = {"state_dict": Detector().state_dict(), "hyper": types.SimpleNamespace(rate=1)}
    path = save(content, tmp_path)
    with pytest.raises(ValueError, match="model.pth.* objects of types.SimpleNamespace.*save its"):
        load(Detector(), path)
