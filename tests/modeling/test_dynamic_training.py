"""Threshold and beta of Dynamic R-CNN from window to window, the matcher and the loss."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects.modeling import DynamicMatcher, DynamicSmoothL1
from dcn_projects.modeling.dynamic_rcnn import ABSENT
from tests.modeling.dynamic_runs import TRACE_B, make_dynamic, numbers, run_iteration


def test_trace_b():
    dynamic, expected = make_dynamic(), (0.4, 1.0)
    with EventStorage() as storage:
        for ious, errors, *after in TRACE_B:
            for iou, error in zip(ious, errors):
                assert run_iteration(dynamic, storage, iou, error) == pytest.approx(expected)
            expected = after
    assert dynamic.iou_threshold.item() == dynamic.matchers[0].threshold == pytest.approx(0.61)
    assert dynamic.beta.item() == dynamic.losses[0].beta == pytest.approx(0.4)


@pytest.mark.parametrize("absent", [0, 3])
def test_iterations_without_objects_do_not_count(absent):
    """The third window of trace B without one of its iterations."""
    ious, errors, *_ = TRACE_B[2]
    dynamic = make_dynamic()
    with EventStorage() as storage:
        for i, (iou, error) in enumerate(zip(ious, errors)):
            values = (ABSENT, ABSENT) if i == absent else (iou, error)
            run_iteration(dynamic, storage, *values)
    rest = [iou for i, iou in enumerate(ious) if i != absent]
    assert dynamic.matchers[0].threshold == pytest.approx(max(sum(rest) / 3, 0.4))
    # What the bounds hide can be seen.
    assert storage.latest()["dynamic_rcnn/iou_kth"] == (pytest.approx(sum(rest) / 3), 3)
    rest = sorted(error for i, error in enumerate(errors) if i != absent)
    assert dynamic.losses[0].beta == pytest.approx(rest[1])
    assert storage.latest()["dynamic_rcnn/error_kth"] == (pytest.approx(rest[1]), 3)


def test_a_window_without_objects_changes_nothing():
    dynamic = make_dynamic()
    with EventStorage() as storage:
        for iou, error in zip(*TRACE_B[1][:2]):
            run_iteration(dynamic, storage, iou, error)
        for _ in range(4):
            run_iteration(dynamic, storage, ABSENT, ABSENT)
    assert dynamic.matchers[0].threshold == pytest.approx(0.5)
    assert dynamic.losses[0].beta == pytest.approx(0.8)


@pytest.mark.parametrize("dla,dsl", [(False, True), (True, False), (False, False)])
def test_switches(dla, dsl):
    dynamic = make_dynamic(dla=dla, dsl=dsl)
    with EventStorage() as storage:
        for ious, errors, *_ in TRACE_B[:2]:
            for iou, error in zip(ious, errors):
                run_iteration(dynamic, storage, iou, error)
    assert dynamic.matchers[0].threshold == pytest.approx(0.5 if dla else 0.4)
    assert dynamic.losses[0].beta == pytest.approx(0.8 if dsl else 1.0)


def test_a_second_forward_of_an_iteration_counts_once():
    dynamic = make_dynamic(update_period=2)
    with EventStorage() as storage:
        for values in ([(0.9, 0.9), (0.5, 0.3)], [(0.8, 0.1), (0.7, 0.2)]):
            for iou, error in values:
                dynamic.measured[0] = torch.tensor([iou, error])
                dynamic.end_iteration()
            storage.step()
    assert dynamic.matchers[0].threshold == pytest.approx(0.6)
    assert dynamic.losses[0].beta == pytest.approx(0.3)


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 5, 7, 8])
def test_going_on_from_any_iteration(stop):
    """State dicts of a run that ends after `stop` iterations; a new one takes over."""
    values = [pair for ious, errors, *_ in TRACE_B for pair in zip(ious, errors)]
    whole, first, second = make_dynamic(), make_dynamic(), make_dynamic()
    with EventStorage() as storage:
        expected = [run_iteration(whole, storage, *v) for v in values]
    with EventStorage() as storage:
        actual = [run_iteration(first, storage, *v) for v in values[:stop]]
    second.load_state_dict(first.state_dict())
    with EventStorage(stop) as storage:
        actual += [run_iteration(second, storage, *v) for v in values[stop:]]
    assert actual == expected
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffer, second.get_buffer(name))


def test_weights_of_another_training_leave_no_window():
    """A new training starts at iteration 0, in the middle of the window it was given."""
    dynamic = make_dynamic()
    dynamic.window.fill_(0.9)
    with EventStorage() as storage:
        for iou, error in zip(*TRACE_B[1][:2]):
            run_iteration(dynamic, storage, iou, error)
    assert dynamic.matchers[0].threshold == pytest.approx(0.5)


def test_a_checkpoint_of_other_bounds():
    dynamic, saved = make_dynamic(), make_dynamic().state_dict()
    saved["iou_threshold"], saved["beta"] = torch.tensor([0.3]), torch.tensor([1.5])
    dynamic.load_state_dict(saved)
    assert numbers(dynamic) == (0.4, 1.0)
    assert (float(dynamic.iou_threshold), float(dynamic.beta)) == (0.4, 1.0)


def box_loss(deltas, beta):
    """What detectron2's outputs make of differences (N,) or () from the targets: their sum."""
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    outputs = FastRCNNOutputLayers(
        ShapeSpec(channels=1), box2box_transform=transform, num_classes=1, smooth_l1_beta=beta
    )
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(deltas.numel(), 4)  # equal: all targets are 0
    padded = F.pad(deltas.reshape(-1, 1), (0, 3))
    classes = torch.zeros(len(boxes), dtype=torch.long)
    return outputs.box_reg_loss(boxes, boxes, padded, classes) * len(boxes)


