import logging
import os
from collections.abc import Iterable

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from dcn_projects import data, modeling  # noqa: F401  (what a config can name registers itself)
from dcn_projects.config import add_dcn_config
from dcn_projects.config_files import resolve_config_file
from dcn_projects.config_renames import rename_keys, rename_values, upgrade_rfcn
from dcn_projects.errors import one_line_errors

from .options import check_literals, merge_options
from .plain_yaml import check_plain_yaml

__all__ = ["read_config", "renamed_in"]

# Path of a config file that was read -> the line that says which of its names were renamed.
_RENAMED: dict[str, str] = {}
_MAX_FILES = 100  # that a config is made of


def read_config(config_file: str, opts: Iterable[str] = ()) -> CfgNode:
    """
    Args:
        config_file: one of configs/*/*.yaml, or its name below configs/. Names of version 0.1
            are translated, and one line of the log says which
        opts: options that override it, see `merge_options`
    Returns:
        CfgNode: all keys of detectron2 and of this project
    Raises:
        OSError: if a file cannot be read
        ValueError: if a file or a pair is wrong, in one line that names it
    """
    config_file, opts = resolve_config_file(config_file), list(opts)
    cfg = get_cfg()
    add_dcn_config(cfg)
    with one_line_errors(config_file):
        try:
            raw, renamed = _load(config_file, cfg)
            check_literals(raw)
            if raw != CfgNode.load_yaml_with_base(config_file, allow_unsafe=False):
                cfg.merge_from_other_cfg(CfgNode(raw))
            else:  # detectron2 does more, for its own old keys
                cfg.merge_from_file(config_file, allow_unsafe=False)
        except (AttributeError, TypeError) as e:  # detectron2 looks for keys in something else
            raise ValueError(
                "the file, its _BASE_, or a section that it sets, holds no 'KEY: value' pairs"
            ) from e
        renamed += merge_options(cfg, opts)
        renamed += rename_values(cfg)
    _log_renamed(config_file, opts, renamed)
    return cfg


def renamed_in(config_file: str) -> str | None:
    """
    Args:
        config_file: one that `read_config` has read
    Returns:
        str: the line that was logged about its names of version 0.1. None if it has none
    """
    return _RENAMED.get(resolve_config_file(config_file))


def _log_renamed(config_file: str, opts: list[str], renamed: list[str]) -> None:
    """Once, as a program may read a config several times."""
    before = _RENAMED.pop(config_file, None)
    if not renamed:
        return
    where = f"{config_file} or the options have" if opts else f"{config_file} has"
    line = f"{where} names of version 0.1: {', '.join(dict.fromkeys(renamed))}"
    _RENAMED[config_file] = line
    if line != before:
        logging.getLogger(__name__).warning(line)


def _load(config_file: str, defaults: CfgNode) -> tuple[dict, list[str]]:
    """
    A file, merged with its bases, in the keys of today, and what was renamed. Each file is looked
    at before anything is made of it, and translated before one on top of it is merged, which may
    have the new keys already.
    """
    renamed, opened, bases = [], [], []

    class Renaming(CfgNode):
        @classmethod
        def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
            path = filename if "://" in filename else os.path.realpath(filename)
            if path in bases:
                raise ValueError(
                    f"{filename}: it is its own base: following _BASE_ leads back to it"
                )
            if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a pipe
                raise OSError(f"{filename} is no file")
            opened.append(path)
            if len(opened) > _MAX_FILES:
                raise ValueError(f"it has more than {_MAX_FILES} files as bases, with theirs")
            with PathManager.open(filename) as file:
                check_plain_yaml(file, filename)
            bases.append(path)
            try:
                raw = super().load_yaml_with_base(filename, allow_unsafe)
            except (IndexError, KeyError):  # of YAML, for such as !!bool 3
                raise ValueError(f"{filename}: a value does not have the type of its tag") from None
            bases.pop()
            renamed.extend(rename_keys(raw, defaults))
            return raw

    raw = Renaming.load_yaml_with_base(config_file, allow_unsafe=False)
    renamed.extend(upgrade_rfcn(raw))
    return raw, renamed
