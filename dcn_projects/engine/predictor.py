import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from dcn_projects.checkpoint import check_weights, load_trained
from dcn_projects.errors import one_line_errors

from .config import read_config

__all__ = ["build_predictor", "load_predictor"]


def build_predictor(
    config_file: str | os.PathLike, weights: str | os.PathLike, opts=()
) -> DefaultPredictor:
    """
    Args:
        config_file: one of configs/*/*.yaml
        weights: checkpoint of its model
        opts: options that override the config, KEY VALUE or KEY=VALUE
    Returns:
        DefaultPredictor: on the CPU where there is no GPU
    Raises:
        OSError: if a file cannot be read
        ValueError: if the config does not fit this project, or the checkpoint the config
    """
    cfg = read_config(config_file, opts)
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
        logging.getLogger(__name__).warning("No GPU: the model runs on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if not weights:
        raise ValueError("The path of the weights is empty: name a checkpoint.")
    cfg.MODEL.WEIGHTS = os.fspath(weights)
    check_weights(cfg.MODEL.WEIGHTS, told_by="weights")
    with one_line_errors(config_file):
        return load_predictor(cfg)


def load_predictor(cfg: CfgNode) -> DefaultPredictor:
    """
    Returns:
        DefaultPredictor: with MODEL.WEIGHTS, all of them
    Raises:
        OSError, ValueError: if they cannot be read, or are not those of the model
    """
    weights = cfg.MODEL.WEIGHTS
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""  # detectron2 would leave out what does not fit
    predictor = DefaultPredictor(cfg)
    load_trained(predictor.model, weights)
    predictor.cfg.MODEL.WEIGHTS = weights
    return predictor
