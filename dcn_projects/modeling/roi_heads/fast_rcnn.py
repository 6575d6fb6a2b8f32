"""
What a box head predicts, learns and detects. Letters: R RoIs of a batch, K classes without the
background, which is class K. Predictions are scores (R, K + 1), as logits, and deltas (R, 4K), or
(R, 4) where all classes share a box.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cross_entropy
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from dcn_projects.config import reads

from ..box_nms import box_nms, detections_above, soft_nms_options

__all__ = ["BoxOutputLayers", "ohem_options"]


def ohem_options(cfg) -> dict:
    """
    Returns:
        dict: arguments `ohem_num` and `ohem_box_loss` of `BoxOutputLayers`
    Raises:
        ValueError: naming the key whose value cannot be used
    """
    keys = cfg.MODEL.ROI_BOX_HEAD
    sampled = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    if not 0 <= keys.OHEM_NUM <= sampled:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.OHEM_NUM is {keys.OHEM_NUM}, expected 0 (off) or some of the "
            f"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = {sampled} RoIs"
        )
    by_box_loss = keys.OHEM_NUM > 0 and keys.OHEM_BOX_LOSS
    if by_box_loss and keys.BBOX_REG_LOSS_TYPE != "smooth_l1":
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {keys.BBOX_REG_LOSS_TYPE}: OHEM_NUM > 0 "
            "needs smooth_l1, or OHEM_BOX_LOSS False"
        )
    # Of detectron2's main branch.
    if keys.OHEM_NUM > 0 and keys.get("USE_SIGMOID_CE"):
        raise ValueError(
            "MODEL.ROI_BOX_HEAD.OHEM_NUM > 0 needs USE_SIGMOID_CE False: it ranks RoIs by the "
            "cross entropy of a softmax"
        )
    return {"ohem_num": keys.OHEM_NUM, "ohem_box_loss": keys.OHEM_BOX_LOSS}


@reads(
    "MODEL.ROI_HEADS.NMS_TYPE",
    "MODEL.ROI_HEADS.SOFT_NMS_SIGMA",
    "MODEL.ROI_HEADS.SOFT_NMS_SCORE_THRESH",
    "MODEL.ROI_BOX_HEAD.OHEM_NUM",
    "MODEL.ROI_BOX_HEAD.OHEM_BOX_LOSS",
    checks=[soft_nms_options, ohem_options],
)
class BoxOutputLayers(FastRCNNOutputLayers):
    """
    detectron2's outputs with online hard example mining and soft-NMS, where they are switched on;
    without both they are detectron2's own.

    Online hard example mining (arXiv 1604.03540) has the form of R-FCN (arXiv 1605.06409, Sec. 2),
    without NMS among the RoIs and without a share of foreground: the losses see only the hardest
    RoIs of each image. For that the heads label all proposals rather than sample them:
    ROI_HEADS.BATCH_SIZE_PER_IMAGE above their number, POSITIVE_FRACTION 1. Otherwise the hardest
    are those of the sampled.

    Soft-NMS (arXiv 1704.04503) is that of MODEL.ROI_HEADS.NMS_TYPE, see `box_nms`.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        ohem_num: int = 0,
        ohem_box_loss: bool = True,
        nms_type: str = "hard",
        soft_nms_sigma: float = 0.5,
        soft_nms_score_thresh: float = 0.001,
        **kwargs,
    ):
        """
        Args:
            ohem_num: RoIs kept per image; 0 keeps all
            ohem_box_loss: the choice is by both losses, and for both. False: it is by the cross
                entropy alone, and the box loss is that of all RoIs
            nms_type: "hard", "linear" or "gaussian", of which the first two use `test_nms_thresh`;
                or "none" for everything above `test_score_thresh`, in no particular order
            soft_nms_sigma: width of the Gaussian
            soft_nms_score_thresh: soft-NMS drops a box whose score does not stay above this
            others: as in FastRCNNOutputLayers
        """
        super().__init__(input_shape, **kwargs)
        self.ohem_num = ohem_num
        self.ohem_box_loss = ohem_box_loss
        self.nms_type = nms_type
        self.soft_nms_sigma = soft_nms_sigma
        self.soft_nms_score_thresh = soft_nms_score_thresh

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        soft_nms = soft_nms_options(cfg)
        return {
            **ret,
            **ohem_options(cfg),
            "nms_type": soft_nms["method"],
            "soft_nms_sigma": soft_nms["sigma"],
            "soft_nms_score_thresh": soft_nms["score_threshold"],
        }

    def losses(self, predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """As in FastRCNNOutputLayers: means over the kept RoIs."""
        if self.ohem_num == 0:
            return super().losses(predictions, proposals)
        hardest = self.keep_hardest(predictions, proposals)
        if self.ohem_box_loss:
            return super().losses(*hardest)
        (scores, _), kept = hardest
        loss_cls = cross_entropy(scores, torch.cat([p.gt_classes for p in kept]))
        losses = super().losses(predictions, proposals)
        return {**losses, "loss_cls": loss_cls * self.loss_weight.get("loss_cls", 1.0)}

    def keep_hardest(self, predictions, proposals: list[Instances]):
        """
        Args:
            predictions: scores (R, K + 1) and deltas (R, 4) or (R, 4K)
            proposals: list of N Instances, R in all, with `gt_classes` and `gt_boxes`
        Returns:
            the same two, of the `ohem_num` RoIs of each image whose loss is largest. The choice
            has no gradient.
        """
        loss = self.loss_per_roi(predictions, proposals)
        rows, kept = [], []
        start = 0
        for p in proposals:
            hardest = loss[start : start + len(p)].topk(min(self.ohem_num, len(p))).indices
            rows.append(hardest + start)
            kept.append(p[hardest])
            start += len(p)
        rows = torch.cat(rows)
        return tuple(x[rows] for x in predictions), kept

    @torch.no_grad()
    def loss_per_roi(self, predictions, proposals: list[Instances]) -> Tensor:
        """
        What a RoI adds to the total loss: with the class c and the targets t of a foreground RoI,
        -log softmax(scores)_c + the sum of SmoothL1(deltas_c - t) over its four deltas, each with
        its weight. Background has only the first term, as have all without `ohem_box_loss`.

        Returns:
            Tensor: (R,), float32: a ranking in 16 bits would have ties
        """
        scores, deltas = predictions
        classes = torch.cat([p.gt_classes for p in proposals])
        loss = F.cross_entropy(scores.float(), classes, reduction="none")
        loss *= self.loss_weight.get("loss_cls", 1.0)
        foreground = (classes < self.num_classes).nonzero()[:, 0]
        if foreground.numel() == 0 or not self.ohem_box_loss:
            return loss
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # An image without objects has no gt_boxes, and no foreground either.
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        deltas = deltas.float().view(len(boxes), -1, 4)
        of_class = classes[foreground] if deltas.shape[1] > 1 else torch.zeros_like(foreground)
        targets = self.box2box_transform.get_deltas(boxes[foreground], gt_boxes[foreground])
        box_loss = smooth_l1_loss(deltas[foreground, of_class], targets, self.smooth_l1_beta)
        loss[foreground] += box_loss.sum(dim=1) * self.loss_weight.get("loss_box_reg", 1.0)
        return loss

    def inference(self, predictions, proposals: list[Instances]):
        """
        Scores above `test_score_thresh`, the NMS of `nms_type` within each class, then the best
        `test_topk_per_image` of the image.

        Returns:
            list[Instances], list[Tensor]: as in FastRCNNOutputLayers
        """
        if self.nms_type == "hard":
            return super().inference(predictions, proposals)
        return self.detect(predictions, proposals)

    def detect(self, predictions, proposals: list[Instances]):
        """`inference` with `suppress` as its NMS, also where that is not a soft one."""
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        detections, rois = [], []
        for b, s, p in zip(boxes, scores, proposals):
            found, of = detections_above(b, s, p.image_size, self.test_score_thresh)
            if self.nms_type != "none":
                found, kept = self.suppress(found, p[of])
                of = of[kept]
            detections.append(found)
            rois.append(of)
        return detections, rois

    def suppress(
        self,
        detections: Instances,
        proposals: Instances | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Instances, Tensor]:
        """
        `box_nms` with the options of these outputs.

        Args:
            detections, boxes: as in `box_nms`
            proposals: those of the detections, for classes that derive from this one
        """
        return box_nms(
            detections,
            boxes=boxes,
            method=self.nms_type,
            iou_threshold=self.test_nms_thresh,
            topk=self.test_topk_per_image,
            sigma=self.soft_nms_sigma,
            score_threshold=self.soft_nms_score_thresh,
        )
