from .check import check_weights
from .convert import convert_weights
from .load import load_trained

__all__ = ["check_weights", "convert_weights", "load_trained"]
