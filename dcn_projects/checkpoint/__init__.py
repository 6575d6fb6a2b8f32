from .check_file import check_weights
from .convert import convert_weights
from .load import load_to_start, load_trained
from .parameter_names import first_names
from .training_only import training_only_entries, training_only_names
from .wrapped_names import unwrapped

__all__ = [
    "check_weights",
    "convert_weights",
    "first_names",
    "load_to_start",
    "load_trained",
    "training_only_entries",
    "training_only_names",
    "unwrapped",
]
