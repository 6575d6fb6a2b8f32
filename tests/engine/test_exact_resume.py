"""A training that is killed, twice, goes on as if it had not been."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]

# Starts what train_net.py runs in child processes, and kills them a moment after the first one has
# finished the iteration that the command line names, if any: in the next iteration or while a
# checkpoint is written. What each iteration had is kept in a file.
PROGRAM = """
import functools, json, os, random, signal, socket, sys, time
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from dcn_projects.engine import Trainer, launch, main, parse_arguments

FOLDER, kills, processes = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
with open("records.json") as f:
    records = json.load(f)
DatasetCatalog.register("resume_test", lambda: records)
MetadataCatalog.get("resume_test").set(
    thing_classes=["a", "b"], json_file="records.json", image_root="."
)

class Keep(HookBase):
    def after_step(self):
        latest, i = self.trainer.storage.latest(), self.trainer.iter
        latest = {k: v for k, (v, iteration) in latest.items() if iteration == i}
        numbers = {k: v for k, v in latest.items() if "loss" in k or "dynamic" in k}
        with open(f"{FOLDER}/kept.jsonl{comm.get_rank() or ''}", "a") as f:
            f.write("\\n" + json.dumps([self.trainer.iter, numbers]))

class KeepingTrainer(Trainer):
    def build_hooks(self):
        return [*super().build_hooks(), Keep()]

def iterations():
    if not os.path.exists(FOLDER + "/kept.jsonl"):
        return []
    with open(FOLDER + "/kept.jsonl") as f:  # a line of it may be only begun
        return [int(line[1:].partition(",")[0]) for line in f.read().splitlines() if "]" in line]

def torchrun(rank):  # the environment that it gives to its processes
    numbers = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)

def run(arguments, kill_after):
    global PORT
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        PORT = str(s.getsockname()[1])
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            if processes > 1:
                torchrun(rank)
            torch.set_num_threads(1)
            sys.argv = ["train_net.py", *arguments]
            launch(functools.partial(main, trainer=KeepingTrainer), parse_arguments())
            os._exit(0)
    while kill_after is not None and kill_after not in iterations():
        time.sleep(0.002)
        if os.waitpid(children[0], os.WNOHANG) != (0, 0):
            sys.exit("The training ended before it was killed")
    if kill_after is not None:
        time.sleep(random.SystemRandom().uniform(0, 0.1))
        for child in children:
            os.kill(child, signal.SIGKILL)
    for child in children:
        if os.waitpid(child, 0)[1] != (0 if kill_after is None else signal.SIGKILL):
            sys.exit("The training failed")

os.makedirs(FOLDER)
for i, kill_after in enumerate([*kills, None]):
    run([*(["--resume"] if i else []), *sys.argv[4:], "OUTPUT_DIR", FOLDER], kill_after)
"""

MAX_ITER, PERIOD = 20, 4
OPTIONS = f"""
MODEL.DEVICE cpu MODEL.ROI_HEADS.NUM_CLASSES 2 MODEL.DYNAMIC_RCNN.UPDATE_PERIOD {PERIOD}
MODEL.DYNAMIC_RCNN.IOU_TOPK 4 MODEL.DYNAMIC_RCNN.ERROR_TOPK 4
DATASETS.TRAIN ('resume_test',) DATASETS.TEST ()
DATALOADER.EXACT_RESUME True SEED 7 DATALOADER.NUM_WORKERS 2 SOLVER.IMS_PER_BATCH 2
SOLVER.MAX_ITER {MAX_ITER} SOLVER.CHECKPOINT_PERIOD 3 SOLVER.WARMUP_ITERS 2
INPUT.MIN_SIZE_TRAIN [40,48,64] INPUT.RANDOM_FLIP horizontal
""".split()


def make_images(folder):
    """Nine images of noise, some wider than high, with three objects each."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(9):
        width, height = [(64, 48), (48, 64), (64, 64)][i % 3]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        annotations = []
        for _ in range(3):
            x, y = rng.integers(0, 24, 2).tolist()
            box, category = [x, y, x + 20, y + 22], int(rng.integers(2))
            annotations.append(dict(bbox=box, bbox_mode=0, category_id=category, iscrowd=0))
        size = dict(width=width, height=height)
        path = str(folder / f"{i}.png")
        records.append(dict(file_name=path, image_id=i, annotations=annotations, **size))
    (folder / "records.json").write_text(json.dumps(records))


