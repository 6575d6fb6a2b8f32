"""A file is the old one or the new one, whatever happens while it is written."""

import errno
import os

import pytest
import torch

from dcn_projects.errors import error_line
from dcn_projects.whole_files import whole_file


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    return path


def only(path):
    return os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mode, new", [("w", "näu"), ("wb", "näu".encode())])
def test_a_new_file(path, mode, new):
    with whole_file(path, mode) as f:
        f.write(new)
        f.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "näu" and only(path)
    ordinary = path.with_name("b.txt")
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(2, "x", "other")])
def test_an_error_of_the_writer(path, error):
    with pytest.raises(type(error)) as raised, whole_file(path, "w") as f:
        f.write("new")
        raise error
    assert raised.value is error
    assert path.read_text() == "old" and only(path)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("of", ["fsync", "replace"])
def test_a_disk_that_fails(path, of, monkeypatch):
    def fail(*_):
        raise FULL

    monkeypatch.setattr(os, of, fail)
    with pytest.raises(OSError) as raised, whole_file(path, "w") as f:
        f.write("new")
    assert error_line(raised.value) == f"error: {path}: No space left on device. Make room"
    assert path.read_text() == "old" and only(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_torch_says_what_is_wrong(path, monkeypatch):
    """And not that it came to an unexpected position."""
    monkeypatch.setattr(
        "builtins.open", lambda *_, **__: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", 0)
    )
    with pytest.raises(OSError, match="No space left on device") as raised, whole_file(path) as f:
        torch.save({"x": torch.zeros(100000)}, f)
    assert raised.value.filename == str(path) and only(path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, whole_file(tmp_path / "no/a.txt", "w"):
        pass
    assert raised.value.filename == str(tmp_path / "no/a.txt")
