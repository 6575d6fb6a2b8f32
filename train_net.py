#!/usr/bin/env python3
"""
Train and evaluate the models of this project.

    python train_net.py --config-file configs/R-FCN/deformable_rfcn_R_101_C5_voc.yaml --num-gpus 4
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    python train_net.py --config-file ... --eval-only    # or --eval-iter 5000: of OUTPUT_DIR
    python train_net.py --config-file ... --load model_final.pth --evaluate detections.json
    python train_net.py --config-file ... --load model_final.pth --predict a.jpg b.jpg
    torchrun --nproc-per-node 2 train_net.py --config-file ...
"""

import errno
import functools
import json
import logging
import os
import sys
from pathlib import Path

import torch
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer, default_setup, defaults
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dcn_projects.checkpoint import check_weights, load_to_start, load_trained
from dcn_projects.data import (
    CheckedDatasetMapper,
    SemSegMapper,
    build_exact_train_loader,
    check_datasets,
    check_exact_resume,
    check_objects_to_evaluate,
    check_objects_to_learn,
    loading,
    read_labels,
)
from dcn_projects.engine import (
    MetricPrinter,
    OffsetStatistics,
    check_classes,
    check_heads,
    check_preprocessing,
    check_training,
    is_segmentor,
    last_checkpoint,
    launch,
    one_line_errors,
    option_pairs,
    parse_arguments,
    read_config,
    weights_to_evaluate,
)
from dcn_projects.errors import one_line
from dcn_projects.evaluation import (
    CityscapesIoUEvaluator,
    COCOThresholdEvaluator,
    PascalVOCThresholdEvaluator,
    SemSegIoUEvaluator,
    copy_detections,
    inference_folder,
)
from dcn_projects.modeling import MultiScaleTTA, SemSegTTA
from dcn_projects.solver import build_optimizer

# detectron2 passes the index of a GPU, which a model on the CPU must not be given. With None,
# DistributedDataParallel uses the device that the model is on.
defaults.create_ddp_model = functools.partial(defaults.create_ddp_model, device_ids=None)

# evaluator_type of a data set's metadata -> its evaluator
EVALUATORS = {
    "coco": COCOThresholdEvaluator,
    "pascal_voc": PascalVOCThresholdEvaluator,
    "sem_seg": functools.partial(SemSegIoUEvaluator, read_labels=read_labels),
    "cityscapes_sem_seg": functools.partial(CityscapesIoUEvaluator, read_labels=read_labels),
}


def learns_masks(cfg) -> bool:
    return cfg.MODEL.MASK_ON and not is_segmentor(cfg)


def mapper_class(cfg) -> type:
    return SemSegMapper if is_segmentor(cfg) else CheckedDatasetMapper


def share_statistics(model) -> None:
    """Give BatchNorm on all processes the means and variances of the first."""
    if comm.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)


