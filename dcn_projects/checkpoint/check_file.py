from collections.abc import Mapping

from detectron2.utils.file_io import PathManager

from .read import read_checkpoint
from .wrapped_names import weights_in

__all__ = ["check_weights"]

# What is frozen in most models has to be trained then.
_RANDOM_START = "MODEL.WEIGHTS '' MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0"
# A parameter of all models of maskrcnn-benchmark.
_ORIGINAL_NAME = "backbone.body.stem.conv1"


def check_weights(path: str, told_by: str = "MODEL.WEIGHTS", to_start: bool = False) -> None:
    """
    Find out before a model is built whether its weights can be read, by reading them. Files that a
    scheme names (`detectron2://`, `https://`) are downloaded to detectron2's cache.

    Args:
        path: file of weights; empty means random ones
        told_by: the key, or the file, that names it
        to_start: a training starts from it, for which random weights would do as well
    Raises:
        FileNotFoundError: if there is no such file
        OSError: if it cannot be downloaded, or `read_checkpoint` refuses it
    """
    if not path:
        return
    instead = f", or start from random weights: {_RANDOM_START}" if to_start else ""
    if "://" in path:
        try:
            path = PathManager.get_local_path(path)
        except OSError as e:
            raise OSError(
                f"{told_by}: {path} cannot be downloaded ({e}). Download it elsewhere and give "
                f"the path of the file{instead}."
            ) from e
    if PathManager.isdir(path):
        raise IsADirectoryError(f"{told_by}: {path} is a folder. Name a checkpoint in it.")
    if not PathManager.isfile(path):
        raise FileNotFoundError(
            f"{told_by}: {path} does not exist. Give the path of a checkpoint, or make one for the "
            f"config with tools/convert_weights.py{instead}."
        )
    if damage := _damage(path):
        raise OSError(f"{told_by}: {damage}.")


def _damage(path: str) -> str:
    """What is wrong with a file of weights, with its path; '' if nothing is."""
    if path.endswith((".params", ".npz")):
        return _of(path, "MXNet" if path.endswith(".params") else "tensorpack")
    try:
        content = read_checkpoint(path)
    except ValueError as e:
        return str(e)
    weights, _ = weights_in(content) if isinstance(content, Mapping) else ((), [])
    if not path.endswith(".pkl") and any(_ORIGINAL_NAME in str(name) for name in weights):
        return _of(path, "maskrcnn-benchmark")
    return ""


def _of(path: str, origin: str) -> str:
    """Of such weights detectron2 would match no name."""
    return f"{path} is of {origin}: convert it, see tools/convert_weights.py"
