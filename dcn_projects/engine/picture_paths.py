"""Which images and videos are drawn, and where their pictures are written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from dcn_projects.data.images import check_image, image_problem, is_image_name, size_problem

__all__ = ["Drawing", "PictureNames", "plan_drawings"]

_VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
_VIDEO_SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}


@dataclass(frozen=True)
class Drawing:
    """
    Attributes:
        source: image or video
        target: the file that it is drawn into, .png or .mp4
        is_video: whether the source is one
    """

    source: Path
    target: Path
    is_video: bool


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
        inputs: images, videos, and folders of both
        output: the folder of the pictures, or the file of a single one; None is the current folder
    Raises:
        OSError: if an input is not there, cannot be read as far as its first and last bytes tell,
            or is a folder without images and videos
        ValueError: if a picture would overwrite another one or an input
    """
    sources = []
    for path in map(Path, inputs):
        sources += _list_folder(path) if path.is_dir() else [path]
    pattern = names.alone if len(sources) == 1 else names.each
    drawings = [_plan(source, output, pattern) for source in sources]
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


def _plan(source: Path, output: Path | None, pattern: str) -> Drawing:
    is_video = _is_video(source)
    suffix = ".mp4" if is_video else ".png"
    return Drawing(source, (output or Path()) / (pattern.format(source.stem) + suffix), is_video)


def _list_folder(folder: Path) -> list[Path]:
    """The images and videos in a folder, by name; what lies in folders inside it is left out."""
    paths = sorted(p for p in folder.iterdir() if is_image_name(p) or _is_video_name(p))
    paths = [p for p in paths if not p.is_dir()]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no image and no video, as far as the names of the files tell."
        )
    return paths


def _is_video_name(path: Path) -> bool:
    return path.suffix.lower() in _VIDEO_SUFFIXES


def _is_file_name(output: Path) -> bool:
    return (is_image_name(output) or _is_video_name(output)) and not output.is_dir()


def _into_file(output: Path, drawings: list[Drawing]) -> Drawing:
    if len(drawings) > 1:
        raise ValueError(
            f"--output {output} is one file, for {len(drawings)} inputs: name a folder"
        )
    (drawing,) = drawings
    if drawing.is_video and output.suffix.lower() != ".mp4":
        raise ValueError(f"--output {output}: a video is written as .mp4")
    if _is_video_name(output) and not drawing.is_video:
        raise ValueError(f"--output {output}: {drawing.source} is not a video")
    return replace(drawing, target=output)


def _is_video(path: Path) -> bool:
    """
    Whether a file is a video rather than an image, by its name, else by what it holds.

    Raises:
        OSError: if it cannot be read
    """
    if not is_image_name(path) and (_is_video_name(path) or image_problem(path)):
        if _has_frames(path):
            return True
        if _is_video_name(path):
            raise _no_video(path)
    check_image(path)
    return False


def _has_frames(path: Path) -> bool:
    video = cv2.VideoCapture(str(path))
    sides = [int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    if problem := size_problem(*sides):
        raise OSError(f"{path}: each frame {problem}.")
    there, _ = video.read()
    video.release()
    return there


def _no_video(path: Path) -> OSError:
    if not path.exists():
        return FileNotFoundError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        return OSError(f"{path} is empty.")
    return OSError(f"{path} is no video that OpenCV can read, or was cut off.")
