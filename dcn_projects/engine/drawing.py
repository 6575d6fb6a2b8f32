"""
Draw what models find on images, folders of images and videos: objects, or the classes of pixels.
This needs OpenCV, which training and evaluation do not need.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode

from dcn_projects.config_keys import value_of
from dcn_projects.data.images import limit_pixels, read_bgr_image
from dcn_projects.errors import one_line, one_line_errors
from dcn_projects.vis import (
    LONGEST,
    InstanceDrawer,
    PixelClassDrawer,
    bounded,
    has_display,
    show,
    side_by_side,
    write_picture,
)

from .picture_paths import Drawing, PictureNames, plan_drawings
from .predictor import load_predictor, trained_config
from .tasks import task_of

__all__ = ["DETECTRON2_STYLE", "TENSORPACK_STYLE", "PictureStyle", "draw_predictions"]


@dataclass(frozen=True)
class PictureStyle:
    """
    Attributes:
        names: of the files
        beside_input: the input itself is the first picture of each row
        short_side: the least of a picture of an image, in pixels; smaller ones are enlarged, if
            they are not very narrow
        tells_time: how long the models took is printed too
    """

    names: PictureNames
    beside_input: bool = False
    short_side: int = 1
    tells_time: bool = False


class _Model(NamedTuple):
    """A model, with the name that stands above its pictures."""

    name: str
    drawer: InstanceDrawer | PixelClassDrawer


TENSORPACK_STYLE = PictureStyle(PictureNames("output", "{}_pred"), beside_input=True)
DETECTRON2_STYLE = PictureStyle(PictureNames(), short_side=480, tells_time=True)


def draw_predictions(
    config_files: Sequence[str],
    weights: Sequence[str],
    inputs: Sequence[str | Path],
    opts: Sequence[str] = (),
    confidence: float = 0.5,
    output: Path | None = None,
    style: PictureStyle = DETECTRON2_STYLE,
) -> list[Path]:
    """
    Draw and print what models find. Several of them are drawn side by side, each under its names.
    Without `output` the pictures are then shown one by one where there is a display.

    Args:
        config_files: a config for each model, or its name below configs/
        weights: a checkpoint for each; if there are none they are found as `trained_config` does
        inputs: images, videos, and folders of both
        opts: options that override all configs, KEY VALUE or KEY=VALUE
        confidence: least score of detections that are drawn
        output: folder of the pictures, or the file of a single one; None is the current folder
    Returns:
        list: paths of the pictures
    Raises:
        OSError, ValueError: for what cannot be read, written or used together, in one line. All
            but images and videos that are damaged inside, and models that do not fit their weights,
            are found before a model is built
    """
    if weights and len(weights) != len(config_files):
        raise ValueError(f"{len(config_files)} configs and {len(weights)} weights: name as many")
    cfgs = [
        trained_config(config_file, path, opts)
        for config_file, path in zip(config_files, weights or [None] * len(config_files))
    ]
    limit_pixels(min(cfg.INPUT.MAX_PIXELS for cfg in cfgs))
    drawings = plan_drawings(inputs, output, style.names)
    _make_folder(drawings[0].target.parent)
    models = [_build(*model, confidence) for model in zip(config_files, cfgs)]
    for drawing in drawings:
        draw = _draw_video if drawing.is_video else _draw_image
        with _naming(drawing.source):
            draw(models, drawing, style)
    pictures = [d.target for d in drawings if not d.is_video]
    if output is None and pictures and has_display():
        show(pictures)
    return [d.target for d in drawings]


@contextlib.contextmanager
def _naming(source: Path) -> Iterator[None]:
    """A ValueError is of the image or video then: the models are there, and were asked rightly."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{source}: {one_line(e)}") from e


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(f"{folder} is a file, no folder: choose another --output") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to: choose another --output")


