"""Data: data sets and what reads their images."""

from .dataset_mapper import CheckedDatasetMapper
from .datasets import (
    check_datasets,
    check_labels,
    check_objects,
    check_pictures,
    check_widths,
    expected_paths,
    load_checked,
    loading,
    read_voc_objects,
    register_pascal_voc,
)
from .exact_train_loader import ExactTrainLoader, check_exact_resume
from .images import check_image, read_bgr_image
from .labels import read_labels
from .sem_seg_mapper import SemSegMapper

__all__ = [
    "CheckedDatasetMapper",
    "ExactTrainLoader",
    "SemSegMapper",
    "check_datasets",
    "check_exact_resume",
    "check_image",
    "check_labels",
    "check_objects",
    "check_pictures",
    "check_widths",
    "expected_paths",
    "load_checked",
    "loading",
    "read_bgr_image",
    "read_labels",
    "read_voc_objects",
    "register_pascal_voc",
]
