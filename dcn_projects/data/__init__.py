"""Data: data sets and what reads their images."""

from .dataset_mapper import CheckedDatasetMapper
from .datasets import (
    check_datasets,
    check_objects_to_evaluate,
    check_objects_to_learn,
    check_voc,
    check_voc_of_detectron2,
    loading,
    read_voc_objects,
    register_pascal_voc,
)
from .exact_train_loader import ExactTrainLoader, check_exact_resume
from .images import list_images, read_bgr_image
from .labels import read_labels
from .sem_seg_mapper import SemSegMapper

__all__ = [
    "CheckedDatasetMapper",
    "ExactTrainLoader",
    "SemSegMapper",
    "check_datasets",
    "check_exact_resume",
    "check_objects_to_evaluate",
    "check_objects_to_learn",
    "check_voc",
    "check_voc_of_detectron2",
    "list_images",
    "loading",
    "read_bgr_image",
    "read_labels",
    "read_voc_objects",
    "register_pascal_voc",
]
