import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cross_entropy
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from fvcore.nn import smooth_l1_loss

from .fast_rcnn import SoftNMSFastRCNNOutputLayers

__all__ = ["OHEMFastRCNNOutputLayers", "OHEMROIHeads"]


class OHEMFastRCNNOutputLayers(SoftNMSFastRCNNOutputLayers):
    """
    detectron2's outputs, whose losses see only the hardest RoIs of each image: online hard example
    mining (arXiv 1604.03540) in the form of R-FCN (arXiv 1605.06409, Sec. 2), without NMS among
    the RoIs and without a share of foreground. For that the heads label all proposals rather than
    sample them: ROI_HEADS.BATCH_SIZE_PER_IMAGE above their number, POSITIVE_FRACTION 1. Otherwise
    the hardest are those of the sampled.
    """

    @configurable
    def __init__(self, input_shape, *, ohem_num: int = 0, ohem_box_loss: bool = True, **kwargs):
        """
        Args:
            ohem_num: RoIs kept per image; 0 keeps all
            ohem_box_loss: the choice is by both losses, and for both. False: it is by the cross
                entropy alone, and the box loss is that of all RoIs
        """
        super().__init__(input_shape, **kwargs)
        self.ohem_num = ohem_num
        self.ohem_box_loss = ohem_box_loss

    @classmethod
    def from_config(cls, cfg, input_shape):
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
        ret = super().from_config(cfg, input_shape)
        ret["ohem_num"] = keys.OHEM_NUM
        ret["ohem_box_loss"] = keys.OHEM_BOX_LOSS
        return ret

    def losses(self, predictions, proposals):
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

    def keep_hardest(self, predictions, proposals):
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
    def loss_per_roi(self, predictions, proposals):
        """
        Returns:
            Tensor: (R,), cross entropy, plus for a foreground RoI, with `ohem_box_loss`, the sum of
            SmoothL1 over the four deltas of its class; both with their weights in the total loss
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


@ROI_HEADS_REGISTRY.register()
class OHEMROIHeads(StandardROIHeads):
    """
    detectron2's heads of Faster and Mask R-CNN, where MODEL.ROI_BOX_HEAD.OHEM_NUM switches hard
    example mining on in the box branch, and MODEL.ROI_HEADS.NMS_TYPE soft-NMS. Put before other
    heads with one box predictor, it does the same for them:
    `class MyOHEMROIHeads(OHEMROIHeads, MyROIHeads)`. Branches for masks and keypoints still learn
    from all foreground RoIs.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = OHEMFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

    def _forward_box(self, features, proposals):
        """
        As in StandardROIHeads, in training in two passes (arXiv 1604.03540, Sec. 4): all RoIs
        without gradients, then those that were hardest. That is cheaper than one pass, and the same
        unless the box head has batch normalisation.
        """
        # With predicted boxes as proposals, other branches need the predictions of all RoIs.
        outputs = self.box_predictor
        hardest_only = outputs.ohem_num > 0 and outputs.ohem_box_loss
        if self.training and hardest_only and not self.train_on_pred_boxes:
            with torch.no_grad():
                maps = [features[f] for f in self.box_in_features]
                pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
                predictions = self.box_predictor(self.box_head(pooled))
            # Under autocast an older PyTorch (2.4) goes on with the weights that were cast here,
            # which have no gradient.
            torch.clear_autocast_cache()
            _, proposals = self.box_predictor.keep_hardest(predictions, proposals)
        return super()._forward_box(features, proposals)
