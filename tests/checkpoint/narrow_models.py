"""
Narrow models of detectron2's configs, and what they compute beside an original network of the same
channels (`Tensorpack`, `MaskRCNNBenchmark`).
"""

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dcn_projects import add_dcn_config


def make_cfg(name, *opts):
    """A config of detectron2's model zoo, with this project's keys."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_other_cfg(model_zoo.get_config(name + ".yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return cfg


def narrow_opts(original, rpn: int) -> list:
    """
    Options for few blocks and the channels of an original.

    Args:
        rpn: channels of the RPN
    """
    keys = {
        "BACKBONE.NAME": f"build_deform_resnet_{'fpn_' if original.fpn else ''}backbone",
        "RESNETS.DEPTH": 14,
        "RESNETS.STEM_OUT_CHANNELS": original.stem,
        "RESNETS.RES2_OUT_CHANNELS": 4 * original.width,
        "RESNETS.WIDTH_PER_GROUP": original.width,
        "FPN.OUT_CHANNELS": original.dim,
        "RPN.CONV_DIMS": [rpn],
        "ROI_HEADS.NUM_CLASSES": original.classes - 1,
        "ROI_BOX_HEAD.CONV_DIM": original.dim,
        "ROI_BOX_HEAD.FC_DIM": original.fc,
        "ROI_MASK_HEAD.CONV_DIM": original.dim,
    }
    return [v for key, value in keys.items() for v in (f"MODEL.{key}", value)]


def meta_model(cfg):
    """A model with names and shapes, without memory."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def shapes_of(cfg):
    """Name -> shape."""
    return {name: tuple(p.shape) for name, p in meta_model(cfg).state_dict().items()}


def zeros(shapes):
    """Arrays of these shapes, without memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@torch.no_grad()
def predict(model, image, box_rois, mask_rois):
    """As in `Tensorpack.run`, in this project's layout."""
    images = model.preprocess_image([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])
    features = model.backbone(images.tensor)
    rpn = model.proposal_generator
    scores, deltas = rpn.rpn_head([features[f] for f in rpn.in_features])
    out = {"scores": scores, "deltas": deltas, "masks": []}
    heads, rois = model.roi_heads, torch.from_numpy(box_rois).float()
    mask_rois = torch.from_numpy(mask_rois).float()
    if hasattr(heads, "res5"):
        boxes = [heads.box_predictor(heads.res5(rois).mean(dim=(2, 3)))]
        mask_rois = heads.res5(mask_rois)
    elif isinstance(heads.box_head, torch.nn.ModuleList):  # a cascade
        boxes = [predict(head(rois)) for head, predict in zip(heads.box_head, heads.box_predictor)]
    else:
        boxes = [heads.box_predictor(heads.box_head(rois))]
    out["classes"], out["boxes"] = zip(*boxes)
    if heads.mask_on:
        out["masks"] = heads.mask_head.layers(mask_rois)
    return out


def assert_close(actual, expected):
    """Relative to the largest value; and it is not all the same."""
    actual = actual.double().numpy()
    assert actual.shape == expected.shape and expected.std() > 0.01
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-4


def check_outputs(original, model, arrays, input_format="BGR", anchor_order=None):
    """
    Args:
        anchor_order: of each anchor of the model, its number in the original
    """
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    size = (original.dim, 7, 7) if original.fpn else (original.width * 16, 14, 14)
    mask_size = (original.dim, 14, 14) if original.fpn else size
    rois, mask_rois = rng.normal(size=(2, *size)), rng.normal(size=(2, *mask_size))
    expected = original.run(arrays, image, rois, mask_rois)
    seen = image if input_format == "BGR" else image[:, :, ::-1]
    actual = predict(model, seen, rois, mask_rois)
    order = list(range(original.anchors) if anchor_order is None else anchor_order)
    assert len(actual["scores"]) == len(expected["scores"]) == (5 if original.fpn else 1)
    for level, scores in enumerate(actual["scores"]):
        assert_close(scores[0].permute(1, 2, 0), expected["scores"][level][..., order])
        deltas = expected["deltas"][level]
        deltas = deltas.reshape(*deltas.shape[:2], -1, 4)[:, :, order].reshape(deltas.shape)
        assert_close(actual["deltas"][level][0].permute(1, 2, 0), deltas)
    assert len(actual["classes"]) == len(expected["classes"])
    for stage, classes in enumerate(
        expected["classes"]
    ):  # the background is first there, last here
        assert_close(actual["classes"][stage], np.roll(classes, -1, axis=1))
        boxes = actual["boxes"][stage]
        assert_close(boxes, expected["boxes"][stage][:, -boxes.shape[1] :])
    assert len(actual["masks"]) == len(expected["masks"]) == (2 if original.mask else 0)
    for masks, wanted in zip(actual["masks"], expected["masks"]):
        assert_close(masks.permute(1, 2, 0), wanted)
