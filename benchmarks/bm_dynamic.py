"""
What Dynamic R-CNN adds to a training step: the step of the plain model and of the dynamic one, from
the same weights on the same images of noise, and its parts alone (statistics, logging, every 100
iterations new thresholds). One process; what several exchange is two numbers of each.
"""

import functools
import itertools
import sys

import measure
import torch
from detectron2.utils.events import EventStorage
from training_step import make_inputs, step

from dcn_projects.engine import read_config
from dcn_projects.modeling import DynamicROIHeads, build_model

CONFIG, SIZE = "Dynamic-RCNN/dynamic_rcnn_R_50_FPN_1x", (480, 640)
QUICK_CONFIG, QUICK_SIZE = "Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits", (96, 128)
IMAGES, OBJECTS = 2, 20
MUST = 1.02


def make_model(config: str, device: str, heads: str) -> torch.nn.Module:
    """With random weights; both heads label by the same IoU at the start."""
    cfg = read_config(f"{config}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [cfg.MODEL.DYNAMIC_RCNN.WARMUP_IOU]
    torch.manual_seed(0)
    return build_model(cfg).train()


def parts_alone(model: torch.nn.Module, inputs: list[dict]) -> measure.Call:
    """What `DynamicTraining` does in an iteration, on the proposals of the model."""
    seen = []
    heads: DynamicROIHeads = model.roi_heads
    begin = heads.dynamic.begin_stage
    heads.dynamic.begin_stage = lambda *args, **kwargs: (
        seen.append((args, kwargs)) or begin(*args, **kwargs)
    )
    step(model, inputs)
    del heads.dynamic.begin_stage
    ((args, kwargs),) = seen

    iterations = itertools.count()

    def call():
        with EventStorage(next(iterations)):
            begin(*args, **kwargs)
            heads.dynamic.end_iteration()

    return call


def steps_table(report, config: str, size: tuple[int, int], args):
    columns = [
        "ms, plain",
        "ms, dynamic",
        "dynamic / plain",
        "must",
        "ms, parts",
        "parts, % of plain",
    ]
    note = f"float32, {IMAGES} images of {size[0]} x {size[1]}, {OBJECTS} objects in each."
    with report.table("Training step", columns, note) as add:
        inputs = make_inputs(size, IMAGES, OBJECTS)
        models = {
            name: make_model(config, args.device, heads)
            for name, heads in [("plain", "OHEMROIHeads"), ("dynamic", "DynamicROIHeads")]
        }
        calls = {name: functools.partial(step, model, inputs) for name, model in models.items()}
        calls["parts"] = parts_alone(models["dynamic"], inputs)
        times = measure.rounds(calls, args)
        plain, dynamic, parts = (times[name] for name in ("plain", "dynamic", "parts"))
        add(
            measure.ms(plain),
            measure.ms(dynamic),
            measure.ratio(dynamic, plain),
            MUST,
            measure.ms(parts),
            100 * measure.ms(parts) / measure.ms(plain),
        )


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("dynamic", args)
    if args.quick:
        steps_table(report, QUICK_CONFIG, QUICK_SIZE, args)
    else:
        steps_table(report, CONFIG, SIZE, args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
