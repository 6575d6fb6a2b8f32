"""Which images and videos are drawn, and where their pictures are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from dcn_projects.data.images import check_image, is_image_name, list_images

__all__ = ["Drawing", "PictureNames", "is_video", "plan_drawings"]

_VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}


@dataclass(frozen=True)
class Drawing:
    """
    Attributes:
        source: image or video
        target: the file that it is drawn into, .png or .mp4
    """

    source: Path
    target: Path


@dataclass(frozen=True)
class PictureNames:
    """
    Attributes:
        alone: name of the picture of a single input, without suffix; {} is the name of the input
        each: the same for each of several inputs
    """

    alone: str = "{}"
    each: str = "{}"


def plan_drawings(
    inputs: Sequence[str | Path], output: Path | None, names: PictureNames
) -> list[Drawing]:
    """
    Args:
        inputs: images, videos, and folders of images
        output: the folder of the pictures, or the file of a single one; None is the current folder
    Raises:
        OSError: if an input is not there, is none that can be read as far as its first bytes tell,
            or is a folder without images
        ValueError: if a picture would overwrite another one or an input
    """
    sources = []
    for path in map(Path, inputs):
        if path.is_dir():
            sources += list_images(path)
        else:
            _check_source(path)
            sources.append(path)
    pattern = names.alone if len(sources) == 1 else names.each
    drawings = [Drawing(source, _target(source, output, pattern)) for source in sources]
    if output is not None and _is_file_name(output):
        drawings = [_into_file(output, drawings)]
    made_of, inputs = {}, {source.resolve(): source for source in sources}
    for drawing in drawings:
        first = made_of.setdefault(drawing.target, drawing)
        if first is not drawing:
            raise ValueError(
                f"{first.source} and {drawing.source} would both be written to "
                f"{drawing.target.name}, which would overwrite another file"
            )
        if overwritten := inputs.get(drawing.target.resolve()):
            raise ValueError(f"{overwritten} would be overwritten: choose another --output")
    return drawings


def is_video(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES


def _target(source: Path, output: Path | None, pattern: str) -> Path:
    suffix = ".mp4" if is_video(source) else ".png"
    return (output or Path()) / (pattern.format(source.stem) + suffix)


def _is_file_name(output: Path) -> bool:
    return (is_image_name(output) or is_video(output)) and not output.is_dir()


def _into_file(output: Path, drawings: list[Drawing]) -> Drawing:
    if len(drawings) > 1:
        raise ValueError(
            f"--output {output} is one file, for {len(drawings)} inputs: name a folder"
        )
    (drawing,) = drawings
    if is_video(drawing.source) and output.suffix.lower() != ".mp4":
        raise ValueError(f"--output {output}: a video is written as .mp4")
    if is_video(output) and not is_video(drawing.source):
        raise ValueError(f"--output {output}: {drawing.source} is not a video")
    return Drawing(drawing.source, output)


def _check_source(path: Path) -> None:
    if not is_video(path):
        return check_image(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    video = cv2.VideoCapture(str(path))
    is_readable = video.isOpened()
    video.release()
    if not is_readable:
        raise OSError(f"{path} is no video that OpenCV can read, or was cut off.")
