from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads

from ..dynamic_training import DynamicTraining
from .ohem import OHEMROIHeads

__all__ = ["DynamicCascadeROIHeads", "DynamicROIHeads"]


@ROI_HEADS_REGISTRY.register()
class DynamicROIHeads(OHEMROIHeads):
    """
    Heads of Dynamic R-CNN (arXiv 2004.06002): `DynamicTraining` in the heads of Faster and Mask
    R-CNN, with OHEM and soft-NMS where they are switched on. Inference is as ever.
    """

    @configurable
    def __init__(self, *, dynamic: DynamicTraining, **kwargs):
        super().__init__(proposal_matcher=dynamic.matchers[0], **kwargs)
        self.dynamic = dynamic

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret.pop("proposal_matcher")
        keys = cfg.MODEL.DYNAMIC_RCNN
        key = "DYNAMIC_RCNN.WARMUP_IOU" if keys.DLA else "ROI_HEADS.IOU_THRESHOLDS"
        thresholds = [keys.WARMUP_IOU] if keys.DLA else list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)
        if len(thresholds) != 1:
            raise ValueError(f"MODEL.{key} is {thresholds}, expected one IoU")
        ret["dynamic"] = DynamicTraining.from_config(cfg, thresholds, key)
        return ret

    def forward(self, images, features, proposals, targets=None):
        """As in StandardROIHeads."""
        if not self.training:
            return super().forward(images, features, proposals)
        self.dynamic.begin_stage(
            0, proposals, targets, self.box_predictor, append_gt=self.proposal_append_gt
        )
        result = super().forward(images, features, proposals, targets)
        self.dynamic.end_iteration()
        return result


@ROI_HEADS_REGISTRY.register()
class DynamicCascadeROIHeads(CascadeROIHeads):
    """
    Heads of Cascade R-CNN (arXiv 1712.00726), each stage of which has a threshold and a beta that
    move (`DynamicTraining`). Those of a stage start at its IOUS and stay above; its statistics are
    those of the boxes that it gets. No paper describes it.
    """

    @configurable
    def __init__(self, *, dynamic: DynamicTraining, **kwargs):
        super().__init__(proposal_matchers=dynamic.matchers, **kwargs)
        self.dynamic = dynamic

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret.pop("proposal_matchers")
        thresholds = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        ret["dynamic"] = DynamicTraining.from_config(cfg, thresholds, "ROI_BOX_CASCADE_HEAD.IOUS")
        return ret

    def forward(self, images, features, proposals, targets=None):
        """As in CascadeROIHeads."""
        if not self.training:
            return super().forward(images, features, proposals)
        self.dynamic.begin_stage(
            0, proposals, targets, self.box_predictor[0], append_gt=self.proposal_append_gt
        )
        result = super().forward(images, features, proposals, targets)
        self.dynamic.end_iteration()
        return result

    def _match_and_label_boxes(self, proposals, stage, targets):
        self.dynamic.begin_stage(stage, proposals, targets, self.box_predictor[stage])
        return super()._match_and_label_boxes(proposals, stage, targets)
