"""Dynamic R-CNN: worked traces, a slow reference of its statistics, and the heads that use them."""

import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import configurable, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_anchor_generator, build_roi_heads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import load_trained
from dcn_projects.modeling import (
    DynamicMatcher,
    DynamicSmoothL1,
    DynamicTraining,
    RFCNROIHeads,
)
from dcn_projects.modeling.dynamic_training import ABSENT, proposal_statistics
from tests.modeling.test_ohem import SHAPES, make_heads
from tests.modeling.test_ohem import make_cfg as make_ohem_cfg

ROOT = Path(__file__).parents[2]
WEIGHTS = (10.0, 10.0, 5.0, 5.0)

# Trace A: two objects, and proposals whose last two are the objects.
OBJECTS = [[0, 0, 100, 100], [200, 200, 300, 400]]
PROPOSALS = [
    [10, 0, 110, 100], [0, 20, 100, 120], [30, 30, 130, 130], [200, 220, 300, 420],
    [220, 200, 320, 400], [150, 150, 250, 250], *OBJECTS,
]  # fmt: skip


def statistics(images, threshold, iou_rank, error_rank, **kwargs):
    """Of a list of (proposals, objects)."""
    boxes, objects = zip(*images)
    return proposal_statistics(
        [Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)) for b in boxes],
        [Boxes(torch.tensor(b, dtype=torch.float32).view(-1, 4)) for b in objects],
        threshold=threshold,
        iou_rank=iou_rank,
        error_rank=error_rank,
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


# Trace B: IoUs and errors of four windows, and threshold and beta after each.
TRACE_B = [
    ([0.30, 0.35, 0.38, 0.41], [1.3, 0.9, 1.1, 1.2], 0.40, 1.0),
    ([0.45, 0.52, 0.50, 0.53], [0.8, 0.6, 0.7, 0.9], 0.50, 0.8),
    ([0.55, 0.58, 0.20, 0.59], [0.5, 0.0, 0.4, 0.3], 0.48, 0.4),
    ([0.60, 0.60, 0.62, 0.62], [0.0, 0.0, 0.0, 0.2], 0.61, 0.4),
]


def make_dynamic(period=4, **kwargs):
    options = dict(dla=True, dsl=True, iou_rank=2, error_rank=2, sync=True, reference_quirk=False)
    return DynamicTraining([0.4], [1.0], period=period, **{**options, **kwargs})


def run_iteration(dynamic, storage, iou, error):
    """An iteration with given statistics; returns the numbers that it used."""
    used = dynamic.matchers[0].threshold, dynamic.losses[0].beta
    dynamic.measured[0] = torch.tensor([iou, error])
    dynamic.end_iteration()
    latest = storage.latest()
    assert used == (latest["dynamic_rcnn/iou_threshold"][0], latest["dynamic_rcnn/beta"][0])
    storage.step()
    return used


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
    dynamic = make_dynamic(period=2)
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


# Trace D.
@pytest.mark.parametrize(
    "beta,losses,gradients",
    [(1.0, [0.005, 0.045, 0.125, 1.0], [0.1, 0.3, 0.5, 1]),
     (0.4, [0.0125, 0.1125, 0.3, 1.3], [0.25, 0.75, 1, 1])],
)  # fmt: skip
def test_trace_d(beta, losses, gradients):
    loss = DynamicSmoothL1(1.0)
    loss.update([beta])
    input = torch.tensor([0.1, 0.3, 0.5, 1.5], requires_grad=True)
    actual = [loss(x, torch.zeros(())) for x in input]
    sum(actual).backward()
    assert_close(torch.stack(actual), torch.tensor(losses))
    assert_close(input.grad, torch.tensor(gradients, dtype=torch.float32))


@pytest.mark.parametrize("error", [0.0, 1e-7, 1e-6, 5e-6])
def test_tiny_betas_stay_finite(error):
    loss = DynamicSmoothL1(1.0)
    loss.update([error] * 5)
    assert loss.beta == (1.0 if error < 1e-6 else error)
    input = torch.tensor([0.0, 1e-8, -0.5], requires_grad=True)
    value = loss(input, torch.zeros(3))
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


