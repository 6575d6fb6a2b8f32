import math

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_box_head
from torch import Tensor, nn

from ..box_clipping import clip_to_a_pixel
from ..poolers import build_box_pooler
from .ohem import OHEMFastRCNNOutputLayers, OHEMROIHeads

__all__ = ["MXNetOutputLayers", "MXNetROIHeads"]


class MXNetOutputLayers(OHEMFastRCNNOutputLayers):
    """
    Outputs of the MXNet code of Deformable ConvNets: both layers start at N(0, 0.01), and boxes
    are clipped to at least a pixel, before which their sizes are not bounded.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.normal_(self.bbox_pred.weight, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
        ret["box2box_transform"] = Box2BoxTransform(weights, scale_clamp=math.inf)
        return ret

    def predict_boxes(self, predictions, proposals):
        """As in FastRCNNOutputLayers: a list of (R, 4) or (R, 4K), clipped to the image of each."""
        return [
            clip_to_a_pixel(boxes.reshape(-1, 4), p.image_size).view_as(boxes)
            for boxes, p in zip(super().predict_boxes(predictions, proposals), proposals)
        ]


@ROI_HEADS_REGISTRY.register()
class MXNetROIHeads(OHEMROIHeads):
    """
    detectron2's heads, with hard example mining (`OHEMROIHeads`) and the box branch of the MXNet
    code of Deformable ConvNets: Faster R-CNN with two fully connected layers (arXiv 1703.06211,
    Sec. 2.3), on the dilated res5, which a 1x1 convolution narrows first, or on a feature pyramid
    without it. RoI pooling is that of the original, plain or deformable (`build_box_pooler`).
    """

    @configurable
    def __init__(self, *, conv_new: nn.Module | None = None, fill_batch: bool = False, **kwargs):
        """
        Args:
            conv_new: convolution of each feature map before it is pooled; None has none
            fill_batch: where fewer RoIs than wanted can be sampled, repeat background, including
                RoIs that the matcher ignores, until there are as many
            others: as in OHEMROIHeads
        """
        super().__init__(**kwargs)
        self.conv_new = conv_new
        self.fill_batch = fill_batch

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
        ret["fill_batch"] = cfg.MODEL.ROI_HEADS.FILL_BATCH
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        keys = cfg.MODEL.ROI_BOX_HEAD
        ret = {"box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES}
        shapes = [input_shape[f] for f in ret["box_in_features"]]
        if len({s.channels for s in shapes}) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES {ret['box_in_features']} differ in their channels: "
                f"{[s.channels for s in shapes]}"
            )
        if keys.REDUCED_DIM < 0:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.REDUCED_DIM is {keys.REDUCED_DIM}, expected channels, or 0 "
                "for no convolution"
            )
        if keys.REDUCED_DIM > 0:
            ret["conv_new"] = Conv2d(shapes[0].channels, keys.REDUCED_DIM, kernel_size=1)
            nn.init.normal_(ret["conv_new"].weight, std=0.01)
            nn.init.zeros_(ret["conv_new"].bias)
            shapes = [ShapeSpec(channels=keys.REDUCED_DIM, stride=s.stride) for s in shapes]
        ret["box_pooler"] = build_box_pooler(cfg, shapes)
        height, width = ret["box_pooler"].output_size
        ret["box_head"] = build_box_head(
            cfg, ShapeSpec(channels=shapes[0].channels, height=height, width=width)
        )
        ret["box_predictor"] = MXNetOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

    def _forward_box(self, features: dict[str, Tensor], proposals):
        if self.conv_new is not None:
            features = {f: F.relu_(self.conv_new(features[f])) for f in self.box_in_features}
        return super()._forward_box(features, proposals)

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor):
        """
        As in ROIHeads: the sampled proposals and their classes, (S,) each. What fills up the batch
        is drawn from all proposals that are not foreground, each once before any is taken twice.
        """
        sampled, classes = super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        missing = self.batch_size_per_image - len(sampled)
        others = (matched_labels != 1).nonzero()[:, 0]
        if not self.fill_batch or missing <= 0 or len(others) == 0:
            return sampled, classes
        rounds = -(-missing // len(others))
        drawn = torch.cat(
            [others[torch.randperm(len(others), device=others.device)] for _ in range(rounds)]
        )[:missing]
        background = torch.full_like(drawn, self.num_classes)
        return torch.cat((sampled, drawn)), torch.cat((classes, background))
