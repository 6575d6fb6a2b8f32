from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from dcn_projects.errors import one_line

__all__ = ["check_image", "image_size", "is_image_name", "list_images", "read_bgr_image"]

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: by 90 degrees, or mirrored as well
_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_bgr_image(path: str | Path) -> np.ndarray:
    """
    Args:
        path: image file; its EXIF orientation is applied
    Returns:
        ndarray: (H, W, 3), uint8, BGR
    Raises:
        FileNotFoundError: if it is not there
        OSError: if it is no image, or was cut off
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return np.ascontiguousarray(read_image(str(path), format="BGR"))
    except (OSError, ValueError, SyntaxError) as e:  # Pillow raises SyntaxError on broken PNGs
        raise OSError(f"{path} is no image, or was cut off ({one_line(e)}).") from e


def check_image(path: str | Path) -> None:
    """
    Find out by its first bytes whether a file is an image, as quickly for a large one.

    Raises:
        FileNotFoundError: if it is not there
        OSError: if it is no image
    """
    image_size(path)


def image_size(path: str | Path) -> tuple[int, int]:
    """
    The width and height of an image, of a JPEG after its EXIF orientation is applied, as quickly
    for a large one.

    Raises:
        FileNotFoundError: if it is not there
        OSError: if it is no image
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with Image.open(path) as image:
            # Of a PNG the orientation may stand behind the pixels, which would have to be read.
            is_turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) in _TURNED
            return image.size[::-1] if is_turned else image.size
    except (OSError, ValueError, SyntaxError) as e:
        raise OSError(f"{path} is no image, or was cut off ({one_line(e)}).") from e


def is_image_name(path: str | Path) -> bool:
    """Whether a file is named as an image is."""
    return Path(path).suffix.lower() in _SUFFIXES


def list_images(folder: str | Path) -> list[Path]:
    """
    The images in a folder, by name; what lies in folders inside it is left out.

    Raises:
        FileNotFoundError: if there is none
    """
    paths = sorted(p for p in Path(folder).iterdir() if is_image_name(p))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return paths
