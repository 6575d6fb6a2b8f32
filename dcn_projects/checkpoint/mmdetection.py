import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np

from .conversion_rules import (
    Rule,
    apply_rules,
    counters,
    expected_parameters,
    rename_resnet_layer,
    reorder_anchors,
    resnet_prefixes,
)

__all__ = ["convert_mmdetection", "style_in_config"]

_HEAD = "roi_head."
_LAYERS = {
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    _HEAD + "bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    _HEAD + "bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    _HEAD + "mask_head.upsample": "roi_heads.mask_head.deconv",
    _HEAD + "mask_head.conv_logits": "roi_heads.mask_head.predictor",
}
# Convolutions with their norms: pattern of the name -> ours, and what is added to the number.
_CONVS = {
    r"neck\.lateral_convs\.(\d)": ("backbone.fpn_lateral", 2),
    r"neck\.fpn_convs\.([0-3])": ("backbone.fpn_output", 2),
    r"roi_head\.bbox_head\.shared_convs\.(\d)": ("roi_heads.box_head.conv", 1),
    r"roi_head\.mask_head\.convs\.(\d)": ("roi_heads.mask_head.mask_fcn", 1),
}


def style_in_config(config: str) -> str:
    """
    Args:
        config: that a checkpoint of mmdetection has beside the weights; it may be empty
    Returns:
        str: "pytorch" or "caffe", which is where the bottlenecks stride and which pixels the
            network reads; "" if the config does not say it
    """
    match = re.search(r"style\W+(pytorch|caffe)\b", config)
    return match[1] if match else ""


def rename_layer(layer: str, backbone: str) -> str:
    """
    Args:
        layer: name of a module in mmdetection 2 or 3
        backbone: prefix of the model's ResNet
    Returns:
        str: the name of the module here, or '' if it is none of theirs
    """
    if layer.startswith("backbone."):
        name = rename_resnet_layer(layer.removeprefix("backbone."))
        return name and backbone + name
    for pattern, (name, first) in _CONVS.items():
        if match := re.fullmatch(pattern + r"\.(conv|bn|gn)", layer):
            norm = "" if match[2] == "conv" else ".norm"
            return f"{name}{int(match[1]) + first}{norm}"
    if match := re.fullmatch(r"roi_head\.bbox_head\.shared_fcs\.(\d)", layer):
        return f"roi_heads.box_head.fc{int(match[1]) + 1}"
    return _LAYERS.get(layer, "")


def convert_mmdetection(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    reverse_channels: bool,
    anchor_order: Sequence[int],
    training_only: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """
    Turn the weights of a Faster or Mask R-CNN of mmdetection 2 or 3, with a ResNet, plain or with
    deformable convolutions, and a feature pyramid, or of its Dynamic R-CNN, into the state of a
    model here. Its classes are in the order of the models here, with the background last, and its
    offsets are (y, x) per tap, with the mask behind them.

    Args:
        arrays: name -> array, as in a checkpoint
        shapes: name -> shape of every parameter and buffer of the model
        reverse_channels: the model reads the colours in the other order
        anchor_order: of an RPN's cell; anchor i of the model is anchor_order[i] of the original
        training_only: names in `shapes` of what only training reads, which no source needs to have
    Returns:
        dict: name -> array, float32, of everything in `shapes` that inference reads
    Raises:
        ValueError: if anything is unknown, missing or misshapen, see `apply_rules`; or for a file
            of mmdetection 1, whose background is the first class
    """
    if any(name.startswith(("bbox_head.", "mask_head.")) for name in arrays):
        raise ValueError(
            "it is of mmdetection 1, or no R-CNN (it has a bbox_head outside of a roi_head): bring "
            "it to version 2 with upgrade_model_version.py of mmdetection first"
        )
    backbone, _ = resnet_prefixes(shapes)

    def find_rule(name):
        layer, _, kind = name.rpartition(".")
        renamed = rename_layer(layer, backbone)
        if not renamed:
            return None
        target = f"{renamed}.{kind}"
        if reverse_channels and target.endswith("stem.conv1.weight"):
            return Rule(target, lambda array: array[:, ::-1])
        if renamed.endswith(("objectness_logits", "anchor_deltas")):
            return Rule(target, partial(reorder_anchors, order=anchor_order))
        return Rule(target)

    return apply_rules(
        "an mmdetection detector",
        arrays,
        find_rule,
        shapes,
        expected_parameters(shapes, training_only),
        counters(arrays),
    )
