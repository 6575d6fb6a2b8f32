"""RoI heads of Dynamic R-CNN: that they use the moving numbers, and what their keys say."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import configurable, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_anchor_generator, build_roi_heads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.config import reads
from dcn_projects.engine import check_keys
from dcn_projects.modeling import DynamicTraining, RFCNROIHeads
from dcn_projects.modeling.dynamic_rcnn import ABSENT
from tests.modeling.dynamic_runs import as_lists, make_dynamic_cfg, numbers, slow_statistics
from tests.modeling.small_heads import SHAPES, make_heads, make_heads_cfg

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ohem", [0, 4])
@pytest.mark.parametrize("masks", [False, True])
def test_heads_use_threshold_and_beta(ohem, masks):
    """They do what the same heads do with fixed numbers, in every branch."""
    cfg = make_dynamic_cfg(ohem=ohem, UPDATE_PERIOD=2)
    fixed_cfg = make_heads_cfg("OHEMROIHeads", OHEM_NUM=ohem, SMOOTH_L1_BETA=0.3)
    fixed_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.8]
    for c in (cfg, fixed_cfg) if masks else ():
        c.MODEL.MASK_ON = True
        c.MODEL.ROI_MASK_HEAD.update(
            dict(NAME="MaskRCNNConvUpsampleHead", NUM_CONV=1, CONV_DIM=6, POOLER_RESOLUTION=3)
        )
    heads, *inputs = make_heads(cfg)
    fixed, *_ = make_heads(fixed_cfg)
    fixed.load_state_dict(heads.state_dict(), strict=False)
    heads.dynamic.matchers[0].threshold, heads.dynamic.losses[0].beta = 0.8, 0.3
    for target in inputs[-1]:
        target.gt_masks = BitMasks(torch.rand(3, 100, 100) > 0.5)
    with EventStorage():
        _, actual = heads(None, *inputs)
        _, expected = fixed(None, *inputs)
    assert actual.keys() == expected.keys() and ("loss_mask" in actual) == masks
    assert_close(actual, expected)
    images = as_lists(*inputs[1:], append=True)
    assert heads.dynamic.window[0, 0, 0].tolist() == pytest.approx(
        slow_statistics(images, 0.8, 4, 4)
    )
    assert (heads.dynamic.window[1] == ABSENT).all()


def test_the_numbers_move_and_inference_leaves_them():
    heads, maps, proposals, targets = make_heads(make_dynamic_cfg(UPDATE_PERIOD=1))
    with EventStorage() as storage:
        heads(None, maps, proposals, targets)
        assert storage.latest()["dynamic_rcnn/iou_threshold"][0] == 0.4
        iou, error = slow_statistics(as_lists(proposals, targets, append=True), 0.4, 4, 4)
        assert numbers(heads.dynamic) == pytest.approx((max(iou, 0.4), min(error, 1.0)))
        assert numbers(heads.dynamic) != (0.4, 1.0)
    before = {k: v.clone() for k, v in heads.dynamic.state_dict().items()}
    heads.eval()
    with torch.no_grad():
        heads(None, maps, proposals)
    assert all(torch.equal(v, before[k]) for k, v in heads.dynamic.state_dict().items())


def test_stages_of_a_cascade(monkeypatch):
    """Each has numbers of its own, from the boxes that it gets, and uses them."""

    def make(name, ious, beta):
        cfg = make_dynamic_cfg(name, UPDATE_PERIOD=1)
        cfg.MODEL.ROI_BOX_HEAD.update(dict(CLS_AGNOSTIC_BBOX_REG=True, SMOOTH_L1_BETA=beta))
        cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = ious
        cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = ious[:1]
        return make_heads(cfg)

    heads, *inputs = make("DynamicCascadeROIHeads", [0.5, 0.6, 0.7], 1.0)
    fixed, *_ = make("CascadeROIHeads", [0.6, 0.7, 0.8], 0.3)
    fixed.load_state_dict(heads.state_dict(), strict=False)
    assert [m.threshold for m in heads.dynamic.matchers] == [0.5, 0.6, 0.7]
    for matcher, loss in zip(heads.dynamic.matchers, heads.dynamic.losses):
        matcher.threshold, loss.beta = matcher.threshold + 0.1, 0.3
    seen = [as_lists(*inputs[1:], append=True)]
    label = CascadeROIHeads._match_and_label_boxes

    def recording(self, proposals, stage, targets):
        seen.append(as_lists(proposals, targets, append=False))
        return label(self, proposals, stage, targets)

    with EventStorage() as storage:
        _, expected = fixed(None, *inputs)
        monkeypatch.setattr(CascadeROIHeads, "_match_and_label_boxes", recording)
        _, actual = heads(None, *inputs)
    assert_close(actual, expected)
    assert len(seen) == 3
    for stage, images in enumerate(seen):
        iou, error = slow_statistics(images, 0.6 + 0.1 * stage, 4, 4)
        lowest = 0.5 + 0.1 * stage
        # The weights of the targets are 10, 20 and 30.
        error = 0.3 if error == ABSENT else min(error * (stage + 1), 1.0)
        assert heads.dynamic.iou_threshold[stage].item() == pytest.approx(
            max(iou, lowest), rel=1e-4
        )
        assert heads.dynamic.beta[stage].item() == pytest.approx(error, rel=1e-4)
        assert f"dynamic_rcnn/beta_stage{stage}" in storage.latest()


@ROI_HEADS_REGISTRY.register()
@reads("MODEL.DYNAMIC_RCNN")
class DynamicRFCNROIHeads(RFCNROIHeads):
    """Heads of a user that own the component."""

    @configurable
    def __init__(self, *, dynamic, **kwargs):
        super().__init__(**kwargs)
        self.dynamic = dynamic

    @classmethod
    def from_config(cls, cfg, input_shape):
        dynamic = DynamicTraining.from_config(
            cfg, [cfg.MODEL.DYNAMIC_RCNN.WARMUP_IOU], "DYNAMIC_RCNN.WARMUP_IOU"
        )
        ret = super().from_config(cfg, input_shape)
        return {**ret, "dynamic": dynamic, "proposal_matcher": dynamic.matchers[0]}

    def forward(self, images, features, proposals, targets=None):
        if self.training:
            self.dynamic.begin_stage(0, proposals, targets, self.box_predictor, append_gt=True)
        result = super().forward(images, features, proposals, targets)
        if self.training:
            self.dynamic.end_iteration()
        return result


def test_heads_of_a_user():
    cfg = make_dynamic_cfg("RFCNROIHeads", UPDATE_PERIOD=1)
    _, *inputs = make_heads(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "DynamicRFCNROIHeads"
    check_keys(cfg)  # as before a training: the heads declare the keys
    heads = build_roi_heads(cfg, SHAPES)
    with EventStorage():
        heads(None, *inputs)
    iou, error = slow_statistics(as_lists(*inputs[1:], append=True), 0.4, 4, 4)
    assert numbers(heads.dynamic) == pytest.approx((max(iou, 0.4), min(error, 1.0)))


def test_keys_reach_the_component():
    """Each with a value of its own, none that of another or the default."""

    def make(**dynamic):
        cfg = make_heads_cfg("DynamicROIHeads", SMOOTH_L1_BETA=0.2)
        cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.6]
        cfg.MODEL.DYNAMIC_RCNN.update(dynamic)
        return build_roi_heads(cfg, SHAPES).dynamic

    dynamic = make(IOU_TOPK=7, ERROR_TOPK=8, UPDATE_PERIOD=9, WARMUP_IOU=0.3, WARMUP_BETA=0.7)
    assert dynamic.options == dict(iou_topk=7, error_topk=8, reference_quirk=False)
    assert numbers(dynamic) == (0.3, 0.7) and dynamic.update_period == 9
    assert (dynamic.dla, dynamic.dsl, dynamic.sync) == (True, True, True)
    assert numbers(make(DLA=False)) == (0.6, 1.0) and numbers(make(DSL=False)) == (0.4, 0.2)
    assert not make(DLA=False).dla and not make(DSL=False).dsl
    assert not make(SYNC=False).sync
    assert make(REFERENCE_QUIRK=True).options["reference_quirk"]


def test_anchors_of_the_original():
    """Its first ones of strides 4 and 64, computed by hand; its x1 and y1 are inclusive."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(ROOT / "configs/Dynamic-RCNN/dynamic_rcnn_R_50_FPN_1x.yaml")
    shapes = [ShapeSpec(stride=stride) for stride in (4, 8, 16, 32, 64)]
    generator = build_anchor_generator(cfg, shapes)
    levels = generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert levels[0].tensor.tolist() == [[-22, -10, 26, 14], [-14, -14, 18, 18], [-10, -22, 14, 26]]
    assert levels[4].tensor.tolist()[0] == [-332, -152, 396, 216]


