"""The command line: the same bytes again, no work twice, interrupted and mistaken runs."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from dcn_projects.data.datasets.builtin import ROOT
from dcn_projects.data.datasets.warped_digits import layouts

TOOL = Path(__file__).parents[2] / "tools" / "make_dataset.py"


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """
    Returns the exit code, or in its place the message of an error, and what was printed (without
    the progress bar, on standard error).
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name="__main__")
            code = 0
        except SystemExit as e:
            code = e.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err.split("\r")[-1]

    return run


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SMALL = ("--size", 64, "--count-train", 3, "--count-test", 2)


@pytest.mark.parametrize("format", ["coco", "voc", "cityscapes"])
def test_same_seed_same_bytes(run_tool, tmp_path, format):
    for name, seed in ("a", 5), ("b", 5), ("c", 6):
        code, _ = run_tool("--format", format, "--output", tmp_path / name, "--seed", seed, *SMALL)
        assert code == 0
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b and len(a) > 5
    assert a.keys() == c.keys()
    differing = [name for name in a if a[name] != c[name]]
    assert all(name in differing for name in a if name.endswith((".jpg", "leftImg8bit.png")))


def test_hard_deforms_more_and_has_a_folder_of_its_own(run_tool, tmp_path, monkeypatch):
    run_tool("--output", tmp_path / "a", *SMALL)
    run_tool("--output", tmp_path / "b", "--hard", *SMALL)
    a, b = (contents(tmp_path / name) for name in "ab")
    assert json.loads(b.pop("recipe.json")) == json.loads(a.pop("recipe.json")) | {"warp": 2.0}
    assert a.keys() == b.keys() and all(a[name] != b[name] for name in a)

    monkeypatch.setattr("dcn_projects.data.datasets.builtin.ROOT", str(tmp_path))
    run_tool("--hard", "--format", "voc", *SMALL)
    expected = MetadataCatalog.get("digits_voc_hard_test").recipe_file
    assert (tmp_path / Path(expected).relative_to(ROOT)).exists()


def test_more_images_begin_with_the_same(run_tool, tmp_path):
    run_tool("--output", tmp_path / "a", *SMALL)
    run_tool("--output", tmp_path / "b", "--size", 64, "--count-train", 5, "--count-test", 3)
    a, b = (contents(tmp_path / name) for name in "ab")
    images = [name for name in a if name.endswith(".jpg")]
    assert len(images) == 5 and all(a[name] == b[name] for name in images)


def test_complete_is_not_made_again(run_tool, tmp_path, monkeypatch):
    run_tool("--output", tmp_path / "a", *SMALL)
    monkeypatch.setattr(layouts.CocoLayout, "add", None)  # any drawing would fail
    code, text = run_tool("--output", tmp_path / "a", *SMALL)
    assert code == 0 and "already" in text


def test_interrupted_is_made_again(run_tool, tmp_path, monkeypatch):
    add = layouts.VocLayout.add

    def interrupted(self, split, index, scene):
        if index == 1:
            raise KeyboardInterrupt
        add(self, split, index, scene)

    monkeypatch.setattr(layouts.VocLayout, "add", interrupted)
    arguments = ("--format", "voc", "--output", tmp_path / "a", *SMALL)
    with pytest.raises(KeyboardInterrupt):
        run_tool(*arguments)
    assert not (tmp_path / "a/recipe.json").exists()
    monkeypatch.undo()
    assert run_tool(*arguments)[0] == 0
    run_tool("--format", "voc", "--output", tmp_path / "b", *SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_mistakes_end_in_one_line(run_tool, tmp_path):
    run_tool("--output", tmp_path / "a", *SMALL)
    before = contents(tmp_path)
    error, _ = run_tool("--output", tmp_path / "a", "--seed", 1, *SMALL)
    assert error.startswith("error: ") and "\n" not in error
    assert "another recipe (seed 0)" in error and str(tmp_path / "a") in error
    assert contents(tmp_path) == before

    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.tex").write_text("")
    error, _ = run_tool("--output", tmp_path / "b", *SMALL)
    assert "not empty" in error
    error, _ = run_tool("--output", tmp_path / "c", "--size", 8)
    assert "size 8" in error
