"""The heads of Faster R-CNN with two fully connected layers, and the network around them."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close
from torchvision.ops import roi_pool

from dcn_projects.solver import build_optimizer
from tests.layers import reference
from tests.modeling.narrow_models import NARROW, check_training_step, detect, load

K, C, BINS = 2, 6, 3


def make_cfg(deform):
    cfg = load(
        "Faster-R-CNN/Base-Faster-RCNN",
        NARROW,
        f"""MODEL.ANCHOR_GENERATOR.SIZES [[32,64]] MODEL.ROI_HEADS.NUM_CLASSES {K}
        MODEL.ROI_BOX_HEAD.REDUCED_DIM {C} MODEL.ROI_BOX_HEAD.FC_DIM 16
        MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION {BINS}""",
    )
    if deform:
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
        cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformROIPool"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 4
    return cfg


def make_heads(deform=False, **values):
    cfg = make_cfg(deform)
    cfg.MODEL.ROI_BOX_HEAD.update(values)
    return build_roi_heads(cfg, {"res5": ShapeSpec(channels=8, stride=16)})


def make_proposals(*boxes, size=(96, 128)):
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return Instances(size, proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))


PROPOSALS = [[3.2, 5.5, 60.4, 90.1], [30, 30, 31, 31]], [[-8, 20, 150, 64], [0, 0, 16, 16]]


def run_box_branch(heads, features, proposals):
    """Scores and deltas; detectron2 keeps them from its caller."""
    outputs = []
    handle = heads.box_predictor.register_forward_hook(lambda *args: outputs.append(args[-1]))
    with torch.no_grad():
        heads.eval()(None, features, proposals)
    handle.remove()
    return outputs[0]


@pytest.mark.parametrize("deform", [False, True])
def test_box_branch(deform):
    """Against the same in float64: ReLU of the narrowed map, pooling, two layers, two outputs."""
    torch.manual_seed(0)
    heads = make_heads(deform)
    for p in heads.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 8, 6, 8)
    proposals = [make_proposals(*boxes) for boxes in PROPOSALS]
    scores, deltas = run_box_branch(heads, {"res5": x}, proposals)
    assert deltas.shape == (4, 4 * K)

    p = {name: value.double() for name, value in heads.state_dict().items()}

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    narrow = F.conv2d(x.double(), p["conv_new.weight"], p["conv_new.bias"]).relu()
    rois = torch.tensor(
        [[i, *box] for i, boxes in enumerate(PROPOSALS) for box in boxes], dtype=torch.float64
    )
    if deform:
        pooled = reference.deform_roi_pool(narrow, rois, None, BINS, 1 / 16)
        offset = linear(pooled.flatten(1), "box_pooler.level_poolers.0.offset_fc")
        offset = offset.view(-1, 2, BINS, BINS)
        pooled = reference.deform_roi_pool(narrow, rois, offset, BINS, 1 / 16)
    else:
        last_pixel = rois - torch.tensor([0, 0, 0, 1, 1])
        pooled = roi_pool(narrow, last_pixel, BINS, 1 / 16)
    hidden = linear(linear(pooled.flatten(1), "box_head.fc1").relu(), "box_head.fc2").relu()
    assert_close(scores.double(), linear(hidden, "box_predictor.cls_score"), rtol=1e-4, atol=1e-4)
    assert_close(deltas.double(), linear(hidden, "box_predictor.bbox_pred"), rtol=1e-4, atol=1e-4)


def test_deformable_equals_plain_at_the_start():
    """Without offsets the two differ in mean and maximum, which are one where the map is even."""
    torch.manual_seed(0)
    plain, deform = make_heads(), make_heads(deform=True)
    missing, unexpected = deform.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all("offset_fc" in name for name in missing)
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 6, 8)
    proposals = [make_proposals([3.2, 5.5, 60.4, 90.1], [30, 30, 31, 31])]
    expected = run_box_branch(plain, {"res5": x}, proposals)
    assert expected[0].abs().max() > 0
    assert_close(run_box_branch(deform, {"res5": x}, proposals), expected)


def test_start():
    torch.manual_seed(0)
    heads = make_heads(deform=True, REDUCED_DIM=64, FC_DIM=256)
    predictor = heads.box_predictor
    head = heads.box_head
    for layer in (heads.conv_new, head.fc1, head.fc2, predictor.cls_score, predictor.bbox_pred):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
    offset_fc = heads.box_pooler.level_poolers[0].offset_fc
    assert not offset_fc.weight.any() and not offset_fc.bias.any()


def sample(ious, fill=True):
    """Rows and classes that are sampled of proposals with these IoUs with a single object."""
    torch.manual_seed(0)
    heads = make_heads()
    heads.fill_batch = fill
    matches, labels = heads.proposal_matcher(torch.tensor([ious]))
    return heads._sample_proposals(matches, labels, torch.tensor([1]))


# 40 foreground; background; below the lower bound, which is 0.1 and belongs to the background
FEW = [0.5] * 20 + [0.9] * 20 + [0.1] * 10 + [0.49] * 10 + [0.099] * 100 + [0.0] * 60
MANY = FEW[:40] + [0.1] * 50 + [0.4] * 60 + FEW[60:]


def test_background_has_a_lower_bound():
    rows, classes = sample(MANY)
    ious = torch.tensor(MANY)[rows]
    assert len(rows) == len(set(rows.tolist())) == 128
    assert (classes[ious >= 0.5] == 1).all() and (ious >= 0.5).sum() == 32
    assert (classes[ious < 0.5] == K).all() and ious.min() >= 0.1


def test_the_batch_is_filled_up():
    """From all that is not foreground, and labelled as background."""
    rows, classes = sample(FEW, fill=False)
    assert len(rows) == 32 + 20
    rows, classes = sample(FEW)
    ious = torch.tensor(FEW)[rows]
    assert len(rows) == 128 and (classes[:32] == 1).all() and (classes[32:] == K).all()
    assert (ious[:32] >= 0.5).all() and (ious[32:] < 0.5).all()
    assert (ious[32:52] >= 0.1).all() and len(rows[52:].unique()) == 76
    assert (ious[52:] < 0.1).any()


def test_few_proposals_are_repeated():
    rows, classes = sample([0.9, 0.0, 0.2])
    assert len(rows) == 128 and rows.unique().tolist() == [0, 1, 2]
    assert (classes[rows == 0] == 1).all() and (classes[rows != 0] == K).all()
    assert abs((rows == 1).sum() - (rows == 2).sum()) <= 2
    rows, _ = sample([0.9, 0.8])  # there is no background
    assert sorted(rows.tolist()) == [0, 1]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("deform", [False, True])
def test_every_layer_learns(deform, autocast):
    model = build_model(make_cfg(deform))
    storage = check_training_step(model, autocast, may_be_zero=r"conv1\.weight$")
    sampled = (storage.history(f"roi_head/num_{x}_samples").latest() for x in ("fg", "bg"))
    assert sum(sampled) == 128  # in the mean over two images
    assert len(detect(model, autocast)) == 2


@pytest.mark.parametrize("deform", [False, True])
def test_no_proposals(deform):
    heads = make_heads(deform)
    features = {"res5": torch.randn(2, 8, 6, 8, requires_grad=True)}
    proposals = [make_proposals(), make_proposals()]
    detections, _ = heads.eval()(None, features, proposals)
    assert [len(d) for d in detections] == [0, 0]
    target = Instances((96, 128), gt_boxes=Boxes(torch.zeros(0, 4)))
    target.gt_classes = torch.zeros(0, dtype=torch.long)
    with EventStorage():
        _, losses = heads.train()(None, features, proposals, [target, target])
    assert losses["loss_cls"] == losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())


def test_pyramid():
    """The same heads on several levels, which need no convolution: what FPN uses."""
    torch.manual_seed(0)
    cfg = make_cfg(deform=True)
    cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM = 0
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    heads = build_roi_heads(cfg, {f"p{i}": ShapeSpec(channels=C, stride=2**i) for i in (2, 3)})
    assert heads.conv_new is None and len(heads.box_pooler.level_poolers) == 2
    features = {"p2": torch.randn(1, C, 24, 32), "p3": torch.randn(1, C, 12, 16)}
    target = Instances((96, 128), gt_boxes=Boxes(torch.tensor([[8.0, 8, 60, 70]])))
    target.gt_classes = torch.tensor([1])
    proposals = [make_proposals([10, 10, 58, 66], [60, 20, 120, 90])]
    with EventStorage():
        _, losses = heads(None, features, proposals, [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())


def test_boxes_are_clipped_to_a_pixel():
    heads = make_heads()
    deltas = torch.zeros(2, 4 * K)
    deltas[:, 0::4] = torch.tensor([[1e3, -1e3]]).expand(2, -1)  # class 0 far right, 1 far left
    proposals = [make_proposals([10, 10, 30, 30]), make_proposals([10, 10, 30, 30], size=(50, 60))]
    boxes = heads.box_predictor.predict_boxes((torch.zeros(2, K + 1), deltas), proposals)
    assert boxes[0].tolist() == [[127, 10, 128, 30, 0, 10, 1, 30]]
    assert boxes[1].tolist() == [[59, 10, 60, 30, 0, 10, 1, 30]]


WRONG = {"POOLER_TYPE": "ROIPol", "REDUCED_DIM": -1, "POOLER_SAMPLING_RATIO": 0}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values_are_named(key):
    with pytest.raises(ValueError, match=f"MODEL.ROI_BOX_HEAD.{key} is {WRONG[key]}"):
        make_heads(deform=True, **{key: WRONG[key]})


def test_features_of_different_width_are_refused():
    cfg = make_cfg(deform=False)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4", "res5"]
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.IN_FEATURES"):
        build_model(cfg)


def test_learning_rates():
    """Of all layers that predict offsets only that of RoI pooling is slow."""
    cfg = load("Faster-R-CNN/deformable_faster_rcnn_R_101_C5_voc")
    model = build_model(cfg)
    names = {p: name for name, p in model.named_parameters()}
    factors = {
        names[p]: group["lr"] / cfg.SOLVER.BASE_LR
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    for kind in ("weight", "bias"):
        offset_fc = factors.pop(f"roi_heads.box_pooler.level_poolers.0.offset_fc.{kind}")
        assert offset_fc == pytest.approx(0.01)
        assert factors.pop(f"proposal_generator.rpn_head.objectness_logits.{kind}") == 2
    assert "backbone.res5.0.conv2.conv_offset.weight" in factors and set(factors.values()) == {1}


# Images per epoch (each with its mirror image), the epoch of the lr step, epochs, classes, and
# detections; arithmetic of the original's configs, which all have four images per step.
SCHEDULES = {"voc": (2 * 16551, 4.83, 7, 20, 300), "coco": (2 * 117266, 5.333, 8, 80, 100)}


@pytest.mark.parametrize("prefix", ["", "deformable_"])
@pytest.mark.parametrize("data", SCHEDULES)
def test_schedule_is_that_of_the_original(data, prefix):
    cfg = load(f"Faster-R-CNN/{prefix}faster_rcnn_R_101_C5_{data}")
    images, step, epochs, classes, detections = SCHEDULES[data]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == classes
    assert cfg.TEST.DETECTIONS_PER_IMAGE == detections
    assert cfg.SOLVER.IMS_PER_BATCH == 4
    assert cfg.SOLVER.BASE_LR == pytest.approx(5e-4 * 4)
    assert cfg.SOLVER.WEIGHT_DECAY == pytest.approx(5e-4 / 4)
    assert cfg.SOLVER.STEPS == (int(step * images / 4),)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == images // 4
    assert cfg.SOLVER.MAX_ITER == epochs * (images // 4)
    deform = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "DeformROIPool"
    assert deform == cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[3] == bool(prefix)
