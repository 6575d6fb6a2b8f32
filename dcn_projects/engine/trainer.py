import json
import logging
import os
import sys
import weakref
from pathlib import Path

import torch.distributed as dist
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import EvalHook
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from dcn_projects.data import ExactTrainLoader, check_objects, loading
from dcn_projects.evaluation import InClassOrder, inference_folder
from dcn_projects.modeling import build_model
from dcn_projects.solver import build_optimizer
from dcn_projects.whole_files import whole_file

from .check_config import check_augmentation, check_classes
from .checkpointer import TrainingCheckpointer
from .classes_by_name import check_class_order, class_order
from .data_checks import check_data
from .metric_printer import MetricPrinter
from .offset_statistics import OffsetStatistics
from .output_checkpoints import how_to_go_on
from .resumed_metrics import measured_last, resume_metrics
from .resumed_optimizer import in_own_order
from .stop_signals import Stopped, StopSignals
from .tasks import task_of
from .watched_loader import WatchedLoader

__all__ = ["Trainer"]

_SCHEDULE = ("last_epoch", "_step_count")  # where a schedule of learning rates is
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _BeforeEvaluation(HookBase):
    """An evaluation, which comes next, need not be finished when a signal ends the training."""

    def __init__(self, period: int):
        self.period = period

    def after_step(self):
        if self.period and (self.trainer.iter + 1) % self.period == 0:
            self.prepare()

    def after_train(self):
        if self.trainer.iter == self.trainer.max_iter:
            self.prepare()

    def prepare(self):
        # Before the question: what comes after it shall not wait for the evaluation. The other
        # processes end with the first one.
        self.trainer.signals.raises = comm.is_main_process()
        self.trainer.stop_if_asked()


class Trainer(DefaultTrainer):
    """
    detectron2's trainer with this project's models, optimizer, data mappers and evaluators.
    `task_of(cfg)` says which of them a config needs. What `STOP_SIGNALS` ends can be resumed.
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
        self.signals = StopSignals(alone=comm.get_world_size() == 1)
        steps = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = steps(model, WatchedLoader(loader, self.signals), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.measured = {}
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        hooks = super().build_hooks()
        position = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        self.evaluation = hooks[position]
        hooks.insert(position, _BeforeEvaluation(self.cfg.TEST.EVAL_PERIOD))
        # First, so that the writers find what it measured, and evaluation is not measured.
        return [OffsetStatistics(self.cfg.MODEL.DEFORMABLE.STATISTICS_PERIOD), *hooks]

    def build_writers(self):
        _, *self.file_writers = super().build_writers()
        return [MetricPrinter(self.max_iter, self.printed_scalars), *self.file_writers]

    def train(self):
        """
        As in DefaultTrainer. One of STOP_SIGNALS ends it after the iteration, with a checkpoint and
        one line that says how to go on.

        Raises:
            Stopped: after such a signal
            OSError: if a checkpoint cannot be written, or a process that loads data was killed
        """
        with self.signals:
            try:
                return super().train()
            except Stopped as stopped:
                if comm.is_main_process():
                    self._save_and_say(stopped.name)
                if stopped.by_all:
                    comm.synchronize()
                raise
            except Exception:
                # The first process has ended, perhaps in an evaluation, and this one has lost it.
                if self.signals.received and not comm.is_main_process():
                    raise Stopped(self.signals.received) from None
                raise

    def _save_and_say(self, signal_name: str) -> None:
        done = min(self.iter + 1, self.max_iter)
        if self.checkpointer.saved != done - 1:
            self.checkpointer.save(f"model_{done - 1:07d}", iteration=done - 1)
        advice = how_to_go_on(Path(self.cfg.OUTPUT_DIR), resumed=True)
        print(f"{signal_name} after {done} iterations. {advice}", file=sys.stderr)

    def before_train(self):
        is_finished = 0 < self.start_iter == self.max_iter
        if is_finished:
            self.iter -= 1  # the last one that was done, as after any other training
        if comm.is_main_process():
            path = Path(self.cfg.OUTPUT_DIR, "metrics.json")
            if resume_metrics(path, self.storage, self.measured, self.start_iter):
                for writer in self.file_writers:
                    writer.write()
        super().before_train()
        is_saved = self.checkpointer.last_name() == "model_final.pth"
        if is_finished and not is_saved and comm.is_main_process():
            self.checkpointer.save("model_final", iteration=self.iter)

    def after_step(self):
        super().after_step()
        self.signals.raises = False
        self.stop_if_asked()

    def stop_if_asked(self):
        """Raises Stopped on all processes of the training if one of them has got a signal."""
        numbers = [self.signals.received]
        if comm.get_world_size() > 1:
            numbers = comm.all_gather(numbers[0])
        if number := max(numbers):
            raise Stopped(number, by_all=True)

    def after_train(self):
        if self.iter < self.max_iter:  # also where the last iteration failed
            self.evaluation.after_train = lambda: None
        super().after_train()

    def state_dict(self):
        """
        As in DefaultTrainer, with the optimizer, which release 0.6 of detectron2 leaves out, the
        names of its parameters in their order, and the last measurements.
        """
        return {
            **TrainerBase.state_dict(self),
            # Hooks that save after a training see the iteration behind the last one.
            "iteration": min(self.iter, self.max_iter - 1),
            "_trainer": self._trainer.state_dict(),
            "parameters": [name for name, _ in self.checkpointer.model.named_parameters()],
            "measured": measured_last(self.storage) if hasattr(self, "storage") else {},
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
        if schedule := state_dict.get("hooks", {}).get("LRScheduler"):
            # How it goes, such as to which iteration, is what the config says now.
            schedule = {key: schedule[key] for key in _SCHEDULE if key in schedule}
            state_dict = state_dict | {"hooks": state_dict["hooks"] | {"LRScheduler": schedule}}
        TrainerBase.load_state_dict(self, state_dict)
        self.measured = state_dict.get("measured", {})
        if "_trainer" in state_dict:  # not in checkpoints that were made without the above
            inner, model = dict(state_dict["_trainer"]), self.checkpointer.model
            inner["optimizer"] = in_own_order(
                inner["optimizer"], state_dict["parameters"], self._trainer.optimizer, model
            )
            if hasattr(self._trainer, "grad_scaler"):  # SOLVER.AMP may be new
                inner.setdefault("grad_scaler", self._trainer.grad_scaler.state_dict())
            self._trainer.load_state_dict(inner)
            for group, rate in zip(self._trainer.optimizer.param_groups, self.scheduler.get_lr()):
                group["lr"] = rate  # of the next iteration, by the schedule of now

    def resume_or_load(self, resume=True):
        """As in DefaultTrainer. With EXACT_RESUME the images are those of the next iteration."""
        super().resume_or_load(resume)
        if self.start_iter:
            self.checkpointer.saved = self.start_iter - 1
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
            with whole_file(os.path.join(cfg.OUTPUT_DIR, "results.json"), "w") as f:
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
