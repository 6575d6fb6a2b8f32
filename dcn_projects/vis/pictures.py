"""Pictures, which are (H, W, 3) arrays, uint8, BGR: put together, and written."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

__all__ = ["LONGEST", "bounded", "contact_sheet", "side_by_side", "text_line", "write_picture"]

LONGEST = 4096  # pixels of the longer side of what is drawn on

_LINE_HEIGHT = 24  # pixels
_MARGIN = 4  # pixels left and right of a text


def bounded(image: np.ndarray) -> np.ndarray:
    """The image, (H, W, 3), or a smaller picture of it whose longer side has LONGEST pixels."""
    sides = np.array(image.shape[1::-1])
    if max(sides) <= LONGEST:
        return image
    width, height = np.maximum(np.rint(sides * LONGEST / max(sides)), 1).astype(int).tolist()
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def text_line(text: str, width: int) -> np.ndarray:
    """A picture of a text, black on white, that is made smaller where `width` pixels need it."""
    line = np.full((_LINE_HEIGHT, width, 3), 255, dtype=np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    wanted = cv2.getTextSize(text, font, 1, 1)[0][0]
    scale = min(0.45, max(width - 2 * _MARGIN, 1) / max(wanted, 1))
    cv2.putText(line, text, (_MARGIN, 17), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return line


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str] | None) -> np.ndarray:
    """
    Args:
        pictures: of one height
        titles: what is written above each; None leaves the pictures without
    """
    if titles is not None:
        pictures = [
            np.vstack((text_line(title, picture.shape[1]), picture))
            for picture, title in zip(pictures, titles)
        ]
    return np.ascontiguousarray(np.hstack(pictures))


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in rows of `columns`; places that are left over stay black."""
    missing = -len(pictures) % columns
    pictures = [*pictures, *[np.zeros_like(pictures[0])] * missing]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return np.vstack([np.hstack(row) for row in rows])


def write_picture(path: Path, picture: np.ndarray) -> None:
    """
    Raises:
        OSError: if it cannot be written
    """
    if not cv2.imwrite(str(path), picture):
        raise OSError(f"{path} cannot be written")
