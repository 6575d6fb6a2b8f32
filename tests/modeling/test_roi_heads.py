"""What the heads of `CombinedROIHeads` have in common: names, poolers, and mistakes."""

import pytest
import torch
from detectron2.layers import Conv2d, ROIAlignRotated, ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    StandardROIHeads,
    build_box_head,
    build_mask_head,
)
from detectron2.utils.events import EventStorage
from torch import nn
from torch.testing import assert_close

from dcn_projects.engine import check_keys
from dcn_projects.modeling import (
    BoxOutputLayers,
    CombinedROIHeads,
    LevelPooler,
    MXNetOutputLayers,
    OHEMROIHeads,
)
from dcn_projects.modeling.poolers import build_roi_pooler
from tests.modeling.small_heads import SHAPES, make_heads, make_heads_cfg

NAMES = {
    "OHEMROIHeads": StandardROIHeads,
    "DeformROIHeads": StandardROIHeads,
    "MXNetROIHeads": StandardROIHeads,
    "DynamicROIHeads": StandardROIHeads,
    "DeformCascadeROIHeads": CascadeROIHeads,
    "DynamicCascadeROIHeads": CascadeROIHeads,
}


def make_cfg(name, **box_head):
    cfg = make_heads_cfg(name, OHEM_NUM=0, CLS_AGNOSTIC_BBOX_REG="Cascade" in name)
    cfg.MODEL.ROI_BOX_HEAD.update(dict(POOLER_TYPE="ROIAlignV2", POOLER_SAMPLING_RATIO=2))
    cfg.MODEL.ROI_BOX_HEAD.update(box_head)
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_one_family(name):
    heads = build_roi_heads(make_cfg(name), SHAPES)
    assert isinstance(heads, CombinedROIHeads) and isinstance(heads, NAMES[name])
    assert (heads.dynamic is not None) == name.startswith("Dynamic")
    assert type(heads.box_pooler) is ROIPooler and heads.conv_new is None


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_by_config(name):
    cfg = make_cfg(name)
    cfg.MODEL.DYNAMIC_RCNN.ENABLED = True
    cfg.MODEL.DYNAMIC_RCNN.WARMUP_IOU = 0.45
    dynamic = build_roi_heads(cfg, SHAPES).dynamic
    expected = [0.5, 0.6, 0.7] if "Cascade" in name else [0.45]
    assert [matcher.threshold for matcher in dynamic.matchers] == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["ROI_BOX_HEAD", "ROI_MASK_HEAD"])
def test_maximum(name, head):
    """Heads that had detectron2's rounding before they had all the rest keep it."""
    cfg = make_cfg(name)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL[head].POOLER_TYPE = "ROIPool"
    heads = build_roi_heads(cfg, SHAPES)
    pooler = heads.box_pooler if head == "ROI_BOX_HEAD" else heads.mask_pooler
    rounded = name in ("DeformROIHeads", "MXNetROIHeads", "DeformCascadeROIHeads")
    assert isinstance(pooler, LevelPooler) == rounded
    assert not isinstance(heads.box_pooler, LevelPooler) or head == "ROI_BOX_HEAD"


def run(heads, maps, proposals, targets):
    """Losses, and the boxes and scores that are found."""
    torch.manual_seed(0)
    with EventStorage():
        _, losses = heads.train()(None, maps, [p[:] for p in proposals], targets)
    with torch.no_grad():
        found, _ = heads.eval()(None, maps, [p[:] for p in proposals])
    return losses, [(f.pred_boxes.tensor, f.scores) for f in found]