def _build(config_file: str, cfg: CfgNode, confidence: float) -> _Model:
    with one_line_errors(config_file):
        predictor = load_predictor(cfg)
    name = f"{Path(config_file).stem}, {Path(cfg.MODEL.WEIGHTS).name}"
    task = task_of(cfg)
    if task.output == "sem_seg":
        return _Model(name, PixelClassDrawer(predictor, value_of(cfg, task.num_classes)))
    return _Model(name, InstanceDrawer(predictor, confidence))


def _draw_image(models: list[_Model], drawing: Drawing, style: PictureStyle) -> None:
    image = read_bgr_image(drawing.source)
    picture = _bounded(drawing, image)
    start = time.perf_counter()
    found = [model.drawer.predict(image, picture.shape[:2]) for model in models]
    took = f" in {time.perf_counter() - start:.2f} s" if style.tells_time else ""
    scale = _enlargement(picture, style)
    pictures = [model.drawer.draw(picture, f, scale) for model, f in zip(models, found)]
    write_picture(drawing.target, _put_together(models, drawing, style, picture, pictures))
    counts = " and ".join(model.drawer.count(f) for model, f in zip(models, found))
    print(f"{drawing.source}: {counts}{took} -> {drawing.target}")
    for model, f in zip(models, found):
        lines = model.drawer.lines(f, tuple(np.divide(image.shape, picture.shape)[1::-1]))
        if lines and len(models) > 1:
            print(f" {model.name}:")
        for line in lines:
            print(f"  {line}")


def _bounded(drawing: Drawing, image: np.ndarray) -> np.ndarray:
    """What is drawn on: the image, or a smaller picture, of which a line tells."""
    picture = bounded(image)
    if picture is not image:
        (height, width), (rows, columns) = image.shape[:2], picture.shape[:2]
        print(f"{drawing.source} has {width} x {height} pixels and is drawn at {columns} x {rows}")
    return picture


def _enlargement(image: np.ndarray, style: PictureStyle) -> float:
    """Pixels of the picture per pixel of the image."""
    short, long = sorted(image.shape[:2])
    return max(1, min(style.short_side / short, LONGEST / long))


def _draw_video(models: list[_Model], drawing: Drawing, style: PictureStyle) -> None:
    video = cv2.VideoCapture(str(drawing.source))
    declared = video.get(cv2.CAP_PROP_FRAME_COUNT)
    writer, count = None, 0
    for model in models:
        model.drawer.start_video()
    while True:
        there, frame = video.read()
        if not there:
            break
        picture = bounded(frame) if count else _bounded(drawing, frame)  # told once
        size = picture.shape[:2]
        pictures = [m.drawer.draw_frame(picture, m.drawer.predict(frame, size)) for m in models]
        drawn = _put_together(models, drawing, style, picture, pictures)
        # The codec takes even sizes only.
        drawn = drawn[: drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2]
        if writer is None:
            writer = _video_writer(drawing.target, video, drawn)
        writer.write(np.ascontiguousarray(drawn))
        count += 1
    video.release()
    writer.release()
    # Some headers tell only the length and the rate of the frames, of which the last may be short.
    missing = f" (of {declared:.0f}: it may be cut off)" if count + 1 < declared else ""
    print(f"{drawing.source}: {count} frames{missing} -> {drawing.target}")


def _video_writer(target: Path, video: cv2.VideoCapture, frame: np.ndarray) -> cv2.VideoWriter:
    rate = video.get(cv2.CAP_PROP_FPS) or 25  # 0: the file does not tell
    code = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(target), code, rate, frame.shape[1::-1])
    if not writer.isOpened():
        raise OSError(f"{target} cannot be written")
    return writer


def _put_together(
    models: list[_Model],
    drawing: Drawing,
    style: PictureStyle,
    image: np.ndarray,
    pictures: list[np.ndarray],
) -> np.ndarray:
    """One model's picture as it is, those of several under their names."""
    titles = [model.name for model in models]
    if style.beside_input:
        titles = [drawing.source.name, *titles]
        pictures = [cv2.resize(image, pictures[0].shape[1::-1]), *pictures]
    return side_by_side(pictures, titles if len(models) > 1 else None)
