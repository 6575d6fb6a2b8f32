import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from .conversion_rules import (
    Rule,
    apply_rules,
    background_last,
    expected_parameters,
    foreground_boxes,
    resnet_prefixes,
)

__all__ = ["ModelOptions", "convert_mxnet"]

# The deviations of the regression targets of RoIs in the original. Their means are 0.
_BOX_STDS = (0.1, 0.1, 0.2, 0.2)
_BLOCK = r"([2-5])(a|b|c|b[1-9]\d*)_branch(1|2a|2b|2c|2b_offset)"
_LAYERS = {
    "1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3", "2b_offset": "conv2.conv_offset",
}  # fmt: skip
_NORM = {
    "arg:gamma": "weight",
    "arg:beta": "bias",
    "aux:moving_mean": "running_mean",
    "aux:moving_var": "running_var",
}
_RPN = "proposal_generator.rpn_head."
_CLASSIFIER = "ImageNet classifier"


class ModelOptions(NamedTuple):
    """What the conversion has to know of a model, beside its parameters."""

    bgr: bool  # the model reads BGR; the original RGB
    bins: int  # of R-FCN's score maps, k * k
    box_weights: tuple[float, ...]  # that the model divides the deltas of RoIs by
    rpn_box_weights: tuple[float, ...]  # and those of the RPN
    boxes_normalized: bool = False  # a box layer without `*_test` predicts normalised targets


def foreground_minus_background(array: np.ndarray) -> np.ndarray:
    """A softmax over two logits is the sigmoid of their difference. The background comes first."""
    background, foreground = np.split(array.astype(np.float32), 2)
    return foreground - background


