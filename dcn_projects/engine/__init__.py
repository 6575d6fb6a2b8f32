from .config import one_line_errors, read_config
from .launch import launch
from .offset_statistics import OffsetStatistics
from .predictor import build_predictor

__all__ = ["OffsetStatistics", "build_predictor", "launch", "one_line_errors", "read_config"]
