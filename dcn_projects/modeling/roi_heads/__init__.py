from .cascade_rcnn import DeformCascadeROIHeads, DynamicCascadeROIHeads
from .fast_rcnn import BoxOutputLayers
from .mxnet_heads import MXNetBoxHead, MXNetOutputLayers, MXNetROIHeads
from .rfcn import RFCNROIHeads
from .roi_heads import CombinedROIHeads, DeformROIHeads, DynamicROIHeads, OHEMROIHeads
from .tensorpack_heads import TensorpackBoxHead, TensorpackMaskHead

__all__ = [
    "BoxOutputLayers",
    "CombinedROIHeads",
    "DeformCascadeROIHeads",
    "DeformROIHeads",
    "DynamicCascadeROIHeads",
    "DynamicROIHeads",
    "MXNetBoxHead",
    "MXNetOutputLayers",
    "MXNetROIHeads",
    "OHEMROIHeads",
    "RFCNROIHeads",
    "TensorpackBoxHead",
    "TensorpackMaskHead",
]
