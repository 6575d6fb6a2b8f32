"""
The configs of this project and their models by name, as `detectron2.model_zoo` has detectron2's:

    from dcn_projects import model_zoo

    model_zoo.list_configs()
    cfg = model_zoo.get_config("R-FCN/rfcn_R_101_C5_voc.yaml")
    model = model_zoo.get("R-FCN/rfcn_R_101_C5_voc.yaml", device="cpu")
"""

from .config_files import config_names, named_config_file, unknown_config

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_configs"]

# torch and detectron2 are imported where they are needed: the paths of configs do not need them.


def list_configs() -> list[str]:
    """The names that the other functions take, sorted: "DCNv2/faster_rcnn_R_50_C5_16e.yaml", ..."""
    return config_names()


def get_config_file(config_path: str) -> str:
    """
    Args:
        config_path: name of a config, its path below configs/. Those of Base-* files count too
    Returns:
        str: the path of the file
    Raises:
        RuntimeError: if there is none of this name; it names the nearest
    """
    path = named_config_file(config_path)
    if path is None:
        raise RuntimeError(unknown_config(config_path))
    return str(path)


def get_checkpoint_url(config_path: str) -> str:
    """
    Raises:
        RuntimeError: always, as this project does not publish trained weights yet
    """
    get_config_file(config_path)
    raise RuntimeError(
        f"{config_path}: this project does not publish trained weights yet. Train the model, or "
        "convert weights of the original implementation with tools/convert_weights.py, and name "
        "the file in MODEL.WEIGHTS"
    )


def get_config(config_path: str, trained: bool = False):
    """
    Args:
        config_path: see `get_config_file`
        trained: MODEL.WEIGHTS are the trained weights of the model, see `get_checkpoint_url`, and
            not those that its training starts from, which are mostly a backbone's of ImageNet
    Returns:
        CfgNode: all keys of detectron2 and of this project
    """
    from .engine.config import read_config

    cfg = read_config(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None):
    """
    Build a model and load MODEL.WEIGHTS of its config into it, which may download them. Whatever
    these weights lack stays random, as at the start of a training.

    Args:
        config_path: see `get_config_file`
        trained: see `get_config`
        device: such as "cpu"; None means that of the config, or the CPU where there is no GPU
    Returns:
        nn.Module: in training mode, as those of detectron2.model_zoo
    Raises:
        OSError: if MODEL.WEIGHTS cannot be read or downloaded
        RuntimeError: if there is no such config, or no trained weights
    """
    import torch

    from .checkpoint import check_weights, load_to_start
    from .modeling import build_model

    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    check_weights(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    load_to_start(model, cfg.MODEL.WEIGHTS)
    return model
