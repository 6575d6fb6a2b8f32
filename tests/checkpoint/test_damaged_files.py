"""Whatever happens to a file of weights: one line, or what was in it."""

import pytest

from .damaged_files import FORMATS, try_damaged, write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_files(folder)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(folder, name):
    """The same every time. `python -m tests.checkpoint.damaged_files 5000` tries many more."""
    found = try_damaged(name, folder, count=40, seed=1)
    assert {"refused"} < {what for _, what in found} <= {"refused", "equal", "read"}
