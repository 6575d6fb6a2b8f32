import os
import pickle
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from dcn_projects.whole_files import whole_file

from .archives import is_archive, open_archive
from .load import not_finite
from .maskrcnn_benchmark import TREB1EN, convert_maskrcnn_benchmark
from .mmdetection import convert_mmdetection, style_in_config
from .mxnet import ModelOptions, convert_mxnet
from .mxnet_params import MAGIC, read_params
from .original_settings import anchor_order, check_pixels, check_stride, differences, heads_settings
from .origins import (
    DETECTRON2,
    MASKRCNN_BENCHMARK,
    MMDETECTION,
    TORCHVISION,
    TORCHVISION_CLASSIFIER,
    origin_of,
)
from .other_files import other_than_weights
from .parameter_names import first_names
from .pth import config_in_pth, read_pth
from .tensorpack import convert_tensorpack, read_npz
from .torchvision import convert_torchvision, convert_torchvision_classifier

__all__ = ["convert_weights"]

_AUTHOR = "dcn_projects"
# Mean and deviation of the pixels of ImageNet, RGB, as tensorpack and torchvision have them.
_IMAGENET_PIXELS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


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
    check_pixels(cfg, *_IMAGENET_PIXELS)
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


def _convert_maskrcnn_benchmark(arrays, cfg: CfgNode, shapes, training_only) -> Conversion:
    mean = [122.7717, 115.9465, 102.9801]
    check_pixels(cfg, mean, (1.0, 1.0, 1.0))
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


def _convert_torchvision(arrays, cfg: CfgNode, shapes, training_only) -> Conversion:
    check_pixels(cfg, *_IMAGENET_PIXELS)
    check_stride(cfg, in_1x1=False)
    network, params = convert_torchvision(
        arrays,
        shapes,
        cfg.INPUT.FORMAT == "BGR",
        anchor_order(cfg, ratio_first=True),
        training_only,
    )
    settings = heads_settings(
        cfg, "ROIAlign", legacy_anchors=False, anchors="TorchvisionAnchorGenerator"
    )
    return Conversion(network, params, settings)


def _convert_torchvision_classifier(arrays, cfg: CfgNode, shapes, training_only) -> Conversion:
    check_pixels(cfg, *_IMAGENET_PIXELS)
    check_stride(cfg, in_1x1=False)
    params = convert_torchvision_classifier(
        arrays, shapes, cfg.INPUT.FORMAT == "BGR", training_only
    )
    return Conversion("torchvision ImageNet classifier", params, {})


def _convert_mmdetection(arrays, cfg: CfgNode, shapes, training_only, config: str) -> Conversion:
    told = style_in_config(config)
    style = told or ("caffe" if cfg.MODEL.RESNETS.STRIDE_IN_1X1 else "pytorch")
    mean, std = _IMAGENET_PIXELS
    check_pixels(cfg, mean, std if style == "pytorch" else (1.0, 1.0, 1.0))
    check_stride(cfg, in_1x1=style == "caffe")
    reads_bgr = style == "caffe"
    params = convert_mmdetection(
        arrays,
        shapes,
        reads_bgr != (cfg.INPUT.FORMAT == "BGR"),
        anchor_order(cfg, ratio_first=True),
        training_only,
    )
    settings = heads_settings(cfg, "ROIAlignV2", legacy_anchors=False, sampling_ratio=0)
    if any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        settings["MODEL.RESNETS.DEFORM_LEGACY_BORDER"] = False
        settings["MODEL.RESNETS.DEFORM_MASK_SCALE"] = 1.0
    network = f"mmdetection detector, style {style}"
    if not told:
        network += " as in the config, since the file does not tell"
    return Conversion(network, params, settings)


_OF_PTH = {
    MASKRCNN_BENCHMARK: _convert_maskrcnn_benchmark,
    TORCHVISION: _convert_torchvision,
    TORCHVISION_CLASSIFIER: _convert_torchvision_classifier,
    MMDETECTION: _convert_mmdetection,
}
_AS_IT_IS = "it is a checkpoint of detectron2, which is used as it is: give it as MODEL.WEIGHTS"


def _origin_of_pth(arrays: Mapping[str, np.ndarray]) -> str:
    origin = origin_of(arrays)
    if origin == DETECTRON2:
        raise ValueError(_AS_IT_IS)
    if origin not in _OF_PTH:
        named = ", ".join(first_names(list(arrays), 3)) or "no arrays"
        raise ValueError(
            f"{f'weights of {origin}' if origin else 'such names'} cannot be converted, expected "
            f"those of {', '.join(_OF_PTH)}: it has {named}"
        )
    return origin


def _source_kind(path: Path) -> str:
    """ "MXNet", "tensorpack" or "PyTorch", by the content of the file."""
    if other := other_than_weights(path):
        raise ValueError(f"the file {other}")
    with open(path, "rb") as file:
        start = file.read(8)
    if start == struct.pack("<Q", MAGIC):
        return "MXNet"
    if is_archive(path):
        with open_archive(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return "tensorpack"
        if any(name.endswith("/data.pkl") for name in names):
            return "PyTorch"
    elif path.suffix == ".pkl":
        raise ValueError(_AS_IT_IS)
    elif start.startswith(b"\x80"):  # a bare pickle, as torch < 1.6 wrote
        return "PyTorch"
    raise ValueError(
        "unknown kind of weights, expected a .params of MXNet, an .npz of tensorpack, or a .pth of "
        f"{', '.join(_OF_PTH)}"
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
            that it starts from; or a `.pth` of maskrcnn-benchmark or of code that is built on it,
            of torchvision, or of mmdetection
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
        if kind == "PyTorch":
            arrays = read_pth(source)
            kind = _origin_of_pth(arrays)
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
            more = [config_in_pth(source)] if kind == MMDETECTION else []
            converted = _OF_PTH[kind](arrays, cfg, shapes, training_only, *more)
    except ValueError as e:
        raise ValueError(str(e) if str(source) in str(e) else f"{source}: {e}") from None
    if name := not_finite({name: torch.from_numpy(a) for name, a in converted.params.items()}):
        raise ValueError(f"{source}: it has values for {name} that are not finite")
    _write(output, converted.params)
    return converted.kind, differences(cfg, converted.settings)


def _write(path: Path, params: dict[str, np.ndarray]) -> None:
    """A file in detectron2's own format, so that no names are guessed when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        if path.suffix == ".pkl":
            pickle.dump({"model": params, "__author__": _AUTHOR}, file)
        else:
            tensors = {name: torch.from_numpy(array) for name, array in params.items()}
            torch.save({"model": tensors, "__author__": _AUTHOR}, file)
