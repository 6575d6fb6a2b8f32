import pickle
import urllib.error

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathManager

from dcn_projects.checkpoint import check_weights


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_torch_pass(tmp_path, zipped):
    path = str(tmp_path / "model.pth")
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=zipped)
    check_weights(path)


def test_no_weights_are_wanted():
    check_weights("")


def test_download(tmp_path, monkeypatch):
    local = tmp_path / "R-101.pkl"
    local.write_bytes(pickle.dumps({"model": {}}))
    monkeypatch.setattr(PathManager, "get_local_path", lambda path: str(local))
    check_weights("detectron2://ImageNetPretrained/MSRA/R-101.pkl")

    def fail(path):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    with pytest.raises(OSError, match="MODEL.WEIGHTS: detectron2://.*R-101.pkl.*no network"):
        check_weights("detectron2://ImageNetPretrained/MSRA/R-101.pkl")


def test_a_folder(tmp_path):
    with pytest.raises(OSError, match=f"MODEL.WEIGHTS: {tmp_path} is a folder. Name a checkpoint"):
        check_weights(str(tmp_path))


def test_missing():
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        check_weights("nowhere.pth")


@pytest.mark.parametrize("path", ["nowhere.pth", "detectron2://none/R-50.pkl"])
def test_random_weights_are_advised_only_to_start_a_training(path, monkeypatch):
    def fail(path):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    with pytest.raises(OSError) as error:
        check_weights(path)
    assert "random" not in str(error.value) and "''" not in str(error.value)
    with pytest.raises(OSError) as error:
        check_weights(path, to_start=True)
    assert str(error.value).endswith(
        ", or start from random weights: MODEL.WEIGHTS '' MODEL.RESNETS.NORM BN "
        "MODEL.BACKBONE.FREEZE_AT 0."
    )


def torch_script(model, path):
    torch.jit.script(model).save(path)


def traced(model, path):
    torch.jit.trace(model, torch.zeros(1, 2)).save(path)


def exported(model, path):
    torch.export.save(torch.export.export(model, (torch.zeros(1, 2),)), path)


def safetensors(model, path):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def onnx(model, path):
    path.write_bytes(b"\x08\x0a")


PROGRAMS = {
    "a.pth": (torch_script, "a TorchScript program, not weights: save the state_dict"),
    "b.pt": (traced, "a TorchScript program, not weights: save the state_dict"),
    "c.pt2": (exported, "a program of torch.export, not weights: save the state_dict"),
    "d.safetensors": (safetensors, "of safetensors: read it with that package"),
    "e.onnx": (onnx, "an ONNX graph, not weights: save the state_dict"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_and_other_formats(name, tmp_path):
    make, what = PROGRAMS[name]
    make(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / name)
    with pytest.raises(OSError, match=f"^MODEL.WEIGHTS: .*/{name} is {what}") as error:
        check_weights(str(tmp_path / name))
    assert "\n" not in str(error.value)


def write(path):
    if path.suffix == ".pth":
        torch.save({"model": {"x": torch.zeros(1000)}}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {"x": np.zeros(1000)}}))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_cut_off(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    write(path)
    check_weights(str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=rf"model.{suffix} is cut off.*Copy it again"):
        check_weights(str(path))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_no_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(OSError, match="not a checkpoint"):
        check_weights(str(path))


ORIGINALS = {"a.params": "MXNet", "a.npz": "tensorpack", "a.pth": "maskrcnn-benchmark"}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ORIGINALS)
def test_weights_of_an_original_are_to_be_converted(tmp_path, name, zipped):
    path = tmp_path / name
    content = {"model": {"module.backbone.body.stem.conv1.weight": torch.zeros(1)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(OSError, match=f"{name} is of {ORIGINALS[name]}: .*convert_weights.py"):
        check_weights(str(path))


def test_damaged(tmp_path):
    path = tmp_path / "model.pth"
    write(path)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\1"))
    with pytest.raises(OSError, match="model.pth is cut off or damaged"):
        check_weights(str(path))


ONES = torch.ones(10).numpy().tobytes()


@pytest.mark.parametrize("old, new", [(ONES, bytes(40)), (b"PK\3\4", b"PK\3\5")], ids=str)
def test_other_bytes(old, new, tmp_path):
    """torch.load would take them for numbers."""
    path = tmp_path / "model.pth"
    torch.save({"model": {"x": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(OSError, match="model.pth is cut off or damaged"):
        check_weights(str(path))
