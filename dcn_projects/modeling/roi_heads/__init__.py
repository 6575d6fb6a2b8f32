from .ohem import OHEMFastRCNNOutputLayers
from .rfcn import RFCNROIHeads

__all__ = ["OHEMFastRCNNOutputLayers", "RFCNROIHeads"]
