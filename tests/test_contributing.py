"""A model and a data set are added as CONTRIBUTING.md tells, word by word."""

import csv
import json
import os
import shlex
import subprocess
import sys

import pytest

from dcn_projects.data.datasets.warped_digits import make_dataset

from .markdown_pages import ROOT, blocks, commands

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the files of the page, and tiny data sets in datasets/."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_project").mkdir()
    (folder / "my_project/__init__.py").touch()
    for block in blocks(PAGE):
        first = block.text.partition("\n")[0]
        if block.language in ("python", "yaml") and first.startswith("# my_project/"):
            (folder / first.removeprefix("# ")).write_text(block.text)
    digits = folder / "datasets/digits_coco"
    make_dataset(str(digits), "coco", size=96, count_train=8, count_test=4)
    for split in ("train", "test"):
        write_boxes(digits, split, folder / "datasets/boxes" / split)
    return folder


def write_boxes(digits, split, target):
    """The images of a split again, with their boxes in boxes.csv."""
    target.parent.mkdir(exist_ok=True)
    target.symlink_to(digits / split)
    annotations = json.loads((digits / f"annotations/instances_{split}.json").read_text())
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    classes = {c["id"]: c["name"] for c in annotations["categories"]}
    with open(target / "boxes.csv", "w", newline="") as f:
        for entry in annotations["annotations"]:
            x, y, w, h = entry["bbox"]
            name, label = names[entry["image_id"]], classes[entry["category_id"]]
            csv.writer(f).writerow([name, label, x, y, x + w, y + h])


def told(title: str) -> list[list[str]]:
    """The words of each command of the block whose first line is `# my_project: <title>`."""
    (block,) = (b for b in blocks(PAGE) if b.text.startswith(f"# my_project: {title}\n"))
    return [shlex.split(command) for command in commands(block.text)[1:]]


def start(folder, words):
    assert words[0] == "python"
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    env.pop("DETECTRON2_DATASETS", None)
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, *words[1:]], cwd=folder, env=env, **output)


def run(folder, words):
    process = start(folder, words)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_model_trains_and_evaluates(project):
    train, evaluate = told("train")
    run(project, train)
    results = project / "output/toy_detr/results.json"
    trained = json.loads(results.read_text())
    assert trained["bbox"]["AP50"] >= 0
    lines = (project / "output/toy_detr/metrics.json").read_text().splitlines()
    assert {"loss_cls", "loss_box"} <= {key for line in lines for key in json.loads(line)}

    results.unlink()
    run(project, evaluate)
    assert json.loads(results.read_text()) == trained


def test_mistakes_are_refused_before_training(project):
    wrong_count, augmentation = (start(project, words) for words in told("refused"))
    for process, named in (
        (wrong_count, ("MODEL.TOY_DETR.NUM_CLASSES is 3", "10")),
        (augmentation, ("TEST.AUG.ENABLED", "ToyDETR")),
    ):
        output, _ = process.communicate(timeout=300)
        message = output.strip().splitlines()[-1]
        assert process.returncode == 1 and message.startswith("error: "), output
        assert all(n in message for n in named), message
        assert "Traceback" not in output and "Starting training" not in output


def test_own_test_passes(project):
    (words,) = told("test")
    assert "2 passed" in run(project, words)


def test_data_set_is_learnt_and_evaluated(project):
    (words,) = told("train on boxes")
    run(project, words)
    results = json.loads((project / "output/boxes/results.json").read_text())
    assert {f"AP-{digit}" for digit in range(10)} <= results["bbox"].keys()
