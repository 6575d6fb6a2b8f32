"""A trained model that takes one image at a time."""

import logging
import os
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor

from dcn_projects.checkpoint import check_weights, load_trained
from dcn_projects.config_keys import value_of
from dcn_projects.data.images import limit_pixels
from dcn_projects.errors import one_line_errors
from dcn_projects.modeling import build_model
from dcn_projects.vis import class_metadata, narrow_images_refused

from .check_config import check_keys
from .config import read_config
from .options import option_pairs
from .output_checkpoints import weights_to_evaluate
from .tasks import task_of

__all__ = ["build_predictor", "load_predictor", "trained_config"]


class _Predictor(DefaultPredictor):
    """detectron2's, with a model that this project builds, and with all of its weights."""

    def __init__(self, cfg: CfgNode):
        limit_pixels(cfg.INPUT.MAX_PIXELS)
        # detectron2's own would build without MODEL.DEFORMABLE, and leave out what does not fit.
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        load_trained(self.model, cfg.MODEL.WEIGHTS)
        task = task_of(cfg)
        num_classes = value_of(cfg, task.num_classes) if task.num_classes else None
        self.metadata = class_metadata(cfg, task.class_names, num_classes)
        self.aug = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT

    def __call__(self, original_image):
        with narrow_images_refused(self, original_image):
            return super().__call__(original_image)


def build_predictor(
    config_file: str | os.PathLike, weights: str | os.PathLike | None = None, opts=()
) -> DefaultPredictor:
    """
    Args:
        config_file, weights, opts: see `trained_config`
    Returns:
        DefaultPredictor: on the CPU where there is no GPU. It raises `NarrowImageError`, a
            ValueError, for images that are too narrow for the network
    Raises:
        OSError: if a file cannot be read
        ValueError: if the config does not fit this project, or the checkpoint the config
    """
    cfg = trained_config(config_file, weights, opts)
    with one_line_errors(os.fspath(config_file)):
        return load_predictor(cfg)


def trained_config(
    config_file: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    opts: Iterable[str] = (),
) -> CfgNode:
    """
    Args:
        config_file: one of configs/*/*.yaml, or its name below configs/
        weights: checkpoint of its model. Without one it is that of MODEL.WEIGHTS in `opts`, else
            the last one in OUTPUT_DIR, else that of the config
        opts: options that override the config, KEY VALUE or KEY=VALUE
    Returns:
        CfgNode: with a checkpoint that can be read, and a device that is there
    Raises:
        OSError, ValueError: as `build_predictor`, before the model is built
    """
    config_file, opts = os.fspath(config_file), list(opts)
    cfg = read_config(config_file, opts)
    if weights is None:
        given = "MODEL.WEIGHTS" in dict(option_pairs(opts))
        cfg.MODEL.WEIGHTS, told_by = weights_to_evaluate(cfg, None, given), "MODEL.WEIGHTS"
    elif weights:
        cfg.MODEL.WEIGHTS, told_by = os.fspath(weights), "weights"
    else:
        raise ValueError("The path of the weights is empty: name a checkpoint.")
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
        logging.getLogger(__name__).warning("No GPU: the model runs on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    with one_line_errors(config_file):
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):  # detectron2's predictor can feed no other
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, expected RGB or BGR")
        check_keys(cfg)
        check_weights(cfg.MODEL.WEIGHTS, told_by)
    return cfg


def load_predictor(cfg: CfgNode) -> DefaultPredictor:
    """
    Returns:
        DefaultPredictor: with MODEL.WEIGHTS, all of them
    Raises:
        OSError, ValueError: if they cannot be read, or are not those of the model
    """
    return _Predictor(cfg)
