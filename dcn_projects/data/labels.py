"""Files that hold the class of every pixel."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from PIL import Image

from dcn_projects.errors import one_line

from .images import too_large
from .sbd_labels import read_sbd_labels

__all__ = ["check_label_file", "read_labels"]

_MAX_CITYSCAPES_ID = 33  # "bicycle"


def read_labels(path: str | os.PathLike, num_classes: int, ignore_label: int) -> np.ndarray:
    """
    Read a PNG, grey or with a palette, whose values are the labels; a `*_labelIds.png` of
    Cityscapes, of whose ids those that are not evaluated become `ignore_label`; or a `.mat` file of
    the Semantic Boundaries Dataset (SBD).

    Args:
        path: file
        num_classes: K
        ignore_label: of pixels without a class
    Returns:
        ndarray: (H, W), uint8, of 0..K-1 and `ignore_label`
    Raises:
        OSError: if the file cannot be read, is of another kind or has other labels
    """
    path = os.fspath(path)
    labels = _read(path, _read_png)
    if path.endswith("_labelIds.png"):
        _check(path, labels, _MAX_CITYSCAPES_ID + 1)
        labels = _train_ids(ignore_label)[labels]
    _check(path, labels, num_classes, ignore_label)
    return labels


def check_label_file(path: str | os.PathLike) -> None:
    """
    Find out by the checksums of a file, as `read_labels` takes it, whether it is damaged, without a
    look at its labels.

    Raises:
        OSError: if it is, or cannot be read
    """
    _read(os.fspath(path), _verify_png)


def _read(path: str, read_png: Callable[[bytes], np.ndarray | None]) -> np.ndarray | None:
    try:
        content = Path(path).read_bytes()
        return read_sbd_labels(content) if path.endswith(".mat") else read_png(content)
    except FileNotFoundError as e:
        raise FileNotFoundError(f"{path} does not exist.") from e
    except Image.DecompressionBombError as e:
        raise OSError(f"{path} {too_large()}.") from e
    except Exception as e:  # Pillow has many kinds of errors for broken files
        raise OSError(f"{path} cannot be read as labels ({one_line(e)}).") from e


def _verify_png(content: bytes) -> None:
    """Compare the checksums, which Pillow does not do when it reads the pixels."""
    with Image.open(io.BytesIO(content)) as image:
        image.verify()


def _read_png(content: bytes) -> np.ndarray:
    _verify_png(content)
    # With another mode than the file's own, Pillow would turn the indices of a palette into grey
    # levels.
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"its mode is {image.mode}, expected grey (L) or a palette (P)")
        return np.array(image)


def _train_ids(ignore_label: int) -> np.ndarray:
    """Class of every id of Cityscapes."""
    classes = np.full(_MAX_CITYSCAPES_ID + 1, ignore_label, np.uint8)
    for category in CITYSCAPES_CATEGORIES:
        classes[category["id"]] = category["trainId"]
    return classes


def _check(path: str, labels: np.ndarray, num_classes: int, ignore_label: int | None = None):
    counts = np.bincount(labels.ravel(), minlength=256)
    if ignore_label is not None:
        counts[ignore_label] = 0
    wrong = np.flatnonzero(counts[num_classes:]) + num_classes
    if wrong.size:
        ignored = "" if ignore_label is None else f" and {ignore_label} for pixels without a class"
        raise OSError(
            f"{path} has the label {wrong[0]} at {counts[wrong[0]]} pixels, expected "
            f"0..{num_classes - 1}{ignored}."
        )
