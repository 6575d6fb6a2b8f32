"""The conventions of the MXNet code of Deformable ConvNets, where they differ from detectron2's."""

import math

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    FastRCNNConvFCHead,
)
from torch import Tensor, nn

from dcn_projects.config import reads

from ..box_clipping import clip_to_a_pixel
from .fast_rcnn import BoxOutputLayers
from .roi_heads import DeformROIHeads

__all__ = ["MXNetBoxHead", "MXNetOutputLayers", "MXNetROIHeads"]


@ROI_BOX_HEAD_REGISTRY.register()
class MXNetBoxHead(FastRCNNConvFCHead):
    """
    detectron2's head of convolutions and fully connected layers, whose weights start at N(0, 0.01)
    and whose biases at 0.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class MXNetOutputLayers(BoxOutputLayers):
    """
    Both layers start at N(0, 0.01), and boxes are clipped to at least a pixel, before which their
    sizes are not bounded: detectron2 lets exp(dw) and exp(dh) be at most 1000 / 16.
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
@reads("MODEL.ROI_HEADS.FILL_BATCH")
class MXNetROIHeads(DeformROIHeads):
    """
    Faster R-CNN with two fully connected layers (arXiv 1703.06211, Sec. 2.3), on the dilated res5,
    which a 1x1 convolution narrows first, or on a feature pyramid without it. RoI pooling is that
    of the original, plain or deformable.
    """

    output_layers = MXNetOutputLayers

    @configurable
    def __init__(self, *, fill_batch: bool = False, **kwargs):
        """
        Args:
            fill_batch: where fewer RoIs than wanted can be sampled, repeat background, including
                RoIs that the matcher ignores, until there are as many
            others: as in DeformROIHeads
        """
        super().__init__(**kwargs)
        self.fill_batch = fill_batch

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
        ret["fill_batch"] = cfg.MODEL.ROI_HEADS.FILL_BATCH
        return ret

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
