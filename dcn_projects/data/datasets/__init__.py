"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check import (
    check_datasets,
    check_masks_to_evaluate,
    check_masks_to_learn,
    expected_paths,
    loading,
)

__all__ = [
    "check_datasets",
    "check_masks_to_evaluate",
    "check_masks_to_learn",
    "expected_paths",
    "loading",
]
