import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np

from .conversion_rules import (
    Rule,
    apply_rules,
    background_last,
    counters,
    expected_parameters,
    foreground_boxes,
    reorder_anchors,
    resnet_prefixes,
)

__all__ = ["convert_maskrcnn_benchmark"]

# detectron2 adds it to all variances; the original's frozen norms do not, its BatchNorm does.
_EPS = 1e-5
TREB1EN = "DCNv2 detector of TreB1eN"

_COUNTER = ".num_batches_tracked"  # that of BatchNorm. Frozen norms have none
_BOX, _MASK = "roi_heads.box.", "roi_heads.mask."
# Names of Dynamic R-CNN's code, where RPN and head are no modules: these stand for the others.
_FLAT = {
    "rpn_conv": "rpn.head.conv",
    "rpn_cls_logits": "rpn.head.cls_logits",
    "rpn_bbox_pred": "rpn.head.bbox_pred",
    "fc6": _BOX + "feature_extractor.fc6",
    "fc7": _BOX + "feature_extractor.fc7",
    "cls_score": _BOX + "predictor.cls_score",
    "bbox_pred": _BOX + "predictor.bbox_pred",
    "anchor_generator": "rpn.anchor_generator",
}
_LAYERS = {
    "rpn.head.conv": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    _BOX + "feature_extractor.fc6": "roi_heads.box_head.fc1",
    _BOX + "feature_extractor.fc7": "roi_heads.box_head.fc2",
    _BOX + "predictor.cls_score": "roi_heads.box_predictor.cls_score",
    _BOX + "predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    _MASK + "predictor.conv5_mask": "roi_heads.mask_head.deconv",
    _MASK + "predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
    # Of TreB1eN's code of DCNv2.
    "roi_heads.conv": "roi_heads.conv_new",
    _BOX + "predictor.linear1": "roi_heads.box_head.fc1",
    _BOX + "predictor.linear2": "roi_heads.box_head.fc2",
    _MASK + "predictor.conv": "roi_heads.mask_head.mask_fcn1",
    "mimicking_head.mimicking_cls_score": "mimic_score",
    **{
        f"roi_heads.{head}.feature_extractor.pooler.linear_deform_{i + 1}": (
            f"roi_heads.{head}_pooler.offset_mask_fc.0.{2 * i}"
        )
        for head in ("box", "mask")
        for i in range(3)
    },
}
_CONV_OR_PAIR = {  # with GroupNorm a pair: `.0` is the convolution, `.1` the norm
    **{f"backbone.fpn.fpn_inner{i}": f"backbone.fpn_lateral{i + 1}" for i in range(1, 5)},
    **{f"backbone.fpn.fpn_layer{i}": f"backbone.fpn_output{i + 1}" for i in range(1, 5)},
    **{
        f"{_MASK}feature_extractor.mask_fcn{i}": f"roi_heads.mask_head.mask_fcn{i}"
        for i in range(1, 5)
    },
}
_OF_BLOCK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"{norm}{i}": f"conv{i}.norm" for norm in ("bn", "gn") for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
    "conv2.conv": "conv2",  # deformable
    "conv2.offset": "conv2.conv_offset",
}
# Modules that are another one, which the file has twice, by their prefixes.
_COPIES = {
    _MASK + "feature_extractor.head.": _BOX + "feature_extractor.head.",
    "mimicking_head.backbone.": "backbone.",
    "mimicking_head.box.": _BOX,
    "mimicking_head.conv.": "roi_heads.conv.",
}
_ANCHORS = re.compile(r"rpn\.anchor_generator\.cell_anchors\.\d+")  # computed from the config


def _without_copies(arrays: Mapping[str, np.ndarray], unfit: list[str]) -> dict[str, np.ndarray]:
    """The arrays under the full names and once each; copies that differ are added to `unfit`."""
    once = {}
    for name, array in arrays.items():
        first, _, rest = name.partition(".")
        full = f"{_FLAT[first]}.{rest}" if first in _FLAT else name
        if full in once:
            unfit.append(f"{name} is {full}, as another array is")
        once[full] = array
    for prefix, original in _COPIES.items():
        for name in [n for n in once if n.startswith(prefix)]:
            twin = original + name.removeprefix(prefix)
            if twin in once and not np.array_equal(once.pop(name), once[twin]):
                unfit.append(f"{name} is not equal to {twin}")
    return once


