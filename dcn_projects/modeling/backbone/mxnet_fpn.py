from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from torch import nn

from .deform_resnet import build_deform_resnet_backbone, reads_resnet_keys

__all__ = ["LastLevelP6", "build_mxnet_resnet_fpn_backbone"]


class LastLevelP6(nn.Module):
    """P6 as a 3x3 convolution of stride 2 over res5. detectron2 takes every other cell of P5."""

    num_levels = 1
    in_feature = "res5"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.p6 = Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)

    def forward(self, res5):
        """
        Args:
            res5: (N, in_channels, H, W)
        Returns:
            list: one map, (N, out_channels, ceil(H / 2), ceil(W / 2))
        """
        return [self.p6(res5)]


@BACKBONE_REGISTRY.register()
@reads_resnet_keys
def build_mxnet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    The feature pyramid of the MXNet code of Deformable ConvNets, on `build_deform_resnet_backbone`:
    sums of lateral 1x1 convolutions and the level above, upsampled by repetition, as in
    detectron2; P6 a convolution of its own; every convolution with a bias and started N(0, 0.01).
    It reads IN_FEATURES and OUT_CHANNELS of MODEL.FPN.

    Raises:
        ValueError: if IN_FEATURES does not end with res5, of which P6 is made
    """
    bottom_up = build_deform_resnet_backbone(cfg, input_shape)
    keys = cfg.MODEL.FPN
    if not keys.IN_FEATURES or keys.IN_FEATURES[-1] != LastLevelP6.in_feature:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(keys.IN_FEATURES)}: it must end with res5"
        )
    channels = bottom_up.output_shape()[LastLevelP6.in_feature].channels
    fpn = FPN(
        bottom_up=bottom_up,
        in_features=keys.IN_FEATURES,
        out_channels=keys.OUT_CHANNELS,
        top_block=LastLevelP6(channels, keys.OUT_CHANNELS),
    )
    for layer in (*fpn.lateral_convs, *fpn.output_convs, fpn.top_block.p6):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return fpn