def slow_statistics(images, threshold, iou_rank, error_rank):
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
    iou = sorted(ious, reverse=True)[: iou_rank * n][-1:] or [ABSENT]
    error = sorted(errors)[: error_rank * n][-1:] or [ABSENT]
    return [iou[0], error[0]]


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


# Trace C: IoUs and errors of two processes. Together: a threshold of 0.5175 and a beta of 0.75.
TRACE_C = [
    ([0.45, 0.52, 0.50, 0.53], [0.8, 0.6, 0.7, 0.9]),
    ([0.61, 0.40, 0.58, 0.55], [0.5, 1.4, 0.65, 0.75]),
]
TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from tests.modeling.test_dynamic_rcnn import (
    TRACE_C, make_cfg, make_dynamic, make_heads, numbers, run_iteration
)

def main(rank):
    torch.set_num_threads(1)
    store = f"file://{sys.argv[1]}/store"
    dist.init_process_group("gloo", store, rank=rank, world_size=2)
    results = {}
    for name, sync, order in [("together", True, 1), ("swapped", True, -1), ("alone", False, 1)]:
        dynamic = make_dynamic(sync=sync)
        with EventStorage() as storage:
            for iou, error in zip(*TRACE_C[::order][rank]):
                run_iteration(dynamic, storage, iou, error)
        results[name] = dynamic.state_dict(), numbers(dynamic)

    # Whole heads. The second process has images of its own, and in one iteration no objects.
    heads, maps, proposals, targets = make_heads(make_cfg(ITERATION_COUNT=2))
    with EventStorage() as storage:
        for i in range(4):
            count = 3 if rank == 0 else 0 if i == 2 else 1
            heads(None, maps, proposals, [t[:count] for t in targets])
            storage.step()
    results["heads"] = heads.dynamic.state_dict(), numbers(heads.dynamic)
    torch.save(results, f"{sys.argv[1]}/{rank}.pth")
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, nprocs=2, start_method="fork")
"""


def numbers(dynamic):
    return dynamic.matchers[0].threshold, dynamic.losses[0].beta


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    program = folder / "program.py"
    program.write_text(TWO_PROCESSES)
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(
        [sys.executable, program, folder], cwd=ROOT, env=env, timeout=300, **output
    )
    assert done.returncode == 0, done.stdout
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_trace_c(two_processes):
    for result in two_processes:
        assert result["together"][1] == pytest.approx((0.5175, 0.75))
        assert result["swapped"][1] == result["together"][1]
    assert two_processes[0]["alone"][1] == pytest.approx((0.5, 0.8))
    assert two_processes[1]["alone"][1] == pytest.approx((0.535, 0.75))


@pytest.mark.parametrize("name", ["together", "heads"])
def test_processes_hold_the_same_bits(two_processes, name):
    (first, numbers_of_first), (second, numbers_of_second) = (r[name] for r in two_processes)
    assert numbers_of_first == numbers_of_second
    assert list(first) == ["iou_threshold", "beta", "window"]
    for key in first:
        assert torch.equal(first[key], second[key])
    if name == "heads":  # a row of iteration 2 and one of iteration 3
        there = (first["window"] >= 0).all(dim=3).flatten(1)
        assert there.tolist() == [[True, False], [True, True]]
        assert not torch.equal(first["window"][1, 0], first["window"][1, 1])


def test_one_process_is_as_without_sync():
    states = []
    for sync in (True, False):
        dynamic = make_dynamic(sync=sync)
        with EventStorage() as storage:
            for ious, errors, *_ in TRACE_B:
                for iou, error in zip(ious, errors):
                    run_iteration(dynamic, storage, iou, error)
        states.append(dynamic.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture
def warned():
    """Messages of warnings, also where a program has set up the loggers."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("fvcore", "dcn_projects")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


def test_another_number_of_processes(two_processes, tmp_path, warned):
    """Threshold and beta go on, the window is left out."""
    model = nn.ModuleDict({"dynamic": make_dynamic()})
    saved = {f"dynamic.{k}": v for k, v in two_processes[0]["together"][0].items()}
    torch.save({"model": saved}, tmp_path / "two.pth")
    Checkpointer(model).load(str(tmp_path / "two.pth"))
    assert numbers(model["dynamic"]) == two_processes[0]["together"][1]
    assert (model["dynamic"].window == ABSENT).all()
    (warning,) = warned
    assert "dynamic.window" in warning
    warned.clear()
    load_trained(model, str(tmp_path / "two.pth"))  # this is not another model
    assert numbers(model["dynamic"]) == two_processes[0]["together"][1] and not warned