# Trace D.
@pytest.mark.parametrize(
    "beta,losses,gradients",
    [(1.0, [0.005, 0.045, 0.125, 1.0], [0.1, 0.3, 0.5, 1]),
     (0.4, [0.0125, 0.1125, 0.3, 1.3], [0.25, 0.75, 1, 1])],
)  # fmt: skip
def test_trace_d(beta, losses, gradients):
    """The loss of detectron2's heads, with the beta that they are given."""
    loss = DynamicSmoothL1(1.0)
    loss.update([beta])
    input = torch.tensor([0.1, 0.3, 0.5, 1.5], requires_grad=True)
    actual = [box_loss(x, loss.beta) for x in input]
    sum(actual).backward()
    assert_close(torch.stack(actual), torch.tensor(losses))
    assert_close(input.grad, torch.tensor(gradients, dtype=torch.float32))


@pytest.mark.parametrize("error", [0.0, 1e-7, 1e-6, 5e-6])
def test_tiny_betas_stay_finite(error):
    loss = DynamicSmoothL1(1.0)
    loss.update([error] * 5)
    assert loss.beta == (1.0 if error < 1e-6 else error)
    input = torch.tensor([0.0, 1e-8, -0.5], requires_grad=True)
    value = box_loss(input, loss.beta)
    value.backward()
    assert value.isfinite() and input.grad.isfinite().all()


def test_the_matcher_is_detectron2s_at_its_threshold():
    matcher = DynamicMatcher(0.4)
    ious = torch.tensor([[0.3, 0.45, 0.5, 0.7], [0.2, 0.44, 0.6, 0.1]])
    assert matcher(ious)[1].tolist() == [0, 1, 1, 1]
    matcher.update([0.5, 0.7])  # 0.6: a tie is foreground
    matched, labels = matcher(ious)
    assert matched.tolist() == [0, 0, 1, 0] and labels.tolist() == [0, 0, 1, 1]
    matcher.update([0.1, 0.2])
    assert matcher.threshold == 0.4
