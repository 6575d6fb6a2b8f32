"""Metrics that detectron2's evaluators lack: AP at every IoU threshold from 0.50 to 0.95."""

from .coco_evaluation import COCOThresholdEvaluator
from .pascal_voc_evaluation import PascalVOCThresholdEvaluator

__all__ = ["COCOThresholdEvaluator", "PascalVOCThresholdEvaluator"]
