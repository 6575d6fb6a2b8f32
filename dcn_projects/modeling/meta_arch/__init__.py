from .mxnet_rcnn import MXNetRCNN
from .rfcn import RFCN, RFCNScoreMaps

__all__ = ["MXNetRCNN", "RFCN", "RFCNScoreMaps"]
