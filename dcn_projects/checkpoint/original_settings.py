"""What a config must say, or should say, for the weights of an original implementation."""

from collections.abc import Mapping

import numpy as np
from detectron2.config import CfgNode

from dcn_projects.config_keys import value_of
from dcn_projects.config_renames import current_value

__all__ = [
    "anchor_order",
    "check_pixels",
    "check_stride",
    "differences",
    "heads_settings",
    "reorders_anchors",
]

_ANCHORS = "MODEL.ANCHOR_GENERATOR.NAME"
_LEGACY = "PyFasterRCNNAnchorGenerator"
# Which order them by ratio, then by size.
_RATIO_FIRST = (_LEGACY, "TorchvisionAnchorGenerator")


def check_pixels(cfg: CfgNode, mean, std) -> None:
    """
    Args:
        mean, std: what the original subtracts from pixels, and then divides them by; RGB
    Raises:
        ValueError: if the model sees other pixels
    """
    keys = cfg.MODEL
    mean, std = list(mean), list(std)
    expected = f"RGB {mean} or BGR {mean[::-1]}"
    if cfg.INPUT.FORMAT == "BGR":
        mean, std = mean[::-1], std[::-1]
    # A mean that differs by at most 1, as that of Caffe's networks, is accepted too.
    if cfg.INPUT.FORMAT not in ("RGB", "BGR") or not np.allclose(keys.PIXEL_MEAN, mean, atol=1):
        raise ValueError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT} and MODEL.PIXEL_MEAN {list(keys.PIXEL_MEAN)}, but "
            f"the weights are for {expected}"
        )
    if not np.allclose(keys.PIXEL_STD, std, atol=0.1):
        raise ValueError(
            f"MODEL.PIXEL_STD is {list(keys.PIXEL_STD)}, but the weights are for {std}"
        )


def check_stride(cfg: CfgNode, in_1x1: bool) -> None:
    """
    Args:
        in_1x1: the bottlenecks of the original stride in their first convolution, as in Caffe
    Raises:
        ValueError: if those of the model do not
    """
    if cfg.MODEL.RESNETS.STRIDE_IN_1X1 != in_1x1:
        raise ValueError(
            f"MODEL.RESNETS.STRIDE_IN_1X1 is {not in_1x1}, but the weights are for {in_1x1}"
        )


def anchor_order(cfg: CfgNode, ratio_first: bool) -> list[int]:
    """
    Args:
        ratio_first: anchors of a cell are ordered by ratio, then by size, in the original
    Returns:
        list: of each anchor of the model, its number in the original
    """
    keys = cfg.MODEL.ANCHOR_GENERATOR
    sizes, ratios = len(keys.SIZES[0]), len(keys.ASPECT_RATIOS[0])
    by_size = np.arange(sizes * ratios).reshape(sizes, ratios)  # [size, ratio] -> number
    source = np.arange(sizes * ratios).reshape(ratios, sizes).T if ratio_first else by_size
    is_ratio_first = current_value(_ANCHORS, keys.NAME) in _RATIO_FIRST
    return (source.T if is_ratio_first else source).flatten().tolist()


def reorders_anchors(cfg: CfgNode, settings: Mapping[str, object]) -> bool:
    """
    Whether settings, by full key, give the anchors of a cell another order than they have in `cfg`:
    an RPN that was converted for `cfg` is then not one for the settings.
    """
    changed = cfg.clone()
    changed.defrost()
    changed.merge_from_list([part for setting in settings.items() for part in setting])
    return anchor_order(changed, ratio_first=True) != anchor_order(cfg, ratio_first=True)


def heads_settings(
    cfg: CfgNode,
    pooler: str,
    legacy_anchors: bool,
    anchors: str = "DefaultAnchorGenerator",
    sampling_ratio: int = 2,
) -> dict[str, object]:
    """
    Of Mask R-CNN, by full key, as far as `cfg` uses them.

    Args:
        pooler: "ROIAlign" or "ROIAlignV2"
        legacy_anchors: those of py-faster-rcnn, with whole-numbered sides
        anchors: the generator, where they are not
        sampling_ratio: samples per side of a bin; 0 for as many as its size asks for
    """
    settings = {
        _ANCHORS: _LEGACY if legacy_anchors else anchors,
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5 if legacy_anchors else 0.0,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    }
    heads = ["ROI_BOX_HEAD"]
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads":  # that one pools once
        heads.append("ROI_MASK_HEAD")
    for head in heads:
        if cfg.MODEL[head].POOLER_TYPE.startswith("ROIAlign"):
            settings[f"MODEL.{head}.POOLER_TYPE"] = pooler
            settings[f"MODEL.{head}.POOLER_SAMPLING_RATIO"] = sampling_ratio
    return settings


def differences(cfg: CfgNode, settings: Mapping[str, object]) -> dict[str, object]:
    """Those of the settings, by full key, that are others in `cfg`."""
    return {k: v for k, v in settings.items() if current_value(k, value_of(cfg, k)) != v}
