import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_box_head, build_mask_head
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..poolers import build_roi_pooler
from .ohem import OHEMFastRCNNOutputLayers, OHEMROIHeads

__all__ = ["DeformROIHeads"]


def _narrowed_shapes(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    """Of the feature maps that are pooled, after the 1x1 convolution of REDUCED_DIM."""
    features, dim = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM
    shapes = [input_shape[f] for f in features]
    if len({s.channels for s in shapes}) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES {features} differ in their channels: "
            f"{[s.channels for s in shapes]}"
        )
    if dim < 0:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.REDUCED_DIM is {dim}, expected channels, or 0 for no convolution"
        )
    return [ShapeSpec(channels=dim or s.channels, stride=s.stride) for s in shapes]


def _build_pooler(cfg: CfgNode, head: str, input_shape: dict[str, ShapeSpec]):
    """The pooler of "ROI_BOX_HEAD" or "ROI_MASK_HEAD", and the shape of what it pools."""
    shapes = _narrowed_shapes(cfg, input_shape)
    pooler = build_roi_pooler(cfg, head, shapes)
    height, width = pooler.output_size
    return pooler, ShapeSpec(channels=shapes[0].channels, height=height, width=width)


@ROI_HEADS_REGISTRY.register()
class DeformROIHeads(OHEMROIHeads):
    """
    detectron2's heads of Faster and Mask R-CNN with the RoI pooling of this project
    (`build_roi_pooler`): in DCNv2 (arXiv 1811.11168, Sec. 3) those of the box and of the mask head
    are both modulated deformable. They read a feature pyramid, or the dilated res5 through a 1x1
    convolution. Hard example mining is that of `OHEMROIHeads`.
    """

    output_layers = OHEMFastRCNNOutputLayers

    @configurable
    def __init__(self, *, conv_new: nn.Module | None = None, **kwargs):
        """
        Args:
            conv_new: convolution of each feature map before it is pooled; None has none
            others: as in OHEMROIHeads
        """
        super().__init__(**kwargs)
        self.conv_new = conv_new

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = {"box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES}
        narrowed = _narrowed_shapes(cfg, input_shape)[0].channels
        if cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM > 0:
            channels = input_shape[ret["box_in_features"][0]].channels
            ret["conv_new"] = Conv2d(channels, narrowed, kernel_size=1)
            nn.init.normal_(ret["conv_new"].weight, std=0.01)
            nn.init.zeros_(ret["conv_new"].bias)
        ret["box_pooler"], pooled = _build_pooler(cfg, "ROI_BOX_HEAD", input_shape)
        ret["box_head"] = build_box_head(cfg, pooled)
        ret["box_predictor"] = cls.output_layers(cfg, ret["box_head"].output_shape)
        return ret

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        if not cfg.MODEL.MASK_ON:
            return {}
        ret = {"mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES}
        ret["mask_pooler"], pooled = _build_pooler(cfg, "ROI_MASK_HEAD", input_shape)
        ret["mask_head"] = build_mask_head(cfg, pooled)
        return ret

    def box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """
        Args:
            features: maps of the backbone
            boxes: of each image, in input pixels
        Returns:
            Tensor: (R, D), output of the box head, boxes of the first image first
        """
        features = self._narrow(features)
        maps = [features[f] for f in self.box_in_features]
        return self.box_head(self.box_pooler(maps, boxes))

    def _narrow(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.conv_new is None:
            return features
        return {f: F.relu_(self.conv_new(features[f])) for f in self.box_in_features}

    def _forward_box(self, features, proposals):
        return super()._forward_box(self._narrow(features), proposals)

    def _forward_mask(self, features, instances):
        return super()._forward_mask(
            self._narrow(features) if self.mask_on else features, instances
        )
