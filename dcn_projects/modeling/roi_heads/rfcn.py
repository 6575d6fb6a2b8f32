import math

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor

from dcn_projects.layers import DeformROIPool, PSROIPool

from .mxnet_heads import MXNetOutputLayers

__all__ = ["RFCNROIHeads"]


class RFCNOutputs(MXNetOutputLayers):
    """Losses and inference of Fast R-CNN on votes, which need no layer of their own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.cls_score, self.bbox_pred


@ROI_HEADS_REGISTRY.register()
class RFCNROIHeads(ROIHeads):
    """
    Position-sensitive RoI pooling and voting (arXiv 1605.06409, Sec. 2), plain or deformable
    (arXiv 1703.06211, Eq. 5-6 and Fig. 4). It has no parameters: the score maps are made by the
    meta-architecture `RFCN`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_predictor: RFCNOutputs,
        pooler: torch.nn.Module,
        offset_pooler: torch.nn.Module | None = None,
        **kwargs,
    ):
        """
        Args:
            box_predictor: losses and inference
            pooler: of the score maps
            offset_pooler: of the offset maps; None pools without offsets
        """
        super().__init__(**kwargs)
        self.box_predictor = box_predictor
        self.pooler = pooler
        self.offset_pooler = offset_pooler

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "R-FCN has one box for all classes: "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True"
            )
        features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(features) != 1:
            raise ValueError(f"MODEL.ROI_HEADS.IN_FEATURES is {features}: R-FCN reads one map")
        keys = cfg.MODEL.RFCN
        if keys.SAMPLING_RATIO < 1:
            raise ValueError(
                f"MODEL.RFCN.SAMPLING_RATIO is {keys.SAMPLING_RATIO}, expected 1 or more"
            )
        size = dict(
            output_size=keys.GROUP_SIZE,
            spatial_scale=1.0 / input_shape[features[0]].stride,
            group_size=keys.GROUP_SIZE,
        )
        ret = super().from_config(cfg)
        ret["box_predictor"] = RFCNOutputs(cfg, ShapeSpec(channels=1))
        if keys.DEFORM_POOL:
            size.update(sampling_ratio=keys.SAMPLING_RATIO, gamma=keys.GAMMA)
            ret["pooler"] = DeformROIPool(**size)
            ret["offset_pooler"] = DeformROIPool(**size)
        else:
            ret["pooler"] = PSROIPool(**size)
        return ret

    def forward(
        self,
        images: ImageList,
        maps: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """
        Args:
            images: not used
            maps: score maps of `RFCNScoreMaps`
            proposals, targets: as in ROIHeads
        Returns:
            as in ROIHeads: detections and, in training, losses
        Raises:
            ValueError: if a map is missing, or does not have as many channels as the bins need
        """
        self.check_channels(maps)
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        rois = convert_boxes_to_pooler_format([p.proposal_boxes for p in proposals])
        predictions = self.vote(maps, rois, "cls"), self.vote(maps, rois, "bbox")
        if self.training:
            return proposals, self.box_predictor.losses(predictions, proposals)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return detections, {}

    def check_channels(self, maps: dict[str, Tensor]):
        depths = {"cls": self.num_classes + 1, "bbox": 4}
        if self.offset_pooler is not None:
            depths |= {"cls_offset": 2 * depths["cls"], "bbox_offset": 2}
        bins = math.prod(self.pooler.group_size)
        needed = {name: bins * depth for name, depth in depths.items()}
        channels = {name: x.shape[1] for name, x in maps.items()}
        if channels != needed:
            raise ValueError(
                f"RFCNROIHeads needs maps with these channels: {needed}, and gets {channels}. "
                "MODEL.META_ARCHITECTURE must be RFCN, or make such maps of "
                "MODEL.RFCN.GROUP_SIZE^2 bins for MODEL.ROI_HEADS.NUM_CLASSES"
            )

    def vote(self, maps: dict[str, Tensor], rois: Tensor, kind: str) -> Tensor:
        """
        Args:
            maps: score maps of `RFCNScoreMaps`
            rois: (R, 5)
            kind: "cls" or "bbox"
        Returns:
            Tensor: (R, D), float32, the mean over the k x k bins; empty bins count as 0
        """
        # In 16 bits an offset would be off by tenths of a pixel in a large RoI.
        if self.offset_pooler is None:
            pooled = self.pooler(maps[kind].float(), rois)
        else:
            offset = self.offset_pooler(maps[kind + "_offset"].float(), rois)
            pooled = self.pooler(maps[kind].float(), rois, offset)
        return pooled.mean(dim=(2, 3))
