import copy
import logging
from collections.abc import Iterable

from detectron2.config import CfgNode, get_cfg

from dcn_projects import data, modeling  # noqa: F401  (what a config can name registers itself)
from dcn_projects.config import add_dcn_config
from dcn_projects.config_files import resolve_config_file
from dcn_projects.config_renames import rename_keys, rename_values, upgrade_rfcn
from dcn_projects.errors import one_line_errors

from .options import merge_options

__all__ = ["read_config"]


def read_config(config_file: str, opts: Iterable[str] = ()) -> CfgNode:
    """
    Args:
        config_file: one of configs/*/*.yaml, or its name below configs/. Keys of version 0.1 are
            translated, and the log says so
        opts: options that override it, see `merge_options`
    Returns:
        CfgNode: all keys of detectron2 and of this project
    Raises:
        OSError: if a file cannot be read
        ValueError: if a file or a pair is wrong, in one line that names it
    """
    config_file = resolve_config_file(config_file)
    cfg = get_cfg()
    add_dcn_config(cfg)
    with one_line_errors(config_file):
        try:
            raw, lines, is_old = _load(config_file)
            if is_old:
                cfg.merge_from_other_cfg(CfgNode(raw))
            else:  # detectron2 does more, for its own old keys
                cfg.merge_from_file(config_file)
        except RecursionError:
            raise ValueError("by its _BASE_ it is, in the end, its own base") from None
        except (AttributeError, TypeError) as e:  # detectron2 looks for keys in something else
            raise ValueError(
                "the file, its _BASE_, or a section that it sets, holds no 'KEY: value' pairs"
            ) from e
        merge_options(cfg, opts)
        lines += rename_values(cfg)
    for line in dict.fromkeys(lines):
        logging.getLogger(__name__).warning(f"{config_file}: {line}.")
    return cfg


def _load(config_file: str) -> tuple[dict, list[str], bool]:
    """
    A file, merged with its bases, in the keys of today; lines that say what was renamed; whether
    anything was changed. Each file is translated before one on top of it is merged, which may have
    the new keys already.
    """
    lines = []

    class Renaming(CfgNode):
        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
            raw = super().load_yaml_with_base(filename, allow_unsafe)
            lines.extend(rename_keys(raw))
            return raw

    raw = Renaming.load_yaml_with_base(config_file, allow_unsafe=True)
    before = copy.deepcopy(raw)
    lines.extend(upgrade_rfcn(raw))
    return raw, lines, bool(lines) or raw != before
