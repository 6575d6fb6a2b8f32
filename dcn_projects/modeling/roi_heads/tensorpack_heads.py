"""
The box and mask heads of tensorpack's GroupNorm models, fastrcnn_4conv1fc_gn_head and
maskrcnn_up4conv_gn_head. Each convolution has a bias and is followed by ReLU and then by GN;
detectron2's have no bias and GN before ReLU, which is another function of the same weights.
"""

import torch
from detectron2.modeling.roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    FastRCNNConvFCHead,
    MaskRCNNConvUpsampleHead,
)
from torch import nn
from torch.nn import functional as F

__all__ = ["ReLUGroupNorm", "TensorpackBoxHead", "TensorpackMaskHead"]


class ReLUGroupNorm(nn.GroupNorm):
    """ReLU, and then GN of 32 groups."""

    def __init__(self, channels: int):
        super().__init__(32, channels)

    def forward(self, x):
        """
        Args:
            x: (N, channels, H, W)
        Returns:
            Tensor: of the same shape
        """
        return super().forward(F.relu(x))


class _ReLUBeforeNorm:
    """A head of detectron2 with the layers of `conv_norm_relus` in tensorpack's order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for conv in self.conv_norm_relus:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
            conv.norm = ReLUGroupNorm(conv.out_channels)
            conv.activation = None


def _check_norm(key: str, norm: str, plain: str):
    if norm != "GN":
        raise ValueError(f"{key} is {norm!r}: the head of tensorpack is for GN. Take {plain}")


@ROI_BOX_HEAD_REGISTRY.register()
class TensorpackBoxHead(_ReLUBeforeNorm, FastRCNNConvFCHead):
    """
    detectron2's head of convolutions and fully connected layers, with GN after ReLU.

    Raises:
        ValueError: unless MODEL.ROI_BOX_HEAD.NORM is "GN"
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        _check_norm("MODEL.ROI_BOX_HEAD.NORM", cfg.MODEL.ROI_BOX_HEAD.NORM, "FastRCNNConvFCHead")
        return super().from_config(cfg, input_shape)


@ROI_MASK_HEAD_REGISTRY.register()
class TensorpackMaskHead(_ReLUBeforeNorm, MaskRCNNConvUpsampleHead):
    """
    detectron2's mask head of convolutions and a deconvolution, with GN after ReLU.

    Raises:
        ValueError: unless MODEL.ROI_MASK_HEAD.NORM is "GN"
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        norm = cfg.MODEL.ROI_MASK_HEAD.NORM
        _check_norm("MODEL.ROI_MASK_HEAD.NORM", norm, "MaskRCNNConvUpsampleHead")
        return super().from_config(cfg, input_shape)
