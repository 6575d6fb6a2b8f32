"""Files of PyTorch, as `convert_weights` reads them."""

from collections.abc import Mapping
from os import PathLike

import numpy as np
import torch

from .parameter_names import first_names
from .read import read_checkpoint
from .wrapped_names import plain_name, weights_in

__all__ = ["config_in_pth", "read_pth"]


def read_pth(path: str | PathLike) -> dict[str, np.ndarray]:
    """
    Read the weights of a checkpoint of PyTorch, without optimizer and schedule, and without what
    programs that wrap a model put into the names, such as the `module.` of data-parallel training.

    Returns:
        dict: name -> array
    Raises:
        OSError: if the file cannot be opened
        ValueError: if it is cut off or damaged, or holds anything else; see `read_checkpoint`
    """
    content = read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: a {type(content).__name__} is not the state of a model")
    state, _ = weights_in(content)
    others = [str(name) for name, value in state.items() if not _is_array(value)]
    if others:
        named = ", ".join(first_names(others, 5))
        raise ValueError(f"{path}: these are no dense tensors of numbers: {named}")
    arrays = {plain_name(str(name)): t.detach().numpy() for name, t in state.items()}
    if len(arrays) != len(state):
        raise ValueError(f"{path}: it has tensors of the same name, with and without module.")
    return arrays


def config_in_pth(path: str | PathLike) -> str:
    """The config that mmdetection writes beside the weights; "" if there is none. See `read_pth`"""
    content = read_checkpoint(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    config = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    return config if isinstance(config, str) else ""


def _is_array(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.float16, torch.float64, torch.int64)
        # or a few bytes could claim to be any number of elements
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
