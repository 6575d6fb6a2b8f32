from .deform_resnet import (
    CeilPoolStem,
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
)

__all__ = [
    "CeilPoolStem",
    "DeformBottleneckBlock",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
]
