from .mxnet_rpn import MXNetRPN, MXNetRPNHead

__all__ = ["MXNetRPN", "MXNetRPNHead"]
