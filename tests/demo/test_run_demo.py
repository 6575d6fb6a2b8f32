"""run_demo.py as `make demo` runs it, for a few iterations on a few small images."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import yaml

from tests.conftest import ROOT

PROGRAM = str(ROOT / "demo/run_demo.py")
SMALL = (
    "MODEL.DEVICE=cpu INPUT.MIN_SIZE_TRAIN=(96,) INPUT.MIN_SIZE_TEST=96 SOLVER.IMS_PER_BATCH=2 "
    "SOLVER.MAX_ITER=3 SOLVER.CHECKPOINT_PERIOD=2 DATALOADER.NUM_WORKERS=0"
).split()


@pytest.fixture
def run(datasets, tmp_path):
    """run(*options) runs it in an empty folder and returns the lines that it printed."""

    def run(*options):
        env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "PYTHONPATH": str(ROOT)}
        env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        command = [sys.executable, PROGRAM, *SMALL, *options]
        done = subprocess.run(command, env=env, cwd=tmp_path, **output)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return run


def test_it_goes_on_where_it_was(run, tmp_path):
    folder = tmp_path / "output/demo"
    lines = run()
    assert lines[-1].startswith("demo: AP50 ") and " on 4 held-out images, trained " in lines[-1]
    # Four images at twice their size, in rows of four; of each, locations and bins, two in a row.
    assert cv2.imread(str(folder / "predictions.png")).shape == (192, 4 * 192, 3)
    assert cv2.imread(str(folder / "sampling_locations.png")).shape == (2 * 192, 4 * 192, 3)
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert metrics[0]["iteration"] == 2 and metrics[0]["train_seconds"] > 0

    written = (folder / "model_final.pth").stat().st_mtime_ns
    assert "output/demo holds the trained model: nothing to train." in run()

    # Interrupted after the first checkpoint, while all of these were written
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text[:1000])
    (folder / "results.json").write_text("")
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    (folder / "model_final.pth").unlink()
    with (folder / "metrics.json").open("a") as f:
        f.write('{"iterat')
    lines = run()
    assert any("config.yaml is not complete" in line for line in lines)
    assert any("Starting training from iteration 2" in line for line in lines)
    assert lines[-1].startswith("demo: AP50 ")
    assert (folder / "config.yaml").read_text() == text
    assert (folder / "model_final.pth").stat().st_mtime_ns > written
    last = [
        line for line in (folder / "metrics.json").read_text().splitlines() if "bbox/AP" in line
    ]
    assert "bbox/AP" in json.loads(last[-1])

    # Interrupted while the results were written
    written = (folder / "model_final.pth").stat().st_mtime_ns
    (folder / "results.json").write_text('{"bbox": {"AP"')
    assert any("results.json has no results" in line for line in run())
    assert (folder / "model_final.pth").stat().st_mtime_ns == written
    assert json.loads((folder / "results.json").read_text())["bbox"]

    # A disk that has lost half of the last checkpoint, with everything else in place
    content = (folder / "model_final.pth").read_bytes()
    (folder / "model_final.pth").write_bytes(content[: len(content) // 2])
    lines = run()
    assert any("model_0000001.pth is used instead" in line for line in lines)
    assert lines[-1].startswith("demo: AP50 ")
    assert (folder / "model_final.pth").stat().st_size == len(content)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The functions of the program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("output/demo").mkdir(parents=True)
    return runpy.run_path(PROGRAM)


def test_another_config(demo):
    """Nothing of its folder is lost, however often that happens."""
    cfg = demo["read_config"](demo["CONFIG"])
    folder = Path("output/demo")
    assert demo["is_of"](cfg)  # an empty folder
    (folder / "config.yaml").write_text(cfg.dump())
    assert demo["is_of"](cfg)
    other = cfg.clone()
    other.SEED = 7
    assert not demo["is_of"](other)
    (folder / "config.yaml").write_text("NO_SUCH_KEY: 1\n")
    assert not demo["is_of"](cfg)
    # Of version 0.1, with the old name of a key: what counts are the values.
    old = yaml.safe_load(cfg.dump())
    old["MODEL"]["MIMIC"]["SIZE"] = old["MODEL"]["MIMIC"].pop("PATCH_SIZE")
    (folder / "config.yaml").write_text(yaml.safe_dump(old))
    assert demo["is_of"](cfg) and not demo["is_of"](other)
    for n in (1, 2):
        (folder / "model_final.pth").write_text(str(n))
        assert demo["move_aside"](folder) == Path(f"output/demo-{n}")
        folder.mkdir()
    assert Path("output/demo-1/model_final.pth").read_text() == "1"


def test_seconds_trained(demo):
    assert demo["seconds_trained"](9) == 0
    lines = ['{"iteration": 1, "train_seconds": 3.5}', '{"iterat{"iteration": 2}']
    lines += ['{"iteration": 4, "train_seconds": 8.0}', '{"iteration": 4, "bbox/AP": 1}']
    Path("output/demo/metrics.json").write_text("\n".join(lines) + "\n")
    assert demo["seconds_trained"](4) == 3.5 and demo["seconds_trained"](5) == 8.0