def test_checkpoints_of_other_models(tmp_path, warned):
    """Weights of the same heads without the state load with one warning, and it starts anew."""
    heads, *_ = make_heads(make_cfg())
    plain, *_ = make_heads(make_ohem_cfg("OHEMROIHeads"))
    for p in plain.parameters():
        nn.init.normal_(p)
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    heads.dynamic.window.fill_(0.5)
    heads.dynamic.matchers[0].threshold = 0.7
    Checkpointer(heads).load(str(tmp_path / "plain.pth"))
    assert_close(dict(heads.named_parameters()), dict(plain.named_parameters()))
    assert numbers(heads.dynamic) == (0.4, 1.0) and (heads.dynamic.window == ABSENT).all()
    assert not warned  # it may be there to be evaluated
    with EventStorage() as storage:
        for _ in range(2):
            run_iteration(heads.dynamic, storage, 0.5, 0.5)
    (warning,) = warned
    assert "no state of Dynamic R-CNN" in warning and "0.4" in warning


def test_a_checkpoint_of_other_bounds():
    dynamic, saved = make_dynamic(), make_dynamic().state_dict()
    saved["iou_threshold"], saved["beta"] = torch.tensor([0.3]), torch.tensor([1.5])
    dynamic.load_state_dict(saved)
    assert numbers(dynamic) == (0.4, 1.0)
    assert (float(dynamic.iou_threshold), float(dynamic.beta)) == (0.4, 1.0)


def make_cfg(name="DynamicROIHeads", ohem=0, **dynamic):
    """Small heads that label all proposals."""
    cfg = make_ohem_cfg(name, OHEM_NUM=ohem)
    cfg.MODEL.DYNAMIC_RCNN.update(dict(KI=4, KE=4, **dynamic))
    return cfg


def as_lists(proposals, targets, append):
    """Arguments of `slow_statistics`."""
    boxes = [p.proposal_boxes.tensor.tolist() for p in proposals]
    objects = [t.gt_boxes.tensor.tolist() for t in targets]
    return [(b + o if append else b, o) for b, o in zip(boxes, objects)]


@pytest.mark.parametrize("ohem", [0, 4])
@pytest.mark.parametrize("masks", [False, True])
def test_heads_use_threshold_and_beta(ohem, masks):
    """They do what the same heads do with fixed numbers, in every branch."""
    cfg = make_cfg(ohem=ohem, ITERATION_COUNT=2)
    fixed_cfg = make_ohem_cfg("OHEMROIHeads", OHEM_NUM=ohem, SMOOTH_L1_BETA=0.3)
    fixed_cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.8]
    for c in (cfg, fixed_cfg) if masks else ():
        c.MODEL.MASK_ON = True
        c.MODEL.ROI_MASK_HEAD.update(
            dict(NAME="MaskRCNNConvUpsampleHead", NUM_CONV=1, CONV_DIM=6, POOLER_RESOLUTION=3)
        )
    heads, *inputs = make_heads(cfg)
    fixed, *_ = make_heads(fixed_cfg)
    fixed.load_state_dict(heads.state_dict(), strict=False)
    heads.dynamic.matchers[0].threshold, heads.dynamic.losses[0].beta = 0.8, 0.3
    for target in inputs[-1]:
        target.gt_masks = BitMasks(torch.rand(3, 100, 100) > 0.5)
    with EventStorage():
        _, actual = heads(None, *inputs)
        _, expected = fixed(None, *inputs)
    assert actual.keys() == expected.keys() and ("loss_mask" in actual) == masks
    assert_close(actual, expected)
    images = as_lists(*inputs[1:], append=True)
    assert heads.dynamic.window[0, 0, 0].tolist() == pytest.approx(
        slow_statistics(images, 0.8, 4, 4)
    )
    assert (heads.dynamic.window[1] == ABSENT).all()


