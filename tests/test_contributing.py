"""A model and a data set are added with exactly the code that CONTRIBUTING.md shows."""

import csv
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from .markdown_pages import ROOT, blocks, commands

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the files of the page, and tiny data sets in datasets/."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_project").mkdir()
    (folder / "tools").symlink_to(ROOT / "tools")
    for block in blocks(PAGE):
        first = block.text.partition("\n")[0]
        if block.language in ("python", "yaml") and first.startswith("# my_project/"):
            (folder / first.removeprefix("# ")).write_text(block.text)
    # As the page tells, but fewer and smaller images.
    (command,) = commands_of("data")
    few = ["--size", "96", "--count-train", "8", "--count-test", "4"]
    code, output = run(folder, command + few)
    assert code == 0, output
    digits = folder / "datasets/digits_coco"
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


def commands_of(title: str) -> list[list[str]]:
    """The words of each command of the block whose first line is `# my_project: <title>`."""
    (block,) = (b for b in blocks(PAGE) if b.text.startswith(f"# my_project: {title}\n"))
    return [shlex.split(command) for command in commands(block.text)[1:]]


@pytest.fixture(scope="module")
def outcomes(project):
    """Title of a block of commands -> (exit code, output) of each. Two blocks run at a time."""
    titles = ("train", "refused", "test", "train on boxes")
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = pool.map(lambda t: [run(project, words) for words in commands_of(t)], titles)
        return dict(zip(titles, runs))


def run(folder, words):
    assert words[0] == "python"
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"} | own
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    words = [sys.executable, *words[1:]]
    done = subprocess.run(words, cwd=folder, env=env, timeout=300, **output)
    return done.returncode, done.stdout


def test_model_trains_and_evaluates(project, outcomes):
    for code, output in outcomes["train"]:
        assert code == 0, output
    folder = project / "output/toy_detr"
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    trained = {key: value for line in lines for key, value in line.items()}
    assert {"loss_cls", "loss_box"} <= trained.keys()
    evaluated = json.loads((folder / "results.json").read_text())["bbox"]
    assert evaluated["AP50"] == trained["bbox/AP50"] >= 0


def test_mistakes_are_refused_before_training(outcomes):
    wrong_count, augmentation = outcomes["refused"]
    for (code, output), named in (
        (wrong_count, ("MODEL.TOY_DETR.NUM_CLASSES is 3", "10")),
        (augmentation, ("TEST.AUG.ENABLED", "ToyDETR")),
    ):
        message = output.strip().splitlines()[-1]
        assert code == 1 and message.startswith("error: "), output
        assert all(n in message for n in named), message
        assert "Traceback" not in output and "Starting training" not in output


def test_own_test_passes(outcomes):
    ((code, output),) = outcomes["test"]
    assert code == 0 and "2 passed" in output, output


def test_data_set_is_learnt_and_evaluated(project, outcomes):
    ((code, output),) = outcomes["train on boxes"]
    assert code == 0, output
    results = json.loads((project / "output/boxes/results.json").read_text())
    assert {f"AP-{digit}" for digit in range(10)} <= results["bbox"].keys()
