import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from .conversion_rules import (
    Rule,
    apply_rules,
    counters,
    expected_parameters,
    rename_resnet_layer,
    reorder_anchors,
    resnet_prefixes,
)

__all__ = ["convert_torchvision", "convert_torchvision_classifier"]

# detectron2 adds it to all variances, and so does BatchNorm in torchvision. The frozen norms of
# torchvision's own detectors do not.
_EPS = 1e-5
_COUNTER = ".num_batches_tracked"  # that of BatchNorm. Frozen norms have none
_NUMBER = r"\d+\.0\.weight"  # of a convolution in a head
_LABELS = 91  # of torchvision's detectors: those of COCO, with gaps, and 0 for the background
_COCO_LABELS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]

_LAYERS = {
    "rpn.head.conv": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
    "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
    "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    **{f"roi_heads.mask_head.mask_fcn{i}": f"roi_heads.mask_head.mask_fcn{i}" for i in range(1, 5)},
    "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
    "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
}


def rename_layer(layer: str, backbone: str, rpn_convs: int, box_convs: int) -> str:
    """
    Args:
        layer: name of a module in a detector of torchvision, of any version
        backbone: prefix of the model's ResNet
        rpn_convs, box_convs: how many convolutions the heads of the source have
    Returns:
        str: the name of the module here, or '' if it is none of theirs
    """
    if layer.startswith("backbone.body."):
        name = rename_resnet_layer(layer.removeprefix("backbone.body."))
        return name and backbone + name
    # In newer versions a convolution is a pair: `.0` is the layer, `.1` its norm.
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.([0-3])(?:\.([01]))?", layer):
        kind, level, part = match.groups()
        name = f"backbone.fpn_{'lateral' if kind == 'inner' else 'output'}{int(level) + 2}"
        return name + _norm(part)
    if match := re.fullmatch(r"rpn\.head\.conv\.(\d+)\.0", layer):
        conv = "conv" if rpn_convs == 1 else f"conv.conv{match[1]}"
        return f"proposal_generator.rpn_head.{conv}"
    if match := re.fullmatch(r"roi_heads\.(box|mask)_head\.(\d+)\.([01])", layer):
        head, conv, part = match.groups()
        conv = f"{'conv' if head == 'box' else 'mask_fcn'}{int(conv) + 1}"
        return f"roi_heads.{head}_head.{conv}{_norm(part)}"
    if match := re.fullmatch(r"roi_heads\.box_head\.(\d+)", layer):
        # After the convolutions: a module that flattens, then pairs of a layer and ReLU.
        number, is_relu = divmod(int(match[1]) - box_convs - 1, 2)
        return "" if number < 0 or is_relu else f"roi_heads.box_head.fc{number + 1}"
    return _LAYERS.get(layer, "")


def _norm(part: str | None) -> str:
    return ".norm" if part == "1" else ""


def _rows(array: np.ndarray, labels: Sequence[int], block: int = 1) -> np.ndarray:
    """Of the classes, of `block` rows each, those of these labels."""
    return array.reshape(-1, block, *array.shape[1:])[list(labels)].reshape(-1, *array.shape[1:])


def _find_rule(
    name: str, layer: str, bgr: bool, anchor_order: Sequence[int], labels: Sequence[int], count: int
) -> Rule | None:
    """`labels` of `count` in the file are the classes of the model."""
    if not layer:
        return None
    target = f"{layer}.{name.rpartition('.')[2]}"
    if target.endswith("stem.conv1.weight") and bgr:
        return Rule(target, lambda array: array[:, ::-1])
    if layer.endswith(("objectness_logits", "anchor_deltas")):
        return Rule(target, partial(reorder_anchors, order=anchor_order))
    if layer.endswith("cls_score"):
        added = count - len(labels) - 1
        return Rule(target, partial(_rows, labels=[*labels, 0]), lambda rows: rows + added)
    if layer.endswith("bbox_pred"):
        added = 4 * (count - len(labels))
        return Rule(target, partial(_rows, labels=labels, block=4), lambda rows: rows + added)
    if layer == "roi_heads.mask_head.predictor":
        added = count - len(labels)
        return Rule(target, partial(_rows, labels=labels), lambda rows: rows + added)
    return Rule(target)


