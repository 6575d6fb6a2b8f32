"""Image files: whether they can be used, how large they are, and their pixels."""

import functools
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from dcn_projects.errors import one_line

__all__ = [
    "check_dataset_image",
    "check_image",
    "image_problem",
    "image_size",
    "is_image_name",
    "is_remote",
    "limit_pixels",
    "read_bgr_image",
    "size_problem",
    "too_large",
    "with_whole_sides",
]

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Modes of Pillow that it converts to 8 bits per channel without loss of what is seen.
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
_ORIENTATION = 0x0112  # the EXIF tag
# How files end in formats whose end can be told, and in how many last bytes it is looked for.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9"}
_LAST_BYTES = 64
# What PNGs have orientations in. Behind the pixels, the data are no longer than one EXIF block.
_PNG_NOTES = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_LONGEST_NOTE = 2**16
# Pillow raises SyntaxError on broken PNGs, and ValueError on broken headers of PPMs.
_OF_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# No file has more pixels for each of its bytes: in a JPEG 8 x 8 of them take a bit or more, and the
# packing of a PNG makes one byte of at most 1032, with 8 pixels each.
_MOST_IN_A_BYTE = {"JPEG": 512, "MPO": 512, "PNG": 8 * 1032}

_MISSING = "does not exist"


def limit_pixels(count: int | None) -> None:
    """
    Have this process refuse larger images by their headers, wherever they are read with Pillow:
    here, in detectron2 and in the loaders of data sets. It holds for processes that are forked
    afterwards, too. Without a call the limit is Pillow's own, the default of INPUT.MAX_PIXELS.

    Args:
        count: INPUT.MAX_PIXELS, the pixels of an image or of a frame of a video; None leaves the
            limit as it is
    """
    if count is None:
        return
    Image.MAX_IMAGE_PIXELS = count / 2  # Pillow warns of more, and refuses what has twice as many
    _ignore_warnings()


@functools.cache  # each change of the filters has Python show all other warnings once more
def _ignore_warnings() -> None:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def size_problem(width: int, height: int) -> str:
    """What is wrong with an image of this size, in the words of `image_problem`."""
    limit = Image.MAX_IMAGE_PIXELS
    return too_large() if limit is not None and width * height > 2 * limit else ""


def too_large() -> str:
    """What is wrong with an image that Pillow does not open because of its size."""
    return (
        f"has more than {2 * Image.MAX_IMAGE_PIXELS:.0f} pixels, which INPUT.MAX_PIXELS allows: "
        "scale it down, or raise this key"
    )


def read_bgr_image(path: str | Path) -> np.ndarray:
    """
    Args:
        path: image file; its EXIF orientation is applied
    Returns:
        ndarray: (H, W, 3), uint8, BGR
    Raises:
        FileNotFoundError: if it is not there
        OSError: if it is no image, has pixels that cannot be used, or was cut off
    """
    if problem := _examine(path, lambda image: _refusal(image) or _spoilt(image)):
        raise _error(path, problem)
    try:
        return np.ascontiguousarray(read_image(str(path), format="BGR"))
    except _OF_DAMAGE as e:
        raise _error(path, _problem(path, e)) from e


def check_image(path: str | Path) -> None:
    """
    Find out whether a file is an image that can be used, as `image_problem` does.

    Raises:
        FileNotFoundError: if it is not there
        OSError: if it cannot be used
    """
    if problem := image_problem(path):
        raise _error(path, problem)


def image_problem(path: str | Path) -> str:
    """
    Find out quickly what is wrong with an image file: by its header, the checksums of a PNG, and
    the last bytes of a JPEG. Only a JPEG without the end of its format is decoded, as some that can
    be used have other bytes behind it.

    Returns:
        str: the rest of a sentence that begins with the path, without the full stop; "" if nothing
        is found
    """
    return _examine(path, lambda image: _refusal(image) or _spoilt(image) or _cut_off(image))


