from .anchor_generator import MXNetAnchorGenerator
from .backbone import (
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
)
from .meta_arch import RFCN
from .proposal_generator import MXNetRPN, MXNetRPNHead
from .roi_heads import OHEMFastRCNNOutputLayers, RFCNROIHeads

__all__ = [
    "DeformBottleneckBlock",
    "MXNetAnchorGenerator",
    "MXNetRPN",
    "MXNetRPNHead",
    "OHEMFastRCNNOutputLayers",
    "RFCN",
    "RFCNROIHeads",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
]
