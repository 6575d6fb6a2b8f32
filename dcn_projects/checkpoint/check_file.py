import mmap
import os
import pickle
import zipfile

from detectron2.utils.file_io import PathManager

from .other_files import other_than_weights

__all__ = ["check_weights"]

# What is frozen in most models has to be trained then.
_RANDOM_START = "MODEL.WEIGHTS '' MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0"
# A parameter of all models of maskrcnn-benchmark.
_ORIGINAL_NAME = b"backbone.body.stem.conv1"


def check_weights(path: str, told_by: str = "MODEL.WEIGHTS", to_start: bool = False) -> None:
    """
    Find out before a model is built whether its weights can be read. Files that a scheme names
    (`detectron2://`, `https://`) are downloaded to detectron2's cache.

    Args:
        path: file of weights; empty means random ones
        told_by: the key, or the file, that names it
        to_start: a training starts from it, for which random weights would do as well
    Raises:
        FileNotFoundError: if there is no such file
        OSError: if it cannot be downloaded, was cut off, or is no checkpoint
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
        raise OSError(f"{told_by}: {path} {damage}.")


def _damage(path: str) -> str:
    """What is wrong with a file of weights, as far as its ends tell; '' if nothing is."""
    try:
        if other := other_than_weights(path):
            return other
        if original := _original(path):
            return f"is of {original}: convert it, see tools/convert_weights.py"
    except zipfile.BadZipFile:
        return "is damaged. Copy it again, or use an earlier one"
    with open(path, "rb") as f:
        start = f.read(2)
        f.seek(max(os.path.getsize(path) - 1, 0))
        end = f.read()
    what = ""
    # Checkpoints of torch < 1.6 are a bare pickle, which begins with its protocol.
    if not path.endswith(".pkl") and not zipfile.is_zipfile(path) and start != b"\x80\x02":
        what = "is cut off" if start == b"PK" else "is not a checkpoint"
    elif start == b"PK" and _has_other_bytes(path):
        what = "is damaged"
    if path.endswith(".pkl") and end != pickle.STOP:
        what = "is cut off, or not a checkpoint"
    return f"{what}. Copy it again, or use an earlier one" if what else ""


def _has_other_bytes(path: str) -> bool:
    """Whether the checksums, which torch does not compare, are wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, EOFError, RuntimeError):
        return True


def _original(path: str) -> str:
    """Whose weights a file has, of which detectron2 would match no name; '' if its own."""
    if path.endswith((".params", ".npz")):
        return "MXNet" if path.endswith(".params") else "tensorpack"
    if not path.endswith(".pkl") and _mentions(path, _ORIGINAL_NAME):
        return "maskrcnn-benchmark"
    return ""


def _mentions(path: str, name: bytes) -> bool:
    """Whether a checkpoint of torch has a name in it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.namelist() if entry.endswith("/data.pkl")]
            return any(name in archive.read(entry) for entry in pickles)
    if os.path.getsize(path) == 0:
        return False
    # Of torch < 1.6: pickles, and the numbers behind them.
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name) >= 0
