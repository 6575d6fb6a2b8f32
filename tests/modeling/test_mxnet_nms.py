"""
The last NMS of the MXNet detectors against the rule of the original, in NumPy: inclusive corners in
the network's input are divided by the scale, and counted as inclusive in pixels of the image.
"""

import logging

import numpy as np
import pytest
import torch
from detectron2.data.transforms import NoOpTransform, ResizeTransform, TransformList
from detectron2.modeling import build_model
from fvcore.transforms.transform import HFlipTransform

from dcn_projects.modeling import MultiScaleTTA
from dcn_projects.modeling.box_nms import without_nms
from dcn_projects.modeling.roi_heads import mxnet_heads
from tests.modeling.narrow_models import NARROW, load

HEADS = """MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.FPN.OUT_CHANNELS 16
    MODEL.RPN.POST_NMS_TOPK_TEST 300 TEST.DETECTIONS_PER_IMAGE 60"""
REDUCED = "MODEL.ROI_BOX_HEAD.REDUCED_DIM 8"
MODELS = {
    "rfcn": ("R-FCN/deformable_rfcn_R_101_C5_coco", REDUCED),
    "faster": ("Faster-R-CNN/faster_rcnn_R_101_C5_coco", REDUCED),
    "fpn": ("FPN/fpn_R_101_coco", ""),
}
SIGMA, THRESHOLD, TOPK = 0.6, 0.3, 60
IMAGE = 128, 192


def make_model(name, method, *opts):
    path, of_model = MODELS[name]
    torch.manual_seed(1)
    cfg = load(
        path, NARROW, HEADS, of_model, f"MODEL.ROI_HEADS.NMS_TYPE {method}",
        f"MODEL.ROI_HEADS.SOFT_NMS_SIGMA {SIGMA} MODEL.ROI_HEADS.SOFT_NMS_SCORE_THRESH 0.0", *opts,
    )  # fmt: skip
    model = build_model(cfg).eval()
    outputs = model.roi_heads.box_predictor
    outputs.predict_boxes, outputs.predict_probs = predict_boxes, predict_probs
    return cfg, model


def predict_boxes(predictions, proposals):
    """Of one image, known boxes that meet each other, many of them narrow."""
    (p,), (height, width) = proposals, proposals[0].image_size
    assert len(p) >= 60
    torch.manual_seed(width)
    corners = torch.rand(len(p), 2) * torch.tensor([width, height]) / 2
    boxes = torch.cat((corners, corners + 3 + torch.rand(len(p), 2) * 30), dim=1)
    return [boxes.repeat(1, predictions[1].shape[1] // 4)]


def predict_probs(predictions, proposals):
    torch.manual_seed(proposals[0].image_size[0])
    return [torch.randn(len(proposals[0]), 4).softmax(dim=1)]


def make_view(scale, flip=False):
    """An image as the network sees it, of which the result is wanted at the size IMAGE."""
    height, width = (round(side * scale) for side in IMAGE)
    torch.manual_seed(2)
    image = torch.randint(0, 256, (3, height, width)).float()
    view = {"image": image, "height": IMAGE[0], "width": IMAGE[1]}
    resize = NoOpTransform() if scale == 1 else ResizeTransform(*IMAGE, height, width)
    return view, TransformList([resize, *([HFlipTransform(width)] if flip else [])])


def all_detections(model, view):
    """Of each class above the threshold: boxes in the network's input, scores and classes."""
    with torch.no_grad(), without_nms(model.roi_heads.box_predictor):
        (found,) = model.inference([view], do_postprocess=False)
    return found.pred_boxes.tensor.double().numpy(), found.scores.numpy(), found.pred_classes


def overlaps(box, boxes):
    """Of boxes with inclusive corners, as in py-faster-rcnn."""
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + 1
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]) + 1
    meet = np.maximum(width, 0) * np.maximum(height, 0)
    return meet / (area + areas - meet)


def original_nms(inclusive, scores, method):
    """Of one class: rows in the order of their new scores, and these."""
    scores, left = scores.astype(np.float64), list(range(len(scores)))
    rows, new_scores = [], []
    while left and (method == "hard" or len(rows) < TOPK):
        best = max(left, key=lambda i: scores[i])
        rows.append(best)
        new_scores.append(scores[best])
        left.remove(best)
        if not left:
            break
        overlap = overlaps(inclusive[best], inclusive[left])
        if method == "hard":
            left = [i for i, o in zip(left, overlap) if o <= THRESHOLD]
        else:
            scores[left] *= np.exp(-(overlap**2) / SIGMA)
    return rows, new_scores


