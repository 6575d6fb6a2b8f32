"""Where the output goes, by the command line of train_net.py."""

import sys

import pytest

from dcn_projects.engine import mirrored_output_dir, parse_arguments, run

CONFIG = "configs/Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml"


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


def test_output_root(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "check_run", lambda cfg, args: None)
    monkeypatch.setattr(
        sys, "argv", ["train_net.py", "--config-file", CONFIG, "--output-root", "out"]
    )
    cfg = run.setup(parse_arguments())
    assert cfg.OUTPUT_DIR == "out/Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits"
    sys.argv += ["OUTPUT_DIR", str(tmp_path)]
    assert run.setup(parse_arguments()).OUTPUT_DIR == str(tmp_path)
