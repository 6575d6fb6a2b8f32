import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects.modeling import OHEMFastRCNNOutputLayers

K = 5
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def make_outputs(ohem_num, agnostic):
    return OHEMFastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=TRANSFORM,
        num_classes=K,
        cls_agnostic_bbox_reg=agnostic,
        smooth_l1_beta=1.0,
        ohem_num=ohem_num,
    )


def make_inputs(agnostic, counts=(30, 7), objects=True):
    torch.manual_seed(0)
    proposals = []
    for count in counts:
        corner = torch.rand(count, 2) * 50
        boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 40), dim=1)
        p = Instances((100, 100), proposal_boxes=Boxes(boxes))
        p.gt_classes = torch.randint(0, K + 1, (count,)) if objects else torch.full((count,), K)
        if objects:
            p.gt_boxes = Boxes(boxes + torch.randn(count, 4))
        proposals.append(p)
    total = sum(counts)
    scores = torch.randn(total, K + 1, requires_grad=True)
    deltas = torch.randn(total, 4 if agnostic else 4 * K, requires_grad=True)
    return (scores, deltas), proposals


def slow_losses(predictions, proposals, ohem_num):
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
            rois.append((cls, box))
            row += 1
        rois.sort(key=lambda x: -(x[0] + x[1]).item())
        kept = rois[:ohem_num]
        cls_terms += [c for c, _ in kept]
        box_terms += [b for _, b in kept]
    return torch.stack(cls_terms).mean(), torch.stack(box_terms).sum() / len(box_terms)


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("ohem_num", [5, 1000])
def test_losses_of_the_hardest(agnostic, ohem_num):
    predictions, proposals = make_inputs(agnostic)
    with EventStorage():
        losses = make_outputs(ohem_num, agnostic).losses(predictions, proposals)
    cls, box = slow_losses(predictions, proposals, ohem_num)
    assert_close(losses["loss_cls"], cls)
    assert_close(losses["loss_box_reg"], box)


def test_only_kept_rois_have_a_gradient():
    predictions, proposals = make_inputs(agnostic=True)
    with EventStorage():
        losses = make_outputs(5, agnostic=True).losses(predictions, proposals)
    sum(losses.values()).backward()
    rows = predictions[0].grad.abs().sum(dim=1) > 0
    assert rows[:30].sum() == 5 and rows[30:].sum() == 5


def test_images_without_objects():
    predictions, proposals = make_inputs(agnostic=True, objects=False)
    with EventStorage():
        losses = make_outputs(5, agnostic=True).losses(predictions, proposals)
    assert losses["loss_box_reg"] == 0 and torch.isfinite(losses["loss_cls"])


def test_a_batch_with_and_without_objects():
    """The second image has neither gt_boxes nor foreground."""
    predictions, proposals = make_inputs(agnostic=False)
    proposals[1].remove("gt_boxes")
    proposals[1].gt_classes.fill_(K)
    with EventStorage():
        losses = make_outputs(5, agnostic=False).losses(predictions, proposals)
    cls, box = slow_losses(predictions, proposals, 5)
    assert box > 0
    assert_close(losses["loss_cls"], cls)
    assert_close(losses["loss_box_reg"], box)


def test_zero_is_off():
    predictions, proposals = make_inputs(agnostic=True)
    with EventStorage():
        off = make_outputs(0, agnostic=True).losses(predictions, proposals)
        all_kept = make_outputs(1000, agnostic=True).losses(predictions, proposals)
    for name in off:
        assert_close(off[name], all_kept[name])