@pytest.mark.parametrize(
    "name, base",
    [("DeformROIHeads", "StandardROIHeads"), ("DeformCascadeROIHeads", "CascadeROIHeads")],
)
def test_with_nothing_switched_on_they_are_detectron2s(name, base):
    """The same parameters, in the same order, and the same results."""
    heads, *inputs = make_heads(make_cfg(name))
    cfg = make_cfg(base, CLS_AGNOSTIC_BBOX_REG="Cascade" in name)
    plain, *_ = make_heads(cfg)
    assert list(heads.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(heads.state_dict())
    assert_close(run(heads, *inputs), run(plain, *inputs), rtol=0, atol=0)


def modulated_cfg(name):
    """With layers that are drawn at random in the poolers and before them, and masks."""
    pooling = dict(POOLER_TYPE="ModulatedDeformROIPool", POOLER_FC_DIM=4, POOLER_SAMPLING_RATIO=2)
    cfg = make_cfg(name, REDUCED_DIM=3, **pooling)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.update(
        dict(NAME="MaskRCNNConvUpsampleHead", NUM_CONV=1, CONV_DIM=6, POOLER_RESOLUTION=4)
    )
    cfg.MODEL.ROI_MASK_HEAD.update(pooling)
    return cfg


@pytest.mark.parametrize(
    "name", ["DeformROIHeads", "MXNetROIHeads", "DeformCascadeROIHeads", "DynamicCascadeROIHeads"]
)
def test_nothing_is_drawn_but_what_stays(name):
    """A seed gives the weights of the parts that are built one after the other, by hand."""
    cfg = modulated_cfg(name)
    torch.manual_seed(0)
    heads = build_roi_heads(cfg, SHAPES)
    following = torch.rand(1)

    torch.manual_seed(0)
    conv_new = Conv2d(6, 3, kernel_size=1)
    nn.init.normal_(conv_new.weight, std=0.01)
    shapes = [ShapeSpec(channels=3, stride=stride) for stride in (4, 8)]
    box_pooler = build_roi_pooler(cfg, "ROI_BOX_HEAD", shapes)
    box_heads, outputs = nn.ModuleList(), nn.ModuleList()
    kind = MXNetOutputLayers if name == "MXNetROIHeads" else BoxOutputLayers
    for _ in range(3 if "Cascade" in name else 1):
        box_heads.append(build_box_head(cfg, ShapeSpec(channels=3, height=3, width=3)))
        outputs.append(kind(cfg, box_heads[-1].output_shape))
    mask_pooler = build_roi_pooler(cfg, "ROI_MASK_HEAD", shapes)
    mask_head = build_mask_head(cfg, ShapeSpec(channels=3, height=4, width=4))
    assert torch.equal(following, torch.rand(1))
    if "Cascade" not in name:
        box_heads, outputs = box_heads[0], outputs[0]
    for part, expected in [
        (heads.conv_new.weight, conv_new.weight),
        (heads.box_pooler, box_pooler),
        (heads.box_head, box_heads),
        (heads.box_predictor, outputs),
        (heads.mask_pooler, mask_pooler),
        (heads.mask_head, mask_head),
    ]:
        if isinstance(part, nn.Module):
            part, expected = part.state_dict(), expected.state_dict()
        assert_close(part, expected, rtol=0, atol=0)


def test_narrowing():
    """One convolution for both branches, whose heads see its channels."""
    cfg = make_cfg("DeformCascadeROIHeads", REDUCED_DIM=3)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.update(
        dict(NAME="MaskRCNNConvUpsampleHead", NUM_CONV=1, CONV_DIM=6, POOLER_RESOLUTION=3)
    )
    heads = build_roi_heads(cfg, SHAPES)
    assert heads.conv_new.weight.shape == (3, 6, 1, 1)
    assert [head.fc1.in_features for head in heads.box_head] == [3 * 3 * 3] * 3
    assert heads.mask_head.mask_fcn1.in_channels == 3


def test_outputs_of_the_stages():
    """Each stage has its own weights of the deltas, and the options that all share."""
    cfg = make_cfg("DeformCascadeROIHeads", OHEM_NUM=4)
    cfg.MODEL.ROI_HEADS.NMS_TYPE = "linear"
    outputs = build_roi_heads(cfg, SHAPES).box_predictor
    assert all(type(o) is BoxOutputLayers for o in outputs)
    weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    assert [o.box2box_transform.weights for o in outputs] == list(weights)
    assert {(o.ohem_num, o.nms_type) for o in outputs} == {(4, "linear")}


def test_soft_nms_of_a_cascade():
    """It takes the boxes and the scores that hard NMS of the same heads takes."""
    cfg = make_cfg("DeformCascadeROIHeads")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.1, 1000
    heads, maps, proposals, _ = make_heads(cfg)
    heads.eval()
    last = heads.box_predictor[-1]
    with torch.no_grad():
        last.test_nms_thresh = 2.0  # nothing overlaps so much
        everything, _ = heads(None, maps, [p[:] for p in proposals])
        last.test_nms_thresh, last.nms_type = 0.5, "gaussian"
        found, _ = heads(None, maps, [p[:] for p in proposals])
    for each, kept in zip(everything, found):
        expected, _ = last.suppress(each)
        assert 1 < len(kept) <= len(each)
        assert_close(kept.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert_close(kept.scores, expected.scores)
        assert kept.scores.sum() < each.scores.sum()  # there is something to suppress


MISTAKES = [
    (dict(IOUS=[0.5, 0.6]), {}, "IOUS is .* and BBOX_REG_WEIGHTS"),
    ({}, dict(CLS_AGNOSTIC_BBOX_REG=False), "CLS_AGNOSTIC_BBOX_REG must be True"),
    (dict(IOUS=[0.4, 0.6, 0.7]), {}, "IOUS begins with 0.4, and .*IOU_THRESHOLDS with 0.5"),
    ({}, dict(POOLER_TYPE="ROIMax"), "MODEL.ROI_BOX_HEAD.POOLER_TYPE is ROIMax"),
]


@pytest.mark.parametrize("cascade,box_head,message", MISTAKES, ids=[m[2] for m in MISTAKES])
def test_impossible_cascades_are_named(cascade, box_head, message):
    cfg = make_cfg("DeformCascadeROIHeads", **box_head)
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.update(cascade)
    with pytest.raises(ValueError, match=message):
        build_roi_heads(cfg, SHAPES)


@pytest.mark.parametrize(
    "name, key, value, message",
    [(name, "ROI_BOX_HEAD.NAME", "", f"ROI_BOX_HEAD.NAME is empty: {name} needs") for name in NAMES]
    + [
        ("DeformROIHeads", "ROI_BOX_HEAD.OHEM_NUM", 65, "OHEM_NUM is 65"),
        ("RFCNROIHeads", "ROI_BOX_HEAD.OHEM_NUM", 65, "OHEM_NUM is 65"),
        ("RFCNROIHeads", "ROI_BOX_HEAD.REDUCED_DIM", 0, "REDUCED_DIM is 0"),
        ("MXNetROIHeads", "ROI_HEADS.NMS_TYPE", "soft", "NMS_TYPE must be one of"),
        ("DynamicCascadeROIHeads", "ROI_BOX_CASCADE_HEAD.IOUS", [0.5], "IOUS is .0.5,. and BBOX"),
    ],
)
def test_mistakes_are_found_before_the_model_is_built(name, key, value, message):
    """The checks that heads declare are those with which they are built."""
    cfg = make_heads_cfg(name, OHEM_NUM=0, CLS_AGNOSTIC_BBOX_REG=True)
    check_keys(cfg)
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        check_keys(cfg)
    with pytest.raises(ValueError, match=message):
        build_roi_heads(cfg, SHAPES)


@ROI_HEADS_REGISTRY.register()
class HeadsOfRotatedBoxes(OHEMROIHeads):
    """Heads of a user."""


def test_pooling_of_rotated_boxes_is_left_to_detectron2():
    heads = build_roi_heads(make_cfg("HeadsOfRotatedBoxes", POOLER_TYPE="ROIAlignRotated"), SHAPES)
    assert type(heads.box_pooler) is ROIPooler
    assert all(isinstance(level, ROIAlignRotated) for level in heads.box_pooler.level_poolers)


def test_all_registered_heads_of_ours_are_tested():
    ours = {
        name
        for name, heads in ROI_HEADS_REGISTRY
        if issubclass(heads, CombinedROIHeads) and heads.__module__.startswith("dcn_projects.")
    }
    assert ours == set(NAMES)