def convert_torchvision(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    bgr: bool,
    anchor_order: Sequence[int],
    training_only: Collection[str] = (),
) -> tuple[str, dict[str, np.ndarray]]:
    """
    Turn the weights of a Faster or Mask R-CNN of torchvision, with a ResNet and a feature pyramid,
    into the state of a model here. Of torchvision's 91 labels of COCO, of which it uses 80, a model
    with 80 classes gets those.

    Frozen norms are taken without epsilon, as torchvision has them in its own weights; a norm that
    counts batches adds it.

    Args:
        arrays: name -> array, as in a checkpoint
        shapes: name -> shape of every parameter and buffer of the model
        bgr: the model reads BGR, and not RGB as the original
        anchor_order: of an RPN's cell; anchor i of the model is anchor_order[i] of the original
        training_only: names in `shapes` of what only training reads, which no source needs to have
    Returns:
        the network in words, and name -> array, float32, of everything in `shapes` that inference
        reads
    Raises:
        ValueError: if anything is unknown, missing or misshapen, see `apply_rules`
    """
    network = "torchvision detector"
    count = len(arrays.get("roi_heads.box_predictor.cls_score.bias", ()))
    wanted = shapes.get("roi_heads.box_predictor.cls_score.bias", (0,))[0] - 1
    labels = list(range(1, count))
    if count == _LABELS and wanted == len(_COCO_LABELS):
        labels = _COCO_LABELS
        network += f", of whose {_LABELS - 1} classes the {wanted} of COCO are kept"
    frozen = {
        layer
        for layer in (n.removesuffix(".running_var") for n in arrays if n.endswith("running_var"))
        if layer + _COUNTER not in arrays
    }
    unfit = [
        f"{layer}.running_var has variances that are not above 0"
        for layer in frozen
        if not (arrays[layer + ".running_var"] > 0).all()
    ]
    backbone, _ = resnet_prefixes(shapes)
    numbers = (
        _count(arrays, rf"rpn\.head\.conv\.{_NUMBER}"),
        _count(arrays, rf"roi_heads\.box_head\.{_NUMBER}"),
    )

    def find_rule(name):
        layer = name.rpartition(".")[0]
        renamed = rename_layer(layer, backbone, *numbers)
        rule = _find_rule(name, renamed, bgr, anchor_order, labels, count)
        if rule and layer in frozen and name.endswith(".weight"):
            variance = arrays[layer + ".running_var"].astype(np.float64)
            return rule._replace(convert=lambda scale: scale * np.sqrt(1 + _EPS / variance))
        return rule

    return network, apply_rules(
        "a torchvision detector",
        arrays,
        find_rule,
        shapes,
        expected_parameters(shapes, training_only),
        counters(arrays),
        unfit,
    )


def _count(names: Collection[str], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def convert_torchvision_classifier(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    bgr: bool,
    training_only: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """
    Turn the weights of an ImageNet ResNet of torchvision, or of timm where it has the same names,
    into those that a training here starts from. See `convert_torchvision`.

    Returns:
        dict: name -> array, float32, of the ResNet in `shapes`, without offset layers, which the
            source does not have
    """
    backbone, res5 = resnet_prefixes(shapes)
    left_out = {
        "fc.weight": lambda array: array.ndim == 2,
        "fc.bias": lambda array: array.ndim == 1,
    }

    def find_rule(name):
        layer, _, kind = name.rpartition(".")
        renamed = rename_resnet_layer(layer)
        if not renamed:
            return None
        prefix = res5 if renamed.startswith("res5.") else backbone
        reverse = bgr and renamed == "stem.conv1"
        target = f"{prefix}{renamed}.{kind}"
        return Rule(target, (lambda array: array[:, ::-1]) if reverse else np.asarray)

    return apply_rules(
        "a torchvision classifier",
        arrays,
        find_rule,
        shapes,
        expected_parameters(shapes, training_only, resnet_only=True),
        left_out | counters(arrays),
    )