class Trainer(DefaultTrainer):
    """detectron2's trainer with this project's optimizer, data mapper and evaluators."""

    def build_hooks(self):
        # First, so that the writers find what it measured, and evaluation is not measured.
        return [
            OffsetStatistics(self.cfg.MODEL.DEFORMABLE.STATISTICS_PERIOD),
            *super().build_hooks(),
        ]

    def build_writers(self):
        _, *files = super().build_writers()
        return [MetricPrinter(self.max_iter), *files]

    def state_dict(self):
        """As in DefaultTrainer, with the optimizer, which release 0.6 of detectron2 leaves out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        if "_trainer" in state_dict:
            # What tells SGD from AdamW; other keys come and go with versions of torch.
            saved, own = (
                {"momentum", "betas"} & state["optimizer"]["param_groups"][0].keys()
                for state in (state_dict["_trainer"], self._trainer.state_dict())
            )
            if saved != own:
                raise ValueError(
                    f"SOLVER.OPTIMIZER is {self.cfg.SOLVER.OPTIMIZER}, and the checkpoint is of a "
                    "training with another"
                )
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:  # not in checkpoints that were made without the above
            self._trainer.load_state_dict(state_dict["_trainer"])

    def resume_or_load(self, resume=True):
        """As in DefaultTrainer. With EXACT_RESUME the images are those of the next iteration."""
        super().resume_or_load(resume)
        if self.cfg.DATALOADER.EXACT_RESUME and self.start_iter > 0:
            state, inner = self._trainer.state_dict(), self._trainer
            loader = self.build_train_loader(self.cfg, self.start_iter)
            self._trainer = type(inner)(inner.model, loader, inner.optimizer)
            self._trainer.load_state_dict(state)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)  # also knows WarmupPolyLR

    @classmethod
    def build_train_loader(cls, cfg, first_iteration=0):
        mapper = mapper_class(cfg)(cfg, is_train=True)
        with loading(cfg.DATASETS.TRAIN):
            options = _train_loader_from_config(cfg, mapper=mapper)
            masks = cfg.INPUT.MASK_FORMAT if learns_masks(cfg) else None
            check_objects_to_learn(options["dataset"], masks)
            if cfg.DATALOADER.EXACT_RESUME:
                loader = build_exact_train_loader(options, cfg.SEED, first_iteration)
            else:
                loader = build_detection_train_loader(**options)
            check_classes(cfg, cfg.DATASETS.TRAIN)
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = mapper_class(cfg)(cfg, is_train=False)
        # Scales are made from the file.
        if cfg.TEST.AUG.ENABLED and (is_segmentor(cfg) or cfg.TEST.AUG.MERGE == "raw"):
            mapper = mapper_class(cfg)(cfg, is_train=False, augmentations=[])
        with loading([dataset_name]):
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
            check_classes(cfg, [dataset_name])
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        evaluator = EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
        return evaluator(dataset_name, output_dir=inference_folder(cfg, dataset_name))

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """
        As in DefaultTrainer, with test-time augmentation where TEST.AUG.ENABLED asks for it, and on
        all processes with BatchNorm's statistics of the first, as the checkpoint has them. The
        results are also written to OUTPUT_DIR/results.json.
        """
        share_statistics(model)
        if cfg.TEST.AUG.ENABLED:
            model = (SemSegTTA if is_segmentor(cfg) else MultiScaleTTA)(cfg, model)
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
    try:
        cfg = read_config(args.config_file, args.opts)
        if args.eval_only or args.predict:
            given = "MODEL.WEIGHTS" in dict(option_pairs(args.opts))
            cfg.MODEL.WEIGHTS = weights_to_evaluate(cfg, args.eval_iter, given)
        if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
            print(f"No GPU: MODEL.DEVICE is cpu instead of {cfg.MODEL.DEVICE}.")
            cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
        with one_line_errors(args.config_file):
            check_heads(cfg)
            check_exact_resume(cfg)
            check_files(cfg, args)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    return cfg


def check_files(cfg, args):
    """Raises OSError or ValueError if data or weights cannot be used."""
    if args.predict:
        if is_segmentor(cfg):
            raise ValueError("--predict draws objects; for classes of pixels take demo/demo.py")
        return check_weights(cfg.MODEL.WEIGHTS)
    names = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    key = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise ValueError(f"DATASETS.{key} is empty: name a data set")
    check_datasets(names)
    check_classes(cfg, names)
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type")
        if evaluator not in EVALUATORS:
            raise ValueError(f"DATASETS.TEST: there is no evaluator for {name}")
        if args.evaluate and evaluator != "coco":
            raise ValueError(f"--evaluate: {name} is not evaluated as COCO is. Take --eval-only")
    if not is_segmentor(cfg):
        check_objects_to_evaluate(cfg.DATASETS.TEST, cfg.MODEL.MASK_ON)
    if not args.eval_only:
        check_training(cfg)
    if resumed := checkpoint_to_resume(cfg, args):
        check_weights(resumed, told_by=os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    else:
        check_weights(cfg.MODEL.WEIGHTS)


def checkpoint_to_resume(cfg, args) -> str | None:
    if args.resume and not args.eval_only:
        last = last_checkpoint(Path(cfg.OUTPUT_DIR))
        return None if last is None else str(last)


def prepare(cfg, args):
    """Build the model and load its weights. Returns what is to be run then, without arguments."""
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_trained(model, cfg.MODEL.WEIGHTS)
        return functools.partial(Trainer.test, cfg, model)
    trainer = Trainer(cfg)
    if resumed := checkpoint_to_resume(cfg, args):
        checkpoint = load_trained(trainer.model, resumed)  # it must be of this model
        if "iteration" not in checkpoint:
            raise ValueError(
                f"{resumed} has weights alone and cannot be resumed. Give them as MODEL.WEIGHTS, "
                "without --resume"
            )
        trainer.resume_or_load()
    else:
        if any(Path(cfg.OUTPUT_DIR).glob("model_*.pth")):
            logging.getLogger("dcn_projects").warning(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR} has the checkpoints of another training, which are "
                "overwritten. --resume would go on with it"
            )
        check_preprocessing(cfg)
        load_to_start(trainer.model, cfg.MODEL.WEIGHTS)
    return trainer.train


def main(args):
    cfg = setup(args)
    try:
        if args.predict:
            from dcn_projects.engine.prediction import predict_images  # needs OpenCV

            with one_line_errors(args.config_file):
                return predict_images(cfg, args.predict, args.confidence)
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="dcn_projects")
        with one_line_errors(args.config_file):
            run = prepare(cfg, args)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    try:
        results = run()
        if args.evaluate and comm.is_main_process():
            copy_detections(cfg, args.evaluate)
        return results
    except FloatingPointError as e:
        sys.exit(
            f"error: {one_line(e)} Lower SOLVER.BASE_LR, or look into MODEL.WEIGHTS and the data."
        )
    except OSError as e:
        # A file cannot be used, and the message names it. An error of a data loader process
        # carries the traceback of that process, and the message as its last line.
        if e.errno == errno.ENOSPC:
            sys.exit(f"error: OUTPUT_DIR {cfg.OUTPUT_DIR}: no space is left. Go on with --resume")
        lines = str(e).strip().splitlines() or [one_line(e)]
        sys.exit("error: " + lines[-1].removeprefix("OSError: "))


if __name__ == "__main__":
    args = parse_arguments()
    setup(args)  # so that a mistake is told once, not by each of the processes to come
    launch(main, args)
