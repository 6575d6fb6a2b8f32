"""
Where the operators sample: the taps of deformable convolution and the samples of deformable RoI
pooling, in plain PyTorch. Fallback, the statistics of the offsets and the pictures of them share
it. The compiled kernels have the same in csrc/<op>/<op>.h, one element at a time, and onnx/ builds
graphs of it.

Positions are in cells of the map that is read, whose centres are at whole numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .roi_region import groups_of_bins


def tap_grid(
    kernel_size: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    like: Tensor,
) -> Tensor:
    """
    The taps of a convolution without offsets (arXiv 1703.06211, Eq. 1).

    Returns:
        Tensor: (kh, kw, 2, Ho, Wo) of (y, x), dtype and device of `like`
    """
    lines = []
    for axis in range(2):
        taps, cells = (
            torch.arange(n, dtype=like.dtype, device=like.device)
            for n in (kernel_size[axis], out_size[axis])
        )
        lines.append(taps.view(-1, 1) * dilation[axis] + cells * stride[axis] - padding[axis])
    grid = torch.broadcast_tensors(lines[0][:, None, :, None], lines[1][None, :, None, :])
    return torch.stack(grid, 2)


def tap_positions(
    offset: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """
    Where a deformable convolution reads (arXiv 1703.06211, Eq. 2).

    Args:
        offset: (N, 2 * groups * kh * kw, Ho, Wo), see `deform_conv`
    Returns:
        Tensor: (N, groups, kh, kw, 2, Ho, Wo) of (y, x), dtype of `offset`
    """
    grid = tap_grid(kernel_size, offset.shape[2:], stride, padding, dilation, offset)
    return grid + offset.reshape(len(offset), -1, *grid.shape)


def taps_inside(positions: Tensor, size: Sequence[int], legacy_border: bool = False) -> Tensor:
    """
    Args:
        positions: (..., 2, Ho, Wo), see `tap_positions`
        size: H, W of the map that is read
        legacy_border: see `deform_conv`
    Returns:
        Tensor: bool, of the same shape: along which axes a tap is near enough to the map to count.
            It counts if it is along both
    """
    inside = [
        ((position >= 0) if legacy_border else (position > -1)) & (position < cells)
        for position, cells in zip(positions.unbind(-3), size)
    ]
    return torch.stack(inside, -3)


def part_of_bin(offset: Tensor, output_size: Sequence[int]) -> Tensor:
    """
    Returns:
        Tensor: (height, width), which part's offset a bin has, as an index into (part_h * part_w)
    """
    rows, columns = (
        groups_of_bins(bins, parts, offset.device)
        for bins, parts in zip(output_size, offset.shape[2:])
    )
    return rows[:, None] * offset.shape[3] + columns


def moves_of_bins(offset: Tensor, output_size: Sequence[int]) -> Tensor:
    """
    Args:
        offset: (R, 2 * classes, part_h, part_w), see `deform_roi_pool`
    Returns:
        Tensor: (2, R, classes, height, width), the offsets (y, x) of all bins
    """
    of_bins = offset.flatten(2)[:, :, part_of_bin(offset, output_size)]
    return torch.stack([of_bins[:, 1::2], of_bins[:, ::2]])  # x is the first plane


def bin_starts(axis: int, start: Tensor, length: Tensor, move: Tensor, gamma: float) -> Tensor:
    """
    Where the bins of deformable RoI pooling begin (arXiv 1703.06211, Eq. 5-6), which is also where
    their first samples are.

    Args:
        axis: 0 for y and 1 for x
        start, length: (R,), of the regions, see `roi_regions`
        move: (R, classes, height, width), of the bins along the axis, see `moves_of_bins`
        gamma: scale of the offsets
    Returns:
        Tensor: (R, classes, height, width)
    """
    start, length = start.view(-1, 1, 1, 1), length.view(-1, 1, 1, 1)
    pooled = move.shape[2 + axis]
    bins = torch.arange(pooled, device=move.device).view((-1, 1) if axis == 0 else (-1,))
    return move * gamma * length + (bins * (length / pooled) + start)


def sample_positions(
    axis: int, start: Tensor, length: Tensor, move: Tensor, gamma: float, sampling_ratio: int
) -> Tensor:
    """
    Args:
        axis, start, length, move, gamma: see `bin_starts`
    Returns:
        Tensor: (R, classes, height, width, sampling_ratio), along the axis
    """
    step = length.view(-1, 1, 1, 1) / move.shape[2 + axis]
    samples = torch.arange(sampling_ratio, device=move.device)
    first = bin_starts(axis, start, length, move, gamma)
    return samples * (step / sampling_ratio)[..., None] + first[..., None]


def samples_inside(positions: Tensor, size: int) -> Tensor:
    """Which samples of a RoI pooling count, on a map of `size` cells along the axis."""
    return (positions >= -0.5) & (positions <= size - 0.5)