MISTAKES = [
    (dict(IOU_TOPK=0), {}, "DYNAMIC_RCNN.IOU_TOPK is 0"),
    (dict(UPDATE_PERIOD=0), {}, "DYNAMIC_RCNN.UPDATE_PERIOD is 0"),
    (dict(WARMUP_IOU=1.4), {}, r"DYNAMIC_RCNN.WARMUP_IOU is \[1.4\]"),
    (dict(WARMUP_BETA=0.0), {}, "DYNAMIC_RCNN.WARMUP_BETA is 0.0"),
    (
        dict(DLA=False),
        dict(ROI_HEADS=dict(IOU_THRESHOLDS=[0.1, 0.5], IOU_LABELS=[-1, 0, 1])),
        r"ROI_HEADS.IOU_LABELS is \[-1, 0, 1\].*ROI_HEADS.IOU_THRESHOLDS \[0.1, 0.5\]",
    ),
    (
        {},
        dict(ROI_HEADS=dict(IOU_THRESHOLDS=[0.3, 0.5], IOU_LABELS=[-1, 0, 1])),
        r"ROI_HEADS.IOU_LABELS is \[-1, 0, 1\].*ROI_HEADS.IOU_THRESHOLDS \[0.3, 0.5\]",
    ),
    ({}, dict(ROI_BOX_HEAD=dict(BBOX_REG_LOSS_TYPE="giou")), "BBOX_REG_LOSS_TYPE is giou"),
    (
        {},
        dict(
            ROI_HEADS=dict(NAME="DynamicCascadeROIHeads", IOU_THRESHOLDS=[1.5]),
            ROI_BOX_HEAD=dict(CLS_AGNOSTIC_BBOX_REG=True),
            ROI_BOX_CASCADE_HEAD=dict(IOUS=[1.5, 0.6, 0.7]),
        ),
        r"ROI_BOX_CASCADE_HEAD.IOUS is \[1.5",
    ),
]


