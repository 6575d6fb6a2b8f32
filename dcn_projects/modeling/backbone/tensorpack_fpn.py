import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from torch import nn

from .deform_resnet import build_deform_resnet_fpn_backbone, reads_resnet_keys

__all__ = ["build_tensorpack_resnet_fpn_backbone"]


@BACKBONE_REGISTRY.register()
@reads_resnet_keys
def build_tensorpack_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    The feature pyramid of tensorpack's GroupNorm models: each of its convolutions has a bias before
    GN, which GN does not cancel, as it differs between the channels of a group. The ResNet is that
    of `build_deform_resnet_backbone`.

    Raises:
        ValueError: unless MODEL.FPN.NORM is "GN"; other norms are the same in detectron2
    """
    if cfg.MODEL.FPN.NORM != "GN":
        raise ValueError(
            f"MODEL.FPN.NORM is {cfg.MODEL.FPN.NORM!r}: build_tensorpack_resnet_fpn_backbone is "
            "for GN. Take build_resnet_fpn_backbone"
        )
    fpn = build_deform_resnet_fpn_backbone(cfg, input_shape)
    for conv in (*fpn.lateral_convs, *fpn.output_convs):
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
    return fpn
