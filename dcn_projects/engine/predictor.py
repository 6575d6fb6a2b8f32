import logging

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import check_weights

__all__ = ["build_predictor"]


def build_predictor(config_file: str, weights: str, opts=()) -> DefaultPredictor:
    """
    Args:
        config_file: one of configs/*/*.yaml
        weights: checkpoint of its model
        opts: KEY VALUE pairs that override the config
    Returns:
        DefaultPredictor: on the CPU where there is no GPU
    Raises:
        OSError: if a file cannot be read
        ValueError: if the config does not fit this project
    """
    cfg = get_cfg()
    add_dcn_config(cfg)
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as e:
        message = " ".join(str(e.args[0] if isinstance(e, KeyError) else e).split())
        raise ValueError(f"{config_file} {' '.join(opts)}: {message}") from e
    if not torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
        logging.getLogger(__name__).warning("No GPU: the model runs on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if not weights:
        raise ValueError("The path of the weights is empty: name a checkpoint.")
    check_weights(weights, told_by="weights")
    cfg.MODEL.WEIGHTS = str(weights)
    return DefaultPredictor(cfg)
