import copy

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from dcn_projects.errors import one_line

from .images import check_dataset_image, limit_pixels, with_whole_sides
from .labels import read_labels

__all__ = ["SemSegMapper"]


class SemSegMapper:
    """
    Reads images and, in training, their labels. It differs from detectron2's DatasetMapper in that
    it scales before it crops, as DeepLab does; reads every kind of `read_labels`; and checks.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
        ignore_label: int,
        max_pixels: int | None = None,
    ):
        """
        Args:
            is_train: read labels
            augmentations: of image and labels, in this order
            image_format: "BGR" or "RGB"
            num_classes, ignore_label: see `read_labels`
            max_pixels: see `limit_pixels`
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format, self.max_pixels = image_format, max_pixels
        self.num_classes, self.ignore_label = num_classes, ignore_label

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        keys = cfg.MODEL.SEM_SEG_HEAD
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            crop = T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                keys.IGNORE_VALUE,
            )
            augmentations.insert(1, crop)  # after the scaling, before the flip
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "num_classes": keys.NUM_CLASSES,
            "ignore_label": keys.IGNORE_VALUE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: with "file_name" and, in training, "sem_seg_file_name"
        Returns:
            dict: also "image", (C, H, W), uint8; "height" and "width" of the file; and, in
            training, "sem_seg", (H, W), int64
        Raises:
            OSError: if a file cannot be read or used, or image and labels differ in size
        """
        limit_pixels(self.max_pixels)  # in the process that loads the data
        record = with_whole_sides(copy.deepcopy(dataset_dict))
        image = self._read_image(record)
        labels = None
        if self.is_train:
            path = record["sem_seg_file_name"]
            labels = read_labels(path, self.num_classes, self.ignore_label)
            if labels.shape != image.shape[:2]:
                raise OSError(
                    f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, but its image "
                    f"{record['file_name']} has {image.shape[1]} x {image.shape[0]}."
                )
        inputs = T.AugInput(image, sem_seg=labels)
        self.augmentations(inputs)
        record["image"] = torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        if self.is_train:
            record["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return record

    def _read_image(self, record: dict) -> np.ndarray:
        """(H, W, C). Notes its size in `record`, or compares it with what is there."""
        check_dataset_image(record["file_name"])
        try:
            image = detection_utils.read_image(record["file_name"], self.image_format)
            detection_utils.check_image_size(record, image)
        except (OSError, ValueError, SyntaxError) as e:  # Pillow raises the last on broken PNGs
            raise OSError(
                f"Cannot use {record['file_name']} ({one_line(e)}). "
                "Replace the file, or take the image out of the data set."
            ) from e
        return image
