"""Work cut into chunks whose intermediate results fit into memory, and the dtype to do it in."""

from collections.abc import Iterator

import torch

# Elements of the largest intermediate result.
_LARGEST = 1 << 20


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` things of `size` elements each, as long as one intermediate can hold."""
    step = max(1, _LARGEST // max(size, 1))
    return (slice(k, k + step) for k in range(0, count, step))
