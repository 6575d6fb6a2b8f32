from .launch import launch
from .offset_statistics import OffsetStatistics
from .predictor import build_predictor

__all__ = ["OffsetStatistics", "build_predictor", "launch"]
