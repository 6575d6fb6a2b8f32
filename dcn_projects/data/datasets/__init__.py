"""Data sets: registered on import; `warped_digits` makes one."""

from . import builtin  # noqa: F401
from .check import check_datasets, check_masks, expected_paths, loading

__all__ = ["check_datasets", "check_masks", "expected_paths", "loading"]
