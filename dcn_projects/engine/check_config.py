"""What a config asks for and cannot have, found before anything is built or read."""

import logging
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads

from dcn_projects.modeling import (
    RFCN,
    DeepLab,
    DeformROIHeads,
    MXNetROIHeads,
    RFCNROIHeads,
    build_deformable_model,
    meta_architecture,
)
from dcn_projects.modeling.box_nms import soft_nms_options
from dcn_projects.modeling.meta_arch.deeplab import window_options
from dcn_projects.modeling.test_time_augmentation import augmentation_options

from .tasks import TASKS, task_of, value_of

__all__ = [
    "check_classes",
    "check_evaluators",
    "check_heads",
    "check_preprocessing",
    "check_training",
]


def check_heads(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: if the heads are not those of the model, or cannot do the NMS, the windows, the
            test-time augmentation or the RoI pooling that the config asks for
    """
    soft_nms_options(cfg)
    if window_options(cfg)["window_size"] and not issubclass(meta_architecture(cfg), DeepLab):
        raise ValueError(
            f"TEST.WINDOW_SIZE: {cfg.MODEL.META_ARCHITECTURE} takes whole images. For windows of a "
            "SemanticSegmentor take MODEL.META_ARCHITECTURE DeepLab"
        )
    swaps = build_deformable_model.__name__
    if cfg.MODEL.DEFORMABLE.SELECT and cfg.MODEL.META_ARCHITECTURE != swaps:
        raise ValueError(
            f"MODEL.DEFORMABLE.SELECT is read by {swaps}: make it MODEL.META_ARCHITECTURE, and "
            f"MODEL.DEFORMABLE.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        )
    keys = cfg.MODEL.ROI_HEADS
    heads = ROI_HEADS_REGISTRY.get(keys.NAME)
    if issubclass(meta_architecture(cfg), RFCN) != issubclass(heads, RFCNROIHeads):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE} and MODEL.ROI_HEADS.NAME "
            f"{keys.NAME}: the position-sensitive maps of RFCN are for RFCNROIHeads and no others"
        )
    # Those of a cascade have detectron2's boxes.
    if heads.__module__.startswith("detectron2.") or issubclass(heads, CascadeROIHeads):
        asked = {
            "ROI_HEADS.NMS_TYPE": keys.NMS_TYPE != "hard",
            "ROI_BOX_HEAD.OHEM_NUM": cfg.MODEL.ROI_BOX_HEAD.OHEM_NUM > 0,
        }
        if names := [f"MODEL.{key}" for key, is_asked in asked.items() if is_asked]:
            raise ValueError(
                f"{' and '.join(names)}: {keys.NAME} has hard NMS and no OHEM. For Faster and Mask "
                "R-CNN take MODEL.ROI_HEADS.NAME OHEMROIHeads"
            )
    if cfg.TEST.AUG.ENABLED:
        raw = augmentation_options(cfg)["raw"]
        if raw and issubclass(heads, CascadeROIHeads):
            raise ValueError(f"TEST.AUG.MERGE raw: {keys.NAME} has no single box head to ask")
    for key, value, reader in (
        ("ROI_BOX_HEAD.REDUCED_DIM", cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM, DeformROIHeads),
        ("ROI_HEADS.FILL_BATCH", keys.FILL_BATCH, MXNetROIHeads),
    ):
        if value and not issubclass(heads, reader):
            raise ValueError(
                f"MODEL.{key} is {value}, but {keys.NAME} does not read it. Take "
                f"MODEL.ROI_HEADS.NAME {reader.__name__}"
            )
    for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD") if cfg.MODEL.MASK_ON else ("ROI_BOX_HEAD",):
        pooler = cfg.MODEL[head].POOLER_TYPE
        if pooler.endswith("DeformROIPool") and not issubclass(heads, DeformROIHeads):
            raise ValueError(
                f"MODEL.{head}.POOLER_TYPE {pooler}: {keys.NAME} cannot pool so. For Faster and "
                "Mask R-CNN take MODEL.ROI_HEADS.NAME DeformROIHeads"
            )


def check_training(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: if detectron2's trainer cannot run so, which it would not say in so many words
    """
    positive = {
        "MAX_ITER": cfg.SOLVER.MAX_ITER,
        "CHECKPOINT_PERIOD": cfg.SOLVER.CHECKPOINT_PERIOD,
        "IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
    }
    for key, value in positive.items():
        if value < 1:
            raise ValueError(f"SOLVER.{key} is {value}, expected 1 or more")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}, expected 0 or more"
        )
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ValueError("INPUT.MIN_SIZE_TRAIN is empty: give the short side of the images")
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.ENABLED: detectron2's mixed precision needs a GPU")


def check_preprocessing(cfg: CfgNode) -> None:
    """
    Warns if the ImageNet weights that training starts from want other pixels or another stride:
    the model learns all the same, but worse.
    """
    if "ImageNetPretrained/MSRA/" not in cfg.MODEL.WEIGHTS:
        return
    expected = {"PIXEL_STD": [1.0] * 3, "RESNETS.STRIDE_IN_1X1": True}
    actual = {
        "PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "RESNETS.STRIDE_IN_1X1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }
    for key, value in expected.items():
        if actual[key] != value:
            logging.getLogger(__name__).warning(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} were trained with MODEL.{key} {value}, and it "
                f"is {actual[key]}"
            )


def check_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """
    Args:
        names: of registered data sets
    Raises:
        ValueError: if one, as far as it is known, is for models of another kind, or has another
            number of classes than the model
    """
    task = task_of(cfg)
    expected = value_of(cfg, task.num_classes)
    of_others = {
        kind for other in TASKS if other.output != task.output for kind in other.evaluators
    }
    for name in names:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") in of_others - task.evaluators.keys():
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} finds {task.finds}, which "
                f"data set {name} does not have"
            )
        classes = metadata.get(task.class_names)
        if classes is not None and len(classes) != expected:
            raise ValueError(
                f"{task.num_classes} is {expected}, but data set {name} has {len(classes)} classes"
            )


def check_evaluators(cfg: CfgNode, needed: str | None = None) -> None:
    """
    Args:
        needed: evaluator type that all data sets must have; None for any
    Raises:
        ValueError: if a data set of DATASETS.TEST cannot be evaluated, or not in that way
    """
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type")
        if evaluator not in task_of(cfg).evaluators:
            raise ValueError(f"DATASETS.TEST: there is no evaluator for {name}")
        if needed and evaluator != needed:
            raise ValueError(f"--evaluate: {name} is not evaluated as COCO is. Take --eval-only")
