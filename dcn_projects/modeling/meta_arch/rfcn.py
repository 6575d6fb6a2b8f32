import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

__all__ = ["RFCN", "RFCNScoreMaps"]


class RFCNScoreMaps(nn.Module):
    """
    The convolutions of R-FCN over the whole image (arXiv 1605.06409, Sec. 2): one that narrows
    the features, and one per map. A map holds k x k channels per class or coordinate, in the order
    (class, bin row, bin column); the background is the last class. With `deform_pool` there are
    also offset maps (arXiv 1703.06211, Sec. 2.2), of 2 k x k channels (x, y) for every class, and
    of one pair for the box. All classes share one box.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        conv_dim: int,
        num_classes: int,
        group_size: int,
        deform_pool: bool,
    ):
        """
        Args:
            in_feature: name of the feature map that is read
            in_channels: its channels
            conv_dim: channels of `conv_new`
            num_classes: K, without the background
            group_size: k
            deform_pool: make offset maps
        """
        super().__init__()
        self.in_feature = in_feature
        bins = group_size**2
        self.conv_new = Conv2d(in_channels, conv_dim, kernel_size=1)
        self.rfcn_cls = Conv2d(conv_dim, bins * (num_classes + 1), kernel_size=1)
        self.rfcn_bbox = Conv2d(conv_dim, bins * 4, kernel_size=1)
        for layer in (self.conv_new, self.rfcn_cls, self.rfcn_bbox):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.deform_pool = deform_pool
        if deform_pool:
            self.rfcn_cls_offset = Conv2d(conv_dim, 2 * bins * (num_classes + 1), kernel_size=1)
            self.rfcn_bbox_offset = Conv2d(conv_dim, 2 * bins, kernel_size=1)
            for layer in (self.rfcn_cls_offset, self.rfcn_bbox_offset):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        keys = cfg.MODEL.RFCN
        for key in ("CONV_DIM", "GROUP_SIZE"):
            if keys[key] < 1:
                raise ValueError(f"MODEL.RFCN.{key} is {keys[key]}, expected 1 or more")
        (feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {
            "in_feature": feature,
            "in_channels": input_shape[feature].channels,
            "conv_dim": keys.CONV_DIM,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "group_size": keys.GROUP_SIZE,
            "deform_pool": keys.DEFORM_POOL,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            features: maps of the backbone, (N, C, H, W) each
        Returns:
            dict: "cls" (N, k*k*(K + 1), H, W), "bbox" (N, k*k*4, H, W), and with `deform_pool`
            "cls_offset" and "bbox_offset"
        """
        x = F.relu_(self.conv_new(features[self.in_feature]))
        maps = {"cls": self.rfcn_cls(x), "bbox": self.rfcn_bbox(x)}
        if self.deform_pool:
            maps["cls_offset"] = self.rfcn_cls_offset(x)
            maps["bbox_offset"] = self.rfcn_bbox_offset(x)
        return maps


@META_ARCH_REGISTRY.register()
class RFCN(GeneralizedRCNN):
    """
    R-FCN (arXiv 1605.06409): all convolutions run over the whole image, beside the RPN. What is
    left per region is pooling and voting (`RFCNROIHeads`).
    """

    @configurable
    def __init__(self, *, score_maps: RFCNScoreMaps, **kwargs):
        """
        Args:
            score_maps: makes the position-sensitive maps from the backbone's features
        """
        super().__init__(**kwargs)
        self.score_maps = score_maps

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        ret["score_maps"] = RFCNScoreMaps(cfg, ret["backbone"].output_shape())
        return ret

    def forward(self, batched_inputs):
        """As in GeneralizedRCNN: a dict of losses in training, else a list of detections."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        _, detector_losses = self.roi_heads(images, self.score_maps(features), proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**losses, **detector_losses}

    def inference(self, batched_inputs, detected_instances=None, do_postprocess: bool = True):
        """
        Args:
            batched_inputs, do_postprocess: as in GeneralizedRCNN
            detected_instances: must be None, as R-FCN predicts nothing for given boxes
        """
        assert not self.training
        assert detected_instances is None, "R-FCN has no outputs for given boxes"
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        results, _ = self.roi_heads(images, self.score_maps(features), proposals, None)
        if do_postprocess:
            return self._postprocess(results, batched_inputs, images.image_sizes)
        return results
