import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from os import PathLike

import numpy as np

from .archives import open_archive, read_entry
from .conversion_rules import (
    Rule,
    apply_rules,
    background_last,
    expected_parameters,
    foreground_boxes,
    reorder_anchors,
    resnet_prefixes,
)

__all__ = ["convert_tensorpack", "read_npz"]

# What a file may have beside the network: the last layer of the classifier, ...
_LAST_LAYER = re.compile(r"(linear|fc1000)/[Wb]")
# ... and what training left there: its step and rate, the slots of its optimizers, and moving
# averages of summaries. Those of batch normalisation are its statistics.
_OF_TRAINING = re.compile(r"learning_rate|global_step|AccumGrad.*|.*/Momentum|(?!.*/bn/).*EMA.*")
# Of the versions 1 and 2 of the format; names in UTF-8, which version 3 has, are those of fields.
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MAX_NPY_HEADER = 2**14  # bytes, of which NumPy reads 10,000 at most
_LAYER_KINDS = {"W": "weight", "b": "bias"}
_NORM_KINDS = {
    "gamma": "weight",
    "beta": "bias",
    "mean/EMA": "running_mean",
    "variance/EMA": "running_var",
}

_GN = re.compile(r".*/gn(\d|_[cp]\d)/gamma")  # after the convolutions of pyramid and heads
_GN_ORDER = (
    "tensorpack has a bias, then ReLU, then GroupNorm: take MODEL.BACKBONE.NAME "
    "build_tensorpack_resnet_fpn_backbone, MODEL.ROI_BOX_HEAD.NAME TensorpackBoxHead and "
    "MODEL.ROI_MASK_HEAD.NAME TensorpackMaskHead where their NORM is GN"
)


def read_npz(path: str | PathLike) -> dict[str, np.ndarray]:
    """
    Read an `.npz` file without unpickling anything.

    Returns:
        dict: name, without the `:0` of TensorFlow's tensors, -> array
    Raises:
        OSError: if the file cannot be read
        ValueError: if it is cut off or damaged, holds something else than plain arrays, or two
            of the same name
    """
    arrays = {}
    with open_archive(path) as archive:
        for entry in archive.namelist():
            name = entry.removesuffix(".npy")
            short = name.removesuffix(":0")
            try:
                if short in arrays:
                    raise ValueError("an array of this name is there twice")
                arrays[short] = _array(read_entry(archive, entry))
            except Exception as e:  # a damaged file can raise anything
                reason = " ".join(str(e).split())[:100] or type(e).__name__
                raise ValueError(f"{path}: {name}: cannot be read ({reason})") from None
    return arrays


def _array(content: memoryview) -> np.ndarray:
    """Of the bytes of an `.npy` file, of which no size is believed."""
    file = io.BytesIO(content[:_MAX_NPY_HEADER])
    version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        raise ValueError(f"version {version} of the format of arrays")
    shape, by_columns, dtype = _NPY_HEADERS[version](file)
    if dtype.kind not in "biuf":
        raise ValueError(f"not an array of numbers, but of {dtype}")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array {shape} with {len(content) - file.tell()} bytes")
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if by_columns else "C")


def to_pytorch(array: np.ndarray) -> np.ndarray:
    """
    TensorFlow's filters (rows, columns, in, out) become (out, in, rows, columns), and matrices
    (in, out) become (out, in). A transposed convolution is there (rows, columns, out, in) and
    becomes (in, out, rows, columns): the same axes move.
    """
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def _head_layers() -> dict[str, str]:
    """The layers, and normalisations, of all that follows the ResNet: tensorpack's name -> ours."""
    layers = {
        "rpn/conv0": "proposal_generator.rpn_head.conv",
        "rpn/class": "proposal_generator.rpn_head.objectness_logits",
        "rpn/box": "proposal_generator.rpn_head.anchor_deltas",
        "maskrcnn/deconv": "roi_heads.mask_head.deconv",
        "maskrcnn/conv": "roi_heads.mask_head.predictor",
    }
    for i in range(2, 6):
        layers[f"fpn/lateral_1x1_c{i}"] = f"backbone.fpn_lateral{i}"
        layers[f"fpn/gn_c{i}"] = f"backbone.fpn_lateral{i}.norm"
        layers[f"fpn/posthoc_3x3_p{i}"] = f"backbone.fpn_output{i}"
        layers[f"fpn/gn_p{i}"] = f"backbone.fpn_output{i}.norm"
    box_head = {"fc6": "fc1", "fc7": "fc2", "fc": "fc1"}
    for i in range(4):
        layers[f"maskrcnn/fcn{i}"] = f"roi_heads.mask_head.mask_fcn{i + 1}"
        layers[f"maskrcnn/gn{i}"] = f"roi_heads.mask_head.mask_fcn{i + 1}.norm"
        box_head |= {f"conv{i}": f"conv{i + 1}", f"gn{i}": f"conv{i + 1}.norm"}
    heads = [  # with a pyramid; on res5 of each RoI; the stages of a cascade
        ("fastrcnn/", "fastrcnn/outputs/", ""),
        ("fastrcnn/", "fastrcnn/", ""),
        *((f"cascade_rcnn_stage{i}/head/", f"cascade_rcnn_stage{i}/outputs/", f"{i - 1}.")
          for i in (1, 2, 3)),
    ]  # fmt: skip
    for features, outputs, stage in heads:
        for name, ours in box_head.items():
            layers[features + name] = f"roi_heads.box_head.{stage}{ours}"
        layers[f"{outputs}class"] = f"roi_heads.box_predictor.{stage}cls_score"
        layers[f"{outputs}box"] = f"roi_heads.box_predictor.{stage}bbox_pred"
    return layers


