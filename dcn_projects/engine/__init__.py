from dcn_projects.errors import one_line_errors

from .arguments import parse_arguments
from .check import check_classes, check_heads, check_preprocessing, check_training, is_segmentor
from .checkpoints import last_checkpoint, mirrored_output_dir, weights_to_evaluate
from .config import read_config
from .launch import launch
from .metric_printer import MetricPrinter
from .offset_statistics import OffsetStatistics
from .options import option_pairs
from .predictor import build_predictor, load_predictor

__all__ = [
    "MetricPrinter",
    "OffsetStatistics",
    "build_predictor",
    "check_classes",
    "check_heads",
    "check_preprocessing",
    "check_training",
    "is_segmentor",
    "last_checkpoint",
    "launch",
    "load_predictor",
    "mirrored_output_dir",
    "one_line_errors",
    "option_pairs",
    "parse_arguments",
    "read_config",
    "weights_to_evaluate",
]
