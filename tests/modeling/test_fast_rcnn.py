"""Outputs of the box heads: online hard example mining, and the heads that do it."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_roi_heads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects.modeling import BoxOutputLayers, OHEMROIHeads
from tests.modeling.small_heads import SHAPES, K, make_heads, make_heads_cfg, make_predictions

TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def make_outputs(ohem_num, agnostic, **kwargs):
    return BoxOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=TRANSFORM,
        num_classes=K,
        cls_agnostic_bbox_reg=agnostic,
        smooth_l1_beta=1.0,
        ohem_num=ohem_num,
        **kwargs,
    )


def slow_losses(predictions, proposals, ohem_num, box_weight=1.0):
    """Loss of every RoI in a loop; per image the sums over its hardest, divided by ohem_num."""
    (scores, deltas), row = predictions, 0
    cls_terms, box_terms = [], []
    for p in proposals:
        rois = []
        for i in range(len(p)):
            label = int(p.gt_classes[i])
            cls = -torch.log_softmax(scores[row], dim=0)[label]
            box = torch.zeros(())
            if label < K:
                predicted = deltas[row] if deltas.shape[1] == 4 else deltas[row].view(K, 4)[label]
                target = TRANSFORM.get_deltas(
                    p.proposal_boxes.tensor[i : i + 1], p.gt_boxes.tensor[i : i + 1]
                )[0]
                box = F.smooth_l1_loss(predicted, target, reduction="sum")
            rois.append((cls, box * box_weight))
            row += 1
        rois.sort(key=lambda x: -(x[0] + x[1]).item())
        kept = rois[:ohem_num]
        cls_terms += [c for c, _ in kept]
        box_terms += [b for _, b in kept]
    return torch.stack(cls_terms).mean(), torch.stack(box_terms).sum() / len(box_terms)


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("ohem_num", [5, 1000])
def test_losses_of_the_hardest(agnostic, ohem_num):
    predictions, proposals = make_predictions(agnostic)
    with EventStorage():
        losses = make_outputs(ohem_num, agnostic).losses(predictions, proposals)
    cls, box = slow_losses(predictions, proposals, ohem_num)
    assert_close(losses["loss_cls"], cls)
    assert_close(losses["loss_box_reg"], box)


def test_the_choice_follows_the_weights_of_the_losses():
    predictions, proposals = make_predictions(agnostic=True)
    for weight in (1.0, 20.0):
        outputs = make_outputs(5, agnostic=True, loss_weight={"loss_box_reg": weight})
        with EventStorage():
            losses = outputs.losses(predictions, proposals)
        cls, box = slow_losses(predictions, proposals, 5, weight)
        assert_close(losses["loss_cls"], cls)
        assert_close(losses["loss_box_reg"], box)


@pytest.mark.parametrize("agnostic", [True, False])
def test_classes_alone(agnostic):
    """The hardest by cross entropy, and for it; the box loss is that of all RoIs."""
    (scores, deltas), proposals = make_predictions(agnostic)
    with EventStorage() as storage:
        outputs = make_outputs(5, agnostic, ohem_box_loss=False, loss_weight={"loss_cls": 2.0})
        losses = outputs.losses((scores, deltas), proposals)
    assert len(storage.history("fast_rcnn/cls_accuracy").values()) == 1  # that of all RoIs
    entropies, row = [], 0
    for p in proposals:
        of_image = [
            -float(torch.log_softmax(scores[row + i], dim=0)[c]) for i, c in enumerate(p.gt_classes)
        ]
        entropies += sorted(of_image)[-5:]
        row += len(p)
    assert losses["loss_cls"].item() == pytest.approx(2 * sum(entropies) / 10, rel=1e-5)
    _, box = slow_losses((scores, deltas), proposals, 1000)
    assert_close(losses["loss_box_reg"], box)


class PooledByAlign(StandardROIHeads):
    """Heads of a user, which have nothing to do with OHEM."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_pooler"] = ROIPooler(3, [1 / 4, 1 / 8], 2, "ROIAlignV2", canonical_box_size=30)
        return ret


@ROI_HEADS_REGISTRY.register()
class HardPooledByAlign(OHEMROIHeads, PooledByAlign):
    pass


@pytest.mark.parametrize("by_box_loss", [True, False])
def test_keys_of_the_outputs(by_box_loss):
    cfg = make_heads_cfg("OHEMROIHeads", OHEM_BOX_LOSS=by_box_loss)
    outputs = build_roi_heads(cfg, SHAPES).box_predictor
    assert (outputs.ohem_num, outputs.ohem_box_loss) == (4, by_box_loss)


