from .check import check_weights
from .convert import convert_weights

__all__ = ["check_weights", "convert_weights"]
