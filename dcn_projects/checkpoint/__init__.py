from .check_file import check_weights
from .convert import convert_weights
from .load import PlainCheckpointer, load_to_start, load_trained, not_finite
from .parameter_names import first_names
from .read import read_checkpoint, read_pickle
from .training_only import training_only_entries, training_only_names
from .wrapped_names import unwrapped

__all__ = [
    "PlainCheckpointer",
    "check_weights",
    "convert_weights",
    "first_names",
    "load_to_start",
    "load_trained",
    "not_finite",
    "read_checkpoint",
    "read_pickle",
    "training_only_entries",
    "training_only_names",
    "unwrapped",
]