def check_dataset_image(path: str | Path) -> None:
    """
    Find out by the header, and the checksums of a PNG, before an image of a data set is read,
    whether it can be used.

    Raises:
        OSError: if it cannot; the line says what to do
    """
    if problem := _examine(path, lambda image: _refusal(image) or _spoilt(image)):
        raise OSError(
            f"Cannot use {path}: it {problem}. "
            "Replace the file, or take the image out of the data set."
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """
    Width and height of an image as detectron2 reads it: turned as its EXIF data tell.

    Raises:
        OSError: if it is no image, as far as its header tells
    """
    try:
        with PathManager.open(str(path), "rb") as file, Image.open(file) as image:
            return image.size[::-1] if _orientation(image) >= 5 else image.size
    except _OF_DAMAGE as e:
        raise _error(path, _problem(path, e)) from e


def with_whole_sides(record: dict) -> dict:
    """A record of detectron2 with its width and height as integers, if they are 640.0 in a file."""
    return record | {side: int(record[side]) for side in ("width", "height") if side in record}


def is_remote(path: str | Path) -> bool:
    """Whether a path is `scheme://...`, of files that only detectron2's PathManager can open."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)) is not None


def is_image_name(path: str | Path) -> bool:
    """Whether a file is named as an image is."""
    return Path(path).suffix.lower() in _SUFFIXES


def _error(path: str | Path, problem: str) -> OSError:
    return (FileNotFoundError if problem == _MISSING else OSError)(f"{path} {problem}.")


def _examine(path: str | Path, find_problem: Callable[[Image.Image], str]) -> str:
    """What `find_problem` says of an image whose header was read, or why it could not be read."""
    if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
        return "is no image, but a folder" if os.path.isdir(path) else "is no file"  # but a pipe
    try:
        with PathManager.open(str(path), "rb") as file, Image.open(file) as image:
            return find_problem(image)
    except _OF_DAMAGE as e:
        return _problem(path, e)


def _problem(path: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return _MISSING
    if isinstance(error, Image.DecompressionBombError):
        return too_large()
    if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the image
        return f"cannot be read ({error.strerror})"
    why = one_line(error)
    if isinstance(error, UnidentifiedImageError):  # its own message has a Python object in it
        if os.path.getsize(PathManager.get_local_path(str(path))) == 0:
            return "is empty"
        why = "it does not begin as an image does"
    return f"is no image, or was cut off ({why})"


def _refusal(image: Image.Image) -> str:
    """Why pixels cannot be used, although they could be read. All readers of images ask here."""
    if image.mode == "F" or image.mode.startswith("I"):
        # 12 bits in a file of 16 bits would become almost black if its levels were divided by 256.
        return (
            f"has grey levels of more than 8 bits (mode {image.mode}), and which of them are black "
            "and white is not known: convert it to 8 bits"
        )
    if image.mode not in _MODES:
        return f"has colours of the mode {image.mode}, which cannot be read: convert it to RGB"
    if image.format == "TIFF" and image.tag_v2.get(_ORIENTATION, 1) != 1:
        # Pillow turns it when it is decoded, and detectron2 does the same once more.
        return "is a TIFF file that has to be turned when it is read: save it in another format"
    return _lie(image)


def _lie(image: Image.Image) -> str:
    """Whether there cannot be so many pixels. Those that are missing would be grey or black."""
    (width, height), place = image.size, image.fp.tell()
    length = image.fp.seek(0, os.SEEK_END)
    image.fp.seek(place)
    most = _MOST_IN_A_BYTE.get(image.format, math.inf) * length
    if image.format == "TIFF":
        most = sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in image.tile)
    if width * height <= most:
        return ""
    return f"is no image, or was cut off ({length} bytes for {width} x {height} pixels)"


def _spoilt(image: Image.Image) -> str:
    """
    Compare the checksums of a PNG. detectron2 asks a PNG for its EXIF data, for which Pillow
    decodes it, and leaves out all errors of that: what could not be decoded would stay black.
    """
    if image.format == "PNG":
        image.verify()
    return ""


def _cut_off(image: Image.Image) -> str:
    end = _ENDS.get(image.format)
    if end is not None and end not in _last_bytes(image, _LAST_BYTES):
        image.load()
    return ""


def _last_bytes(image: Image.Image, count: int) -> bytes:
    """Of the file of an image, which Pillow then reads on where it was."""
    place = image.fp.tell()
    size = image.fp.seek(0, os.SEEK_END)
    image.fp.seek(max(0, size - count))
    found = image.fp.read()
    image.fp.seek(place)
    return found


def _orientation(image: Image.Image) -> int:
    """1 to 8, of which 5 and more exchange width and height."""
    if image.format == "TIFF":  # one that is to be turned is refused
        return 1
    if image.format == "PNG" and not image.info.keys() & {"exif", *map(bytes.decode, _PNG_NOTES)}:
        # Pillow would decode all pixels to look what comes after them.
        last = _last_bytes(image, _LONGEST_NOTE)
        if not any(note in last for note in _PNG_NOTES):
            return 1
    try:
        turn = image.getexif().get(_ORIENTATION)
    except Exception:  # detectron2 ignores broken EXIF data of every kind
        return 1
    return turn if turn in range(1, 9) else 1  # it may also be a text
