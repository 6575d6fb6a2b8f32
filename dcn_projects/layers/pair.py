from collections.abc import Sequence

import torch

IntPair = int | tuple[int, int] | list[int]


def pair(value: IntPair) -> tuple[int, int]:
    """
    Returns:
        tuple: (value, value) for a number, else the sequence itself as a tuple.
            `torch.nn.modules.utils._pair` cannot be compiled where the number is dynamic
    """
    if torch.jit.is_scripting():
        return _scripted_pair(value)
    return tuple(value) if isinstance(value, Sequence) else (value, value)


# A script knows neither abstract classes nor tuples of unknown length; a symbolic number is no int.
def _scripted_pair(value: IntPair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple):
        return value
    first, second = value
    return first, second