@pytest.mark.parametrize("dynamic,others,message", MISTAKES, ids=[m[2] for m in MISTAKES])
def test_impossible_options_are_named(dynamic, others, message):
    cfg = make_dynamic_cfg()
    cfg.MODEL.DYNAMIC_RCNN.update(dynamic)
    for node, values in others.items():
        cfg.MODEL[node].update(values)
    with pytest.raises(ValueError, match=message):
        build_roi_heads(cfg, SHAPES)


@pytest.mark.parametrize("name", ["DeformROIHeads", "DeformCascadeROIHeads"])
def test_keys_of_heads_that_are_not_dynamic(name, caplog):
    """One line names those that differ from their defaults, unless the heads are dynamic."""
    cfg = make_heads_cfg(name, CLS_AGNOSTIC_BBOX_REG=True, POOLER_SAMPLING_RATIO=2)
    with caplog.at_level(logging.WARNING, "dcn_projects"):
        build_roi_heads(cfg, SHAPES)
        assert not caplog.messages
        cfg.MODEL.DYNAMIC_RCNN.update(dict(IOU_TOPK=4, DLA=False))
        build_roi_heads(cfg, SHAPES)
        (message,) = caplog.messages
        cfg.MODEL.DYNAMIC_RCNN.ENABLED = True
        build_roi_heads(cfg, SHAPES)
        cfg.MODEL.DYNAMIC_RCNN.ENABLED = False
        cfg.MODEL.ROI_HEADS.NAME = name.replace("Deform", "Dynamic")
        build_roi_heads(cfg, SHAPES)
    assert caplog.messages == [message]
    assert "MODEL.DYNAMIC_RCNN.DLA, MODEL.DYNAMIC_RCNN.IOU_TOPK. Set" in message
    assert f"{name} is not dynamic" in message and "DYNAMIC_RCNN.ENABLED True" in message


def test_forward_passes_that_are_not_training_are_refused():
    cfg = make_dynamic_cfg()
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ValueError, match="TEST.PRECISE_BN.ENABLED"):
        build_roi_heads(cfg, SHAPES)
