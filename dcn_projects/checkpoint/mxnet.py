import re

import numpy as np

__all__ = ["rename_rfcn"]

_STAGE = re.compile(r"(res|bn)([2-5])([a-c])(\d*)_branch(1|2a|2b|2c)(_offset)?_(\w+)")
_CONV = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_NORM = {
    "gamma": "norm.weight",
    "beta": "norm.bias",
    "moving_mean": "norm.running_mean",
    "moving_var": "norm.running_var",
}
_BINS = 7 * 7


def rename_backbone(name: str) -> str:
    """Name of a ResNet parameter of the MXNet repository in detectron2, or '' if it is none."""
    stem = re.fullmatch(r"(?:bn_)?conv1_(\w+)", name)
    if stem:
        return "backbone.stem.conv1." + _NORM.get(stem[1], stem[1])
    block = _STAGE.fullmatch(name)
    if not block:
        return ""
    _, stage, letter, number, branch, offset, kind = block.groups()
    # res2a, res2b, res2c and res4a, res4b1 ... res4b22
    index = int(number) if number else "abc".index(letter)
    layer = _CONV[branch] + (offset or "")
    return f"backbone.res{stage}.{index}.{layer}.{_NORM.get(kind, kind)}"


def rename_rfcn(arrays: dict[str, np.ndarray], input_format: str = "BGR") -> dict[str, np.ndarray]:
    """
    Parameters of a (Deformable) R-FCN of the MXNet repository, with the names and the layout of
    `RFCN` here.

    Args:
        arrays: "arg:NAME" or "aux:NAME" -> array, as in its .params files
        input_format: INPUT.FORMAT of the model. The original reads RGB.
    Returns:
        dict: state of the model, without pixel mean and deviation
    Raises:
        ValueError: if an array is missing, or there is one that is none of this network's
    """
    params = {}
    rest = {key.split(":", 1)[1]: array for key, array in arrays.items()}

    def take(name: str) -> np.ndarray:
        if name not in rest:
            raise ValueError(f"{name} is missing: not all of an R-FCN")
        return rest.pop(name)

    # A saved detector also holds its box layer with the deviations of the targets multiplied in;
    # the raw one is what BBOX_REG_WEIGHTS (10, 10, 5, 5) belongs to.
    for name in ("rfcn_bbox_weight_test", "rfcn_bbox_bias_test"):
        rest.pop(name, None)
    for name in list(rest):
        renamed = rename_backbone(name)
        if renamed:
            params[renamed] = rest.pop(name)
    if input_format == "BGR":
        stem = "backbone.stem.conv1.weight"
        params[stem] = params[stem][:, ::-1].copy()

    rpn = "proposal_generator.rpn_head."
    for kind in ("weight", "bias"):
        params[f"{rpn}conv.{kind}"] = take(f"rpn_conv_3x3_{kind}")
        # Softmax over (background, foreground) is the sigmoid of their difference.
        background, foreground = np.split(take(f"rpn_cls_score_{kind}"), 2)
        params[f"{rpn}objectness_logits.{kind}"] = foreground - background
        params[f"{rpn}anchor_deltas.{kind}"] = take(f"rpn_bbox_pred_{kind}")
        params[f"score_maps.conv_new.{kind}"] = take(f"conv_new_1_{kind}")
        # Class 0 is the background there, class K here.
        cls = take(f"rfcn_cls_{kind}")
        params[f"score_maps.rfcn_cls.{kind}"] = np.roll(cls, -_BINS, axis=0)
        # The first of two boxes is the background's, and unused.
        params[f"score_maps.rfcn_bbox.{kind}"] = take(f"rfcn_bbox_{kind}")[4 * _BINS :]
        if f"rfcn_cls_offset_t_{kind}" in rest:
            cls = take(f"rfcn_cls_offset_t_{kind}")
            params[f"score_maps.rfcn_cls_offset.{kind}"] = np.roll(cls, -2 * _BINS, axis=0)
            params[f"score_maps.rfcn_bbox_offset.{kind}"] = take(f"rfcn_bbox_offset_t_{kind}")
    if rest:
        raise ValueError(f"not parameters of an R-FCN: {sorted(rest)}")
    return params
