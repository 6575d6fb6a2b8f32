"""train_net.py as its users run it: train, evaluate, resume, several processes, and mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcn_projects.data.datasets.warped_digits import make_dataset

ROOT = Path(__file__).parents[1]
CONFIG = "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
SMALL = "INPUT.MIN_SIZE_TRAIN [96] INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 MODEL.DEVICE cpu"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    make_dataset(str(folder / "digits_coco"), "coco", size=96, count_train=8, count_test=4)
    return folder


def run(datasets, output, *args, launcher=(sys.executable, "train_net.py"), opts=SMALL):
    command = [*launcher, "--config-file", CONFIG, *args]
    if opts is not None:
        command += [*opts.split(), "OUTPUT_DIR", str(output)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(command, cwd=ROOT, env=env, timeout=300, **output)


def test_train_evaluate_resume(datasets, tmp_path):
    done = run(datasets, tmp_path, "SOLVER.MAX_ITER", "2")
    assert done.returncode == 0, done.stdout
    trained = json.loads((tmp_path / "results.json").read_text())

    weights = str(tmp_path / "model_final.pth")
    again = run(datasets, tmp_path / "eval", "--eval-only", "MODEL.WEIGHTS", weights)
    assert again.returncode == 0, again.stdout
    assert json.loads((tmp_path / "eval/results.json").read_text()) == trained

    resumed = run(datasets, tmp_path, "--resume", "SOLVER.MAX_ITER", "4")
    assert resumed.returncode == 0, resumed.stdout
    assert "Starting training from iteration 2" in resumed.stdout


# Runs train_net.py and writes what the processes have at the end.
TWO_PROCESSES = """
import json, sys
import train_net
from detectron2.utils import comm

class Trainer(train_net.Trainer):
    def train(self):
        super().train()
        sums = comm.all_gather([p.double().sum().item() for p in self.model.parameters()])
        ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank(), comm.get_local_size()))
        if comm.is_main_process():
            with open(self.cfg.OUTPUT_DIR + "/processes.json", "w") as f:
                json.dump({"sums": sums, "ranks": ranks}, f)

train_net.Trainer = Trainer
train_net.launch(train_net.main, train_net.default_argument_parser().parse_args())
"""


def test_two_processes(datasets, tmp_path):
    """torchrun, without GPUs over gloo: both processes train the same model, on images of their
    own, and evaluate a half each."""
    script = tmp_path / "train_two.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + TWO_PROCESSES)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    torchrun += ("--nproc-per-node", "2")
    options = ("SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0")
    done = run(datasets, tmp_path, *options, launcher=(*torchrun, script))
    assert done.returncode == 0, done.stdout
    processes = json.loads((tmp_path / "processes.json").read_text())
    assert processes["sums"][0] == processes["sums"][1]
    assert processes["ranks"] == [[0, 0, 2], [1, 1, 2]]
    assert "World size: 2" in done.stdout
    assert "bbox" in json.loads((tmp_path / "results.json").read_text())
    state = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert state["iteration"] == 1
    predictions = torch.load(tmp_path / "inference/instances_predictions.pth", weights_only=False)
    assert sorted(p["image_id"] for p in predictions) == [0, 1, 2, 3]


def copy_with_broken_images(datasets, tmp_path):
    copy = tmp_path / "digits_coco"
    subprocess.run(["cp", "-r", str(datasets / "digits_coco"), str(copy)], check=True)
    for image in (copy / "train").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    return tmp_path


def truncated(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


GAUSSIAN = "MODEL.ROI_HEADS.NMS_TYPE gaussian"
SCALES = "TEST.AUG.ENABLED True TEST.AUG.SCALES"
MISTAKES = {
    "unknown key": ("MODEL.RFCM.GAMMA 0.1", ["MODEL.RFCM"]),
    "wrong type": ("SOLVER.BASE_LR fast", ["SOLVER.BASE_LR"]),
    "key without value": ("SOLVER.BASE_LR", ["odd length"]),
    "unknown data set": ("DATASETS.TRAIN ('digits_coco_trian',)", ["digits_coco_trian"]),
    "nothing to evaluate": ("--eval-only", ["MODEL.WEIGHTS is empty"]),
    "missing weights": ("MODEL.WEIGHTS nowhere/model.pth", ["MODEL.WEIGHTS", "nowhere/model.pth"]),
    "truncated weights": ("MODEL.WEIGHTS {truncated}", ["MODEL.WEIGHTS", "cut.pth", "cut off"]),
    "sigma": (GAUSSIAN + " MODEL.ROI_HEADS.SOFT_NMS_SIGMA -1.0", ["SOFT_NMS_SIGMA", "-1.0"]),
    "heads without soft-NMS": (GAUSSIAN + " MODEL.ROI_HEADS.NAME StandardROIHeads", ["NMS_TYPE"]),
    "scales": (SCALES + " [480,576]", ["TEST.AUG.SCALES", "480"]),
    "augmentation of a cascade": (
        SCALES + " [] TEST.AUG.MERGE raw MODEL.ROI_HEADS.NAME CascadeROIHeads",
        ["TEST.AUG.MERGE"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, datasets, tmp_path):
    opts, named = MISTAKES[mistake]
    opts = opts.format(truncated=truncated(tmp_path))
    done = run(datasets, tmp_path / "out", *opts.split(), opts="MODEL.DEVICE cpu")
    check_message(done, named)


def test_missing_config_file(datasets, tmp_path):
    done = run(datasets, tmp_path, "--config-file", "configs/none.yaml", opts=None)
    check_message(done, ["configs/none.yaml"])


def test_missing_data_set(tmp_path):
    done = run(tmp_path / "nothing", tmp_path / "out")
    check_message(done, ["digits_coco_train", "tools/make_dataset.py"])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image(workers, datasets, tmp_path):
    broken = copy_with_broken_images(datasets, tmp_path)
    done = run(broken, tmp_path / "out", "DATALOADER.NUM_WORKERS", str(workers))
    check_message(done, ["digits_coco/train", "Replace the file"])


def test_annotations_cut_off(datasets, tmp_path):
    broken = copy_with_broken_images(datasets, tmp_path)
    path = broken / "digits_coco/annotations/instances_train.json"
    path.write_text(path.read_text()[:500])
    check_message(run(broken, tmp_path / "out"), ["digits_coco_train", "cut off or no JSON"])


def test_output_folder_that_cannot_be_made(datasets):
    check_message(run(datasets, "/proc/nothing"), ["/proc/nothing"])


def check_message(done, named):
    """One line at the end says what is wrong, and the exit code is not 0."""
    assert done.returncode == 1, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(n in last for n in named), done.stdout[-2000:]
