from .deeplab import DeepLab, DeepLabHead
from .deformable import build_deformable_model, build_model, meta_architecture
from .mimic_rcnn import MimicRCNN
from .mxnet_rcnn import MXNetFasterRCNN, MXNetRCNN
from .rfcn import RFCN

__all__ = [
    "DeepLab",
    "DeepLabHead",
    "MXNetFasterRCNN",
    "MXNetRCNN",
    "MimicRCNN",
    "RFCN",
    "build_deformable_model",
    "build_model",
    "meta_architecture",
]
