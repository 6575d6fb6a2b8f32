from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, build_box_head

from dcn_projects.config import reads

from ..box_nms import without_nms
from ..dynamic_rcnn import DynamicTraining
from .roi_heads import CombinedROIHeads

__all__ = ["DeformCascadeROIHeads", "DynamicCascadeROIHeads"]


def check_cascade(cfg) -> None:
    """Raises ValueError, naming the key, for what the base class answers with a bare assertion."""
    cascade, keys = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {cascade.IOUS} and BBOX_REG_WEIGHTS "
            f"{cascade.BBOX_REG_WEIGHTS}: a stage needs one of each"
        )
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {keys.NAME}: a cascade has one box for all classes, so "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True"
        )
    if cascade.IOUS[0] != keys.IOU_THRESHOLDS[0]:
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS begins with {cascade.IOUS[0]}, and "
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS with {keys.IOU_THRESHOLDS[0]}: they must be equal"
        )


@ROI_HEADS_REGISTRY.register()
@reads(checks=[check_cascade])
class DeformCascadeROIHeads(CombinedROIHeads, CascadeROIHeads):
    """
    detectron2's heads of Cascade R-CNN (arXiv 1712.00726), with all of `CombinedROIHeads`. All
    stages share the RoI pooling. Each stage mines hard examples of its own, among the boxes that
    it gets. Soft-NMS takes the boxes of the last stage and the mean score of all. Mimicking is
    that of the first stage's features.

    Each stage has its own moving threshold and beta: they start at its IOUS and stay above; their
    statistics are those of the boxes that it gets. No paper describes this.
    """

    rounds_as_original = True

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        # In the order of the base class, which would also draw predictors of detectron2 that these
        # heads replace. So a seed gives the same network as in version 0.1.
        check_cascade(cfg)
        ret, pooled = cls._init_box_pooler(cfg, input_shape)
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        heads, outputs = [], []
        cfg = cfg.clone()
        cfg.defrost()
        for weights in cascade.BBOX_REG_WEIGHTS:
            cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = weights
            heads.append(build_box_head(cfg, pooled))
            outputs.append(cls.output_layers(cfg, heads[-1].output_shape))
        matchers = [Matcher([iou], [0, 1]) for iou in cascade.IOUS]
        return {**ret, "box_heads": heads, "box_predictors": outputs, "proposal_matchers": matchers}

    @classmethod
    def _init_dynamic(cls, cfg):
        thresholds = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        dynamic = DynamicTraining.from_config(cfg, thresholds, "ROI_BOX_CASCADE_HEAD.IOUS")
        return {"dynamic": dynamic, "proposal_matchers": dynamic.matchers}

    def _forward_box(self, features, proposals, targets=None):
        features, last = self._narrow(features), self.box_predictor[-1]
        if self.training or last.nms_type in ("hard", "none"):
            return super()._forward_box(features, proposals, targets)
        # The base class does its NMS in the same method as its stages.
        with without_nms(last):
            found = super()._forward_box(features, proposals)
        return [last.suppress(detections)[0] for detections in found]

    def _match_and_label_boxes(self, proposals, stage, targets):
        if self.dynamic is not None:
            self.dynamic.begin_stage(stage, proposals, targets, self.box_predictor[stage])
        return super()._match_and_label_boxes(proposals, stage, targets)


@ROI_HEADS_REGISTRY.register()
class DynamicCascadeROIHeads(DeformCascadeROIHeads):
    """`DeformCascadeROIHeads` that are always dynamic, with detectron2's "ROIPool"."""

    always_dynamic = True
    rounds_as_original = False