def test_the_numbers_move_and_inference_leaves_them():
    heads, maps, proposals, targets = make_heads(make_cfg(ITERATION_COUNT=1))
    with EventStorage() as storage:
        heads(None, maps, proposals, targets)
        assert storage.latest()["dynamic_rcnn/iou_threshold"][0] == 0.4
        iou, error = slow_statistics(as_lists(proposals, targets, append=True), 0.4, 4, 4)
        assert numbers(heads.dynamic) == pytest.approx((max(iou, 0.4), min(error, 1.0)))
        assert numbers(heads.dynamic) != (0.4, 1.0)
    before = {k: v.clone() for k, v in heads.dynamic.state_dict().items()}
    heads.eval()
    with torch.no_grad():
        heads(None, maps, proposals)
    assert all(torch.equal(v, before[k]) for k, v in heads.dynamic.state_dict().items())


def test_stages_of_a_cascade(monkeypatch):
    """Each has numbers of its own, from the boxes that it gets, and uses them."""

    def make(name, ious, beta):
        cfg = make_cfg(name, ITERATION_COUNT=1)
        cfg.MODEL.ROI_BOX_HEAD.update(dict(CLS_AGNOSTIC_BBOX_REG=True, SMOOTH_L1_BETA=beta))
        cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = ious
        cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = ious[:1]
        return make_heads(cfg)

    heads, *inputs = make("DynamicCascadeROIHeads", [0.5, 0.6, 0.7], 1.0)
    fixed, *_ = make("CascadeROIHeads", [0.6, 0.7, 0.8], 0.3)
    fixed.load_state_dict(heads.state_dict(), strict=False)
    assert [m.threshold for m in heads.dynamic.matchers] == [0.5, 0.6, 0.7]
    for matcher, loss in zip(heads.dynamic.matchers, heads.dynamic.losses):
        matcher.threshold, loss.beta = matcher.threshold + 0.1, 0.3
    seen = [as_lists(*inputs[1:], append=True)]
    label = CascadeROIHeads._match_and_label_boxes

    def recording(self, proposals, stage, targets):
        seen.append(as_lists(proposals, targets, append=False))
        return label(self, proposals, stage, targets)

    with EventStorage() as storage:
        _, expected = fixed(None, *inputs)
        monkeypatch.setattr(CascadeROIHeads, "_match_and_label_boxes", recording)
        _, actual = heads(None, *inputs)
    assert_close(actual, expected)
    assert len(seen) == 3
    for stage, images in enumerate(seen):
        iou, error = slow_statistics(images, 0.6 + 0.1 * stage, 4, 4)
        lowest = 0.5 + 0.1 * stage
        # The weights of the targets are 10, 20 and 30.
        error = 0.3 if error == ABSENT else min(error * (stage + 1), 1.0)
        assert heads.dynamic.iou_threshold[stage].item() == pytest.approx(
            max(iou, lowest), rel=1e-4
        )
        assert heads.dynamic.beta[stage].item() == pytest.approx(error, rel=1e-4)
        assert f"dynamic_rcnn/beta_stage{stage}" in storage.latest()


@ROI_HEADS_REGISTRY.register()
class DynamicRFCNROIHeads(RFCNROIHeads):
    """Heads of a user that own the component."""

    @configurable
    def __init__(self, *, dynamic, **kwargs):
        super().__init__(**kwargs)
        self.dynamic = dynamic

    @classmethod
    def from_config(cls, cfg, input_shape):
        dynamic = DynamicTraining.from_config(
            cfg, [cfg.MODEL.DYNAMIC_RCNN.WARMUP_IOU], "DYNAMIC_RCNN.WARMUP_IOU"
        )
        ret = super().from_config(cfg, input_shape)
        return {**ret, "dynamic": dynamic, "proposal_matcher": dynamic.matchers[0]}

    def forward(self, images, features, proposals, targets=None):
        if self.training:
            self.dynamic.begin_stage(0, proposals, targets, self.box_predictor, append_gt=True)
        result = super().forward(images, features, proposals, targets)
        if self.training:
            self.dynamic.end_iteration()
        return result


