"""Every pair of the parts of `CombinedROIHeads`: built from keys, trained a step, and tested."""

import itertools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from dcn_projects.modeling.roi_heads import fast_rcnn
from tests.modeling.narrow_models import NARROW, load

SMALL = """MODEL.ROI_HEADS.NUM_CLASSES 2 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
    MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0 MODEL.RPN.POST_NMS_TOPK_TRAIN 14
    MODEL.RPN.POST_NMS_TOPK_TEST 14 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
    MODEL.ANCHOR_GENERATOR.SIZES [[32,64]] MODEL.ROI_BOX_HEAD.REDUCED_DIM 4
    MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_BOX_HEAD.POOLER_FC_DIM 8
    MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 2
    MODEL.ROI_MASK_HEAD.POOLER_FC_DIM 8 MODEL.ROI_MASK_HEAD.POOLER_TYPE ROIAlignV2
    MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 2 MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 4
    MODEL.ROI_MASK_HEAD.CONV_DIM 4 MODEL.ROI_MASK_HEAD.NUM_CONV 1
    MODEL.MIMIC.PATCH_SIZE 32 MODEL.MIMIC.NUM_SAMPLES 2"""

# The options of each part.
PARTS = {
    "deformable": """MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformROIPool
        MODEL.ROI_MASK_HEAD.POOLER_TYPE DeformROIPool""",
    "modulated": """MODEL.ROI_BOX_HEAD.POOLER_TYPE ModulatedDeformROIPool
        MODEL.ROI_MASK_HEAD.POOLER_TYPE ModulatedDeformROIPool""",
    "ohem": "MODEL.ROI_BOX_HEAD.OHEM_NUM 4",
    "ohem of classes": "MODEL.ROI_BOX_HEAD.OHEM_NUM 4 MODEL.ROI_BOX_HEAD.OHEM_BOX_LOSS False",
    "linear": "MODEL.ROI_HEADS.NMS_TYPE linear",
    "gaussian": "MODEL.ROI_HEADS.NMS_TYPE gaussian",
    "dynamic": """MODEL.DYNAMIC_RCNN.ENABLED True MODEL.DYNAMIC_RCNN.IOU_TOPK 2
        MODEL.DYNAMIC_RCNN.ERROR_TOPK 2 MODEL.DYNAMIC_RCNN.UPDATE_PERIOD 2""",
    "masks": "MODEL.MASK_ON True",
    "cascade": """MODEL.ROI_HEADS.NAME DeformCascadeROIHeads
        MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True""",
    "mimic": "MODEL.META_ARCHITECTURE MimicRCNN",
    "agnostic": "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
}
# Values of the same keys.
EXCLUSIVE = [{"ohem", "ohem of classes"}, {"linear", "gaussian"}, {"deformable", "modulated"}]
PAIRS = [pair for pair in itertools.combinations(PARTS, 2) if set(pair) not in EXCLUSIVE]


def make_model(*options):
    off = "MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME DeformROIHeads"
    torch.manual_seed(0)
    return build_model(
        load("DCNv2/Base-DCNv2-C5", NARROW, "MODEL.MASK_ON False", off, SMALL, *options)
    )


def make_inputs(objects=True):
    torch.manual_seed(1)
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 56], [20, 4, 60, 36]])))
    target.gt_classes = torch.arange(2)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[:, 16:32, 24:36] = True
    target.gt_masks = BitMasks(masks)
    target = target if objects else target[[False, False]]
    return [{"image": torch.randint(0, 256, (3, 64, 64)), "instances": target}]


def stages(part):
    return list(part) if isinstance(part, nn.ModuleList) else [part]


class Run:
    """What a model does in a step of training and in a test."""

    def __init__(self, model, monkeypatch):
        self.model, self.heads = model, model.roi_heads
        self.outputs = stages(self.heads.box_predictor)
        self.learnt_from = []  # RoIs of each call of the losses
        self.suppressed_by = []  # methods of NMS
        entropy, nms = fast_rcnn.cross_entropy, fast_rcnn.box_nms
        losses = fast_rcnn.FastRCNNOutputLayers.losses

        def recording_losses(outputs, predictions, proposals):
            self.learnt_from.append(sum(map(len, proposals)))
            return losses(outputs, predictions, proposals)

        def recording_entropy(scores, classes, **kwargs):
            self.learnt_from.append(len(scores))
            return entropy(scores, classes, **kwargs)

        def recording_nms(detections, **kwargs):
            self.suppressed_by.append(kwargs["method"])
            return nms(detections, **kwargs)

        monkeypatch.setattr(fast_rcnn.FastRCNNOutputLayers, "losses", recording_losses)
        monkeypatch.setattr(fast_rcnn, "cross_entropy", recording_entropy)
        monkeypatch.setattr(fast_rcnn, "box_nms", recording_nms)
        with EventStorage():
            self.losses = model(make_inputs())
        sum(self.losses.values()).backward()
        with torch.no_grad():
            (output,) = model.eval()(make_inputs())
        self.detections = output["instances"]


