from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dcn_projects.data.images import limit_pixels
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


def test_a_folder_of_images_and_videos(folder):
    """What is named otherwise is left out, and so are the folders inside."""
    Path("in/clip.avi").write_bytes(Path("clip.avi").read_bytes())
    Path("in/c.png").mkdir()
    drawings = plan_drawings(["in"], None, NAMES)
    assert [str(d.target) for d in drawings] == ["a_pred.png", "b_pred.png", "clip_pred.mp4"]
    assert [d.is_video for d in drawings] == [False, False, True]


@pytest.mark.parametrize("name", ["clip.wmv", "clip.AVI", "clip.bin", "clip"])
def test_videos_with_other_names(folder, name):
    Path("clip.avi").rename("renamed")
    Path("renamed").rename(name)
    (drawing,) = plan_drawings([name], None, NAMES)
    assert drawing.is_video and str(drawing.target) == "output.mp4"


def test_images_with_other_names(folder):
    Path("in/b.png").rename("in/b.dat")
    (drawing,) = plan_drawings(["in/b.dat"], None, NAMES)
    assert not drawing.is_video and str(drawing.target) == "output.png"


@pytest.mark.parametrize(
    "inputs,output,message",
    [
        (["in/none.jpg"], None, "in/none.jpg does not exist"),
        (["in/notes.txt"], None, "in/notes.txt is no image"),
        (["empty"], None, "empty holds no image and no video"),
        (["cut.avi"], None, "cut.avi is no video that OpenCV can read, or was cut off"),
        (["header.avi"], None, "header.avi is no video that OpenCV can read, or was cut off"),
        (["text.mp4"], None, "text.mp4 is no video that OpenCV can read"),
        (["empty.mp4"], None, "empty.mp4 is empty"),
        (["none.mp4"], None, "none.mp4 does not exist"),
        (["folder.mp4/none"], None, "folder.mp4/none does not exist"),
        (["text.jpg"], None, "text.jpg is no image"),
        (["empty.jpg"], None, "empty.jpg is empty"),
        (["video.jpg"], None, "video.jpg is no image"),
        (["damaged"], None, "damaged/b.png is no image, or was cut off"),
        (["in/a.jpg", "deep.png"], None, "deep.png has grey levels of more than 8 bits"),
        (["in", "in/a.jpg"], None, "would both be written to a_pred.png"),
        (["in/a.jpg"], "in/a.jpg", "in/a.jpg would be overwritten"),
        (["in"], "x.png", "x.png is one file, for 2 inputs: name a folder"),
        (["clip.avi"], "x.png", "a video is written as .mp4"),
        (["in/a.jpg"], "x.mp4", "in/a.jpg is not a video"),
    ],
)
def test_mistakes(folder, inputs, output, message):
    Path("empty").mkdir()
    video = Path("clip.avi").read_bytes()
    Path("cut.avi").write_bytes(video[:100])
    Path("header.avi").write_bytes(video[: video.index(b"movi") + 4])  # all before the frames
    Path("video.jpg").write_bytes(video)
    for name in ("text.mp4", "text.jpg"):
        Path(name).write_text("neither an image nor a video\n" * 9)
    for name in ("empty.mp4", "empty.jpg"):
        Path(name).touch()
    Path("folder.mp4").mkdir()
    Path("damaged").mkdir()
    for name in ("a.jpg", "b.png"):
        Path("damaged", name).write_bytes(Path("in", name).read_bytes())
    Path("damaged/b.png").write_bytes(Path("in/b.png").read_bytes()[:40])
    cv2.imwrite("deep.png", np.zeros((4, 4), np.uint16))
    with pytest.raises((OSError, ValueError), match=message):
        targets(*inputs, output=output)


@pytest.mark.parametrize("name, what", [("in/a.jpg", "a.jpg has"), ("clip.avi", "each frame has")])
def test_images_and_videos_that_are_too_large(folder, name, what, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert targets(name)
    limit_pixels(15)
    with pytest.raises(OSError, match=f"{what} more than 15 pixels, which INPUT.MAX_PIXELS allows"):
        targets(name)
