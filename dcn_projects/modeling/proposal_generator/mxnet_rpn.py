import math

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn

from dcn_projects.config import reads

from ..box_clipping import clip_to_a_pixel

__all__ = ["MXNetRPN", "MXNetRPNHead"]


@RPN_HEAD_REGISTRY.register()
class MXNetRPNHead(StandardRPNHead):
    """
    detectron2's head, which starts as the two-way softmax of the original. Its one logit is the
    difference of the original's two, softmax(a, b)_a = sigmoid(a - b), so that its weights are
    w_fg - w_bg, both of which start at N(0, 0.01). Of any loss, the gradients of w_fg and w_bg are
    opposite: a step moves the difference by d(w_fg - w_bg) = 2 d w_fg, twice as far as a step of
    the one filter here. So give `objectness_logits` a factor of 2 in SOLVER.LR_FACTORS (which also
    doubles its decay, unlike the original's).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Var(a - b) = 2 Var(a), for independent a and b of equal variance.
        nn.init.normal_(self.objectness_logits.weight, std=0.01 * 2**0.5)


@PROPOSAL_GENERATOR_REGISTRY.register()
@reads("MODEL.RPN.IMAGE_STRIDE")
class MXNetRPN(RPN):
    """
    RPN with the conventions of the MXNet code of Deformable ConvNets where they differ from
    detectron2's: which anchors are matched, which cells propose, how proposals are clipped, that
    the levels of a pyramid compete with each other, and the mean that the classification loss
    takes. Box sizes are not bounded before they are clipped.
    """

    @configurable
    def __init__(self, *, image_stride: int = 1, **kwargs):
        """
        Args:
            image_stride: proposals may reach into the padding of an image, up to the next
                multiple of this many pixels
        """
        super().__init__(**kwargs)
        self.image_stride = image_stride

    @classmethod
    def from_config(cls, cfg, input_shape):
        keys = cfg.MODEL.RPN
        if keys.IMAGE_STRIDE < 1:
            raise ValueError(f"MODEL.RPN.IMAGE_STRIDE is {keys.IMAGE_STRIDE}, expected 1 or more")
        ret = super().from_config(cfg, input_shape)
        ret["image_stride"] = keys.IMAGE_STRIDE
        ret["box2box_transform"] = Box2BoxTransform(keys.BBOX_REG_WEIGHTS, scale_clamp=math.inf)
        return ret

    @torch.no_grad()
    def label_and_sample_anchors(self, anchors, gt_instances):
        """
        As in RPN, but the anchors that BOUNDARY_THRESH leaves out do not take part in the matching,
        where RPN only takes their labels away. So an object whose best anchor crosses the border
        of the image still has a positive one.
        """
        anchors = Boxes.cat(anchors)
        labels, matched_boxes = [], []
        for targets in gt_instances:
            inside = torch.arange(len(anchors), device=anchors.device)
            if self.anchor_boundary_thresh >= 0:
                inside = inside[anchors.inside_box(targets.image_size, self.anchor_boundary_thresh)]
            iou = pairwise_iou(targets.gt_boxes, anchors[inside])
            # An object that touches no anchor would have all of them as its best.
            touched = (iou > 0).any(dim=1)
            boxes = targets.gt_boxes.tensor[touched]
            matches, inside_labels = self.anchor_matcher(iou[touched])
            label = torch.full((len(anchors),), -1, dtype=torch.int8, device=anchors.device)
            label[inside] = inside_labels
            matched = torch.zeros_like(anchors.tensor)
            if len(boxes) > 0:
                matched[inside] = boxes[matches]
            labels.append(self._subsample_labels(label))
            matched_boxes.append(matched)
        return labels, matched_boxes

    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """
        As in RPN, but the classification loss is the mean over the S anchors that were sampled in
        the batch, L_cls = (1 / S) * sum of their cross entropies. RPN divides the sum by
        BATCH_SIZE_PER_IMAGE times the images, which may be more than S. The box loss is still
        divided by that.
        """
        losses = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        num_sampled = (torch.stack(gt_labels) >= 0).sum().clamp(min=1)
        expected = self.batch_size_per_image * len(gt_labels)  # what RPN has divided by
        losses["loss_rpn_cls"] = losses["loss_rpn_cls"] * (expected / num_sampled)
        return losses

    @torch.no_grad()
    def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        """
        As in RPN, with three differences. Only cells that lie wholly inside their own image
        propose: floor(H / stride) x floor(W / stride) of them, whatever the batch was padded to. A
        box is clipped to at least one pixel, so that none is dropped for being outside. And the
        best are chosen from all levels together, by one NMS.
        """
        proposals = []
        for i, image_size in enumerate(image_sizes):
            # In whole numbers, which stay those of the image while a model is traced.
            height, width = (
                -(-size // self.image_stride) * self.image_stride for size in image_size
            )
            boxes, logits = [], []
            for level, stride in enumerate(self.anchor_generator.strides):
                centers = anchors[level].get_centers()
                inside = (centers[:, 0] < width // stride * stride) & (
                    centers[:, 1] < height // stride * stride
                )
                box = self.box2box_transform.apply_deltas(
                    pred_anchor_deltas[level][i][inside], anchors[level].tensor[inside]
                )
                boxes.append(clip_to_a_pixel(box, (height, width)))
                logits.append(pred_objectness_logits[level][i][inside])
            (proposal,) = find_top_rpn_proposals(
                [torch.cat(boxes)[None]],
                [torch.cat(logits)[None]],
                [(height, width)],
                self.nms_thresh,
                self.pre_nms_topk[self.training],
                self.post_nms_topk[self.training],
                self.min_box_size,
                self.training,
            )
            proposals.append(Instances(image_size, **proposal.get_fields()))
        return proposals
