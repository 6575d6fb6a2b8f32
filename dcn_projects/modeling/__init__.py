from .anchor_generator import MXNetAnchorGenerator, PyFasterRCNNAnchorGenerator
from .backbone import (
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    build_deform_retinanet_resnet_fpn_backbone,
    build_mxnet_resnet_fpn_backbone,
    build_tensorpack_resnet_fpn_backbone,
)
from .dynamic_rcnn import DynamicMatcher, DynamicSmoothL1, DynamicTraining
from .meta_arch import (
    RFCN,
    DeepLab,
    DeepLabHead,
    MimicRCNN,
    MXNetRCNN,
    build_deformable_model,
    meta_architecture,
)
from .poolers import DeformROIPooler, LevelPooler, ModulatedDeformROIPooler
from .proposal_generator import MXNetRPN, MXNetRPNHead
from .roi_heads import (
    BoxOutputLayers,
    CombinedROIHeads,
    DeformCascadeROIHeads,
    DeformROIHeads,
    DynamicCascadeROIHeads,
    DynamicROIHeads,
    MXNetBoxHead,
    MXNetOutputLayers,
    MXNetROIHeads,
    OHEMROIHeads,
    RFCNROIHeads,
    TensorpackBoxHead,
    TensorpackMaskHead,
)
from .sem_seg_test_time_augmentation import SemSegTTA
from .test_time_augmentation import MultiScaleTTA

__all__ = [
    "BoxOutputLayers",
    "CombinedROIHeads",
    "DeepLab",
    "DeepLabHead",
    "DeformBottleneckBlock",
    "DeformCascadeROIHeads",
    "DeformROIHeads",
    "DeformROIPooler",
    "DynamicCascadeROIHeads",
    "DynamicMatcher",
    "DynamicROIHeads",
    "DynamicSmoothL1",
    "DynamicTraining",
    "LevelPooler",
    "MXNetAnchorGenerator",
    "MXNetBoxHead",
    "MXNetRCNN",
    "MXNetOutputLayers",
    "MXNetROIHeads",
    "MXNetRPN",
    "MXNetRPNHead",
    "MimicRCNN",
    "ModulatedDeformROIPooler",
    "MultiScaleTTA",
    "OHEMROIHeads",
    "PyFasterRCNNAnchorGenerator",
    "RFCN",
    "RFCNROIHeads",
    "SemSegTTA",
    "TensorpackBoxHead",
    "TensorpackMaskHead",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_deform_retinanet_resnet_fpn_backbone",
    "build_deformable_model",
    "build_mxnet_resnet_fpn_backbone",
    "build_tensorpack_resnet_fpn_backbone",
    "meta_architecture",
]
