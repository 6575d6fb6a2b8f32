"""Data: data sets and what reads their images."""

from .dataset_mapper import CheckedDatasetMapper
from .datasets import check_datasets, loading
from .images import list_images, read_bgr_image

__all__ = ["CheckedDatasetMapper", "check_datasets", "list_images", "loading", "read_bgr_image"]