def has_layer(name):
    def check(run):
        learnt = {n for n, p in run.heads.named_parameters() if p.grad is not None}
        assert any(f"box_pooler.{name}" in n for n in learnt)
        masks = any("mask_head" in n for n in learnt)
        assert any(f"mask_pooler.{name}" in n for n in learnt) == masks

    return check


def mines_both_losses(run):
    assert run.learnt_from == [4] * len(run.outputs)


def mines_classes(run):
    assert run.learnt_from[0::2] == [4] * len(run.outputs)
    assert all(n > 4 for n in run.learnt_from[1::2])


def suppresses(method):
    def check(run):
        assert run.suppressed_by == [method]

    return check


def moves(run):
    row = run.heads.dynamic.window[0]
    assert row.shape == (1, len(run.outputs), 2)
    assert (row[:, 0] >= 0).all() and (run.heads.dynamic.window[1] < 0).all()


def has_masks(run):
    assert run.losses["loss_mask"] > 0 and run.detections.has("pred_masks")


def has_stages(run):
    assert {f"loss_box_reg_stage{i}" for i in range(3)} < set(run.losses)


def mimics(run):
    assert run.losses["loss_mimic_cos"] > 0 and run.losses["loss_mimic_cls"] > 0
    assert run.model.mimic_score.weight.grad.any()


def has_one_box(run):
    assert all(outputs.bbox_pred.out_features == 4 for outputs in run.outputs)


# How each part is seen to work.
EVIDENCE = {
    "deformable": has_layer("level_poolers.0.offset_fc"),
    "modulated": has_layer("offset_mask_fc.0"),
    "ohem": mines_both_losses,
    "ohem of classes": mines_classes,
    "linear": suppresses("linear"),
    "gaussian": suppresses("gaussian"),
    "dynamic": moves,
    "masks": has_masks,
    "cascade": has_stages,
    "mimic": mimics,
    "agnostic": has_one_box,
}


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_pairs(pair, monkeypatch):
    run = Run(make_model(*(PARTS[part] for part in pair)), monkeypatch)
    for part in pair:
        EVIDENCE[part](run)
    for name, p in run.model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert len(run.detections) > 0 and run.detections.scores.isfinite().all()


@pytest.fixture(scope="module")
def plain():
    """A run without any part."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Run(make_model(), monkeypatch)


@pytest.mark.parametrize("part", PARTS)
def test_without_it_nothing_is_seen(part, plain):
    """So that a pair that ignores one of its keys does not pass."""
    with pytest.raises((AssertionError, AttributeError, KeyError)):
        EVIDENCE[part](plain)


ALL = ["modulated", "ohem", "gaussian", "dynamic", "masks", "mimic", "cascade"]


def test_all_together(monkeypatch):
    run = Run(make_model(*(PARTS[part] for part in ALL)), monkeypatch)
    for part in ALL:
        EVIDENCE[part](run)


@pytest.mark.parametrize(
    "parts, option, objects, autocast",
    [
        (ALL, "", False, False),
        (ALL, "", True, True),
        (ALL, "", False, True),
        (ALL[:-1], "MODEL.ROI_HEADS.NAME MXNetROIHeads", True, False),
        (ALL[:-1], "MODEL.ROI_HEADS.NAME MXNetROIHeads", False, False),
        (ALL[:-1], "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES True", True, False),
        (ALL[:-1], "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES True", False, False),
    ],
)
def test_every_parameter_has_a_gradient(parts, option, objects, autocast):
    """
    A finite one, for which DistributedDataParallel waits: also where an image has no objects, in 16
    bits, with other outputs, and where the masks learn from predicted boxes.
    """
    model = make_model(*(PARTS[part] for part in parts), option)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(make_inputs(objects))
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    of_objects = [k for k in losses if k.startswith(("loss_box_reg", "loss_mask", "loss_mimic"))]
    assert len(of_objects) == (6 if "cascade" in parts else 4)
    for name in of_objects:
        may_lack_foreground = objects and name.endswith(("_stage1", "_stage2"))
        assert (losses[name] > 0) == objects or may_lack_foreground, name
    assert all(loss.isfinite() for loss in losses.values())


def test_box_and_mask_head_pool_differently(monkeypatch):
    model = make_model(
        "MODEL.MASK_ON True MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformROIPool",
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE ModulatedDeformROIPool",
    )
    names = {n for n, _ in model.roi_heads.named_parameters()}
    assert any("box_pooler.level_poolers.0.offset_fc" in n for n in names)
    assert any("mask_pooler.offset_mask_fc.0" in n for n in names)
    Run(model, monkeypatch)
