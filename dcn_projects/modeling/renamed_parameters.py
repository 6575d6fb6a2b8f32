"""Checkpoints from before a parameter was renamed."""

import logging
import re
from collections.abc import Mapping

__all__ = ["rename_parameters"]

_LOGGED = set()  # old names, as regular expressions: a model has many layers of a kind


def rename_parameters(state_dict: dict, prefix: str, renamed: Mapping[str, str]) -> None:
    """
    Give the entries of a state dict their new names, in place. Modules call it at the start of
    their `_load_from_state_dict`, so that old checkpoints load in every way that PyTorch and
    detectron2 have. Of each kind of name the first one is logged.

    Args:
        state_dict, prefix: as `nn.Module._load_from_state_dict` gets them
        renamed: regular expression of an old name below `prefix` -> its new name, in the form of
            `re.sub`
    """
    for name in [name for name in state_dict if name.startswith(prefix)]:
        below = name.removeprefix(prefix)
        for old, new in renamed.items():
            if not re.fullmatch(old, below):
                continue
            target = prefix + re.sub(old, new, below)
            state_dict[target] = state_dict.pop(name)
            if old not in _LOGGED:
                _LOGGED.add(old)
                logging.getLogger(__name__).info(
                    f"The checkpoint has old names of parameters: {name} is {target} now"
                )
