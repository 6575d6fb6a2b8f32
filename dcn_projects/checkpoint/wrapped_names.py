"""
Checkpoints of programs that wrap a model: torch.compile, parallel training, moving averages,
Lightning and mmcv keep the weights below keys of their own, and put words before the names.
"""

from collections.abc import Collection, Iterable, Mapping

__all__ = ["plain_name", "unwrapped", "unwrapped_names", "weights_in"]

# Where programs keep the weights, the first one that is there counts.
_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "module",
)
# Modules that hold another one: of torch.compile, of data-parallel training and
# torch.optim.swa_utils.AveragedModel, of FSDP, and of activation checkpointing.
_ANYWHERE = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# How programs call the whole model, or its moving average.
_IN_FRONT = ("model", "ema", "ema_model", "model_ema", "averaged_model", "net", "network")
# What those that average count.
_COUNTERS = ("n_averaged", "num_updates", "decay")


def unwrapped(checkpoint: Mapping, own: Collection[str]) -> tuple[dict, str]:
    """
    Args:
        checkpoint: as a program that wraps models wrote it, or any other
        own: names of the parameters and buffers of the model
    Returns:
        dict: the checkpoint, with the weights under "model" and the names that the model has
        str: one line that says what was changed; empty if nothing was
    Raises:
        ValueError: if it has no weights, or a parameter of the model twice
    """
    weights, keys = weights_in(checkpoint)
    if not keys:
        raise ValueError("it holds no parameters with names")
    names = unwrapped_names(weights, own)

    def rename(old: Iterable[str]) -> list[str]:
        return [new for name in old if (new := names.get(name, name)) is not None]

    weights = {names.get(name, name): value for name, value in weights.items()}
    weights.pop(None, None)
    changed = {**checkpoint, "model": weights}
    if "training_only" in checkpoint:
        changed["training_only"] = rename(checkpoint["training_only"])
    if "parameters" in checkpoint.get("trainer", ()):
        order = rename(checkpoint["trainer"]["parameters"])
        changed["trainer"] = {**checkpoint["trainer"], "parameters": order}
    said = []
    if below := [key for key in keys if key != "model"]:
        said.append(f"its weights are those under {'.'.join(below)}")
    if renamed := {name: target for name, target in names.items() if target}:
        name, target = next(iter(renamed.items()))
        said.append(f"{len(renamed)} names are read without what wraps them, {name} as {target}")
    return changed, f"The checkpoint is of a wrapped model: {'; '.join(said)}" if said else ""


def weights_in(content: Mapping) -> tuple[Mapping, list[str]]:
    """
    Args:
        content: of a checkpoint
    Returns:
        its weights, name -> array, and the keys under which they are; without any, `content` itself
    """
    keys = []
    while key := next((k for k in _KEYS if isinstance(content.get(k), Mapping)), None):
        keys.append(key)
        content = content[key]
    return content, keys


def unwrapped_names(names: Iterable[str], own: Collection[str]) -> dict[str, str | None]:
    """
    Args:
        names: in a file, perhaps with words that programs put before them, or between
        own: names of the parameters and buffers of a model, which may be wrapped, too
    Returns:
        dict: name in the file -> its name in the model, or without such words, for those that have
            them, and None for the counters of moving averages. It is empty if the model has none of
            these names
    Raises:
        ValueError: if the file has a parameter of the model twice, with different words
    """
    names = list(names)
    by_plain = {plain_name(name): name for name in own}
    if len(by_plain) < len(own):
        return {}  # the model itself tells parameters apart by such words
    renamed = {}
    for name in names:
        plain = plain_name(name)
        target = by_plain.get(plain, plain)
        if name not in own and target != name:
            renamed[name] = target
    if not any(target in own for target in renamed.values()):
        return {}
    sources = {}
    for name, target in renamed.items():
        if target in sources:
            raise ValueError(
                f"it has {target} twice, as {sources[target]} and as {name}: save the one of them "
                "that is to be used"
            )
        sources[target] = name
    # What is also there without the words is not needed twice.
    there = set(names)
    renamed = {name: target for name, target in renamed.items() if target not in there}
    counters = [
        n for n in names if plain_name(n) in _COUNTERS and by_plain.get(plain_name(n)) is None
    ]
    return renamed | dict.fromkeys(counters)


def plain_name(name: str) -> str:
    """The name of a parameter without the words that programs put before it, or between."""
    words = [word for word in name.split(".") if word not in _ANYWHERE]
    while len(words) > 1 and words[0] in _IN_FRONT:
        del words[0]
    return ".".join(words)
