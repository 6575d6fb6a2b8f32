import contextlib
import functools

import torch
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import nn

from .box_clipping import with_last_pixel_of_image
from .box_nms import box_nms, soft_nms_options, without_nms
from .roi_heads import MXNetOutputLayers

__all__ = ["MultiScaleMapper", "MultiScaleTTA", "augmentation_options"]


def augmentation_options(cfg) -> dict:
    """
    Returns:
        dict: `scales`, a list of (short side, longest side) in pixels; `flip`; `raw`, whether boxes
        are joined before NMS
    Raises:
        ValueError: naming the key whose value cannot be used
    """
    keys = cfg.TEST.AUG
    if keys.MERGE not in ("detections", "raw"):
        raise ValueError(f"TEST.AUG.MERGE must be detections or raw, got {keys.MERGE!r}")
    scales = keys.SCALES or [(size, keys.MAX_SIZE) for size in keys.MIN_SIZES]
    for scale in scales:
        if not isinstance(scale, (list, tuple)) or len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                "TEST.AUG.SCALES (or MIN_SIZES and MAX_SIZE) must be pairs of a short side and a "
                f"long side that is not below it, got {scale}"
            )
    if not scales:
        raise ValueError("TEST.AUG.SCALES and TEST.AUG.MIN_SIZES are both empty")
    return {"scales": scales, "flip": keys.FLIP, "raw": keys.MERGE == "raw"}


class MultiScaleMapper:
    """DatasetMapperTTA, in which each scale has a limit of its own for the long side."""

    def __init__(self, scales: list[tuple[int, int]], flip: bool):
        """
        Args:
            scales: length of the short side, and what the long side may not exceed
            flip: give each scale a second time, mirrored
        """
        self.mappers = [
            DatasetMapperTTA(min_sizes=[short], max_size=long, flip=flip) for short, long in scales
        ]

    def __call__(self, dataset_dict: dict) -> list[dict]:
        """As DatasetMapperTTA: the views of an image, scale by scale. Not in a traced model."""
        if torch.jit.is_tracing():
            raise ValueError(
                "TEST.AUG: the views of an image are made in NumPy, which a trace does not record. "
                "Trace the model itself, without test-time augmentation"
            )
        return [view for mapper in self.mappers for view in mapper(dataset_dict)]


class MultiScaleTTA(GeneralizedRCNNWithTTA):
    """
    Test-time augmentation by scales and flips, for GeneralizedRCNN and what is derived from it,
    with the NMS of MODEL.ROI_HEADS.NMS_TYPE over the boxes of all views. There are two ways to
    merge them:

        "detections"  as in detectron2, the boxes that each view keeps after its own NMS
        "raw"         as in the MXNet code of Deformable ConvNets and in Dynamic R-CNN (arXiv
                      2004.06002), all boxes that score above SCORE_THRESH_TEST: there is one NMS

    Heads with `MXNetOutputLayers` have the NMS of the original, on boxes that were divided by the
    scale of their view, see `with_last_pixel_of_image`.
    """

    def __init__(self, cfg, model, tta_mapper=None, batch_size: int | None = None):
        """
        Args:
            cfg, model, tta_mapper: as in GeneralizedRCNNWithTTA
            batch_size: views that pass the model together. They are padded to one size, which can
                change what is found. None is 1 for "raw", and 3, as in detectron2, otherwise
        Raises:
            ValueError: if a key has a value that cannot be used
            TypeError: if the box head cannot return its boxes and scores before NMS
        """
        options = augmentation_options(cfg)
        raw = options.pop("raw")
        mapper = tta_mapper or MultiScaleMapper(**options)
        super().__init__(cfg, model, mapper, batch_size or (1 if raw else 3))
        self.raw = raw
        self.nms = functools.partial(
            box_nms,
            iou_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            topk=cfg.TEST.DETECTIONS_PER_IMAGE,
            **soft_nms_options(cfg),
        )
        if self.raw and not isinstance(self._box_predictor, FastRCNNOutputLayers):
            raise TypeError(
                f"TEST.AUG.MERGE raw: {type(self.model.roi_heads).__name__} has no box_predictor "
                "that is a FastRCNNOutputLayers"
            )

    @property
    def _box_predictor(self):
        """The one whose thresholds count: in a cascade, which has several, the last."""
        predictor = getattr(self.model.roi_heads, "box_predictor", None)
        return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor

    def _get_augmented_boxes(self, augmented_inputs, tfms):
        """
        Boxes, scores and classes of all views, the boxes in the frame of the original image:
        (M, 4), or (M, 8), where the last four are what NMS sees of a box.
        """
        with without_nms(self._box_predictor) if self.raw else contextlib.nullcontext():
            outputs = self._batch_inference(augmented_inputs)
        boxes = []
        for view, output, tfm in zip(augmented_inputs, outputs, tfms):
            seen = [output.pred_boxes.tensor]
            if isinstance(self._box_predictor, MXNetOutputLayers):
                height, width = view["image"].shape[1:]
                scale = seen[0].new_tensor([width / view["width"], height / view["height"]])
                seen.append(with_last_pixel_of_image(seen[0], scale))
            back = tfm.inverse()
            original = [back.apply_box(b.float().cpu().numpy()) for b in seen]
            boxes.append(torch.cat([torch.from_numpy(b).to(seen[0]) for b in original], dim=1))
        scores = torch.cat([output.scores for output in outputs])
        classes = torch.cat([output.pred_classes for output in outputs])
        return torch.cat(boxes), scores, classes

    def _merge_detections(self, all_boxes, all_scores, all_classes, shape_hw):
        boxes, *in_nms = all_boxes.split(4, dim=1)
        boxes = Boxes(boxes)
        boxes.clip(shape_hw)
        found = Instances(shape_hw, pred_boxes=boxes, scores=all_scores, pred_classes=all_classes)
        merged, _ = self.nms(found, boxes=in_nms[0] if in_nms else None)
        return merged[merged.pred_boxes.nonempty()]
