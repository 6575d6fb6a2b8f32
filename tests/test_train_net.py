"""train_net.py as its users run it: train, evaluate, resume, several processes, and mistakes."""

import json
import os
import subprocess
import sys

import torch

from tests.digits_data import CONFIG, ROOT, SMALL, check_message


def run(datasets, output, *args, launcher=(sys.executable, "train_net.py"), opts=SMALL):
    command = [*launcher, "--config-file", CONFIG, *args]
    if opts is not None:
        command += [*opts.split(), "OUTPUT_DIR", str(output)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(command, cwd=ROOT, env=env, timeout=300, **output)


def test_train_evaluate_resume(datasets, tmp_path):
    period = ("MODEL.DEFORMABLE.STATISTICS_PERIOD", "2")
    done = run(datasets, tmp_path, "SOLVER.MAX_ITER", "2", *period)
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    for layer in ("backbone.res5.0.conv2", "roi_heads.pooler"):
        for key in ("mean", "max", "outside"):
            assert metrics[f"offsets/{layer}/{key}"] >= 0
    trained = json.loads((tmp_path / "results.json").read_text())

    weights = str(tmp_path / "model_final.pth")
    again = run(datasets, tmp_path / "eval", "--eval-only", "MODEL.WEIGHTS", weights)
    assert again.returncode == 0, again.stdout
    assert json.loads((tmp_path / "eval/results.json").read_text()) == trained
    assert "has the checkpoints of another training" not in done.stdout

    resumed = run(datasets, tmp_path, "--resume", "SOLVER.MAX_ITER", "4")
    assert resumed.returncode == 0, resumed.stdout
    assert "Starting training from iteration 2" in resumed.stdout

    other = ("--resume", "SOLVER.MAX_ITER", "4", "SOLVER.OPTIMIZER", "SGD")
    message = run(datasets, tmp_path, *other).stdout.strip().splitlines()[-1]
    assert message.startswith("error: ") and "SOLVER.OPTIMIZER is SGD" in message


# Runs train_net.py and writes what the processes have at the end.
TWO_PROCESSES = """
import json
from dcn_projects.engine import Trainer, parse_arguments, run_program
from detectron2.utils import comm

class ReportingTrainer(Trainer):
    def train(self):
        super().train()
        sums = comm.all_gather([p.double().sum().item() for p in self.model.parameters()])
        buffers = [b.double().sum().item() for b in self.model.buffers()]
        statistics = comm.all_gather(buffers)
        ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank(), comm.get_local_size()))
        if comm.is_main_process():
            with open(self.cfg.OUTPUT_DIR + "/processes.json", "w") as f:
                json.dump({"sums": sums, "statistics": statistics, "ranks": ranks}, f)

run_program(parse_arguments(), trainer=ReportingTrainer)
"""


def test_two_processes(datasets, tmp_path):
    """torchrun, without GPUs over gloo: both processes train the same model, on images of their
    own, and evaluate a half each."""
    script = tmp_path / "train_two.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + TWO_PROCESSES)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    torchrun += ("--nproc-per-node", "2")
    options = ("SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0")
    options += ("MODEL.DEFORMABLE.STATISTICS_PERIOD", "1")
    done = run(datasets, tmp_path, *options, launcher=(*torchrun, script))
    assert done.returncode == 0, done.stdout
    processes = json.loads((tmp_path / "processes.json").read_text())
    assert processes["sums"][0] == processes["sums"][1]
    # Those of BatchNorm were of other images in each.
    assert processes["statistics"][0] == processes["statistics"][1]
    assert processes["ranks"] == [[0, 0, 2], [1, 1, 2]]
    assert "World size: 2" in done.stdout
    assert "offsets/roi_heads.pooler/max" in (tmp_path / "metrics.json").read_text()
    assert "bbox" in json.loads((tmp_path / "results.json").read_text())
    state = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert state["iteration"] == 1
    predictions = torch.load(tmp_path / "inference/instances_predictions.pth", weights_only=False)
    assert sorted(p["image_id"] for p in predictions) == [0, 1, 2, 3]


def test_missing_data_set(tmp_path):
    """As its users see it: the last line, and an exit code that is not 0."""
    done = run(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 1, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    check_message(last, ["digits_coco_train", "tools/make_dataset.py"])
