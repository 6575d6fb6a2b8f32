#!/usr/bin/env python3
"""
Train and evaluate the models of this project.

    python train_net.py --config-file configs/R-FCN/deformable_rfcn_R_101_C5_voc.yaml --num-gpus 4
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

import functools
import json
import os
import sys

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, defaults
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils import comm

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import check_weights
from dcn_projects.data import CheckedDatasetMapper, check_datasets
from dcn_projects.engine import OffsetStatistics, launch
from dcn_projects.evaluation import COCOThresholdEvaluator, PascalVOCThresholdEvaluator
from dcn_projects.modeling import MultiScaleTTA
from dcn_projects.modeling.box_nms import soft_nms_options
from dcn_projects.modeling.test_time_augmentation import augmentation_options
from dcn_projects.solver import build_optimizer

# detectron2 passes the index of a GPU, which a model on the CPU must not be given. With None,
# DistributedDataParallel uses the device that the model is on.
defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)

# evaluator_type of a data set's metadata -> its evaluator
EVALUATORS = {"coco": COCOThresholdEvaluator, "pascal_voc": PascalVOCThresholdEvaluator}


class Trainer(DefaultTrainer):
    """detectron2's trainer with this project's optimizer, data mapper and evaluators."""

    def build_hooks(self):
        # First, so that the writers find what it measured, and evaluation is not measured.
        return [
            OffsetStatistics(self.cfg.MODEL.DEFORMABLE.STATISTICS_PERIOD),
            *super().build_hooks(),
        ]

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=CheckedDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = CheckedDatasetMapper(cfg, is_train=False)
        if cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.MERGE == "raw":  # scales are made from the file
            mapper = CheckedDatasetMapper(cfg, is_train=False, augmentations=[])
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        evaluator = EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
        return evaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """
        As in DefaultTrainer, with test-time augmentation where TEST.AUG.ENABLED asks for it. The
        results are also written to OUTPUT_DIR/results.json.
        """
        if cfg.TEST.AUG.ENABLED:
            model = MultiScaleTTA(cfg, model)
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), "w") as f:
                json.dump(results, f, indent=1)
        return results


def setup(args):
    """
    The frozen config of a command line, whose files are known to be there. Exits with one line
    that names what is wrong.
    """
    cfg = get_cfg()
    add_dcn_config(cfg)
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
        if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
            print(f"No GPU: MODEL.DEVICE is cpu instead of {cfg.MODEL.DEVICE}.")
            cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
        check_testing(cfg)
        check_files(cfg, args)
    except OSError as e:
        sys.exit(f"error: {e}")
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as e:
        message = " ".join(str(e.args[0] if isinstance(e, KeyError) else e).split())
        sys.exit(f"error: {args.config_file} {' '.join(args.opts)}: {message}")
    return cfg


def check_testing(cfg):
    """Raises ValueError if NMS or test-time augmentation cannot be done as the config says."""
    soft_nms_options(cfg)
    keys = cfg.MODEL.ROI_HEADS
    heads = ROI_HEADS_REGISTRY.get(keys.NAME)
    if keys.NMS_TYPE != "hard" and heads.__module__.startswith("detectron2."):
        raise ValueError(
            f"MODEL.ROI_HEADS.NMS_TYPE {keys.NMS_TYPE}: {keys.NAME} of detectron2 has hard NMS "
            "only. For Faster and Mask R-CNN take MODEL.ROI_HEADS.NAME SoftNMSROIHeads"
        )
    if cfg.TEST.AUG.ENABLED:
        raw = augmentation_options(cfg)["raw"]
        if raw and issubclass(heads, CascadeROIHeads):
            raise ValueError(f"TEST.AUG.MERGE raw: {keys.NAME} has no single box head to ask")


def check_files(cfg, args):
    """Raises OSError or ValueError if data or weights cannot be used."""
    check_datasets(cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        if MetadataCatalog.get(name).get("evaluator_type") not in EVALUATORS:
            raise ValueError(f"DATASETS.TEST: there is no evaluator for {name}")
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if args.resume and os.path.exists(last):  # it names what is loaded instead of MODEL.WEIGHTS
        with open(last) as f:
            check_weights(os.path.join(cfg.OUTPUT_DIR, f.read().strip()), told_by=last)
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: name the checkpoint to evaluate")
    check_weights(cfg.MODEL.WEIGHTS)


def main(args):
    cfg = setup(args)
    try:
        default_setup(cfg, args)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
                cfg.MODEL.WEIGHTS, resume=args.resume
            )
            return Trainer.test(cfg, model)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    except json.JSONDecodeError as e:
        names = ", ".join(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST)
        sys.exit(
            f"error: an annotation file of {names} is cut off or no JSON ({e}). Copy it again."
        )
    except FloatingPointError as e:
        sys.exit(f"error: {e}")
    except OSError as e:
        # A file cannot be used, and the message names it. An error of a data loader process
        # carries the traceback of that process, and the message as its last line.
        sys.exit("error: " + str(e).strip().splitlines()[-1].removeprefix("OSError: "))


if __name__ == "__main__":
    parser = default_argument_parser()
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is missing: name one of configs/*/*.yaml")
    setup(args)  # so that a mistake is told once, not by each of the processes to come
    launch(main, args)
