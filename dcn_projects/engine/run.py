"""A run of train_net.py: what is checked, in which order, and what is done then."""

import functools
import logging
import os
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dcn_projects.checkpoint import check_weights, load_to_start, load_trained
from dcn_projects.data import check_datasets, check_exact_resume
from dcn_projects.errors import (
    exit_interrupted,
    exit_with_one_line,
    one_line_errors,
    was_interrupted,
)
from dcn_projects.evaluation import copy_detections
from dcn_projects.whole_files import whole_file

from .check_config import (
    check_augmentation,
    check_evaluators,
    check_keypoints,
    check_keys,
    check_kind,
    check_preprocessing,
    check_training,
)
from .check_frozen import check_frozen
from .config import read_config, renamed_in
from .data_checks import check_data
from .folder_lock import lock_folder
from .launcher import launch
from .options import option_pairs
from .output_checkpoints import (
    checkpoint_to_resume,
    how_to_go_on,
    last_saved,
    remove_parts,
    set_aside,
    weights_to_evaluate,
)
from .run_errors import one_line_errors_of_a_run, quiet_log_files
from .trainer import Trainer

__all__ = ["main", "predict", "run_program", "setup"]


def run_program(args: Namespace, trainer: type[Trainer] = Trainer) -> None:
    """
    All that train_net.py does with a command line, in as many processes as it asks for. Ctrl-C ends
    the program with one line, which says how to go on with a training.

    Args:
        args: of `parse_arguments`
        trainer: class to train and evaluate with
    """
    advice = str
    try:
        if not args.predict:
            cfg = setup(args)  # a mistake is reported once, and not by each process to come
            if not args.eval_only:
                folder = Path(cfg.OUTPUT_DIR)
                advice = functools.partial(how_to_go_on, folder, args.resume, last_saved(folder))
        launch(functools.partial(main, trainer=trainer), args)
    except (Exception, KeyboardInterrupt) as e:
        if not was_interrupted(e):
            raise
        exit_interrupted(advice())


def main(args: Namespace, trainer: type[Trainer] = Trainer):
    """
    Train, evaluate or predict in this process, as a command line asks. An error that its user can
    mend ends the program with one line that says what is wrong.

    Args:
        args: of `parse_arguments`
        trainer: class to train and evaluate with
    Returns:
        the results of an evaluation, task -> metric -> value; None without one
    """
    if args.predict:
        return predict(args)
    cfg = setup(args)
    with exit_with_one_line(f"OUTPUT_DIR {cfg.OUTPUT_DIR}"):
        with quiet_log_files():
            default_setup(cfg, args)
            setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="dcn_projects")
        if comm.is_main_process():  # once more, as detectron2 writes it in place
            with whole_file(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
                f.write(cfg.dump())
        if renamed := renamed_in(args.config_file):  # also for the log in OUTPUT_DIR
            logging.getLogger(__name__).warning(renamed)
        with one_line_errors(args.config_file):
            run = prepare(cfg, args, trainer)
    with one_line_errors_of_a_run(None if args.eval_only else cfg.OUTPUT_DIR):
        results = run()
        if args.evaluate and comm.is_main_process():
            copy_detections(cfg, args.evaluate)
        return results


def predict(args: Namespace) -> None:
    """
    Draw what the models of a command line find in the images that `--predict` names. Errors end the
    program as those of `main` do.

    Args:
        args: of `parse_arguments`
    """
    from .drawing import TENSORPACK_STYLE, draw_predictions  # needs OpenCV, as nothing else here

    with exit_with_one_line():
        draw_predictions(
            args.config_files,
            args.weights,
            args.predict,
            opts=args.opts,
            confidence=args.confidence,
            output=args.output,
            style=TENSORPACK_STYLE,
        )


def setup(args: Namespace) -> CfgNode:
    """
    Returns:
        CfgNode: the frozen config of a command line, whose files are known to be there. Exits with
            one line that names what is wrong
    """
    with exit_with_one_line():
        cfg = read_config(args.config_file, args.opts)
        if args.eval_only:
            given = "MODEL.WEIGHTS" in dict(option_pairs(args.opts))
            cfg.MODEL.WEIGHTS = weights_to_evaluate(cfg, args.eval_iter, given)
        if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
            print(f"No GPU: MODEL.DEVICE is cpu instead of {cfg.MODEL.DEVICE}.")
            cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
        with one_line_errors(args.config_file):
            check_keys(cfg)
            check_exact_resume(cfg)
            check_run(cfg, args)
        return cfg


def check_run(cfg: CfgNode, args: Namespace) -> None:
    """Raises OSError or ValueError if the data, weights or numbers of a run cannot be used."""
    names = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    key = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise ValueError(f"DATASETS.{key} is empty: name a data set")
    check_datasets(names)
    for name in names:
        check_kind(cfg, name)
    check_keypoints(cfg, names)
    check_evaluators(cfg, "coco" if args.evaluate else None)
    if not args.eval_only:
        check_training(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    writes = not args.eval_only and args.machine_rank == 0
    if writes and folder.exists():
        lock_folder(folder)
    if not checkpoint_of_run(cfg, args):
        check_weights(cfg.MODEL.WEIGHTS, to_start=not args.eval_only)
    check_data(cfg, () if args.eval_only else cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    if writes:
        lock_folder(folder)  # which is made now: a mistake leaves none


def checkpoint_of_run(cfg: CfgNode, args: Namespace) -> str | None:
    """Path of the checkpoint with which a training goes on; None if it begins anew."""
    if args.resume and not args.eval_only:
        checkpoint = checkpoint_to_resume(Path(cfg.OUTPUT_DIR))
        return checkpoint and str(checkpoint)


def prepare(cfg: CfgNode, args: Namespace, trainer: type[Trainer]):
    """Build the model and load its weights. Returns what is to be run then, without arguments."""
    if args.eval_only:
        model = trainer.build_model(cfg)
        check_augmentation(cfg, model)
        load_trained(model, cfg.MODEL.WEIGHTS)
        return functools.partial(trainer.test, cfg, model)
    if comm.is_main_process():
        remove_parts(Path(cfg.OUTPUT_DIR))
    training = trainer(cfg)
    if resumed := checkpoint_of_run(cfg, args):
        checkpoint = load_trained(training.model, resumed)  # it must be of this model
        if not {"iteration", "trainer"} <= checkpoint.keys():
            raise ValueError(
                f"{resumed} has weights alone, or is of another trainer, and cannot be resumed. "
                "Give them as MODEL.WEIGHTS, without --resume"
            )
        training.resume_or_load()
        if training.start_iter > cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, and {resumed} has done "
                f"{training.start_iter} iterations: enlarge it, or evaluate with --eval-only"
            )
    else:
        check_preprocessing(cfg)
        at_random = load_to_start(training.model, cfg.MODEL.WEIGHTS)
        check_frozen(cfg, training.checkpointer.model, at_random)
        begin_anew(cfg, args)
    return training.train


def begin_anew(cfg: CfgNode, args: Namespace) -> None:
    logger = logging.getLogger(__name__)
    if args.resume:
        logger.info(f"--resume: OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint. Beginning anew")
    comm.synchronize()  # one of the checkpoints may be what all processes have started from
    if comm.is_main_process() and (folder := set_aside(Path(cfg.OUTPUT_DIR))):
        logger.warning(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} had the checkpoints of another training, which are in "
            f"{folder} now. --resume would have gone on with it"
        )
