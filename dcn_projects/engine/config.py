from collections.abc import Iterable

from detectron2.config import CfgNode, get_cfg

from dcn_projects.config import add_dcn_config
from dcn_projects.errors import one_line_errors

from .options import merge_options

__all__ = ["read_config"]


def read_config(config_file: str, opts: Iterable[str] = ()) -> CfgNode:
    """
    Args:
        config_file: one of configs/*/*.yaml
        opts: options that override it, see `merge_options`
    Returns:
        CfgNode: all keys of detectron2 and of this project
    Raises:
        OSError: if a file cannot be read
        ValueError: if a file or a pair is wrong, in one line that names it
    """
    cfg = get_cfg()
    add_dcn_config(cfg)
    with one_line_errors(config_file):
        try:
            cfg.merge_from_file(config_file)
        except RecursionError:
            raise ValueError("by its _BASE_ it is, in the end, its own base") from None
        except (AttributeError, TypeError) as e:  # detectron2 looks for keys in something else
            raise ValueError(
                "the file, its _BASE_, or a section that it sets, holds no 'KEY: value' pairs"
            ) from e
        merge_options(cfg, opts)
    return cfg
