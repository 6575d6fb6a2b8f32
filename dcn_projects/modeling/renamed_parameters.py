"""Checkpoints from before a parameter was renamed."""

import logging
import re
from collections.abc import Mapping

__all__ = ["rename_parameters"]


def rename_parameters(state_dict: dict, prefix: str, renamed: Mapping[str, str]) -> None:
    """
    Give the entries of a state dict their new names, in place, with one line in the log. Modules
    call it at the start of their `_load_from_state_dict`, so that old checkpoints load in every way
    that PyTorch and detectron2 have.

    Args:
        state_dict, prefix: as `nn.Module._load_from_state_dict` gets them
        renamed: regular expression of an old name below `prefix` -> its new name, in the form of
            `re.sub`
    """
    examples = {}
    for name in [name for name in state_dict if name.startswith(prefix)]:
        for old, new in renamed.items():
            below = name.removeprefix(prefix)
            if re.fullmatch(old, below):
                target = prefix + re.sub(old, new, below)
                state_dict[target] = state_dict.pop(name)
                examples.setdefault(old, f"{name} is {target} now")
    for example in examples.values():
        logging.getLogger(__name__).info(
            f"The checkpoint has an old name of a parameter: {example}"
        )
