import re
from collections.abc import Iterable, Sequence

__all__ = ["differing_stages", "first_names"]


def first_names(names: Sequence[str], most: int) -> list[str]:
    """The first `most` names, then how many more there are: for a message that stays readable."""
    more = len(names) - most
    return [*names[:most], *([f"and {more} more"] if more > 0 else [])]


def differing_stages(in_file: Iterable[str], in_model: Iterable[str]) -> list[tuple[str, int, int]]:
    """
    Args:
        in_file, in_model: names of parameters, as in detectron2's models
    Returns:
        list: (stage, its blocks in the file, its blocks in the model) for each stage of a ResNet
            that both have, with different numbers of blocks
    """
    file, model = _blocks(in_file), _blocks(in_model)
    stages = sorted(file.keys() & model.keys())
    return [
        (stage, len(file[stage]), len(model[stage]))
        for stage in stages
        if len(file[stage]) != len(model[stage])
    ]


def _blocks(names: Iterable[str]) -> dict[str, set[str]]:
    """Stage -> its blocks, of the parameters of a ResNet anywhere in a model."""
    blocks = {}
    for name in names:
        if match := re.search(r"(?:^|\.)(res[2-5])\.(\d+)\.", name):
            blocks.setdefault(match[1], set()).add(match[2])
    return blocks
