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


def make_rfcn_cfg(deform=True):
    """Deformable R-FCN, or the plain one, with 2 classes and 3 x 3 bins."""
    pooling = "DeformPSROIPool" if deform else "PSROIPool"
    cfg = load(
        "R-FCN/Base-RFCN",
        NARROW,
        f"""MODEL.ANCHOR_GENERATOR.SIZES [[32,64]] MODEL.ROI_HEADS.NUM_CLASSES 2
        MODEL.ROI_BOX_HEAD.REDUCED_DIM 16 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3
        MODEL.ROI_BOX_HEAD.POOLER_TYPE {pooling}""",
    )
    if deform:
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    return cfg


def make_mimic_cfg(**mimic):
    """Mask R-CNN of DCNv2 with mimicking, 3 classes, and patches of 64 pixels."""
    cfg = load(
        "DCNv2/mask_rcnn_R_50_C5_16e_mdconv_c3c5_mdpool_mimic",
        NARROW.replace("MODEL.RESNETS.NORM BN", ""),
        """MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.REDUCED_DIM 8
        MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_BOX_HEAD.POOLER_FC_DIM 16
        MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_MASK_HEAD.POOLER_FC_DIM 16
        MODEL.MIMIC.PATCH_SIZE 64""",
    )
    cfg.MODEL.MIMIC.update(mimic)
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
