from collections.abc import Sequence

IntPair = int | tuple[int, int]


def pair(value: int | Sequence[int]) -> tuple[int, ...]:
    """
    Returns:
        tuple: (value, value) for a number. `torch.nn.modules.utils._pair` cannot be compiled where
            the number is dynamic
    """
    return tuple(value) if isinstance(value, Sequence) else (value, value)
