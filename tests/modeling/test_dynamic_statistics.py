"""Statistics of the proposals in Dynamic R-CNN: a worked trace and a slow reference."""

import random
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode

from dcn_projects.modeling.dynamic_rcnn import proposal_statistics
from tests.modeling.dynamic_runs import (
    OBJECTS,
    PROPOSALS,
    WEIGHTS,
    make_dynamic,
    slow_statistics,
)


def statistics(images, threshold, iou_topk, error_topk, **kwargs):
    """Of a list of (proposals, objects)."""
    boxes, objects = zip(*images)
    return proposal_statistics(
        [Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)) for b in boxes],
        [Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)) for b in objects],
        threshold=threshold,
        iou_topk=iou_topk,
        error_topk=error_topk,
        weights=WEIGHTS,
        **kwargs,
    ).tolist()


@pytest.mark.parametrize(
    "threshold,rank,iou,quirky",
    [(0.4, 3, 0.8182, 0.8182), (0.4, 5, 0.6667, 0.6667), (0.7, 6, 0.6667, 0.3245),
     (0.7, 7, 0.3245, 0.0)],
)  # fmt: skip
def test_trace_a_iou(threshold, rank, iou, quirky):
    image = (PROPOSALS, OBJECTS)
    assert statistics([image], threshold, rank, 1)[0] == pytest.approx(iou, abs=5e-5)
    actual = statistics([image], threshold, rank, 1, reference_quirk=True)[0]
    assert actual == pytest.approx(quirky, abs=5e-5)


@pytest.mark.parametrize("rank,error", [(2, 0.0), (3, 0.5), (5, 1.0)])
def test_trace_a_error(rank, error):
    assert statistics([(PROPOSALS, OBJECTS)], 0.4, 1, rank)[1] == pytest.approx(error)


def test_trace_a_errors_of_the_quirk():
    """All eight errors in order: of the background, numbers 2, 4 and 5 are against object 0."""
    expected = [0, 0, 0.5, 0.5, 1.0, 3.0, 15.0, 17.25]
    image = [(PROPOSALS, OBJECTS)]
    actual = [statistics(image, 0.7, 1, k, reference_quirk=True)[1] for k in range(1, 9)]
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    "counts",
    [[(40, 3)], [(40, 3), (25, 6)], [(9, 0), (30, 2)], [(5, 0)], [(3, 1), (2, 2)], [(0, 2)],
     [(0, 2), (7, 1)]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("ranks", [(1, 1), (7, 4), (1000, 1000)])
def test_statistics_of_random_boxes(counts, threshold, ranks):
    rng = random.Random(str(counts))

    def box():
        x, y = rng.uniform(0, 30), rng.uniform(0, 30)
        return [x, y, x + rng.uniform(5, 40), y + rng.uniform(5, 40)]

    images = [([box() for _ in range(p)], [box() for _ in range(g)]) for p, g in counts]
    assert statistics(images, threshold, *ranks) == pytest.approx(
        slow_statistics(images, threshold, *ranks), rel=1e-4
    )


def test_nothing_waits_for_the_values():
    """Fake tensors have none: whatever would need one in an iteration raises an error."""
    with FakeTensorMode(), EventStorage():
        dynamic = make_dynamic()
        proposals, targets = make_instances()
        dynamic.begin_stage(0, proposals, targets, make_predictor(), append_gt=True)
        dynamic.end_iteration()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu():
    dynamic = make_dynamic().cuda()
    proposals, targets = ([x.to("cuda") for x in side] for side in make_instances())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with EventStorage():
            dynamic.begin_stage(0, proposals, targets, make_predictor(), append_gt=True)
            dynamic.end_iteration()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_instances():
    """Trace A as Instances, and an image without objects."""
    proposals, targets = [], []
    for boxes, objects in [(PROPOSALS, OBJECTS), (PROPOSALS, [])]:
        boxes, objects = (torch.tensor(x).view(-1, 4).float() for x in (boxes, objects))
        proposals.append(Instances((500, 500), proposal_boxes=Boxes(boxes)))
        targets.append(Instances((500, 500), gt_boxes=Boxes(objects)))
    return proposals, targets


def make_predictor():
    return SimpleNamespace(box2box_transform=SimpleNamespace(weights=WEIGHTS))
