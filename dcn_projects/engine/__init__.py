from .checkpoints import mirrored_output_dir, weights_to_evaluate
from .config import one_line_errors, read_config
from .launch import launch
from .metric_printer import MetricPrinter
from .offset_statistics import OffsetStatistics
from .predictor import build_predictor

__all__ = [
    "MetricPrinter",
    "OffsetStatistics",
    "build_predictor",
    "launch",
    "mirrored_output_dir",
    "one_line_errors",
    "read_config",
    "weights_to_evaluate",
]
