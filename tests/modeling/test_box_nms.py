"""Soft-NMS behind the box heads: published values, the order of the steps, plain NMS as before."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.modeling import BoxOutputLayers
from dcn_projects.modeling.box_nms import (
    box_nms,
    detections_above,
    soft_nms_options,
    without_nms,
)
from tests.layers import reference
from tests.layers.operators.soft_nms import BOXES, PUBLISHED

SIZE = (300, 400)


def make_outputs(num_classes, agnostic=False, **kwargs):
    return BoxOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        **kwargs,
    )


def make_predictions(num_classes, agnostic=False, counts=(40, 25)):
    """Predictions of boxes that meet, and proposals of two images."""
    torch.manual_seed(0)
    proposals = []
    for count in counts:
        corner = torch.rand(count, 2) * 150
        boxes = torch.cat((corner, corner + 20 + torch.rand(count, 2) * 100), dim=1)
        proposals.append(Instances(SIZE, proposal_boxes=Boxes(boxes)))
    total = sum(counts)
    deltas = torch.randn(total, 4 if agnostic else 4 * num_classes)
    return (2 * torch.randn(total, num_classes + 1), deltas), proposals


@pytest.mark.parametrize("method,case,order,values", PUBLISHED)
def test_published_values(method, case, order, values):
    """Through the outputs: five RoIs whose probabilities are the published scores."""
    options = dict(test_score_thresh=0.001, test_nms_thresh=case.get("iou_threshold", 0.3))
    outputs = make_outputs(1, nms_type=method, soft_nms_sigma=case.get("sigma", 0.5), **options)
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    boxes[:, 2:] += 1
    probabilities = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    logits = torch.stack((probabilities, 1 - probabilities), dim=1).log()
    proposals = [Instances(SIZE, proposal_boxes=Boxes(boxes))]
    (found,), (rois,) = outputs.inference((logits, torch.zeros(5, 4)), proposals)
    assert rois.tolist() == order
    assert_close(found.pred_boxes.tensor, boxes[order])
    assert_close(found.scores, torch.tensor(values), rtol=0, atol=1e-6)
    assert found.image_size == SIZE and not found.pred_classes.any()


@pytest.mark.parametrize("agnostic", [True, False])
def test_hard_is_detectron2(agnostic):
    outputs = make_outputs(3, agnostic, test_score_thresh=0.05, test_topk_per_image=20)
    inputs = make_predictions(3, agnostic)
    actual = outputs.inference(*inputs)
    expected = FastRCNNOutputLayers.inference(outputs, *inputs)
    for found, like, rois, of in zip(actual[0], expected[0], actual[1], expected[1]):
        assert len(found) == 20
        assert torch.equal(found.pred_boxes.tensor, like.pred_boxes.tensor)
        assert torch.equal(found.scores, like.scores)
        assert torch.equal(found.pred_classes, like.pred_classes)
        assert torch.equal(rois, of)


@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_without_nms(method, monkeypatch):
    """Everything above the threshold, as detectron2 finds it, but without the work of an NMS."""
    options = dict(test_score_thresh=0.05, test_topk_per_image=20)
    outputs = make_outputs(3, nms_type=method, **options)
    inputs = make_predictions(3)
    plain = FastRCNNOutputLayers(
        ShapeSpec(channels=4), box2box_transform=outputs.box2box_transform, num_classes=3, **options
    )
    with without_nms(plain):
        expected, _ = plain.inference(*inputs)
    with monkeypatch.context() as patch, without_nms(outputs):
        for module in ("dcn_projects.modeling.roi_heads.fast_rcnn.box_nms",
                       "detectron2.modeling.roi_heads.fast_rcnn.batched_nms"):  # fmt: skip
            patch.setattr(module, None)
        actual, rois = outputs.inference(*inputs)
    probabilities = outputs.predict_probs(*inputs)
    for found, like, of, scores in zip(actual, expected, rois, probabilities):
        assert len(found) == len(like) > 20
        assert torch.equal(found.scores, scores[of, found.pred_classes])
        order = found.scores.argsort(descending=True)
        assert torch.equal(found.scores[order], like.scores)
        assert torch.equal(found.pred_boxes.tensor[order], like.pred_boxes.tensor)
    assert (outputs.nms_type, outputs.test_topk_per_image) == (method, 20)
    assert plain.test_nms_thresh == 0.5


@pytest.mark.parametrize("agnostic", [True, False])
def test_hard_of_box_nms_is_detectron2(agnostic):
    """The merge of test-time augmentation: the same steps, called apart."""
    outputs = make_outputs(3, agnostic)
    predictions, proposals = make_predictions(3, agnostic, counts=(60,))
    (boxes,), (scores,) = (
        outputs.predict_boxes(predictions, proposals),
        outputs.predict_probs(predictions, proposals),
    )
    (like,), (of,) = fast_rcnn_inference([boxes.clone()], [scores], [SIZE], 0.05, 0.4, 30)
    found, rois = detections_above(boxes, scores, SIZE, 0.05)
    kept, indices = box_nms(
        found, method="hard", iou_threshold=0.4, topk=30, sigma=0.5, score_threshold=0
    )
    assert len(kept) == 30 and torch.equal(rois[indices], of)
    assert torch.equal(kept.pred_boxes.tensor, like.pred_boxes.tensor)
    assert torch.equal(kept.scores, like.scores)
    assert torch.equal(kept.pred_classes, like.pred_classes)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("topk", [-1, 0, 1, 15, 10**6])
def test_steps_in_order(method, agnostic, topk):
    """Threshold, soft-NMS of each class, the best of the image; against the loops of the paper."""
    K, floor = 3, 0.02
    outputs = make_outputs(
        K,
        agnostic,
        nms_type=method,
        soft_nms_score_thresh=floor,
        test_score_thresh=0.1,
        test_nms_thresh=0.3,
        test_topk_per_image=topk,
    )
    predictions, proposals = make_predictions(K, agnostic)
    actual = outputs.inference(predictions, proposals)
    boxes = outputs.predict_boxes(predictions, proposals)
    scores = outputs.predict_probs(predictions, proposals)
    for i in range(2):
        expected = []
        height, width = SIZE
        for k in range(K):
            rows = (scores[i][:, k] > 0.1).nonzero()[:, 0]
            b = boxes[i][rows].view(len(rows), -1, 4)[:, 0 if agnostic else k]
            b[:, 0::2].clamp_(0, width)
            b[:, 1::2].clamp_(0, height)
            taken, new = reference.soft_nms(
                b, scores[i][rows, k], method, score_threshold=floor, iou_threshold=0.3
            )
            expected += [(s, int(rows[j]), k, b[j].tolist()) for j, s in zip(taken, new)]
        expected.sort(key=lambda e: -e[0])
        expected = expected if topk < 0 else expected[:topk]
        found, rois = actual[0][i], actual[1][i]
        assert len(found) == len(expected) and (topk == 0 or len(expected) > 0)
        assert rois.tolist() == [e[1] for e in expected]
        assert found.pred_classes.tolist() == [e[2] for e in expected]
        assert_close(found.scores, torch.tensor([e[0] for e in expected]))
        assert_close(found.pred_boxes.tensor, torch.tensor([e[3] for e in expected]).view(-1, 4))


def test_equal_scores_at_the_end_are_kept():
    """But no class has more than `topk`: the last box would be the third of class 0."""
    boxes = torch.arange(5.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    found = Instances(SIZE, pred_boxes=Boxes(boxes))
    found.scores = torch.tensor([0.5, 0.9, 0.3, 0.5, 0.5])
    found.pred_classes = torch.tensor([0, 0, 1, 1, 0])
    kept, indices = box_nms(
        found, method="gaussian", iou_threshold=0.3, topk=2, sigma=0.5, score_threshold=0.001
    )
    assert indices.tolist() == [1, 0, 3]
    assert_close(kept.scores, torch.tensor([0.9, 0.5, 0.5]))


def test_rows_that_are_not_finite():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    scores = torch.full((4, 3), 0.3)
    boxes[0, 2], scores[2, 1] = float("nan"), float("inf")
    found, rois = detections_above(boxes, scores, SIZE, 0.1)
    assert rois.tolist() == [1, 1, 3, 3] and found.pred_classes.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("counts", [(), (0,), (0, 5)])
def test_nothing_found(method, counts):
    outputs = make_outputs(2, nms_type=method, test_score_thresh=0.999)
    found, rois = outputs.inference(*make_predictions(2, counts=counts))
    assert [len(f) for f in found] == [len(r) for r in rois] == [0] * len(counts)


def make_cfg(*opts):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


@pytest.mark.parametrize("heads", ["OHEMROIHeads", "RFCNROIHeads"])
def test_heads_from_config(heads):
    cfg = make_cfg()
    if heads == "RFCNROIHeads":
        cfg.merge_from_file("configs/R-FCN/Base-RFCN.yaml")
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list("MODEL.ROI_HEADS.NMS_TYPE linear".split())
    cfg.merge_from_list("MODEL.ROI_HEADS.SOFT_NMS_SIGMA 0.6".split())
    cfg.merge_from_list("MODEL.ROI_HEADS.SOFT_NMS_SCORE_THRESH 0.01".split())
    if heads == "OHEMROIHeads":
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    outputs = build_model(cfg).roi_heads.box_predictor
    assert isinstance(outputs, BoxOutputLayers)
    assert (outputs.nms_type, outputs.soft_nms_sigma) == ("linear", 0.6)
    assert outputs.soft_nms_score_thresh == 0.01


@pytest.mark.parametrize(
    "key,value",
    [
        ("NMS_TYPE", "soft"),
        ("SOFT_NMS_SIGMA", 0.0),
        ("SOFT_NMS_SIGMA", -0.5),
        ("SOFT_NMS_SIGMA", float("nan")),
        ("SOFT_NMS_SCORE_THRESH", -0.1),
        ("NMS_THRESH_TEST", 30.0),
    ],
)
def test_bad_keys_are_named(key, value):
    cfg = make_cfg(f"MODEL.ROI_HEADS.{key}", value)
    with pytest.raises(ValueError, match=f"MODEL.ROI_HEADS.{key} .*{value}"):
        soft_nms_options(cfg)
