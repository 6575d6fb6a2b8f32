"""The one function that reads checkpoints, of PyTorch and of detectron2."""

import os
from collections.abc import Mapping

from .archives import is_archive
from .damage import COPY_AGAIN, errors_that_name
from .other_files import other_than_weights
from .pickled_arrays import SET_STATE, find_plain
from .plain_pickle import read_plain_pickle
from .torch_files import SizedFile, read_bare_torch_file, read_zipped_torch_file

__all__ = ["in_form_of_detectron2", "read_checkpoint", "read_pickle"]

_PICKLE = b"\x80"  # what all begin with, but those of protocol 1, which begin with a dictionary
_OLD_PICKLES = (b"(", b"}")


def read_checkpoint(path: str | os.PathLike):
    """
    Read a file of torch.save, or a pickle of detectron2's model zoo. Nothing in it runs, whatever
    the version of PyTorch is. It takes as much memory as its arrays and its pickle, and in no case
    more than 30 times the size of the file and 200 MB. The checksums of an archive are compared.

    Args:
        path: a local file, `.pkl` for a pickle
    Returns:
        what was saved: dictionaries, lists, texts and numbers, tensors on the CPU, and arrays
    Raises:
        OSError: if it cannot be read
        ValueError: if it is damaged, or is or has anything else; one line that begins with the path
    """
    path = os.fspath(path)
    if other := other_than_weights(path):
        raise ValueError(f"{path} {other}")
    with open(path, "rb") as file:
        start = file.read(1)
    if path.endswith(".pkl"):
        if start in (_PICKLE, *_OLD_PICKLES):
            return read_pickle(path)
    elif is_archive(path):
        return read_zipped_torch_file(path)
    elif start == _PICKLE:  # as torch < 1.6 wrote
        return read_bare_torch_file(path)
    raise ValueError(f"{path} is not a checkpoint. {COPY_AGAIN}")


def read_pickle(path: str | os.PathLike):
    """`read_checkpoint` for a pickle of any name."""
    with errors_that_name(path), open(path, "rb") as opened:
        file = SizedFile(opened)
        content = read_plain_pickle(file, file.size, find_plain, SET_STATE)
        if file.left:
            raise ValueError(f"{file.left} bytes follow")
        return content


def in_form_of_detectron2(content, path: str) -> dict:
    """
    Args:
        content: of a checkpoint
        path: of its file, whose name says what else than a checkpoint of detectron2 it may be
    Returns:
        dict: with "model", as detectron2's checkpointers expect it
    Raises:
        ValueError: if it has no names
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no parameters with names")
    guessed = {"matching_heuristics": True}
    if path.endswith(".pkl") and not {"model", "__author__"} <= content.keys():
        blobs = content.get("blobs", content)  # of detectors of Caffe2, not of its classifiers
        weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", **guessed}
    if path.endswith(".pyth"):  # of pycls
        state = content["model_state"]
        weights = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", **guessed}
    return dict(content) if "model" in content else {"model": content}
