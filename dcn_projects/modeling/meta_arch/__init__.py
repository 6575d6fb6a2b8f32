from .deformable import build_deformable_model, meta_architecture
from .mxnet_rcnn import MXNetRCNN
from .rfcn import RFCN, RFCNScoreMaps

__all__ = ["MXNetRCNN", "RFCN", "RFCNScoreMaps", "build_deformable_model", "meta_architecture"]