def _joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    With the deformable convolutions of TreB1eN's code in the form of the others: they are matrices
    there, and have two layers, without bias, for offsets and mask.
    """
    arrays = dict(arrays)
    for name in [n for n in arrays if n.endswith(".conv2.offset_conv.weight")]:
        conv = name.removesuffix("offset_conv.weight")
        mask = arrays.get(conv + "mask_conv.weight")
        weight = arrays.get(conv + "weight")
        if mask is None or weight is None or mask.shape[1:] != arrays[name].shape[1:]:
            continue
        joined = np.concatenate((arrays.pop(name), arrays.pop(conv + "mask_conv.weight")))
        arrays[conv + "offset.weight"] = joined
        arrays[conv + "offset.bias"] = np.zeros(len(joined), np.float32)
        if weight.ndim == 2 and weight.shape[1] % 9 == 0:
            arrays[conv + "weight"] = weight.reshape(len(weight), -1, 3, 3)
    return arrays


def rename_layer(layer: str, backbone: str, xconv_modules: int) -> str:
    """
    Args:
        layer: name of a module in maskrcnn-benchmark, or in TreB1eN's code of DCNv2
        backbone: prefix of the model's ResNet
        xconv_modules: for each convolution of the source's box head: 3 with a norm, otherwise 2
    Returns:
        str: the name of the module here, or '' if it is none of theirs
    """
    for part, prefix in (
        ("backbone.body", backbone),
        (_BOX + "feature_extractor.head", "roi_heads."),
    ):
        if match := re.fullmatch(rf"{re.escape(part)}\.layer([1-4])\.(\d+)\.(.+)", layer):
            stage, block, inner = match.groups()
            name = _OF_BLOCK.get(inner, "")
            return name and f"{prefix}res{int(stage) + 1}.{block}.{name}"
    if match := re.fullmatch(r"backbone\.body\.stem\.(conv1|bn1|gn1)", layer):
        return backbone + "stem." + _OF_BLOCK[match[1]]
    if match := re.fullmatch(re.escape(_BOX) + r"feature_extractor\.xconvs\.(\d+)", layer):
        conv, module = divmod(int(match[1]), xconv_modules)
        if module == xconv_modules - 1:
            return ""  # ReLU
        return f"roi_heads.box_head.conv{conv + 1}" + (".norm" if module else "")
    if layer[-2:] in (".0", ".1") and layer[:-2] in _CONV_OR_PAIR:
        return _CONV_OR_PAIR[layer[:-2]] + (".norm" if layer.endswith("1") else "")
    return _LAYERS.get(layer) or _CONV_OR_PAIR.get(layer, "")


def _find_rule(
    name: str, backbone: str, xconv_modules: int, bgr: bool, anchor_order: Sequence[int]
) -> Rule | None:
    layer, _, kind = name.rpartition(".")
    renamed = rename_layer(layer, backbone, xconv_modules)
    if not renamed or name.endswith(".0.bias") and layer[:-2] in _CONV_OR_PAIR:
        return None  # a pair with a bias is a convolution and ReLU, which no model here has
    target = f"{renamed}.{kind}"
    if target.endswith("stem.conv1.weight") and not bgr:
        return Rule(target, lambda array: array[:, ::-1])
    if renamed.endswith(("objectness_logits", "anchor_deltas")):
        return Rule(target, partial(reorder_anchors, order=anchor_order))
    if renamed.endswith(("cls_score", "mimic_score")):
        return Rule(target, background_last)
    if renamed.endswith("bbox_pred"):
        return Rule(target, foreground_boxes, lambda rows: rows + 4)
    if renamed == "roi_heads.mask_head.predictor":  # the first mask is the background's
        return Rule(target, lambda array: array[1:], lambda rows: rows + 1)
    return Rule(target)


def convert_maskrcnn_benchmark(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    bgr: bool,
    anchor_order: Sequence[int],
    training_only: Collection[str] = (),
) -> tuple[str, dict[str, np.ndarray]]:
    """
    Turn the weights of a detector of maskrcnn-benchmark, of Dynamic R-CNN, which is built on it, or
    of TreB1eN's code of DCNv2 into the state of a model here.

    Args:
        arrays: name -> array, as in a checkpoint
        shapes: name -> shape of every parameter and buffer of the model
        bgr: the model reads BGR, as the originals do
        anchor_order: of an RPN's cell; anchor i of the model is anchor_order[i] of the original
        training_only: names in `shapes` of what only training reads, which no source needs to have
    Returns:
        the network in words, and name -> array, float32, of everything in `shapes` that inference
        reads
    Raises:
        ValueError: if anything is unknown, missing or misshapen, see `apply_rules`
    """
    network = "maskrcnn-benchmark detector"
    if "rpn_conv.weight" in arrays:
        network = "Dynamic R-CNN"
    elif any(".linear_deform_" in name for name in arrays):
        network = TREB1EN
    unfit: list[str] = []
    arrays = _joined(_without_copies(arrays, unfit))
    if _BOX + "feature_extractor.fc6.1.weight" in arrays:
        raise ValueError(
            f"{_BOX}feature_extractor.fc6.1 is GroupNorm after a fully connected layer, in the box "
            "head of two such layers. detectron2 has no head like that: it cannot be converted"
        )
    variances = [name for name in arrays if name.endswith(".running_var")]
    frozen = [n for n in variances if n.removesuffix(".running_var") + _COUNTER not in arrays]
    unfit += [f"{n} has variances below {_EPS}" for n in frozen if (arrays[n] < _EPS).any()]
    backbone, _ = resnet_prefixes(shapes)
    xconv_modules = 3 if _BOX + "feature_extractor.xconvs.1.weight" in arrays else 2
    left_out = {
        name: lambda array: array.shape == (len(anchor_order), 4)
        for name in arrays
        if _ANCHORS.fullmatch(name)
    }
    left_out |= counters(arrays)
    if "mimic_score.weight" not in shapes:  # nothing reads it at inference
        left_out |= {
            f"mimicking_head.mimicking_cls_score.{kind}": lambda array: True
            for kind in ("weight", "bias")
        }

    def find_rule(name):
        rule = _find_rule(name, backbone, xconv_modules, bgr, anchor_order)
        if rule and name in frozen:
            return rule._replace(convert=lambda array: array.astype(np.float32) - _EPS)
        return rule

    return network, apply_rules(
        f"a {network}",
        arrays,
        find_rule,
        shapes,
        expected_parameters(shapes, training_only),
        left_out,
        unfit,
    )
