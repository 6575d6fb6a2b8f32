"""Dynamic R-CNN in two processes, and the checkpoints of other trainings."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from fvcore.common.checkpoint import Checkpointer
from torch import nn
from torch.testing import assert_close

from dcn_projects.checkpoint import load_trained
from dcn_projects.modeling.dynamic_rcnn import ABSENT
from tests.modeling.dynamic_runs import (
    TRACE_B,
    make_dynamic,
    make_dynamic_cfg,
    numbers,
    run_iteration,
)
from tests.modeling.small_heads import make_heads, make_heads_cfg

ROOT = Path(__file__).parents[2]

TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from tests.modeling.dynamic_runs import (
    TRACE_C, make_dynamic, make_dynamic_cfg, numbers, run_iteration
)
from tests.modeling.small_heads import make_heads

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
    heads, maps, proposals, targets = make_heads(make_dynamic_cfg(UPDATE_PERIOD=2))
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
    heads, *_ = make_heads(make_dynamic_cfg())
    plain, *_ = make_heads(make_heads_cfg("OHEMROIHeads"))
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
