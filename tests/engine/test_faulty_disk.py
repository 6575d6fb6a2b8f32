"""A training that is killed at any operation on a file, or whose disk fails there."""

import itertools
import json
import re
import shutil

import pytest

from tests.engine import faulty_disk


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("a C compiler is needed")
    folder = tmp_path_factory.mktemp("faulty_disk")
    done = faulty_disk.start(folder, capture_output=True, text=True)
    assert (folder / "report.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


def test_killed(report):
    """It goes on as if it had not been, and nothing is left behind."""
    assert len(report["kills"]) >= 8
    assert {at: what for at, what in report["kills"].items() if what} == {}


def test_a_disk_that_fails(report):
    """One line says what could not be written, and nothing that was there is lost."""
    assert len(report["failures"]) >= 4
    assert {at: what for at, what in report["failures"].items() if what} == {}


def test_a_power_cut(report):
    """What gets a name is on the disk, and so is the name before anything else is done."""
    operations = [name for name, _ in itertools.groupby(report["operations"])]
    renamed = [re.sub("rename (.*)", r"\1", x) for x in operations if x.startswith("rename ")]
    whole = [name for name in renamed if name.endswith(".part")]
    files = [name.removesuffix(".part") for name in whole]
    assert files.count("last_checkpoint") == 3
    assert {"config.yaml", "model_0000001.pth", "model_final.pth", "results.json"} <= {*files}
    for name in whole:
        position = operations.index(f"rename {name}")
        around = operations[position - 2 : position + 2]
        assert around == [f"write {name}", f"fsync {name}", f"rename {name}", "fsync ."]
        del operations[position - 2 : position + 2]
