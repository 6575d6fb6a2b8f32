import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from .maskrcnn_benchmark import TREB1EN, convert_maskrcnn_benchmark
from .mxnet import ModelOptions, convert_mxnet
from .mxnet_params import MAGIC, read_params
from .original_settings import anchor_order, check_pixels, check_stride, differences, heads_settings
from .pth import read_pth
from .tensorpack import convert_tensorpack, read_npz

__all__ = ["convert_weights"]

_AUTHOR = "dcn_projects"


class Conversion(NamedTuple):
    """
    Args:
        kind: what was in the source, in words
        params: the model's state, name -> array
        settings: of the original, by full key
    """

    kind: str
    params: dict[str, np.ndarray]
    settings: dict[str, object]


def _convert_mxnet(path, cfg: CfgNode, shapes, training_only, boxes_normalized: bool) -> Conversion:
    keys = cfg.MODEL
    check_pixels(cfg, (123.15, 115.90, 103.06), (1.0, 1.0, 1.0))
    options = ModelOptions(
        bgr=cfg.INPUT.FORMAT == "BGR",
        bins=keys.ROI_BOX_HEAD.POOLER_RESOLUTION**2,
        box_weights=keys.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
        rpn_box_weights=keys.RPN.BBOX_REG_WEIGHTS,
        boxes_normalized=boxes_normalized,
    )
    network, params = convert_mxnet(read_params(path), shapes, options, training_only)
    settings = {}
    if any(keys.RESNETS.DEFORM_ON_PER_STAGE):
        settings["MODEL.RESNETS.DEFORM_LEGACY_BORDER"] = True
    return Conversion(f"MXNet {network}", params, settings)


def _convert_tensorpack(
    path, cfg: CfgNode, shapes, training_only, legacy_anchors: bool
) -> Conversion:
    check_pixels(cfg, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    check_stride(cfg, in_1x1=False)
    network, params = convert_tensorpack(
        read_npz(path),
        shapes,
        cfg.INPUT.FORMAT == "BGR",
        anchor_order(cfg, legacy_anchors),
        training_only,
    )
    settings = heads_settings(cfg, "ROIAlignV2", legacy_anchors) if network == "detector" else {}
    return Conversion(f"tensorpack {network}", params, settings)


def _convert_maskrcnn_benchmark(path, cfg: CfgNode, shapes, training_only) -> Conversion:
    mean = [122.7717, 115.9465, 102.9801]
    check_pixels(cfg, mean, (1.0, 1.0, 1.0))
    arrays = read_pth(path)
    if not any(name.startswith("backbone.body.") for name in arrays):
        raise ValueError(
            "it has no backbone of maskrcnn-benchmark (a checkpoint of detectron2 is used as it is)"
        )
    # Caffe's ResNets have frozen norms and no groups; those with either came later.
    is_frozen = any(name.endswith("stem.bn1.running_var") for name in arrays)
    check_stride(cfg, in_1x1=is_frozen and cfg.MODEL.RESNETS.NUM_GROUPS == 1)
    network, params = convert_maskrcnn_benchmark(
        arrays,
        shapes,
        cfg.INPUT.FORMAT == "BGR",
        anchor_order(cfg, ratio_first=True),
        training_only,
    )
    if network == TREB1EN:
        network += ", to train on: the heads here have ReLUs in other places"
    settings = heads_settings(cfg, "ROIAlign", legacy_anchors=True)
    settings["MODEL.PIXEL_MEAN"] = mean[::-1] if cfg.INPUT.FORMAT == "BGR" else mean
    return Conversion(network, params, settings)


def _source_kind(path: Path) -> str:
    """ "MXNet", "tensorpack" or "maskrcnn-benchmark", by the content of the file."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start == struct.pack("<Q", MAGIC):
        return "MXNet"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as e:
            raise ValueError(f"the file is damaged ({e})") from None
        if any(name.endswith(".npy") for name in names):
            return "tensorpack"
        if any(name.endswith("/data.pkl") for name in names):
            return "maskrcnn-benchmark"
    elif start.startswith(b"PK"):
        raise ValueError("the file is cut off")
    elif start.startswith(b"\x80\x02"):  # a bare pickle, as torch < 1.6 wrote
        return "maskrcnn-benchmark"
    raise ValueError(
        "unknown kind of weights, expected a .params of MXNet, an .npz of tensorpack, or a .pth of "
        "maskrcnn-benchmark"
    )


def convert_weights(
    source: str | os.PathLike,
    output: str | os.PathLike,
    cfg: CfgNode,
    shapes: Mapping[str, tuple[int, ...]],
    boxes_normalized: bool = False,
    legacy_anchors: bool = False,
    training_only: Collection[str] = (),
) -> tuple[str, dict[str, object]]:
    """
    Turn weights of an original implementation into a checkpoint that MODEL.WEIGHTS can name. The
    output appears when it is complete, and replaces an older one.

    Args:
        source: a `.params` file of MXNet or an `.npz` of tensorpack: a detector, or the classifier
            that it starts from; or a `.pth` of maskrcnn-benchmark or of code that is built on it
        output: `.pkl` or `.pth`; its folder is made if there is none
        cfg: config of the model
        shapes: name -> shape of every parameter and buffer of the model
        boxes_normalized: see `convert_mxnet`; only for MXNet
        legacy_anchors: the anchors of a detector of tensorpack from before May 2019
        training_only: names in `shapes` that the source needs not have, see `training_only_names`
    Returns:
        str, dict: what was in the source, and the settings, by full key, with which the original
            detects and which are others in `cfg`. What is written is for `cfg`: where
            `reorders_anchors` holds for these settings, a model with them needs a file that is
            converted with them
    Raises:
        OSError: if a file cannot be read or written
        ValueError: if the source is damaged, or not exactly what the model needs; the message
            names some of what is unknown, missing or misshapen
    """
    source, output = Path(source), Path(output)
    if output.suffix not in (".pkl", ".pth"):
        raise ValueError(f"{output}: the name of a checkpoint ends in .pkl or .pth")
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} is the source itself")
    try:
        kind = _source_kind(source)
        for option, given, of in (
            ("--normalized-boxes", boxes_normalized, "MXNet"),
            ("--legacy-anchors", legacy_anchors, "tensorpack"),
        ):
            if given and kind != of:
                raise ValueError(f"{option} is for {of}, the file is of {kind}")
        if kind == "MXNet":
            converted = _convert_mxnet(source, cfg, shapes, training_only, boxes_normalized)
        elif kind == "tensorpack":
            converted = _convert_tensorpack(source, cfg, shapes, training_only, legacy_anchors)
        else:
            converted = _convert_maskrcnn_benchmark(source, cfg, shapes, training_only)
    except ValueError as e:
        raise ValueError(str(e) if str(source) in str(e) else f"{source}: {e}") from None
    _write(output, converted.params)
    return converted.kind, differences(cfg, converted.settings)


def _write(path: Path, params: dict[str, np.ndarray]) -> None:
    """A file in detectron2's own format, so that no names are guessed when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
