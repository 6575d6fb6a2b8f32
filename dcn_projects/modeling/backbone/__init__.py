from .deform_resnet import (
    CeilPoolStem,
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    build_deform_retinanet_resnet_fpn_backbone,
)
from .mxnet_fpn import LastLevelP6, build_mxnet_resnet_fpn_backbone
from .tensorpack_fpn import build_tensorpack_resnet_fpn_backbone

__all__ = [
    "CeilPoolStem",
    "DeformBottleneckBlock",
    "LastLevelP6",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_deform_retinanet_resnet_fpn_backbone",
    "build_mxnet_resnet_fpn_backbone",
    "build_tensorpack_resnet_fpn_backbone",
]
