"""Which parts of a model, and which entries of a checkpoint, only training reads."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

__all__ = ["is_counter", "training_only_entries", "training_only_names"]

# In checkpoints of version 0.1, which do not say it themselves.
_OF_VERSION_0_1 = re.compile(r"mimic_score\..*|roi_heads\.dynamic\..*")


def is_counter(name: str) -> bool:
    """Whether an entry counts the batches that a BatchNorm has seen, which nothing reads."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def training_only_names(model: nn.Module) -> set[str]:
    """
    Args:
        model: modules in it name in `training_only` those of their children, parameters and buffers
            that inference does not need
    Returns:
        set: full names of these parameters and buffers, and of all counters of batches, as in
            `model.state_dict()`
    Raises:
        AttributeError: if a module names something that it does not have
    """
    names = list(model.state_dict())
    roots = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in getattr(module, "training_only", ())
    ]
    for root in roots:
        path, _, name = root.rpartition(".")
        getattr(model.get_submodule(path), name)
    return {name for name in names if is_counter(name) or _is_below(name, roots)}


def training_only_entries(checkpoint: Mapping) -> set[str]:
    """
    Args:
        checkpoint: {"model": ..., "training_only": names}. Without the latter, as in version 0.1,
            the names that its models had count
    Returns:
        set: names in checkpoint["model"], that of counters of batches among them
    """
    named = checkpoint.get("training_only")
    if named is None:
        named = filter(_OF_VERSION_0_1.fullmatch, map(str, checkpoint["model"]))
    return {*named, *filter(is_counter, map(str, checkpoint["model"]))}


def _is_below(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)
