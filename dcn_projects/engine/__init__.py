from .launch import launch
from .predictor import build_predictor

__all__ = ["build_predictor", "launch"]
