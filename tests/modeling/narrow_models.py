"""Whole networks from their YAML, narrow ones, and a step of training."""

import re

import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from dcn_projects import add_dcn_config

NARROW = """MODEL.WEIGHTS '' MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.NORM BN
    MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.BACKBONE.FREEZE_AT 0 MODEL.RPN.CONV_DIMS [16]"""


def load(path, *opts: str):
    """A config of configs/, on the CPU; `opts` are texts of KEY VALUE pairs."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(f"configs/{path}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *" ".join(opts).split()])
    return cfg


def make_inputs():
    """A batch of two sizes, one no multiple of 32; the second image has no objects."""
    torch.manual_seed(1)
    inputs = []
    for size, boxes in ((90, 125), [[8.0, 8, 60, 70], [40, 20, 120, 90]]), ((64, 80), []):
        target = Instances(size)
        target.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        target.gt_classes = torch.arange(len(boxes))
        inputs.append({"image": torch.randint(0, 256, (3, *size)), "instances": target})
    return inputs


def check_training_step(model, autocast: bool, may_be_zero: str) -> EventStorage:
    """
    All losses are there, and all parameters have a gradient: training on several GPUs needs that.
    It is zero only where the name matches `may_be_zero`. Returns what was logged.
    """
    with EventStorage() as storage, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(make_inputs())
    sum(losses.values()).backward()
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0 or re.search(may_be_zero, name), name
    return storage


def detect(model, autocast: bool = False) -> list[Instances]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return [output["instances"] for output in model.eval()(make_inputs())]