def scale_deltas(array: np.ndarray, factors, block: int = 1) -> np.ndarray:
    """Rows are (boxes, 4 coordinates, `block`): multiply each coordinate by its factor."""
    factors = np.asarray(factors)[np.arange(len(array)) // block % 4]
    return array * factors.reshape(-1, *[1] * (array.ndim - 1))


def _networks(options: ModelOptions) -> dict[str, dict[str, Rule]]:
    """The layers of each network beside its ResNet. The first of them identifies the network."""
    bins = options.bins

    def box_layer(target, block):
        def convert(array):
            return scale_deltas(foreground_boxes(array, block), options.box_weights, block)

        return Rule(target, convert, lambda rows: rows + 4 * block)

    rpn = {
        "rpn_cls_score": Rule(
            _RPN + "objectness_logits", foreground_minus_background, lambda rows: 2 * rows
        ),
        "rpn_bbox_pred": Rule(
            _RPN + "anchor_deltas", partial(scale_deltas, factors=options.rpn_box_weights)
        ),
    }
    # The order of (channel, row, column) in fully connected layers, of the planes (x, y) of RoI
    # offsets, and of (y, x) per tap in the offsets of convolutions is the same as here.
    box_head = {
        "fc_new_1": Rule("roi_heads.box_head.fc1"),
        "fc_new_2": Rule("roi_heads.box_head.fc2"),
        "cls_score": Rule("roi_heads.box_predictor.cls_score", partial(background_last, block=1)),
        "bbox_pred": box_layer("roi_heads.box_predictor.bbox_pred", 1),
    }
    offset_fc = "roi_heads.box_pooler.level_poolers.{}.offset_fc"
    return {
        "FPN": {
            **{f"fpn_p{i}": Rule(f"backbone.fpn_output{i}") for i in range(2, 6)},
            **{f"fpn_p{i}_1x1": Rule(f"backbone.fpn_lateral{i}") for i in range(2, 6)},
            "fpn_p6": Rule("backbone.top_block.p6"),
            "rpn_conv": Rule(_RPN + "conv"),
            **rpn,
            **{f"offset_p{i}": Rule(offset_fc.format(i - 2)) for i in range(2, 6)},
            **box_head,
        },
        "R-FCN": {
            "rfcn_cls": Rule("roi_heads.score_maps.rfcn_cls", partial(background_last, block=bins)),
            "rfcn_bbox": box_layer("roi_heads.score_maps.rfcn_bbox", bins),
            "rfcn_cls_offset_t": Rule(
                "roi_heads.score_maps.rfcn_cls_offset", partial(background_last, block=2 * bins)
            ),
            "rfcn_bbox_offset_t": Rule("roi_heads.score_maps.rfcn_bbox_offset"),
            "conv_new_1": Rule("roi_heads.score_maps.conv_new"),
            "rpn_conv_3x3": Rule(_RPN + "conv"),
            **rpn,
        },
        "Faster R-CNN": {
            **box_head,
            "conv_new_1": Rule("roi_heads.conv_new"),
            "offset": Rule(offset_fc.format(0)),
            "rpn_conv_3x3": Rule(_RPN + "conv"),
            **rpn,
        },
        "DeepLab": {
            "score": Rule("sem_seg_head.score"),
            "fc6": Rule("sem_seg_head.fc6"),
        },
        _CLASSIFIER: {},
    }


def _is_bilinear(array: np.ndarray) -> bool:
    tent = 1 - np.abs(np.arange(32) / 16 - 0.96875)
    return array.shape[1:] == (1, 32, 32) and np.allclose(array, np.outer(tent, tent), atol=1e-3)


# Arrays that no model here has a parameter for, and how they are known to be what they should.
_LEFT_OUT = {
    "DeepLab": {"arg:upsampling_weight": _is_bilinear},  # a fixed kernel
    # The layer has Caffe's name, or MXNet's own.
    _CLASSIFIER: {
        f"arg:{layer}_{kind}": lambda array, rank=rank: array.ndim == rank and len(array) == 1000
        for layer in ("fc1000", "fc1")
        for kind, rank in (("weight", 2), ("bias", 1))
    },
}


def rename_backbone(name: str) -> str:
    """
    Args:
        name: of an array of the original, with its group, "arg:" or "aux:"
    Returns:
        str: the name in detectron2's ResNet, or '' if it is not of a ResNet
    """
    if name == "arg:conv1_weight":
        return "stem.conv1.weight"
    if match := re.fullmatch(rf"arg:res{_BLOCK}_(weight|bias)", name):
        stage, block, layer, kind = match.groups()
    elif match := re.fullmatch(rf"(a..:)bn(?:_conv1|{_BLOCK})_(\w+)", name):
        group, stage, block, layer, kind = match.groups()
        if group + kind not in _NORM:
            return ""
        kind = "norm." + _NORM[group + kind]
    else:
        return ""
    if stage is None:
        return f"stem.conv1.{kind}"
    # res2a, res2b, res2c and res4a, res4b1 ... res4b22
    index = int(block[1:]) if len(block) > 1 else "abc".index(block)
    return f"res{stage}.{index}.{_LAYERS[layer]}.{kind}"


def _find_rule(name: str, layers: dict[str, Rule], backbone: str, bgr: bool) -> Rule | None:
    """`backbone` is the prefix of the model's ResNet."""
    if renamed := rename_backbone(name):
        reverse = bgr and renamed == "stem.conv1.weight"
        return Rule(backbone + renamed, (lambda array: array[:, ::-1]) if reverse else np.asarray)
    match = re.fullmatch(r"arg:(\w+)_(weight|bias)", name)
    if not match or match[1] not in layers:
        return None
    rule = layers[match[1]]
    return rule._replace(target=f"{rule.target}.{match[2]}")


def convert_mxnet(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    options: ModelOptions,
    training_only: Collection[str] = (),
) -> tuple[str, dict[str, np.ndarray]]:
    """
    Turn the arrays of a network of the MXNet code of Deformable ConvNets, or of the ResNet that
    it starts from, into the state of a model here.

    A detector that the original saved holds its box layer twice: as it is trained, with normalised
    targets, and in arrays `*_test` multiplied by their deviations, with which it detects. One
    without `*_test` detects with what there is, unless `boxes_normalized`. In each case the model
    gets the layer that moves its boxes as far.

    Args:
        arrays: "arg:NAME" or "aux:NAME" -> array
        shapes: name -> shape of every parameter and buffer of the model
        options: of the model
        training_only: names in `shapes` of what only training reads, which no source needs to have
    Returns:
        the name of the network, and name -> array, float32, of everything in `shapes` that
        inference reads; from an ImageNet classifier only its ResNet, without the offset layers,
        which it does not have
    Raises:
        ValueError: if anything is unknown, missing or misshapen, see `apply_rules`
    """
    networks = _networks(options)
    network, layers = next(
        (name, layers)
        for name, layers in networks.items()
        if not layers or f"arg:{next(iter(layers))}_weight" in arrays
    )
    backbone, _ = resnet_prefixes(shapes)
    expected = expected_parameters(shapes, training_only, resnet_only=network == _CLASSIFIER)
    unfit = []
    detecting = _detecting_boxes(arrays, layers, options, unfit)

    def find_rule(name):
        return _find_rule(name, layers, backbone, options.bgr)

    left_out = _LEFT_OUT.get(network, {})
    return network, apply_rules(
        f"an MXNet {network}", detecting, find_rule, shapes, expected, left_out, unfit
    )


def _detecting_boxes(
    arrays: Mapping[str, np.ndarray], layers: dict[str, Rule], options: ModelOptions, unfit: list
) -> dict[str, np.ndarray]:
    """
    The arrays with the box layer that the original detects with, and without `*_test`. What is
    wrong with them is added to `unfit`.
    """
    arrays = dict(arrays)
    for layer, block in {"bbox_pred": 1, "rfcn_bbox": options.bins}.items():
        names = [f"arg:{layer}_{kind}" for kind in ("weight", "bias")]
        saved_twice = any(name + "_test" in arrays for name in names)
        if layer not in layers or not (saved_twice or options.boxes_normalized):
            continue
        for name in names:
            detecting = arrays.pop(name + "_test", None)
            if name not in arrays:
                if detecting is not None:
                    arrays[name] = detecting
                continue
            trained = np.atleast_1d(arrays[name]).astype(np.float64)
            arrays[name] = scale_deltas(trained, _BOX_STDS, block)
            if saved_twice and not _equal(arrays[name], detecting):
                unfit.append(f"{name}_test is not {name} times the deviations {_BOX_STDS}")
    return arrays


def _equal(a: np.ndarray, b: np.ndarray | None) -> bool:
    """Up to the precision of 16 bits, in which arrays may have been saved."""
    if b is None or a.shape != b.shape:
        return False
    return np.allclose(a, b, rtol=0, atol=1e-3 * np.abs(a).max(initial=0))
