"""The conventions of the MXNet code of Deformable ConvNets, where they differ from detectron2's."""

import functools
import logging
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
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from dcn_projects.config import reads

from ..box_clipping import clip_to_a_pixel, with_last_pixel_of_image
from .fast_rcnn import BoxOutputLayers
from .roi_heads import DeformROIHeads

__all__ = ["MXNetBoxHead", "MXNetOutputLayers", "MXNetROIHeads", "tell_scale"]


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


def tell_scale(proposals: list[Instances], images: ImageList | None) -> None:
    """
    Give the proposals a field that `MXNetOutputLayers` need, if the images have it: `input_scale`,
    (R, 2), x and y, the pixels of the network's input per pixel of the image as it is wanted. The
    original has one number for both, of before it rounded the sides of the resized image.

    Args:
        proposals: of each image
        images: of a `MXNetFasterRCNN`, with `output_sizes`; others are not known to be scaled
    """
    for p, (height, width) in zip(proposals, getattr(images, "output_sizes", ())):
        input_height, input_width = p.image_size
        ones = torch.ones_like(p.proposal_boxes.tensor[:, :1])
        scale = ones * (input_width / width), ones * (input_height / height)
        p.input_scale = torch.cat(scale, dim=1)


@functools.cache
def _warn_of_unknown_scale() -> None:
    logging.getLogger(__name__).warning(
        "The model does not tell its heads how images are scaled: their last NMS is as if images "
        "were not. Set MODEL.META_ARCHITECTURE to MXNetFasterRCNN, or to MXNetRCNN with a feature "
        "pyramid, for the NMS of the original"
    )


class MXNetOutputLayers(BoxOutputLayers):
    """
    Both layers start at N(0, 0.01), and boxes are clipped to at least a pixel, before which their
    sizes are not bounded: detectron2 lets exp(dw) and exp(dh) be at most 1000 / 16.

    The last NMS, also a soft one, is that of the original: of the scores above the threshold, in
    each class, and on boxes that were divided by the scale, see `with_last_pixel_of_image`.
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

    def inference(self, predictions, proposals: list[Instances]):
        """
        As in BoxOutputLayers.

        Args:
            predictions: scores (R, K + 1) and deltas (R, 4) or (R, 4K)
            proposals: of each image, with `input_scale` of `tell_scale`. Without it, NMS is on
                boxes in the network's input, of which a warning is logged once
        """
        return self.detect(predictions, proposals)

    def suppress(self, detections, proposals):
        """As in BoxOutputLayers, on boxes that were divided by the scale."""
        boxes = detections.pred_boxes.tensor
        if proposals.has("input_scale"):
            boxes = with_last_pixel_of_image(boxes, proposals.input_scale)
        else:
            _warn_of_unknown_scale()
        return super().suppress(detections, boxes=boxes)


@ROI_HEADS_REGISTRY.register()
@reads("MODEL.ROI_HEADS.FILL_BATCH")
class MXNetROIHeads(DeformROIHeads):
    """
    Faster R-CNN with two fully connected layers (arXiv 1703.06211, Sec. 2.3), on the dilated res5,
    which a 1x1 convolution narrows first, or on a feature pyramid without it. RoI pooling is that
    of the original, plain or deformable. The meta-architecture is `MXNetFasterRCNN`, or a class
    derived from it, so that the heads know the scale of an image.
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

    def forward(self, images, features, proposals, targets=None):
        """As in detectron2's heads."""
        if not self.training:
            tell_scale(proposals, images)
        return super().forward(images, features, proposals, targets)

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
