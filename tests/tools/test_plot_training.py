"""The tool on files like those of trainings; tests/engine has one of a real training."""

import json
import runpy
from pathlib import Path

import pytest

TOOL = "tools/plot_training.py"


def write(folder, *entries, end=""):
    lines = [json.dumps(entry) for entry in entries]
    (folder / "metrics.json").write_text("\n".join([*lines, end]))


def test_curves_of_a_training_that_was_resumed(tmp_path):
    """What comes later counts, nothing is left of what was abandoned, or cut off."""
    entries = [
        {"iteration": i, "total_loss": value, "dynamic_rcnn/beta": value / 2}
        for i, value in [(19, 3.0), (39, 2.0), (59, 9.0), (79, 9.0), (39, 2.5), (59, 1.0)]
    ]
    write(tmp_path, *entries, {"iteration": 59, "bbox/AP": 30.0}, end='{"iteration": 7')
    tool = runpy.run_path(str(Path(__file__).parents[2] / TOOL))
    curves = tool["read_metrics"](tmp_path / "metrics.json")
    assert list(curves["total_loss"].items()) == [(19, 3.0), (39, 2.5), (59, 1.0)]
    figure = tool["draw"](curves)
    lines = {axis.get_ylabel(): axis.get_lines() for axis in figure.axes}
    assert {title: [line.get_label() for line in lines[title]] for title in lines} == {
        "loss": ["total_loss"],
        "beta": ["beta"],
    }
    assert lines["beta"][0].get_ydata().tolist() == [1.5, 1.25, 0.5]


def test_a_line_that_was_cut_off_before_a_resumption(tmp_path):
    lines = '{"iteration": 19, "total_loss": 3.0}\n{"iteration": 39, "tot{"iteration": 39, '
    (tmp_path / "metrics.json").write_text(lines + '"total_loss": 2.0}\n')
    tool = runpy.run_path(str(Path(__file__).parents[2] / TOOL))
    curves = tool["read_metrics"](tmp_path / "metrics.json")
    assert list(curves["total_loss"].items()) == [(19, 3.0), (39, 2.0)]


def test_picture(run_program, tmp_path):
    write(tmp_path, {"iteration": 19, "total_loss": 3.0})
    code, text = run_program(TOOL, tmp_path, "--output", tmp_path / "curves.png")
    assert code == 0 and "curves.png" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "lines,message",
    [
        (None, "metrics.json"),
        ('{"iteration": 1, "data_time": 2}', "metrics.json has no losses"),
        ('{"iteration": 1\n{"iteration": 2}', "metrics.json line 1 is no JSON"),
    ],
)
def test_mistakes(lines, message, run_program, tmp_path):
    if lines:
        (tmp_path / "metrics.json").write_text(lines)
    code, text = run_program(TOOL, tmp_path)
    assert code == 1 and text.startswith("error: ") and message in text
