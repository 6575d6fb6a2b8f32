from .box_head import MXNetBoxHead
from .deform_heads import DeformROIHeads
from .dynamic_rcnn import DynamicCascadeROIHeads, DynamicROIHeads
from .fast_rcnn import SoftNMSFastRCNNOutputLayers
from .mxnet_heads import MXNetOutputLayers, MXNetROIHeads
from .ohem import OHEMFastRCNNOutputLayers, OHEMROIHeads
from .rfcn import RFCNROIHeads
from .tensorpack_heads import TensorpackBoxHead, TensorpackMaskHead

__all__ = [
    "DeformROIHeads",
    "DynamicCascadeROIHeads",
    "DynamicROIHeads",
    "MXNetBoxHead",
    "MXNetOutputLayers",
    "MXNetROIHeads",
    "OHEMFastRCNNOutputLayers",
    "OHEMROIHeads",
    "RFCNROIHeads",
    "SoftNMSFastRCNNOutputLayers",
    "TensorpackBoxHead",
    "TensorpackMaskHead",
]
