"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check_files import check_datasets, expected_paths, loading
from .check_objects import check_objects_to_evaluate, check_objects_to_learn

__all__ = [
    "check_datasets",
    "check_objects_to_evaluate",
    "check_objects_to_learn",
    "expected_paths",
    "loading",
]
