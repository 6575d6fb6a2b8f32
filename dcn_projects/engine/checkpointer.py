"""How a training saves its checkpoints."""

import os
from typing import IO

from dcn_projects.checkpoint import PlainCheckpointer, training_only_names, unwrapped
from dcn_projects.whole_files import whole_file

__all__ = ["TrainingCheckpointer"]


class _WholeFiles:
    """A path manager that writes whole files; in all else the one that it is made of."""

    def __init__(self, manager):
        self._manager = manager

    def __getattr__(self, name):
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options) -> IO:
        if mode in ("w", "wb") and "://" not in path:
            return whole_file(path, mode)
        return self._manager.open(path, mode, **options)


class TrainingCheckpointer(PlainCheckpointer):
    """
    detectron2's, which leaves no checkpoint half written, and notes what only training reads, for
    tools/strip_checkpoint.py.

    Attributes:
        saved: the last iteration, from 0, of which a checkpoint is there; None without one
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.path_manager = _WholeFiles(self.path_manager)
        self.saved = None

    def save(self, name: str, **kwargs) -> None:
        super().save(name, training_only=sorted(training_only_names(self.model)), **kwargs)
        self.saved = kwargs.get("iteration", self.saved)

    def last_name(self) -> str:
        """Of the file of the last checkpoint in the folder; '' without one."""
        return os.path.basename(self.get_checkpoint_file())

    def _load_model(self, checkpoint):
        # A trainer of version 0.1 did not note its parameters. They are those of the model, which
        # the trainer, loaded next, does not see.
        checkpoint.get("trainer", {}).setdefault("parameters", list(checkpoint["model"]))
        checkpoint.update(unwrapped(checkpoint, self.model.state_dict())[0])
        return super()._load_model(checkpoint)