def original(inclusive, scores, classes, method):
    """Rows of all classes that are kept, the best first, and their new scores."""
    rows, new_scores = [], []
    for c in np.unique(classes):
        (of_class,) = np.nonzero(np.asarray(classes) == c)
        kept, new = original_nms(inclusive[of_class], scores[of_class], method)
        rows += of_class[kept].tolist()
        new_scores += new
    order = np.argsort(-np.array(new_scores), kind="stable")[:TOPK]
    return np.array(rows)[order], np.array(new_scores)[order]


def check(found, boxes, scores, classes):
    assert len(found) == len(scores) == TOPK
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-6)
    ours = np.column_stack((found.pred_classes, found.scores, found.pred_boxes.tensor))
    # Two scores that are almost equal may stand in another order.
    for row in np.column_stack((classes, scores, boxes)):
        assert (np.abs(ours - row).max(axis=1) < 2e-3).any()


@pytest.mark.parametrize("scale", [1, 1.5, 0.75])
@pytest.mark.parametrize("method", ["hard", "gaussian"])
@pytest.mark.parametrize("name", MODELS)
def test_one_scale(name, method, scale):
    _, model = make_model(name, method)
    view, _ = make_view(scale)
    boxes, scores, classes = all_detections(model, view)
    inclusive = (boxes - (0, 0, 1, 1)) / scale
    rows, new_scores = original(inclusive, scores, classes, method)
    with torch.no_grad():
        found = model([view])[0]["instances"]
    check(found, boxes[rows] / scale, new_scores, classes[rows])
    _, in_input = original(boxes - (0, 0, 1, 1), scores, classes, method)
    if method == "gaussian" or scale > 1:  # the scale matters
        assert (scale == 1) == np.allclose(new_scores, in_input, atol=1e-3)


@pytest.mark.parametrize("method", ["hard", "gaussian"])
@pytest.mark.parametrize("name", ["rfcn", "faster"])
def test_several_scales(name, method):
    """All views meet in one NMS; a mirrored view has its inclusive corners mirrored."""
    cfg, model = make_model(name, method, "TEST.AUG.MERGE raw")
    views = [(1, False), (1.5, False), (0.75, True)]
    made = [make_view(*view) for view in views]
    boxes, inclusive, scores, classes = [], [], [], []
    for (view, _), (scale, flip) in zip(made, views):
        b, s, c = all_detections(model, view)
        exclusive, last = b / scale, (b - (0, 0, 1, 1)) / scale
        if flip:
            exclusive[:, [0, 2]] = IMAGE[1] - exclusive[:, [2, 0]]
            last[:, [0, 2]] = IMAGE[1] - 1 - last[:, [2, 0]]
        boxes.append(exclusive)
        inclusive.append(last)
        scores.append(s)
        classes.append(c)
    boxes, inclusive, scores, classes = map(np.concatenate, (boxes, inclusive, scores, classes))
    rows, new_scores = original(inclusive, scores, classes, method)

    def mapper(inputs):
        return [{**view, "transforms": transforms} for view, transforms in made]

    with torch.no_grad():
        found = MultiScaleTTA(cfg, model, mapper)([made[0][0]])[0]["instances"]
    check(found, boxes[rows], new_scores, classes[rows])


def test_a_model_that_does_not_tell_the_scale(caplog):
    """Its NMS is in the network's input, which is said once."""
    mxnet_heads._warn_of_unknown_scale.cache_clear()
    _, model = make_model("faster", "hard", "MODEL.META_ARCHITECTURE GeneralizedRCNN")
    view, _ = make_view(1.5)
    boxes, scores, classes = all_detections(model, view)
    rows, new_scores = original(boxes - (0, 0, 1, 1), scores, classes, "hard")
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        found = [model([view])[0]["instances"] for _ in range(2)][0]
    check(found, boxes[rows] / 1.5, new_scores, classes[rows])
    lines = [r.message for r in caplog.records if "MODEL.META_ARCHITECTURE" in r.message]
    assert len(lines) == 1 and "MXNetFasterRCNN" in lines[0] and "\n" not in lines[0]
