"""Which checkpoint is evaluated or resumed, whatever a crash has left of a folder."""

import os
import sys

import pytest
import torch

from dcn_projects.engine import parse_arguments, run
from dcn_projects.engine.output_checkpoints import (
    checkpoint_to_resume,
    how_to_go_on,
    last_saved,
    remove_parts,
    set_aside,
)

CONFIG = "configs/Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml"


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after 5 and 10 of 12 iterations and after all of them."""
    for name in ("model_0000004", "model_0000009", "model_0000019_ema"):
        (tmp_path / f"{name}.pth").touch()
    torch.save({"model": {}, "iteration": 11}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    return tmp_path


@pytest.fixture
def setup(monkeypatch, folder):
    """setup(*arguments) returns the config of a command line; files are not looked into."""
    monkeypatch.setattr(run, "check_run", lambda cfg, args: None)

    def setup(*arguments, output_dir=folder):
        opts = ["SOLVER.MAX_ITER", "12", "OUTPUT_DIR", str(output_dir)]
        program = ["train_net.py", "--config-file", CONFIG]
        monkeypatch.setattr(sys, "argv", [*program, *arguments, *opts])
        return run.setup(parse_arguments())

    return setup


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ("--eval-iter 5", "model_0000004.pth"),
        ("-i 10", "model_0000009.pth"),
        ("--eval-only --eval-iter 12", "model_final.pth"),
        ("--eval-only", "model_0000009.pth"),
    ],
)
def test_checkpoints_of_the_output_folder(arguments, expected, setup, folder):
    assert setup(*arguments.split()).MODEL.WEIGHTS == str(folder / expected)


def test_the_final_one_is_known_by_its_content(setup, folder):
    """And not by MAX_ITER, which the number of processes may have changed."""
    torch.save({"model": {}, "iteration": 23}, folder / "model_final.pth")
    assert setup("-i", "24").MODEL.WEIGHTS == str(folder / "model_final.pth")
    with pytest.raises(SystemExit, match="iterations 5, 10, 24 .final."):
        setup("-i", "12")


@pytest.mark.parametrize("content", [None, "", "\0" * 17, "model_0000011.pth"])
def test_a_file_that_names_no_checkpoint(content, setup, folder, capsys):
    """As after a power cut. The newest is used."""
    named_by = folder / "last_checkpoint"
    named_by.unlink()
    if content is not None:
        named_by.write_text(content)
    assert setup("--eval-only").MODEL.WEIGHTS == str(folder / "model_final.pth")
    assert "model_final.pth, the newest, is used" in capsys.readouterr().out
    for path in folder.glob("model_*.pth"):
        path.unlink()
    if content is not None:
        with pytest.raises(SystemExit, match="last_checkpoint names .*: delete last_checkpoint"):
            setup("--eval-only")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def zero_tail(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1000] + bytes(1000))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [half, zeros, zero_tail, empty, None])
def test_the_newest_is_damaged(damage, tmp_path, capsys):
    """Or is not there. The next one is resumed, and becomes the last one."""
    for name, iteration in ("model_0000004", 4), ("model_0000009", 9), ("model_final", 11):
        content = {"model": {"x": torch.ones(999)}, "iteration": iteration}
        torch.save(content, tmp_path / f"{name}.pth")
    named_by = tmp_path / "last_checkpoint"
    named_by.write_text("model_final.pth")
    assert checkpoint_to_resume(tmp_path) == tmp_path / "model_final.pth"
    assert capsys.readouterr().out == ""
    for name, next_one in ("model_final", "model_0000009"), ("model_0000009", "model_0000004"):
        if damage:
            damage(tmp_path / f"{name}.pth")
        else:
            (tmp_path / f"{name}.pth").unlink()
            named_by.unlink()
        assert checkpoint_to_resume(tmp_path) == tmp_path / f"{next_one}.pth"
        out = capsys.readouterr().out
        assert f"{next_one}.pth{'' if damage else ', the newest,'} is used" in out
        assert not damage or f"{tmp_path}/{name}.pth is " in out
        assert named_by.read_text() == f"{next_one}.pth"
    if damage:
        damage(tmp_path / "model_0000004.pth")
        with pytest.raises(OSError, match="model_0000004.pth is .* Without --resume .* anew"):
            checkpoint_to_resume(tmp_path)
        assert len(list(tmp_path.glob("*.pth"))) == 3


@pytest.mark.parametrize("absolute", [True, False])
def test_a_path_in_the_file(absolute, tmp_path):
    """It is the checkpoint that is resumed, each time that the file is read."""
    (tmp_path / "previous-1").mkdir()
    for name in ("model_0000004.pth", "previous-1/model_0000009.pth"):
        torch.save({"model": {}, "iteration": 9}, tmp_path / name)
    named = str(tmp_path / name) if absolute else name
    (tmp_path / "last_checkpoint").write_text(named)
    for _ in range(2):
        assert checkpoint_to_resume(tmp_path) == tmp_path / name
    (tmp_path / "last_checkpoint").write_text("x" * 300)
    assert checkpoint_to_resume(tmp_path) == tmp_path / "model_0000004.pth"


def test_none(tmp_path):
    assert checkpoint_to_resume(tmp_path) is None


def test_room_for_a_new_training(folder):
    names = {path.name for path in folder.iterdir()} - {"last_checkpoint"}
    assert set_aside(folder) == folder / "previous-1"
    assert {path.name for path in (folder / "previous-1").iterdir()} == names
    assert set_aside(folder) is None
    (folder / "model_0000004.pth").touch()
    assert set_aside(folder) == folder / "previous-2"
    assert [path.name for path in folder.iterdir() if path.is_file()] == []


def test_files_that_were_not_finished(folder):
    """Those of a process that still writes stay."""
    left = {path.name for path in folder.iterdir()} | {"results.json.1.part", "a.part", "b.c.part"}
    for name in (*left, f"config.yaml.{os.getpid()}.part", "model_0000001.pth.99999999999.part"):
        (folder / name).touch()
    remove_parts(folder)
    assert {path.name for path in folder.iterdir()} == left


def test_how_to_go_on(tmp_path):
    """If the folder has checkpoints of another training as well."""
    assert "begin it anew" in how_to_go_on(tmp_path, True, last_saved(tmp_path))
    named_by = tmp_path / "last_checkpoint"
    for name in ("model_0000099.pth", "model_0000199.pth"):
        (tmp_path / name).touch()
    named_by.write_text("model_0000099.pth")
    os.utime(named_by, (1, 1))
    before = last_saved(tmp_path)
    assert "begin it anew" in how_to_go_on(tmp_path, False, before)
    line = f"The last checkpoint is {tmp_path}/model_0000099.pth: go on with --resume"
    assert how_to_go_on(tmp_path, True, before) == line
    named_by.write_text("model_0000199.pth")
    assert how_to_go_on(tmp_path, False, before) == line.replace("099", "199")
    named_by.write_text("model_0000299.pth")
    assert "begin it anew" in how_to_go_on(tmp_path, True)


def test_weights_that_are_given(setup):
    assert setup("--eval-only", "MODEL.WEIGHTS", "mine.pth").MODEL.WEIGHTS == "mine.pth"
    assert setup("MODEL.WEIGHTS", "mine.pth").MODEL.WEIGHTS == "mine.pth"


@pytest.mark.parametrize(
    "arguments,message",
    [
        ("--eval-iter 7", ["--eval-iter 7", "iterations 5, 10, 12 (final)"]),
        ("--eval-iter 5 MODEL.WEIGHTS mine.pth", ["--eval-iter and MODEL.WEIGHTS"]),
    ],
)
def test_mistakes(arguments, message, setup):
    with pytest.raises(SystemExit) as e:
        setup(*arguments.split())
    assert str(e.value).startswith("error: ") and all(m in str(e.value) for m in message)


def test_nothing_to_evaluate(setup, tmp_path):
    for arguments, message in [("--eval-only", "MODEL.WEIGHTS is empty"), ("-i 5", "(none)")]:
        with pytest.raises(SystemExit, match=message.replace("(", r"\(").replace(")", r"\)")):
            setup(*arguments.split(), output_dir=tmp_path / "empty")
