"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check_files import check_datasets, expected_paths, loading
from .check_objects import check_objects_to_evaluate, check_objects_to_learn
from .pascal_voc import check_voc, check_voc_of_detectron2, read_voc_objects, register_pascal_voc

__all__ = [
    "check_datasets",
    "check_objects_to_evaluate",
    "check_objects_to_learn",
    "check_voc",
    "check_voc_of_detectron2",
    "expected_paths",
    "loading",
    "read_voc_objects",
    "register_pascal_voc",
]
