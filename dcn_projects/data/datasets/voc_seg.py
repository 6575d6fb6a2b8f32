"""Semantic segmentation in the layout of Pascal VOC."""

import functools
import os

from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.utils.file_io import PathManager

from ..images import is_image_name
from .image_lists import read_image_list

SEG_CLASSES = ("background", *CLASS_NAMES)


def voc_palette(num_colors: int = 256) -> list[tuple[int, int, int]]:
    """VOC's RGB colours: the bits of the index go to R, G, B in turn, to the highest bit first."""

    def level(index: int, channel: int) -> int:
        return sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(3))

    return [tuple(level(i, channel) for channel in range(3)) for i in range(num_colors)]


def read_image_ids(path: str, image_folder: str) -> list[str]:
    """
    Args:
        path: list of images, one per line: an id, or the paths of image and label, as in the lists
            of DeepLab. See `read_image_list`
        image_folder: has the images, as JPEG files
    """
    exists = functools.partial(_has_image, image_folder)
    return read_image_list(path, exists, name_in=_image_id)


def _has_image(folder: str, image_id: str) -> bool:
    return PathManager.isfile(os.path.join(folder, f"{image_id}.jpg"))


def _image_id(line: str) -> str:
    words = line.split()
    half = len(words) // 2
    image, label = " ".join(words[:half]), " ".join(words[half:])
    is_pair = is_image_name(image) and os.path.splitext(label)[1]
    name = os.path.basename(image if is_pair else line)
    return os.path.splitext(name)[0] if is_image_name(name) else name


def load_voc_sem_seg(dirname: str, image_list: str, label_folder: str) -> list[dict]:
    """
    Args:
        dirname: contains "JPEGImages"
        image_list: path below `dirname`, see `read_image_ids`
        label_folder: path below `dirname` of PNGs
    Returns:
        list[dict]: "file_name", "image_id" and "sem_seg_file_name" of every image
    """
    images = os.path.join(dirname, "JPEGImages")
    return [
        {
            "file_name": os.path.join(images, f"{image_id}.jpg"),
            "image_id": image_id,
            "sem_seg_file_name": os.path.join(dirname, label_folder, f"{image_id}.png"),
        }
        for image_id in read_image_ids(os.path.join(dirname, image_list), images)
    ]