def test_heads_of_a_user():
    cfg = make_cfg("RFCNROIHeads", ITERATION_COUNT=1)
    _, *inputs = make_heads(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "DynamicRFCNROIHeads"
    heads = build_roi_heads(cfg, SHAPES)
    with EventStorage():
        heads(None, *inputs)
    iou, error = slow_statistics(as_lists(*inputs[1:], append=True), 0.4, 4, 4)
    assert numbers(heads.dynamic) == pytest.approx((max(iou, 0.4), min(error, 1.0)))


def test_keys_reach_the_component():
    """Each with a value of its own, none that of another or the default."""

    def make(**dynamic):
        cfg = make_ohem_cfg("DynamicROIHeads", SMOOTH_L1_BETA=0.2)
        cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.6]
        cfg.MODEL.DYNAMIC_RCNN.update(dynamic)
        return build_roi_heads(cfg, SHAPES).dynamic

    dynamic = make(KI=7, KE=8, ITERATION_COUNT=9, WARMUP_IOU=0.3, WARMUP_BETA=0.7)
    assert dynamic.options == dict(iou_rank=7, error_rank=8, reference_quirk=False)
    assert numbers(dynamic) == (0.3, 0.7) and dynamic.period == 9
    assert (dynamic.dla, dynamic.dsl, dynamic.sync) == (True, True, True)
    assert numbers(make(DLA=False)) == (0.6, 1.0) and numbers(make(DSL=False)) == (0.4, 0.2)
    assert not make(DLA=False).dla and not make(DSL=False).dsl
    assert not make(SYNC=False).sync
    assert make(REFERENCE_QUIRK=True).options["reference_quirk"]


def test_anchors_of_the_original():
    """Its first ones of strides 4 and 64, computed by hand; its x1 and y1 are inclusive."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(ROOT / "configs/Dynamic-RCNN/dynamic_rcnn_R_50_FPN_1x.yaml")
    shapes = [ShapeSpec(stride=stride) for stride in (4, 8, 16, 32, 64)]
    generator = build_anchor_generator(cfg, shapes)
    levels = generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert levels[0].tensor.tolist() == [[-22, -10, 26, 14], [-14, -14, 18, 18], [-10, -22, 14, 26]]
    assert levels[4].tensor.tolist()[0] == [-332, -152, 396, 216]


MISTAKES = [
    (dict(KI=0), {}, "DYNAMIC_RCNN.KI is 0"),
    (dict(ITERATION_COUNT=0), {}, "DYNAMIC_RCNN.ITERATION_COUNT is 0"),
    (dict(WARMUP_IOU=1.4), {}, r"DYNAMIC_RCNN.WARMUP_IOU is \[1.4\]"),
    (dict(WARMUP_BETA=0.0), {}, "DYNAMIC_RCNN.WARMUP_BETA is 0.0"),
    (
        dict(DLA=False),
        dict(ROI_HEADS=dict(IOU_THRESHOLDS=[0.1, 0.5], IOU_LABELS=[-1, 0, 1])),
        "ROI_HEADS.IOU_THRESHOLDS",
    ),
    ({}, dict(ROI_BOX_HEAD=dict(BBOX_REG_LOSS_TYPE="giou")), "BBOX_REG_LOSS_TYPE is giou"),
    (
        {},
        dict(
            ROI_HEADS=dict(NAME="DynamicCascadeROIHeads", IOU_THRESHOLDS=[1.5]),
            ROI_BOX_HEAD=dict(CLS_AGNOSTIC_BBOX_REG=True),
            ROI_BOX_CASCADE_HEAD=dict(IOUS=[1.5, 0.6, 0.7]),
        ),
        r"ROI_BOX_CASCADE_HEAD.IOUS is \[1.5",
    ),
]


@pytest.mark.parametrize("dynamic,others,message", MISTAKES, ids=[m[2] for m in MISTAKES])
def test_impossible_options_are_named(dynamic, others, message):
    cfg = make_cfg()
    cfg.MODEL.DYNAMIC_RCNN.update(dynamic)
    for node, values in others.items():
        cfg.MODEL[node].update(values)
    with pytest.raises(ValueError, match=message):
        build_roi_heads(cfg, SHAPES)


def test_forward_passes_that_are_not_training_are_refused():
    cfg = make_cfg()
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ValueError, match="TEST.PRECISE_BN.ENABLED"):
        build_roi_heads(cfg, SHAPES)
