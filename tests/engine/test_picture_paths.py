from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_projects.engine.picture_paths import PictureNames, plan_drawings

NAMES = PictureNames("output", "{}_pred")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder has in/a.jpg, in/b.png, in/notes.txt and clip.avi."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("in/a.jpg", "in/b.png"):
        cv2.imwrite(name, np.zeros((4, 4, 3), np.uint8))
    Path("in/notes.txt").write_text("no image")
    video = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (16, 16))
    video.write(np.zeros((16, 16, 3), np.uint8))
    video.release()
    return tmp_path


def targets(*inputs, output=None, names=NAMES):
    return [str(d.target) for d in plan_drawings(inputs, output and Path(output), names)]


def test_names(folder):
    assert targets("in/a.jpg") == ["output.png"]
    assert targets("clip.avi", output="out") == ["out/output.mp4"]
    assert targets("in", "clip.avi") == ["a_pred.png", "b_pred.png", "clip_pred.mp4"]
    assert targets("in", output="out", names=PictureNames()) == ["out/a.png", "out/b.png"]
    assert targets("in/a.jpg", output="x/y.png") == ["x/y.png"]
    assert targets("clip.avi", output="y.mp4") == ["y.mp4"]
    Path("folder.png").mkdir()
    assert targets("in/a.jpg", output="folder.png") == ["folder.png/output.png"]


@pytest.mark.parametrize(
    "inputs,output,message",
    [
        (["in/none.jpg"], None, "in/none.jpg does not exist"),
        (["in/notes.txt"], None, "in/notes.txt is no image"),
        (["empty"], None, "empty holds no image"),
        (["cut.avi"], None, "cut.avi is no video"),
        (["in", "in/a.jpg"], None, "would both be written to a_pred.png"),
        (["in/a.jpg"], "in/a.jpg", "in/a.jpg would be overwritten"),
        (["in"], "x.png", "x.png is one file, for 2 inputs: name a folder"),
        (["clip.avi"], "x.png", "a video is written as .mp4"),
        (["in/a.jpg"], "x.mp4", "in/a.jpg is not a video"),
    ],
)
def test_mistakes(folder, inputs, output, message):
    Path("empty").mkdir()
    Path("cut.avi").write_bytes(Path("clip.avi").read_bytes()[:100])
    with pytest.raises((OSError, ValueError), match=message):
        targets(*inputs, output=output)
