"""Tell in one line what is wrong with the image files and the label files of a data set."""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..images import image_problem, image_size, is_remote
from ..labels import check_label_file, read_labels

__all__ = ["check_labels", "check_pictures", "check_widths"]

_NUM_LABELS = 500  # files that are read in full before a training
_STRIDE = 32  # pixels of the network's input per cell of the coarsest map
_THREADS = 8  # they wait for the disk, or decode without Python's lock


def check_pictures(records: Iterable[dict]) -> None:
    """
    Look at the beginning and at the end of each image file, and at the checksums of those that
    have some: PNGs. Of others, what is damaged in between is found when the image is read, if then.

    Args:
        records: detectron2's, of the images of a data set. Files that only detectron2's PathManager
            can open, `scheme://...`, are left out
    Raises:
        OSError: if a file is missing, cut off or no image that can be read, or does not have the
            size that its record says
    """
    records = [record for record in records if not is_remote(record["file_name"])]
    with ThreadPoolExecutor(_THREADS) as pool:
        for record, problem in zip(records, pool.map(_picture_problem, records)):
            if problem:
                raise OSError(
                    f"{record['file_name']} {problem}. Replace the file, or take the image out of "
                    "the data set"
                )


def _picture_problem(record: dict) -> str:
    path = record["file_name"]
    if problem := image_problem(path):
        windows = "\\" in str(path) and not os.path.exists(path)
        return problem + ": on this system folders end with / and not with \\" * windows
    size = image_size(path)
    if "width" in record and size != (record["width"], record["height"]):
        return (
            f"has {size[0]} x {size[1]} pixels, and in the annotations it has "
            f"{record['width']} x {record['height']}"
        )
    return ""


def check_widths(name: str, records: Iterable[dict], short: int, longest: int) -> None:
    """
    Warns if images are so narrow that a network without padding may have nothing left of them.

    Args:
        name: of the data set
        records: detectron2's; those without "width" and "height" are left out
        short, longest: the short side that images are resized to, and what the other one may not
            exceed, in pixels; a short side of 0 leaves them as they are
    """
    narrow = [
        (record["file_name"], width, height, scale)
        for record in records
        if (width := record.get("width", 0)) and (height := record.get("height", 0))
        for scale in [_scale(width, height, short, longest)]
        if min(width, height) * scale < _STRIDE
    ]
    if narrow:
        path, width, height, scale = narrow[0]
        logging.getLogger(__name__).warning(
            f"data set {name}: {path} has {width} x {height} pixels, of which the network sees "
            f"{width * scale:.0f} x {height * scale:.0f}. Models that do not pad images may fail "
            f"on those that are narrower than {_STRIDE} there: {len(narrow)} in this data set"
        )


def _scale(width: int, height: int, short: int, longest: int) -> float:
    return min(short / min(width, height), longest / max(width, height)) if short else 1.0


def check_labels(name: str, records: Sequence[dict], num_classes: int, ignore_label: int) -> None:
    """
    Read the labels of all images, or of 500 that are spread over the data set. Of the other files
    the checksums are compared. Warns if the labels have no more than one class.

    Args:
        name: of the data set
        records: detectron2's, with "sem_seg_file_name"
        num_classes: K
        ignore_label: of pixels without a class
    Raises:
        OSError: if a label file is missing, cannot be read, has other labels, or does not have the
            size of its image
    """
    for record in records:
        path = record.get("sem_seg_file_name")
        if not path:
            raise OSError(f"{record['file_name']}: the data set names no file with its labels")
        if not is_remote(path) and not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is missing, the labels of {record['file_name']}")
    places = np.linspace(0, len(records) - 1, min(len(records), _NUM_LABELS)).astype(int).tolist()
    others = set(range(len(records))).difference(places)
    pixels = np.zeros(256, dtype=np.int64)

    def read(place: int) -> np.ndarray:
        return _label_counts(records[place], num_classes, ignore_label)

    def check(place: int) -> None:
        check_label_file(records[place]["sem_seg_file_name"])

    with ThreadPoolExecutor(_THREADS) as pool:
        for counts in pool.map(read, places):
            pixels += counts
        list(pool.map(check, sorted(others)))
    ignored, pixels[ignore_label] = pixels[ignore_label], 0
    if np.count_nonzero(pixels) < 2:
        found = f"the label {pixels.argmax()} alone" if pixels.any() else "no label of a class"
        logging.getLogger(__name__).warning(
            f"data set {name}: {len(places)} label files have {found}, and the ignored value "
            f"{ignore_label} at {100 * ignored / max(ignored + pixels.sum(), 1):.1f} % of the "
            f"pixels: there is nothing to be told apart. Labels are the numbers 0 to "
            f"{num_classes - 1} of the classes, not grey levels"
        )


def _label_counts(record: dict, num_classes: int, ignore_label: int) -> np.ndarray:
    path = record["sem_seg_file_name"]
    labels = read_labels(path, num_classes, ignore_label)
    if not is_remote(record["file_name"]):
        width, height = image_size(record["file_name"])
        if labels.shape != (height, width):
            raise OSError(
                f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, but its image "
                f"{record['file_name']} has {width} x {height}."
            )
    return np.bincount(labels.ravel(), minlength=256)