def train(folder, name, kills, processes=1):
    """Numbers of every iteration, in the order in which they were kept, and the last state."""
    config = ROOT / "configs/Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml"
    command = [sys.executable, "-c", PROGRAM, str(folder / name), json.dumps(kills)]
    command += [str(processes), "--config-file", str(config)]
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run([*command, *OPTIONS], cwd=folder, env=env, timeout=400, **output)
    assert done.returncode == 0, done.stdout[-3000:]
    lines = (folder / name / "kept.jsonl").read_text().splitlines()
    # A line that is cut off is of an iteration that was done again.
    kept = [json.loads(line) for line in lines if line.endswith("]")]
    return kept, torch.load(folder / name / "model_final.pth", weights_only=False)["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that is not killed: folder, numbers, state."""
    folder = tmp_path_factory.mktemp("resume")
    make_images(folder)
    return folder, *train(folder, "whole", [])


def test_killed_twice(whole):
    folder, expected, expected_state = whole
    assert [i for i, _ in expected] == list(range(MAX_ITER))
    # The training moves: several windows have another threshold and beta.
    for name in ("iou_threshold", "beta"):
        values = [numbers[f"dynamic_rcnn/{name}"] for _, numbers in expected]
        assert len(set(values)) >= 3, values
    kills = sorted(random.SystemRandom().sample(range(1, MAX_ITER - 5), 2))
    check_same(train(folder, "killed", kills), (expected, expected_state), kills)


def check_same(actual, expected, kills):
    (actual, state), (expected, expected_state) = actual, expected
    expected = dict(expected)
    assert {i for i, _ in actual} == set(expected), kills
    for iteration, numbers in actual:  # also what was done twice
        assert numbers == expected[iteration], (kills, iteration)
    for name, value in expected_state.items():
        assert torch.equal(value, state[name]), (kills, name)


def test_two_processes_that_are_killed(tmp_path):
    make_images(tmp_path)
    expected = train(tmp_path, "whole", [], processes=2)
    kill = random.SystemRandom().randrange(1, MAX_ITER - 5)
    check_same(train(tmp_path, "killed", [kill], processes=2), expected, kill)
    # The second process, which logs no losses, has the same numbers.
    ranks = [(tmp_path / "whole" / f"kept.jsonl{rank or ''}").read_text() for rank in range(2)]
    last = [json.loads(text.splitlines()[-1])[1] for text in ranks]
    assert last[1].items() <= last[0].items() and last[1]["dynamic_rcnn/beta"] < 1


def test_where_the_numbers_are_seen(whole, run_program):
    folder, kept, _ = whole
    folder = folder / "whole"
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    numbers = {k: v for k, v in kept[-1][1].items() if k.startswith("dynamic_rcnn/")}
    assert len(numbers) == 4 and numbers.items() <= last.items()
    assert last["iteration"] == MAX_ITER - 1
    expected = {k: v for k, v in numbers.items() if "kth" not in k}
    (line,) = [x for x in (folder / "log.txt").read_text().splitlines() if "total_loss:" in x]
    for name, value in expected.items():
        assert f"{name.removeprefix('dynamic_rcnn/')}: {value:.4g}" in line
    assert f"after {MAX_ITER} iterations: IoU threshold" in (folder / "log.txt").read_text()
    (events,) = folder.glob("events.out.tfevents.*")
    assert b"dynamic_rcnn/beta" in events.read_bytes()
    code, text = run_program("tools/plot_training.py", folder)
    assert code == 0, text
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
