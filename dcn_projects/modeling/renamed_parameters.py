"""Checkpoints from before a parameter was renamed."""

import logging
import re
from collections.abc import Mapping

__all__ = ["HasRenamedParameters"]

_LOGGED = set()  # old names, as regular expressions: a model has many layers of a kind


class HasRenamedParameters:
    """
    A base class for modules whose parameters had other names. It stands before nn.Module, so that
    old checkpoints load in every way that PyTorch and detectron2 have.

    Attributes:
        renamed_parameters: regular expression of an old name, below the module -> its new name, in
            the form of `re.sub`
    """

    renamed_parameters: Mapping[str, str] = {}

    def rename_old_parameters(self, state_dict: dict, prefix: str) -> None:
        """
        Give the entries of a state dict their new names. Of each kind the first one is logged. A
        program that compares shapes before it loads, as detectron2's checkpointer does, calls this
        first.

        Args:
            state_dict: changed in place
            prefix: of the names of this module in it, with a dot at its end, or ""
        """
        for name in [name for name in state_dict if name.startswith(prefix)]:
            below = name.removeprefix(prefix)
            for old, new in self.renamed_parameters.items():
                if not re.fullmatch(old, below):
                    continue
                target = prefix + re.sub(old, new, below)
                state_dict[target] = state_dict.pop(name)
                if old not in _LOGGED:
                    _LOGGED.add(old)
                    logging.getLogger(__name__).info(
                        f"The checkpoint has old names of parameters: {name} is {target} now"
                    )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self.rename_old_parameters(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
