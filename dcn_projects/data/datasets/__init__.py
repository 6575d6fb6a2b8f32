"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check_files import check_datasets, expected_paths, loading
from .check_objects import check_objects
from .check_pictures import check_labels, check_pictures, check_widths
from .load import load_checked
from .pascal_voc import read_voc_objects, register_pascal_voc

__all__ = [
    "check_datasets",
    "check_labels",
    "check_objects",
    "check_pictures",
    "check_widths",
    "expected_paths",
    "load_checked",
    "loading",
    "read_voc_objects",
    "register_pascal_voc",
]
