#!/usr/bin/env python3
"""
Train the small Deformable R-FCN on the generated digits, evaluate it on held-out images, and draw
what it finds and where its deformable layers look. An interrupted run is taken up where it was.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import itertools
import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultPredictor, HookBase

from dcn_projects.checkpoint import check_weights
from dcn_projects.data import read_bgr_image
from dcn_projects.engine import Trainer, load_predictor, parse_arguments, read_config, setup
from dcn_projects.engine import main as run
from dcn_projects.errors import exit_interrupted, exit_with_one_line
from dcn_projects.vis import (
    OffsetPictures,
    contact_sheet,
    detect,
    draw_detections,
    record_image,
    write_picture,
)

CONFIG = "R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
OUTPUT = Path("output/demo")
NUM_PICTURES = 12
NUM_LOCATIONS = 6  # pictures of sampling locations and bins
SCALE = 2  # pixels of a picture per pixel of an image


class Stopwatch(HookBase):
    """Writes the seconds of training, those before an interruption included, to metrics.json."""

    def before_train(self):
        self.before = seconds_trained(self.trainer.start_iter)
        self.start = time.perf_counter()

    def after_step(self):
        seconds = self.before + time.perf_counter() - self.start
        self.trainer.storage.put_scalar("train_seconds", seconds, smoothing_hint=False)


class TimedTrainer(Trainer):
    def build_hooks(self):
        return [Stopwatch(), *super().build_hooks()]


def seconds_trained(iterations: int) -> float:
    """Of a run up to that iteration, as metrics.json has them."""
    path, seconds = OUTPUT / "metrics.json", 0.0
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # a run was killed while it wrote the line
            continue
        if entry["iteration"] < iterations:
            seconds = entry.get("train_seconds", seconds)
    return seconds


def read_results() -> dict | None:
    """Metrics of the boxes; None if there is no results.json, or nothing in it."""
    path = OUTPUT / "results.json"
    try:
        return json.loads(path.read_text())["bbox"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        print(f"{path} has no results, as it was not written to its end. Evaluating again.")
        return None


def is_trained() -> bool:
    try:
        check_weights(str(OUTPUT / "model_final.pth"))
    except OSError:  # it is not there, or damaged
        return False
    return True


def is_of(cfg: CfgNode) -> bool:
    """
    Whether the run in OUTPUT is one of this config. It is also taken for one if config.yaml is
    missing, or was not written to its end.
    """
    path = OUTPUT / "config.yaml"
    text = path.read_text(errors="replace") if path.exists() else ""
    text = text.rstrip("\0")  # of a power cut
    if text == cfg.dump():
        return True
    if cfg.dump().startswith(text):
        if any(OUTPUT.glob("*.pth")):
            print(f"{path} is not complete. The checkpoints beside it count as of this config.")
        return True
    try:
        # An earlier version wrote other keys. Loaded again, tuples and lists are the same.
        ours, saved = (yaml.safe_load(c.dump()) for c in (cfg, read_config(path)))
        return ours == saved
    except (OSError, ValueError):
        return False


def move_aside(folder: Path) -> Path:
    """Returns where the folder is from now on."""
    names = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def train(args: Namespace) -> tuple[CfgNode, dict]:
    """
    Leaves model_final.pth and results.json in OUTPUT, made by this very config.

    Returns:
        the config, and the metrics of the boxes
    """
    cfg = setup(args)
    if OUTPUT.exists() and not is_of(cfg):
        print(f"{OUTPUT} is of another config: it is now {move_aside(OUTPUT)}. Starting anew.")
    if is_trained() and (results := read_results()):
        print(f"{OUTPUT} holds the trained model: nothing to train.")
        return cfg, results
    run(args, trainer=TimedTrainer)
    return cfg, read_results()


def draw_objects(predictor: DefaultPredictor, image: np.ndarray) -> np.ndarray:
    return draw_detections(image, detect(predictor, image, 0.5), predictor.metadata, SCALE)


def draw_where_it_looks(predictor: DefaultPredictor, image: np.ndarray) -> np.ndarray:
    """
    For the surest detection: left the sampling locations of the deformable convolutions, stacked,
    for the cell in its middle; right the bins of the RoI that overlaps it most.
    """
    offsets = record_image(predictor, image)
    pictures = OffsetPictures(image, offsets, SCALE)
    best = offsets.surest(1)
    if not len(best):
        return np.hstack([pictures.plain] * 2)
    (box,), (category,) = best.pred_boxes.tensor.numpy(), best.pred_classes.tolist()
    left = pictures.sampling_locations(offsets.middle_of(box))
    return np.hstack((left, pictures.deformed_bins(box, category)))


def main():
    words = ["--config-file", CONFIG, "--resume", f"OUTPUT_DIR={OUTPUT}", *sys.argv[1:]]
    cfg, results = train(parse_arguments(words))

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(OUTPUT / "model_final.pth")
    predictor = load_predictor(cfg)
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)
    images = [read_bgr_image(r["file_name"]) for r in records[:NUM_PICTURES]]
    sheet = contact_sheet([draw_objects(predictor, x) for x in images], columns=4)
    write_picture(OUTPUT / "predictions.png", sheet)
    images = images[:NUM_LOCATIONS]
    sheet = contact_sheet([draw_where_it_looks(predictor, x) for x in images], columns=2)
    write_picture(OUTPUT / "sampling_locations.png", sheet)

    device = torch.cuda.get_device_name() if cfg.MODEL.DEVICE == "cuda" else "cpu"
    print(
        f"demo: AP50 {results['AP50']:.1f} (AP {results['AP']:.1f}) on {len(records)} held-out "
        f"images, trained {seconds_trained(cfg.SOLVER.MAX_ITER):.0f} s on {device}"
    )


if __name__ == "__main__":
    try:
        with exit_with_one_line():
            main()
    except KeyboardInterrupt:
        exit_interrupted("The same command goes on from the last checkpoint, if there is one")
