"""Data: data sets and the mapper that reads their images."""

from .dataset_mapper import CheckedDatasetMapper
from .datasets import check_datasets

__all__ = ["CheckedDatasetMapper", "check_datasets"]
