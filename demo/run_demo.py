#!/usr/bin/env python3
"""
Train the small Deformable R-FCN on the generated digits, evaluate it on held-out images, and draw
what it finds and where its deformable layers look. An interrupted run is taken up where it was.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, HookBase, default_setup
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.utils.visualizer import Visualizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dcn_projects.data import check_datasets  # noqa: E402
from dcn_projects.engine import Trainer, parse_arguments, setup  # noqa: E402
from dcn_projects.vis import (  # noqa: E402
    draw_deformed_bins,
    draw_sampling_locations,
    record_offsets,
    sampling_locations,
)

CONFIG = ROOT / "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
OUTPUT = Path("output/demo")
NUM_PICTURES = 12
SCALE = 2  # pixels of a picture per pixel of an image


class Stopwatch(HookBase):
    """Writes the seconds of training, those before an interruption included, to metrics.json."""

    def __init__(self, before: float):
        self.before = before

    def before_train(self):
        self.start = time.perf_counter()

    def after_step(self):
        seconds = self.before + time.perf_counter() - self.start
        self.trainer.storage.put_scalar("train_seconds", seconds, smoothing_hint=False)


def seconds_trained(iterations: int) -> float:
    """Of a run up to that iteration, as metrics.json has them."""
    seconds = 0.0
    for line in (OUTPUT / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        if entry["iteration"] < iterations:
            seconds = entry.get("train_seconds", seconds)
    return seconds


def train(cfg, args):
    """Leaves model_final.pth and results.json in OUTPUT, made by this very config."""
    saved = OUTPUT / "config.yaml"
    same = saved.exists() and saved.read_text() == cfg.dump()
    if same and (OUTPUT / "model_final.pth").exists() and (OUTPUT / "results.json").exists():
        print(f"{OUTPUT} holds the trained model: nothing to train.")
        return
    if OUTPUT.exists() and not same:
        print(f"{OUTPUT} is of another config: starting anew.")
        shutil.rmtree(OUTPUT)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=same)
    before = seconds_trained(trainer.start_iter) if trainer.start_iter > 0 else 0.0
    trainer.register_hooks([Stopwatch(before)])
    trainer.train()


def contact_sheet(pictures, columns: int) -> np.ndarray:
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    return np.vstack([np.hstack(row) for row in rows])


def draw_predictions(predictor, image, metadata) -> np.ndarray:
    instances = predictor(image)["instances"].to("cpu")
    sure = instances[instances.scores > 0.5]
    picture = Visualizer(image[:, :, ::-1], metadata, scale=SCALE).draw_instance_predictions(sure)
    return picture.get_image()[:, :, ::-1]


@torch.no_grad()
def draw_where_it_looks(predictor, image) -> np.ndarray:
    """
    For the surest RoI of the image: left the sampling locations of the deformable convolutions
    of res5, stacked, for the cell in its middle; right its deformed bins.
    """
    model = predictor.model
    image = predictor.aug.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).astype("float32"))
    with record_offsets(model) as offsets:
        images = model.preprocess_image([{"image": tensor}])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        rois = convert_boxes_to_pooler_format([p.proposal_boxes for p in proposals])
        scores = model.roi_heads.vote(model.score_maps(features), rois, "cls")
    scores = scores.softmax(dim=1)[:, :-1]
    roi, category = divmod(int(scores.argmax()), scores.shape[1])

    picture = cv2.resize(image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    convs = [calls[0] for name, calls in offsets.items() if name.startswith("backbone.res5")]
    stride = model.backbone.output_shape()["res5"].stride
    x0, y0, x1, y1 = rois[roi, 1:].tolist()
    cell = int((y0 + y1) / 2 / stride), int((x0 + x1) / 2 / stride)
    points = sampling_locations(convs, cell)
    left = draw_sampling_locations(picture, points, cell, stride, SCALE)
    pooling = offsets["roi_heads.pooler"][0]
    return np.hstack((left, draw_deformed_bins(picture, pooling, roi, category, SCALE)))


def main():
    args = parse_arguments(["--config-file", str(CONFIG), "OUTPUT_DIR", str(OUTPUT)])
    cfg = setup(args)
    check_datasets(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    train(cfg, args)

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(OUTPUT / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)
    images = [cv2.imread(r["file_name"]) for r in records[:NUM_PICTURES]]
    sheet = contact_sheet(
        [draw_predictions(predictor, x, MetadataCatalog.get(name)) for x in images], columns=4
    )
    cv2.imwrite(str(OUTPUT / "predictions.png"), sheet)
    sheet = contact_sheet([draw_where_it_looks(predictor, x) for x in images[:6]], columns=2)
    cv2.imwrite(str(OUTPUT / "sampling_locations.png"), sheet)

    results = json.loads((OUTPUT / "results.json").read_text())["bbox"]
    device = torch.cuda.get_device_name() if cfg.MODEL.DEVICE == "cuda" else "cpu"
    print(
        f"demo: AP50 {results['AP50']:.1f} (AP {results['AP']:.1f}) on {len(records)} held-out "
        f"images, trained {seconds_trained(cfg.SOLVER.MAX_ITER):.0f} s on {device}"
    )


if __name__ == "__main__":
    main()
