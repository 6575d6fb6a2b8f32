import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from .mxnet import ModelOptions, convert_mxnet
from .mxnet_params import read_params

__all__ = ["convert_weights"]

_AUTHOR = "dcn_projects"
# What the MXNet code subtracts from RGB pixels, which it does not scale.
_MXNET_MEAN_RGB = (123.15, 115.90, 103.06)


def _read_mxnet(path, cfg: CfgNode, shapes, boxes_normalized: bool):
    bgr = cfg.INPUT.FORMAT == "BGR"
    mean = _MXNET_MEAN_RGB[::-1] if bgr else _MXNET_MEAN_RGB
    keys = cfg.MODEL
    # A mean as close as that of Caffe's networks is as good. One in the other order is not.
    if cfg.INPUT.FORMAT not in ("RGB", "BGR") or not np.allclose(keys.PIXEL_MEAN, mean, atol=1):
        raise ValueError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT} and MODEL.PIXEL_MEAN {list(keys.PIXEL_MEAN)}, but "
            f"the weights are for RGB {list(_MXNET_MEAN_RGB)} (or that as BGR, in reverse)"
        )
    if not np.allclose(keys.PIXEL_STD, 1):
        raise ValueError(
            f"MODEL.PIXEL_STD is {list(keys.PIXEL_STD)}, but the weights are for pixels that are "
            "not scaled: [1.0, 1.0, 1.0]"
        )
    options = ModelOptions(
        bgr=bgr,
        bins=keys.RFCN.GROUP_SIZE**2,
        box_weights=keys.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
        rpn_box_weights=keys.RPN.BBOX_REG_WEIGHTS,
        boxes_normalized=boxes_normalized,
    )
    network, params = convert_mxnet(read_params(path), shapes, options)
    return f"MXNet {network}", params


# How to read a kind of file: suffix -> function of (path, config, shapes of the model's state,
# whether box deltas are normalised) that returns what it holds, in words, and the model's state.
_SOURCES = {".params": _read_mxnet}


def convert_weights(
    source: str | os.PathLike,
    output: str | os.PathLike,
    cfg: CfgNode,
    shapes: Mapping[str, tuple[int, ...]],
    boxes_normalized: bool = False,
) -> str:
    """
    Turn weights of an original implementation into a checkpoint that MODEL.WEIGHTS can name. The
    output appears when it is complete, and replaces an older one.

    Args:
        source: a `.params` file of MXNet: a detector, or the classifier that it starts from
        output: `.pkl` or `.pth`
        cfg: config of the model
        shapes: name -> shape of every parameter and buffer of the model
        boxes_normalized: see `convert_mxnet`
    Returns:
        str: what was in the source
    Raises:
        OSError: if a file cannot be read or written
        ValueError: if the source is damaged, or not exactly what the model needs; the message
            names all that is unknown, missing or misshapen
    """
    source, output = Path(source), Path(output)
    if source.suffix not in _SOURCES:
        raise ValueError(f"{source}: unknown kind of weights, expected {', '.join(_SOURCES)}")
    if output.suffix not in (".pkl", ".pth"):
        raise ValueError(f"{output}: the name of a checkpoint ends in .pkl or .pth")
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the source itself")
    try:
        kind, params = _SOURCES[source.suffix](source, cfg, shapes, boxes_normalized)
    except ValueError as e:
        raise ValueError(str(e) if str(source) in str(e) else f"{source}: {e}") from None
    _write(output, params)
    return kind


def _write(path: Path, params: dict[str, np.ndarray]) -> None:
    """A file in detectron2's own format, so that no names are guessed when it is loaded."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            if path.suffix == ".pkl":
                pickle.dump({"model": params, "__author__": _AUTHOR}, file)
            else:
                tensors = {name: torch.from_numpy(array) for name, array in params.items()}
                torch.save({"model": tensors, "__author__": _AUTHOR}, file)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