_HEAD_LAYERS = _head_layers()


def rename_layer(layer: str, backbone: str, res5: str) -> str:
    """
    Args:
        layer: name of a layer, or of a normalisation, in tensorpack
        backbone, res5: prefixes of the model's ResNet, and of its last stage
    Returns:
        str: the name of the module here, or '' if it is none of tensorpack's
    """
    layer, norm = re.fullmatch(r"(.*?)(/[bg]n)?", layer).groups()
    if match := re.fullmatch(r"group([0-3])/block(\d+)/conv([123]|shortcut)", layer):
        stage, block, conv = match.groups()
        conv = conv if conv == "shortcut" else f"conv{conv}"
        name = f"{res5 if stage == '3' else backbone}res{int(stage) + 2}.{block}.{conv}"
    elif layer == "conv0":
        name = f"{backbone}stem.conv1"
    else:
        return "" if norm else _HEAD_LAYERS.get(layer, "")
    return f"{name}.norm" if norm else name


def _find_rule(
    name: str, backbone: str, res5: str, bgr: bool, anchor_order: Sequence[int]
) -> Rule | None:
    match = re.fullmatch(r"(.+?)/(W|b|gamma|beta|mean/EMA|variance/EMA)", name)
    renamed = match and rename_layer(match[1], backbone, res5)
    if not renamed:
        return None
    kinds = _NORM_KINDS if renamed.endswith(".norm") else _LAYER_KINDS
    if match[2] not in kinds:
        return None
    target = f"{renamed}.{kinds[match[2]]}"
    if target.endswith("stem.conv1.weight") and not bgr:
        return Rule(target, lambda array: array[:, ::-1])
    if renamed.endswith(("objectness_logits", "anchor_deltas")):
        return Rule(target, partial(reorder_anchors, order=anchor_order))
    if renamed.endswith("cls_score"):
        return Rule(target, background_last)
    if renamed.endswith("bbox_pred") and not name.startswith("cascade"):
        return Rule(target, foreground_boxes, lambda rows: rows + 4)
    return Rule(target)


def convert_tensorpack(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    bgr: bool,
    anchor_order: Sequence[int],
    training_only: Collection[str] = (),
) -> tuple[str, dict[str, np.ndarray]]:
    """
    Turn the arrays of one of tensorpack's R-CNN models, or of the ResNet that it starts from, into
    the state of a model here.

    Args:
        arrays: name -> array, as in an `.npz` file
        shapes: name -> shape of every parameter and buffer of the model
        bgr: the model reads BGR, as the original does
        anchor_order: of an RPN's cell; anchor i of the model is anchor_order[i] of the original
        training_only: names in `shapes` of what only training reads, which no source needs to have
    Returns:
        the network in words, and name -> array, float32, of everything in `shapes` that inference
        reads; from an ImageNet classifier only its ResNet, without offset layers, which it does not
        have
    Raises:
        ValueError: if anything is unknown, missing or misshapen, see `apply_rules`. Shapes are
            those of PyTorch's layout
    """
    backbone, res5 = resnet_prefixes(shapes)
    is_classifier = not any(name.startswith("rpn/") for name in arrays)
    network = "ImageNet classifier" if is_classifier else "detector"
    left_out: dict[str, Callable] = {
        name: lambda array: True for name in arrays if _OF_TRAINING.fullmatch(name)
    }
    if is_classifier:
        left_out |= {
            name: lambda array: array.shape[:1] == (1000,)
            for name in arrays
            if _LAST_LAYER.fullmatch(name)
        }

    def find_rule(name):
        return _find_rule(name, backbone, res5, bgr, anchor_order)

    try:
        params = apply_rules(
            f"a tensorpack {network}",
            {name: to_pytorch(array) for name, array in arrays.items()},
            find_rule,
            shapes,
            expected_parameters(shapes, training_only, resnet_only=is_classifier),
            left_out,
        )
    except ValueError as e:
        rules = filter(None, map(find_rule, arrays))
        no_bias = any(r.target.endswith(".bias") and r.target not in shapes for r in rules)
        no_bias = no_bias and any(map(_GN.fullmatch, arrays))
        raise ValueError(f"{e}\n{_GN_ORDER}" if no_bias else str(e)) from None
    return network, params
