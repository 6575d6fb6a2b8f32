"""faster-coco-eval, which evaluates as pycocotools does in a fraction of the time."""

import contextlib
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator

from detectron2.evaluation import coco_evaluation
from pycocotools.coco import COCO

__all__ = ["fast_evaluation"]

# What detectron2 evaluates with: that of pycocotools, its own in C++, and its own for more than 100
# detections of an image.
_REPLACED = ("COCOeval", "COCOeval_opt", "COCOevalMaxDets")


@contextlib.contextmanager
def fast_evaluation(truth: COCO) -> Iterator[None]:
    """
    Within this context detectron2 evaluates boxes and masks with faster-coco-eval, if this package
    is installed and the ids of the images are integers, which it needs. A line in the log says so.
    Keypoints are evaluated as before: for them it needs annotations that it has read itself.

    Args:
        truth: annotations on which detections are to be evaluated
    """
    is_installed = importlib.util.find_spec("faster_coco_eval") is not None
    if not is_installed or not all(type(image_id) is int for image_id in truth.imgs):
        yield
        return
    logging.getLogger(__name__).info("Boxes and masks are evaluated with faster-coco-eval.")
    replaced = {name: getattr(coco_evaluation, name) for name in _REPLACED}
    for name in _REPLACED:
        setattr(coco_evaluation, name, functools.partial(_evaluation, replaced[name]))
    try:
        yield
    finally:
        for name, original in replaced.items():
            setattr(coco_evaluation, name, original)


def _evaluation(usual: Callable, truth: COCO, found: COCO, iou_type: str):
    if iou_type == "keypoints":
        return usual(truth, found, iou_type)
    from faster_coco_eval import COCOeval_faster

    return COCOeval_faster(truth, found, iou_type, print_function=print)
