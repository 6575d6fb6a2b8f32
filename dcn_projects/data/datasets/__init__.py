"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check_coco_json import check_coco_json
from .check_files import check_datasets, expected_paths, loading
from .check_objects import check_objects
from .check_pictures import check_labels, check_pictures

__all__ = [
    "check_coco_json",
    "check_datasets",
    "check_labels",
    "check_objects",
    "check_pictures",
    "expected_paths",
    "loading",
]
