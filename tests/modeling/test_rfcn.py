"""The heads of R-FCN on a small network: what is pooled from which map, and what is learnt."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close

from dcn_projects.layers import PSROIPool
from tests.layers import reference
from tests.modeling.narrow_models import check_training_step, detect, load, make_rfcn_cfg

K, GROUP = 2, 3  # of the narrow model


@pytest.fixture
def rois():
    return torch.tensor(
        [[0, 3.2, 5.5, 60.4, 90.1], [1, -8, 20, 200, 64], [1, 30, 30, 31, 31], [0, 0, 0, 16, 16]]
    )


def random_maps(deform):
    torch.manual_seed(0)
    channels = {"cls": K + 1, "bbox": 4}
    if deform:
        channels |= {"cls_offset": 2 * (K + 1), "bbox_offset": 2}
    return {name: torch.randn(2, c * GROUP**2, 6, 8).double() for name, c in channels.items()}


@pytest.mark.parametrize("kind, offsets", [("cls", K + 1), ("bbox", 1)])
def test_deformable_votes(rois, kind, offsets):
    """Each class has its own offsets, the four deltas of the box share theirs."""
    heads = build_model(make_rfcn_cfg()).roi_heads
    maps = random_maps(deform=True)
    rois = rois.double()

    def pool(x, offset):
        return reference.deform_roi_pool(x, rois, offset, GROUP, 1 / 16, 4, 0.1, GROUP)

    offset = pool(maps[f"{kind}_offset"], None)
    assert offset.shape[1] == 2 * offsets and offset.abs().max() > 0.3
    expected = pool(maps[kind], offset).mean(dim=(2, 3))
    assert_close(heads.vote(maps, rois.float(), kind).double(), expected, rtol=1e-4, atol=1e-5)
    unmoved = pool(maps[kind], torch.zeros_like(offset)).mean(dim=(2, 3))
    assert (unmoved - expected).abs().max() > 1e-2  # the offsets matter


@pytest.mark.parametrize("kind", ["cls", "bbox"])
def test_plain_votes(rois, kind):
    heads = build_model(make_rfcn_cfg(deform=False)).roi_heads
    maps = random_maps(deform=False)
    pooled = reference.ps_roi_pool(maps[kind], rois.double(), GROUP, 1 / 16)
    expected = pooled.sum(dim=(2, 3)) / GROUP**2
    assert_close(heads.vote(maps, rois, kind).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_layer_learns(autocast):
    model = build_model(make_rfcn_cfg())
    check_training_step(model, autocast, may_be_zero=r"conv1\.weight$")
    assert len(detect(model, autocast)) == 2


def test_offsets_start_at_zero():
    maps = build_model(make_rfcn_cfg()).roi_heads.score_maps
    for layer in (maps.rfcn_cls_offset, maps.rfcn_bbox_offset):
        assert isinstance(layer, nn.Conv2d) and not layer.weight.any() and not layer.bias.any()


def test_a_box_per_class_is_refused():
    cfg = make_rfcn_cfg()
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG"):
        build_model(cfg)


WRONG = {
    "POOLER_RESOLUTION": 0,
    "REDUCED_DIM": 0,
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_TYPE": "DeformROIPool",
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values_are_named(key):
    cfg = make_rfcn_cfg()
    cfg.MODEL.ROI_BOX_HEAD[key] = WRONG[key]
    with pytest.raises(ValueError, match=f"MODEL.ROI_BOX_HEAD.{key} is {WRONG[key]}"):
        build_model(cfg)


def test_samples_of_plain_pooling_do_not_matter():
    """It has none; detectron2's default of the key is 0."""
    cfg = make_rfcn_cfg(deform=False)
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
    assert isinstance(build_model(cfg).roi_heads.pooler, PSROIPool)


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON"])
def test_other_branches_are_refused(key):
    cfg = make_rfcn_cfg()
    cfg.MODEL[key] = True
    with pytest.raises(ValueError, match=f"MODEL.{key} is True"):
        build_model(cfg)


def test_other_heads_are_refused():
    cfg = make_rfcn_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NAME StandardROIHeads: .* RFCNROIHeads"):
        build_model(cfg)


def test_two_feature_maps_are_refused():
    cfg = make_rfcn_cfg()
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4", "res5"]
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.IN_FEATURES .*res4"):
        build_model(cfg)


def test_the_heads_are_all_of_it():
    """The same weights under detectron2's own meta-architecture find the same."""
    cfg = make_rfcn_cfg()
    model = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    other = build_model(cfg)
    other.load_state_dict(model.state_dict())
    for a, b in zip(detect(model), detect(other)):
        assert len(a) > 0 and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


@pytest.mark.parametrize("strict", [True, False])
def test_old_names_of_the_score_maps(strict):
    """Once the model had them, and not its heads."""
    cfg = make_rfcn_cfg()
    saved = build_model(cfg).state_dict()
    old = {name.replace("roi_heads.score_maps.", "score_maps."): p for name, p in saved.items()}
    assert any(name.startswith("score_maps.") for name in old)
    model = build_model(cfg)
    found = model.load_state_dict(old, strict=strict)
    assert not found.missing_keys and not found.unexpected_keys
    assert all(torch.equal(p, saved[name]) for name, p in model.state_dict().items())


# Images per epoch (each with its mirror image), the epoch of the lr step, epochs; arithmetic of
# the original's configs.
SCHEDULES = {"voc": (2 * 16551, 4.83, 7, 20), "coco": (2 * 117266, 5.333, 8, 80)}


@pytest.mark.parametrize("prefix", ["", "deformable_"])
@pytest.mark.parametrize("data", SCHEDULES)
def test_schedule_is_that_of_the_original(data, prefix):
    cfg = load(f"R-FCN/{prefix}rfcn_R_101_C5_{data}")
    images, step, epochs, classes = SCHEDULES[data]
    batch = cfg.SOLVER.IMS_PER_BATCH
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes
    assert cfg.SOLVER.BASE_LR == pytest.approx(5e-4 * batch)
    assert cfg.SOLVER.WEIGHT_DECAY == pytest.approx(5e-4 / batch)
    assert cfg.SOLVER.STEPS == (int(step * images / batch),)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == images // batch
    assert cfg.SOLVER.MAX_ITER == epochs * (images // batch)
    deform = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "DeformPSROIPool"
    assert deform == cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[3] == bool(prefix)
