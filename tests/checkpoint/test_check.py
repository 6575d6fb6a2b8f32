import pickle

import pytest
import torch

from dcn_projects.checkpoint import check_weights


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_torch_pass(tmp_path, zipped):
    path = str(tmp_path / "model.pth")
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=zipped)
    check_weights(path)


@pytest.mark.parametrize("name", ["", "detectron2://ImageNetPretrained/MSRA/R-101.pkl"])
def test_names_that_are_no_local_files_pass(name):
    check_weights(name)


def test_other_formats_are_left_to_detectron2(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {}}))
    check_weights(str(path))


def test_missing():
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        check_weights("nowhere.pth")


def test_cut_off(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match="model.pth is cut off"):
        check_weights(str(path))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_no_checkpoint(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(OSError, match="is not a checkpoint"):
        check_weights(str(path))
