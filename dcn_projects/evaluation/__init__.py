"""Metrics that detectron2 lacks: AP at every IoU threshold; IoU of classes from checked labels."""

from .cityscapes_evaluation import CityscapesIoUEvaluator
from .class_order import InClassOrder
from .coco_evaluation import COCOThresholdEvaluator
from .detections import copy_detections, inference_folder
from .pascal_voc_evaluation import PascalVOCThresholdEvaluator
from .sem_seg_evaluation import SemSegIoUEvaluator

__all__ = [
    "COCOThresholdEvaluator",
    "CityscapesIoUEvaluator",
    "InClassOrder",
    "PascalVOCThresholdEvaluator",
    "SemSegIoUEvaluator",
    "copy_detections",
    "inference_folder",
]
