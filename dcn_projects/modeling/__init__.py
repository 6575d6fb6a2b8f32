from .anchor_generator import MXNetAnchorGenerator
from .backbone import (
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    build_deform_retinanet_resnet_fpn_backbone,
    build_mxnet_resnet_fpn_backbone,
    build_tensorpack_resnet_fpn_backbone,
)
from .dynamic_training import DynamicTraining
from .losses import DynamicSmoothL1
from .matcher import DynamicMatcher
from .meta_arch import (
    RFCN,
    DeepLab,
    DeepLabHead,
    MimicRCNN,
    MXNetRCNN,
    build_deformable_model,
    build_model,
    meta_architecture,
)
from .modulated_pooler import ModulatedDeformROIPooler
from .poolers import DeformROIPooler, MaxROIPooler
from .proposal_generator import MXNetRPN, MXNetRPNHead
from .roi_heads import (
    DeformROIHeads,
    DynamicCascadeROIHeads,
    DynamicROIHeads,
    MXNetBoxHead,
    MXNetROIHeads,
    OHEMFastRCNNOutputLayers,
    OHEMROIHeads,
    RFCNROIHeads,
    SoftNMSFastRCNNOutputLayers,
    TensorpackBoxHead,
    TensorpackMaskHead,
)
from .sem_seg_augmentation import SemSegTTA
from .test_time_augmentation import MultiScaleTTA

__all__ = [
    "DeepLab",
    "DeepLabHead",
    "DeformBottleneckBlock",
    "DeformROIHeads",
    "DeformROIPooler",
    "DynamicCascadeROIHeads",
    "DynamicMatcher",
    "DynamicROIHeads",
    "DynamicSmoothL1",
    "DynamicTraining",
    "MXNetAnchorGenerator",
    "MXNetBoxHead",
    "MXNetRCNN",
    "MXNetROIHeads",
    "MXNetRPN",
    "MXNetRPNHead",
    "MaxROIPooler",
    "MimicRCNN",
    "ModulatedDeformROIPooler",
    "MultiScaleTTA",
    "OHEMFastRCNNOutputLayers",
    "OHEMROIHeads",
    "RFCN",
    "RFCNROIHeads",
    "SemSegTTA",
    "SoftNMSFastRCNNOutputLayers",
    "TensorpackBoxHead",
    "TensorpackMaskHead",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_deform_retinanet_resnet_fpn_backbone",
    "build_deformable_model",
    "build_model",
    "build_mxnet_resnet_fpn_backbone",
    "build_tensorpack_resnet_fpn_backbone",
    "meta_architecture",
]
