from .check import check_weights

__all__ = ["check_weights"]
