"""Pascal VOC as the original R-FCN trains on it."""

import os
import xml.etree.ElementTree as ET

from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.utils.file_io import PathManager


def load_voc_easy_instances(dirname: str, split: str, class_names) -> list[dict]:
    """
    detectron2's `load_voc_instances` without the objects that are marked difficult. An image of
    which nothing is left stays: DATALOADER.FILTER_EMPTY_ANNOTATIONS drops it in training.

    Args:
        dirname: contains "Annotations", "ImageSets", "JPEGImages"
        split: name of a list in ImageSets/Main
        class_names: list or tuple of class names
    """
    dicts = load_voc_instances(dirname, split, class_names)
    for record in dicts:
        with PathManager.open(
            os.path.join(dirname, "Annotations", f"{record['image_id']}.xml")
        ) as f:
            objects = ET.parse(f).findall("object")
        record["annotations"] = [
            annotation
            for annotation, element in zip(record["annotations"], objects, strict=True)
            if int(element.findtext("difficult", "0")) == 0
        ]
    return dicts
