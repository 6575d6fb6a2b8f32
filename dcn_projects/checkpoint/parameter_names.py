import re
from collections.abc import Iterable, Sequence

__all__ = ["first_names", "resnet_blocks"]


def first_names(names: Sequence[str], most: int) -> list[str]:
    """The first `most` names, then how many more there are: for a message that stays readable."""
    more = len(names) - most
    return [*names[:most], *([f"and {more} more"] if more > 0 else [])]


def resnet_blocks(names: Iterable[str]) -> dict[str, set[str]]:
    """Stage -> its blocks, of the parameters of a ResNet anywhere in a model."""
    blocks = {}
    for name in names:
        if match := re.search(r"(?:^|\.)(res[2-5])\.(\d+)\.", name):
            blocks.setdefault(match[1], set()).add(match[2])
    return blocks
