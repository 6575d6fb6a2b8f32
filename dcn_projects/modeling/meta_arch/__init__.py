from .rfcn import RFCN, RFCNScoreMaps

__all__ = ["RFCN", "RFCNScoreMaps"]
