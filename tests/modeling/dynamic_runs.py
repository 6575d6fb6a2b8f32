"""Dynamic R-CNN without a network: worked traces, a slow reference, and runs of its state."""

import torch

from dcn_projects.modeling import DynamicTraining
from dcn_projects.modeling.dynamic_rcnn import ABSENT
from tests.modeling.small_heads import make_heads_cfg

WEIGHTS = (10.0, 10.0, 5.0, 5.0)

# Trace A: two objects, and proposals whose last two are the objects.
OBJECTS = [[0, 0, 100, 100], [200, 200, 300, 400]]
PROPOSALS = [
    [10, 0, 110, 100], [0, 20, 100, 120], [30, 30, 130, 130], [200, 220, 300, 420],
    [220, 200, 320, 400], [150, 150, 250, 250], *OBJECTS,
]  # fmt: skip

# Trace B: IoUs and errors of four windows, and threshold and beta after each.
TRACE_B = [
    ([0.30, 0.35, 0.38, 0.41], [1.3, 0.9, 1.1, 1.2], 0.40, 1.0),
    ([0.45, 0.52, 0.50, 0.53], [0.8, 0.6, 0.7, 0.9], 0.50, 0.8),
    ([0.55, 0.58, 0.20, 0.59], [0.5, 0.0, 0.4, 0.3], 0.48, 0.4),
    ([0.60, 0.60, 0.62, 0.62], [0.0, 0.0, 0.0, 0.2], 0.61, 0.4),
]
# Trace C: IoUs and errors of two processes. Together: a threshold of 0.5175 and a beta of 0.75.
TRACE_C = [
    ([0.45, 0.52, 0.50, 0.53], [0.8, 0.6, 0.7, 0.9]),
    ([0.61, 0.40, 0.58, 0.55], [0.5, 1.4, 0.65, 0.75]),
]


def make_dynamic(update_period=4, **kwargs):
    options = dict(dla=True, dsl=True, iou_topk=2, error_topk=2, sync=True, reference_quirk=False)
    return DynamicTraining([0.4], [1.0], update_period=update_period, **{**options, **kwargs})


def run_iteration(dynamic, storage, iou, error):
    """An iteration with given statistics; returns the numbers that it used."""
    used = dynamic.matchers[0].threshold, dynamic.losses[0].beta
    dynamic.measured[0] = torch.tensor([iou, error])
    dynamic.end_iteration()
    latest = storage.latest()
    assert used == (latest["dynamic_rcnn/iou_threshold"][0], latest["dynamic_rcnn/beta"][0])
    storage.step()
    return used


def numbers(dynamic):
    return dynamic.matchers[0].threshold, dynamic.losses[0].beta


def slow_statistics(images, threshold, iou_topk, error_topk):
    """Every pair of boxes in a loop."""
    ious, errors = [], []
    for proposals, objects in images:
        for p in proposals:
            best = None
            for g in objects:
                w = max(min(p[2], g[2]) - max(p[0], g[0]), 0)
                h = max(min(p[3], g[3]) - max(p[1], g[1]), 0)
                union = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - w * h
                if best is None or w * h / union > best[0]:
                    tx = 10 * ((g[0] + g[2]) - (p[0] + p[2])) / 2 / (p[2] - p[0])
                    ty = 10 * ((g[1] + g[3]) - (p[1] + p[3])) / 2 / (p[3] - p[1])
                    best = w * h / union, (abs(tx) + abs(ty)) / 2
            if best:
                ious.append(best[0])
                errors += [best[1]] if best[0] >= threshold else []
    n = sum(len(objects) > 0 for _, objects in images)
    iou = sorted(ious, reverse=True)[: iou_topk * n][-1:] or [ABSENT]
    error = sorted(errors)[: error_topk * n][-1:] or [ABSENT]
    return [iou[0], error[0]]


def make_dynamic_cfg(name="DynamicROIHeads", ohem=0, **dynamic):
    """Small heads that label all proposals."""
    cfg = make_heads_cfg(name, OHEM_NUM=ohem)
    cfg.MODEL.DYNAMIC_RCNN.update(dict(IOU_TOPK=4, ERROR_TOPK=4, **dynamic))
    return cfg


def as_lists(proposals, targets, append):
    """Arguments of `slow_statistics`."""
    boxes = [p.proposal_boxes.tensor.tolist() for p in proposals]
    objects = [t.gt_boxes.tensor.tolist() for t in targets]
    return [(b + o if append else b, o) for b, o in zip(boxes, objects)]
