import contextlib
import math

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dcn_projects.layers import batched_soft_nms

__all__ = ["box_nms", "detections_above", "soft_nms_options", "without_nms"]

METHODS = ("hard", "linear", "gaussian")


def soft_nms_options(cfg) -> dict:
    """
    Returns:
        dict: arguments `method`, `sigma` and `score_threshold` of `box_nms` as the config has them
    Raises:
        ValueError: naming the key whose value cannot be used
    """
    keys = cfg.MODEL.ROI_HEADS
    if keys.NMS_TYPE not in METHODS:
        raise ValueError(
            f"MODEL.ROI_HEADS.NMS_TYPE must be one of {', '.join(METHODS)}, got {keys.NMS_TYPE!r}"
        )
    if not 0 < keys.SOFT_NMS_SIGMA < float("inf"):
        raise ValueError(
            f"MODEL.ROI_HEADS.SOFT_NMS_SIGMA must be positive, got {keys.SOFT_NMS_SIGMA}"
        )
    for key in ("SOFT_NMS_SCORE_THRESH", "NMS_THRESH_TEST"):
        if not 0 <= keys[key] <= 1:
            raise ValueError(f"MODEL.ROI_HEADS.{key} must be from 0 to 1, got {keys[key]}")
    return {
        "method": keys.NMS_TYPE,
        "sigma": keys.SOFT_NMS_SIGMA,
        "score_threshold": keys.SOFT_NMS_SCORE_THRESH,
    }


def detections_above(
    boxes: Tensor, scores: Tensor, image_size: tuple[int, int], score_threshold: float
) -> tuple[Instances, Tensor]:
    """
    The detections of an image before any suppression.

    Args:
        boxes: (R, 4), or (R, K * 4) where each class has boxes of its own
        scores: (R, K + 1), the background last. A row with a number that is not finite is left out
        image_size: (height, width), to which the boxes are clipped
        score_threshold: a class of a RoI is a detection if its score is above this
    Returns:
        tuple[Instances, Tensor]: `pred_boxes`, `scores` and `pred_classes` of M detections in no
            particular order, and their RoIs (M,)
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    above = (scores[:, :-1] > score_threshold) & finite[:, None]
    rois, classes = above.nonzero().unbind(dim=1)
    num_boxes = boxes.shape[1] // 4
    boxes = boxes.reshape(-1, num_boxes, 4)
    boxes = Boxes(boxes[rois, classes if num_boxes > 1 else 0])
    boxes.clip(image_size)
    detections = Instances(
        image_size, pred_boxes=boxes, scores=scores[rois, classes], pred_classes=classes
    )
    return detections, rois


def box_nms(
    detections: Instances,
    *,
    method: str,
    iou_threshold: float,
    topk: int,
    sigma: float,
    score_threshold: float,
    boxes: Tensor | None = None,
) -> tuple[Instances, Tensor]:
    """
    NMS or soft-NMS (arXiv 1704.04503) within each class, then the best of the image.

    Args:
        detections: M, with `pred_boxes`, `scores`, `pred_classes`
        method: "hard", "linear" or "gaussian"
        iou_threshold: of "hard" and "linear"
        topk: number of detections to keep, negative for all. As in the MXNet code of Deformable
            ConvNets, soft-NMS takes no more than these of a class, and of the image also keeps
            those that have the score of the last one
        sigma, score_threshold: of soft-NMS, see `dcn_projects.layers.soft_nms`
        boxes: (M, 4), whose overlaps count; None for `pred_boxes`
    Returns:
        tuple[Instances, Tensor]: those kept, with their new scores in descending order, and their
            indices into `detections`
    """
    if boxes is None:
        boxes = detections.pred_boxes.tensor
    scores, classes = detections.scores, detections.pred_classes
    if method == "hard":
        keep = batched_nms(boxes, scores, classes, iou_threshold)
        keep = keep if topk < 0 else keep[:topk]
        return detections[keep], keep
    keep, new_scores = batched_soft_nms(
        boxes,
        scores,
        classes,
        method,
        sigma=sigma,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        # Scores of a class never rise along the list: the rest of it cannot be among the best.
        max_per_class=topk if topk > 0 else None,
    )
    if topk >= 0:
        # Infinity is the least of none.
        last = torch.cat((new_scores[:topk], new_scores.new_tensor([math.inf]))).min()
        best = new_scores >= last
        keep, new_scores = keep[best], new_scores[best]
    kept = detections[keep]
    kept.scores = new_scores
    return kept, keep


@contextlib.contextmanager
def without_nms(outputs: FastRCNNOutputLayers):
    """
    Within this context these outputs, or a cascade whose last ones they are, detect everything that
    scores above `test_score_thresh`, in no particular order.

    `BoxOutputLayers` leave the NMS out. detectron2's own outputs, and cascades of both, do an NMS
    that removes nothing: no overlap is above an IoU of 1, and nothing is cut off.
    """
    off = {"test_nms_thresh": 2.0, "test_topk_per_image": -1}
    if hasattr(outputs, "nms_type"):
        off["nms_type"] = "none"
    before = {name: getattr(outputs, name) for name in off}
    vars(outputs).update(off)
    try:
        yield
    finally:
        vars(outputs).update(before)
