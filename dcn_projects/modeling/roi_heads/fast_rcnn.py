from detectron2.config import configurable
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from ..box_nms import box_nms, detections_above, soft_nms_options

__all__ = ["SoftNMSFastRCNNOutputLayers"]


class SoftNMSFastRCNNOutputLayers(FastRCNNOutputLayers):
    """
    detectron2's outputs, with soft-NMS (arXiv 1704.04503) where MODEL.ROI_HEADS.NMS_TYPE asks for
    it; with "hard" they are detectron2's own. `OHEMROIHeads` and what is derived from it have them;
    other heads call `box_predictor.inference(predictions, proposals)`, on which test-time
    augmentation relies too.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        nms_type: str = "hard",
        soft_nms_sigma: float = 0.5,
        soft_nms_score_thresh: float = 0.001,
        **kwargs,
    ):
        """
        Args:
            nms_type: "hard", "linear" or "gaussian". The first two use `test_nms_thresh`
            soft_nms_sigma: width of the Gaussian
            soft_nms_score_thresh: soft-NMS drops a box whose score does not stay above this
        """
        super().__init__(input_shape, **kwargs)
        self.nms_type = nms_type
        self.soft_nms_sigma = soft_nms_sigma
        self.soft_nms_score_thresh = soft_nms_score_thresh

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        options = soft_nms_options(cfg)
        ret["nms_type"] = options["method"]
        ret["soft_nms_sigma"] = options["sigma"]
        ret["soft_nms_score_thresh"] = options["score_threshold"]
        return ret

    def inference(self, predictions, proposals: list[Instances]):
        """
        Scores above `test_score_thresh`, NMS within each class, then the best
        `test_topk_per_image` of the image.

        Returns:
            list[Instances], list[Tensor]: as in FastRCNNOutputLayers
        """
        if self.nms_type == "hard":
            return super().inference(predictions, proposals)
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        detections, rois = [], []
        for b, s, p in zip(boxes, scores, proposals):
            kept, of = self.inference_single_image(b, s, p.image_size)
            detections.append(kept)
            rois.append(of)
        return detections, rois

    def inference_single_image(
        self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]
    ) -> tuple[Instances, Tensor]:
        """Arguments of `detections_above`; the detections of an image and their RoIs."""
        found, rois = detections_above(boxes, scores, image_size, self.test_score_thresh)
        kept, indices = box_nms(
            found,
            method=self.nms_type,
            iou_threshold=self.test_nms_thresh,
            topk=self.test_topk_per_image,
            sigma=self.soft_nms_sigma,
            score_threshold=self.soft_nms_score_thresh,
        )
        return kept, rois[indices]