@pytest.mark.parametrize(
    "name", ["RFCNROIHeads", "MXNetROIHeads", "OHEMROIHeads", "HardPooledByAlign"]
)
def test_every_head_keeps_the_hardest(name, monkeypatch):
    heads, maps, proposals, targets = make_heads(make_heads_cfg(name))
    # What all RoIs would give, and from that the hardest, slowly.
    seen = []
    losses = type(heads.box_predictor).losses

    def recording(self, predictions, proposals):
        seen.append((predictions, proposals))
        return losses(self, predictions, proposals)

    with EventStorage(), monkeypatch.context() as patch:
        patch.setattr(type(heads.box_predictor), "losses", recording)
        patch.setattr(heads.box_predictor, "ohem_num", 0)
        heads(None, maps, proposals, targets)
    ((predictions, labelled),) = seen
    assert [len(p) for p in labelled] == [30 + 3, 7 + 3]  # all, and the objects
    cls, box = slow_losses(predictions, labelled, 4)
    assert box > 0
    inputs = [*maps.values(), *heads.parameters()]
    expected = torch.autograd.grad(cls + box, inputs)

    with EventStorage():
        _, actual = heads(None, maps, proposals, targets)
    assert_close(actual["loss_cls"], cls)
    assert_close(actual["loss_box_reg"], box)
    assert_close(torch.autograd.grad(sum(actual.values()), inputs), expected)


def test_predicted_boxes_are_those_of_all_rois():
    """Where other branches train on predicted boxes, the RoIs that were not kept have them too."""
    heads, *inputs = make_heads(make_heads_cfg("OHEMROIHeads", TRAIN_ON_PRED_BOXES=True))
    with EventStorage():
        proposals, losses = heads(None, *inputs)
    before = torch.cat([p.proposal_boxes.tensor for p in inputs[1]])
    assert [len(p) for p in proposals] == [30 + 3, 7 + 3] and torch.isfinite(losses["loss_cls"])
    for p in proposals:
        assert not (p.proposal_boxes.tensor[:, None] == before).all(dim=2).any()


def test_the_heads_of_a_user_stay_as_they_are():
    heads = build_roi_heads(make_heads_cfg("HardPooledByAlign"), SHAPES)
    assert heads.box_pooler.canonical_box_size == 30


@pytest.mark.parametrize("name", ["RFCNROIHeads", "MXNetROIHeads", "OHEMROIHeads"])
@pytest.mark.parametrize(
    "option, message",
    [
        (dict(OHEM_NUM=-1), "OHEM_NUM is -1"),
        (dict(OHEM_NUM=65), "OHEM_NUM is 65.*BATCH_SIZE_PER_IMAGE = 64"),
        (dict(BBOX_REG_LOSS_TYPE="giou"), "BBOX_REG_LOSS_TYPE is giou"),
    ],
)
def test_impossible_options_are_named(name, option, message):
    with pytest.raises(ValueError, match=message):
        build_roi_heads(make_heads_cfg(name, **option), SHAPES)


def test_losses_of_the_main_branch_are_refused():
    cfg = make_heads_cfg("OHEMROIHeads")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(ValueError, match="USE_SIGMOID_CE False"):
        build_roi_heads(cfg, SHAPES)


def test_only_kept_rois_have_a_gradient():
    predictions, proposals = make_predictions(agnostic=True)
    with EventStorage():
        losses = make_outputs(5, agnostic=True).losses(predictions, proposals)
    sum(losses.values()).backward()
    rows = predictions[0].grad.abs().sum(dim=1) > 0
    assert rows[:30].sum() == 5 and rows[30:].sum() == 5


def test_images_without_objects():
    predictions, proposals = make_predictions(agnostic=True, objects=False)
    with EventStorage():
        losses = make_outputs(5, agnostic=True).losses(predictions, proposals)
    assert losses["loss_box_reg"] == 0 and torch.isfinite(losses["loss_cls"])


def test_a_batch_with_and_without_objects():
    """The second image has neither gt_boxes nor foreground."""
    predictions, proposals = make_predictions(agnostic=False)
    proposals[1].remove("gt_boxes")
    proposals[1].gt_classes.fill_(K)
    with EventStorage():
        losses = make_outputs(5, agnostic=False).losses(predictions, proposals)
    cls, box = slow_losses(predictions, proposals, 5)
    assert box > 0
    assert_close(losses["loss_cls"], cls)
    assert_close(losses["loss_box_reg"], box)


def test_zero_is_off():
    predictions, proposals = make_predictions(agnostic=True)
    with EventStorage():
        off = make_outputs(0, agnostic=True).losses(predictions, proposals)
        all_kept = make_outputs(1000, agnostic=True).losses(predictions, proposals)
    for name in off:
        assert_close(off[name], all_kept[name])
