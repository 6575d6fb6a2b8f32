import json
import logging
import os
import weakref

import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from dcn_projects.checkpoint import training_only_names, unwrapped
from dcn_projects.data import ExactTrainLoader, check_objects, loading
from dcn_projects.evaluation import InClassOrder, inference_folder
from dcn_projects.modeling import build_model
from dcn_projects.solver import build_optimizer

from .check_config import check_augmentation, check_classes
from .classes_by_name import check_class_order, class_order
from .data_checks import check_data
from .metric_printer import MetricPrinter
from .offset_statistics import OffsetStatistics
from .resumed_optimizer import in_own_order
from .tasks import task_of

__all__ = ["Trainer"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Checkpointer(DetectionCheckpointer):
    """detectron2's, which notes what only training reads, for tools/strip_checkpoint.py."""

    def save(self, name: str, **kwargs) -> None:
        super().save(name, training_only=sorted(training_only_names(self.model)), **kwargs)

    def _load_model(self, checkpoint):
        # A trainer of version 0.1 did not note its parameters. They are those of the model, which
        # the trainer, loaded next, does not see.
        checkpoint.get("trainer", {}).setdefault("parameters", list(checkpoint["model"]))
        checkpoint.update(unwrapped(checkpoint, self.model.state_dict())[0])
        return super()._load_model(checkpoint)


class Trainer(DefaultTrainer):
    """
    detectron2's trainer with this project's models, optimizer, data mappers and evaluators.
    `task_of(cfg)` says which of them a config needs.
    """

    def __init__(self, cfg):
        """
        The steps of DefaultTrainer, in its order. It cannot be called instead: it gives
        DistributedDataParallel the index of a GPU, which a model on the CPU must not have.

        Args:
            cfg: config, not changed
        Raises:
            ValueError: if the config has a value that cannot be used
            OSError: if data cannot be read
        """
        TrainerBase.__init__(self)
        for name in ("detectron2", "dcn_projects"):
            # Not in train_net.py, which has set them up to write into OUTPUT_DIR as well.
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        check_data(cfg, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self.printed_scalars = _declared(model, "printed_scalars")
        _check_exact_resume(cfg, model)
        if cfg.DATASETS.TEST:
            check_augmentation(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)

        # With no device_ids it uses the device that the model is on.
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
        steps = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = steps(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = _Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        # First, so that the writers find what it measured, and evaluation is not measured.
        return [
            OffsetStatistics(self.cfg.MODEL.DEFORMABLE.STATISTICS_PERIOD),
            *super().build_hooks(),
        ]

    def build_writers(self):
        _, *files = super().build_writers()
        return [MetricPrinter(self.max_iter, self.printed_scalars), *files]

    def state_dict(self):
        """
        As in DefaultTrainer, with the optimizer, which release 0.6 of detectron2 leaves out, and
        the names of its parameters in their order.
        """
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "parameters": [name for name, _ in self.checkpointer.model.named_parameters()],
        }

    def load_state_dict(self, state_dict):
        if "_trainer" in state_dict:
            # SGD has momentum and AdamW betas; other keys depend on the version of torch.
            saved, own = (
                {"momentum", "betas"} & state["optimizer"]["param_groups"][0].keys()
                for state in (state_dict["_trainer"], self._trainer.state_dict())
            )
            if saved != own:
                raise ValueError(
                    f"SOLVER.OPTIMIZER is {self.cfg.SOLVER.OPTIMIZER}, and the checkpoint is of a "
                    "training with another"
                )
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" in state_dict:  # not in checkpoints that were made without the above
            inner, model = dict(state_dict["_trainer"]), self.checkpointer.model
            inner["optimizer"] = in_own_order(
                inner["optimizer"], state_dict["parameters"], self._trainer.optimizer, model
            )
            self._trainer.load_state_dict(inner)

    def resume_or_load(self, resume=True):
        """As in DefaultTrainer. With EXACT_RESUME the images are those of the next iteration."""
        super().resume_or_load(resume)
        if self.cfg.DATALOADER.EXACT_RESUME:
            self._trainer.data_loader.first_iteration = self.start_iter

    @classmethod
    def build_model(cls, cfg):
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)  # also knows WarmupPolyLR

    @classmethod
    def build_train_loader(cls, cfg):
        task = task_of(cfg)
        mapper = task.build_mapper(cfg, is_train=True)
        with loading(cfg.DATASETS.TRAIN):
            options = build_detection_train_loader.from_config(cfg, mapper=mapper)
            # Several processes may have been started without check_data.
            if comm.get_world_size() > 1 and task.output == "instances":
                masks = cfg.INPUT.MASK_FORMAT if task.learns_masks(cfg) else None
                check_objects(", ".join(cfg.DATASETS.TRAIN), options["dataset"], masks=masks)
            if cfg.DATALOADER.EXACT_RESUME:
                loader = ExactTrainLoader(options, cfg.SEED)
            else:
                loader = build_detection_train_loader(**options)
        check_classes(cfg, cfg.DATASETS.TRAIN[0])  # which are known when the data are loaded
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        task = task_of(cfg)
        whole_file = cfg.TEST.AUG.ENABLED and task.augments_file(cfg)
        options = {"augmentations": []} if whole_file else {}
        mapper = task.build_mapper(cfg, is_train=False, **options)
        with loading([dataset_name]):
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        check_class_order(cfg, dataset_name)
        return loader

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        output_dir = inference_folder(cfg, dataset_name)
        evaluator = task_of(cfg).build_evaluator(cfg, dataset_name, output_dir)
        order = class_order(cfg, dataset_name)
        return evaluator if order is None else InClassOrder(evaluator, order)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """
        As in DefaultTrainer, with test-time augmentation where TEST.AUG.ENABLED asks for it, and on
        all processes with BatchNorm's statistics of the first, as the checkpoint has them. The
        results are also written to OUTPUT_DIR/results.json.
        """
        _share_statistics(model)
        if cfg.TEST.AUG.ENABLED:
            model = task_of(cfg).augmentation(cfg, model)
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), "w") as f:
                json.dump(results, f, indent=1)
        return results


def _declared(model: nn.Module, name: str) -> list:
    """What the modules of a model have in a tuple of this name, together."""
    return [entry for module in model.modules() for entry in getattr(module, name, ())]


def _check_exact_resume(cfg, model) -> None:
    if not cfg.DATALOADER.EXACT_RESUME or comm.get_world_size() == 1:
        return
    for name, module in model.named_modules():
        if advice := getattr(module, "differs_between_processes", ""):
            raise ValueError(
                "DATALOADER.EXACT_RESUME on several processes: the numbers of "
                f"{name} ({type(module).__name__}) differ between processes, and a checkpoint has "
                f"those of one. {advice}"
            )


def _share_statistics(model: nn.Module) -> None:
    """Give BatchNorm on all processes the means and variances of the first."""
    if comm.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0)
