"""Deformable detection and segmentation for detectron2."""

from . import data, modeling  # noqa: F401  (registers data sets and models)
from .config import add_dcn_config

__all__ = ["__version__", "add_dcn_config"]

__version__ = "0.2.0"
