from pathlib import Path

import pytest
import torch

from dcn_projects import config_files, model_zoo
from dcn_projects.engine.config import read_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAME = "R-FCN/rfcn_R_101_C5_voc.yaml"
SMALL = "R-FCN/rfcn_R_14_C5_digits.yaml"  # starts from random weights


def test_all_that_is_listed_has_a_file():
    names = model_zoo.list_configs()
    assert NAME in names and SMALL in names
    for name in names:
        assert Path(model_zoo.get_config_file(name)) == CONFIGS / name


def test_base_files_are_found_too():
    assert Path(model_zoo.get_config_file("Base-RCNN-C5.yaml")) == CONFIGS / "Base-RCNN-C5.yaml"


@pytest.mark.parametrize("function", ["get_config_file", "get_checkpoint_url", "get_config", "get"])
def test_an_unknown_name_is_an_error_with_the_nearest(function):
    with pytest.raises(RuntimeError, match="R-FCN/rfcn_R_101_voc.yaml is not .* nearest") as error:
        getattr(model_zoo, function)("R-FCN/rfcn_R_101_voc.yaml")
    assert NAME in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", [__file__, "../setup.py"])
def test_a_path_out_of_the_folder_is_no_config(path):
    assert (CONFIGS / path).is_file()
    with pytest.raises(RuntimeError, match="is not a config"):
        model_zoo.get_config_file(path)


def test_a_folder_is_no_config():
    with pytest.raises(RuntimeError, match="R-FCN is not a config"):
        model_zoo.get_config_file("R-FCN")


def test_config_is_the_one_of_the_file():
    cfg = model_zoo.get_config(NAME)
    assert cfg == read_config(str(CONFIGS / NAME))
    assert cfg.MODEL.WEIGHTS.startswith("detectron2://ImageNetPretrained/")


@pytest.mark.parametrize("function", [model_zoo.get_config, model_zoo.get])
def test_trained_weights_are_not_there_yet(function):
    with pytest.raises(RuntimeError, match=r"does not publish .* tools/convert_weights\.py") as e:
        function(NAME, trained=True)
    assert str(e.value).startswith(NAME) and "\n" not in str(e.value)


def test_model_is_built_for_training_as_in_detectron2():
    model = model_zoo.get(SMALL, device="cpu")
    assert model.training and model.device.type == "cpu"
    assert type(model).__name__ == read_config(str(CONFIGS / SMALL)).MODEL.META_ARCHITECTURE


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert model_zoo.get(SMALL).device.type == "cpu"


@pytest.fixture
def own_config(monkeypatch, tmp_path):
    """Returns the name of a config in a package of another place, whose weights are tmp_path/w."""
    file = tmp_path / "configs/Own/model.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"_BASE_: {CONFIGS / SMALL}\nMODEL: {{WEIGHTS: {tmp_path / 'w.pth'}}}\n")
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path)
    return "Own/model.yaml"


def test_weights_of_the_config_are_loaded(own_config, tmp_path):
    assert model_zoo.list_configs() == [own_config]
    saved = model_zoo.get_config(own_config)
    other = read_config(str(CONFIGS / SMALL), ["MODEL.DEVICE", "cpu"])
    from dcn_projects.modeling import build_model

    torch.manual_seed(1)
    expected = build_model(other).state_dict()
    torch.save({"model": expected}, saved.MODEL.WEIGHTS)
    torch.manual_seed(2)
    actual = model_zoo.get(own_config, device="cpu").state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_missing_weights_are_an_error_that_names_them(own_config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS: .*w\.pth does not exist"):
        model_zoo.get(own_config, device="cpu")
