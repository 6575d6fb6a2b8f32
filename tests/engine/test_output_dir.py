"""Which checkpoint is evaluated, and where the output goes, by the command line of train_net.py."""

import sys

import pytest
import torch

from dcn_projects.engine import mirrored_output_dir, parse_arguments, run

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


@pytest.mark.parametrize("content", ["", "model_0000011.pth"])
def test_a_file_that_names_no_checkpoint(content, setup, folder, capsys):
    """As after a crash. The newest is used, by detectron2 too."""
    (folder / "last_checkpoint").write_text(content)
    assert setup("--eval-only").MODEL.WEIGHTS == str(folder / "model_0000009.pth")
    assert "model_0000009.pth is used" in capsys.readouterr().out
    assert (folder / "last_checkpoint").read_text() == "model_0000009.pth"
    (folder / "last_checkpoint").write_text(content)
    for path in folder.glob("model_*.pth"):
        path.unlink()
    with pytest.raises(SystemExit, match="last_checkpoint names .*: delete last_checkpoint"):
        setup("--eval-only")


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


@pytest.mark.parametrize(
    "config,expected",
    [
        ("configs/R-FCN/rfcn_R_101_C5_voc.yaml", "out/R-FCN/rfcn_R_101_C5_voc"),
        ("/a/configs/b/configs/R-FCN/c.yaml", "out/R-FCN/c"),
        ("/a/mine/c.d.yaml", "out/mine/c.d"),
    ],
)
def test_mirrored_output(config, expected):
    assert mirrored_output_dir("out", config) == expected


def test_output_root(monkeypatch, setup, folder):
    monkeypatch.setattr(
        sys, "argv", ["train_net.py", "--config-file", CONFIG, "--output-root", "out"]
    )
    cfg = run.setup(parse_arguments())
    assert cfg.OUTPUT_DIR == "out/Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits"
    assert setup("--output-root", "out").OUTPUT_DIR == str(folder)  # that on the command line
