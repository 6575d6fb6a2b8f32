from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image

from dcn_projects.errors import one_line

__all__ = ["list_images", "read_bgr_image"]

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


def list_images(folder: str | Path) -> list[Path]:
    """
    The images in a folder, by name; what lies in folders inside it is left out.

    Raises:
        FileNotFoundError: if there is none
    """
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return paths
