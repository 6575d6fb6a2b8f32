"""deform_roi_pool as weighted sums of the four cells around each sample."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import check_deform_roi_pool, check_grad
from ..roi_region import groups_of_bins, roi_regions
from ..sampling import moves_of_bins, part_of_bin, sample_positions, samples_inside
from .chunks import chunks, wide


def deform_roi_pool(
    input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size
):
    op = "deform_roi_pool"
    R, D, *size = check_deform_roi_pool(
        op, input, rois, offset, output_size, spatial_scale, sampling_ratio, group_size
    )
    cells = _to_cells(input, _classes(offset), group_size)
    depth = cells.shape[1]
    out = cells.new_empty(R, D // depth, *size, depth)
    geometry = (output_size, spatial_scale, sampling_ratio, gamma, group_size)
    for part, index, weight, *_ in _samples(op, input, rois, offset, cells, *geometry):
        out[part] = torch.einsum("rkijs,rkijsd->rkijd", weight, cells[index])
    return out.permute(0, 1, 4, 2, 3).reshape(R, D, *size).to(input.dtype).contiguous()


def deform_roi_pool_backward(
    grad, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size
):
    op = "deform_roi_pool"
    R, D, *size = shape = check_deform_roi_pool(
        op, input, rois, offset, output_size, spatial_scale, sampling_ratio, group_size
    )
    check_grad(op, grad, input, shape)
    cells = _to_cells(input, _classes(offset), group_size)
    depth = cells.shape[1]
    grad_cells = torch.zeros_like(cells)
    grad_bins = grad.to(cells.dtype).reshape(R, D // depth, depth, *size).permute(0, 1, 3, 4, 2)
    grad_moves = cells.new_zeros(R, _classes(offset), 2, *size)
    geometry = (output_size, spatial_scale, sampling_ratio, gamma, group_size)
    for part, index, weight, slope, length in _samples(op, input, rois, offset, cells, *geometry):
        spread = weight[..., None] * grad_bins[part][..., None, :]
        grad_cells.index_add_(0, index.flatten(), spread.flatten(0, -2))
        if offset is not None:
            products = torch.einsum("rkijd,rkijsd->rkijs", grad_bins[part], cells[index])
            by_cells = torch.einsum("rkijs,xrkijs->rkxij", products, slope)
            moves = by_cells * gamma * length[:, None, :, None, None]
            grad_moves[part] = torch.where(by_cells != 0, moves, 0)  # also where gamma is infinite
    grad_input = _from_cells(grad_cells, input, group_size)
    if offset is None:
        return grad_input, input.new_empty(0)
    grad_offset = torch.zeros_like(offset, dtype=cells.dtype).flatten(2)
    grad_moves = grad_moves.flatten(1, 2).flatten(2)
    grad_offset.index_add_(2, part_of_bin(offset, size).flatten(), grad_moves)
    return grad_input, grad_offset.view(offset.shape).to(offset.dtype)


def _classes(offset: Tensor | None) -> int:
    return 1 if offset is None else offset.shape[1] // 2


def _to_cells(input: Tensor, classes: int, group_size) -> Tensor:
    """
    Returns:
        Tensor: (classes * N * group_h * group_w * H * W + 1, D / classes), the channels that are
            read together, and behind the map zeros for samples that do not count
    """
    cells = input.to(wide(input.dtype)).unflatten(1, (classes, -1, *group_size))
    cells = cells.permute(1, 0, 3, 4, 5, 6, 2).flatten(0, 5)
    return torch.cat([cells, cells.new_zeros(1, cells.shape[1])])


def _from_cells(cells: Tensor, input: Tensor, group_size) -> Tensor:
    """The inverse of `_to_cells`."""
    N, C, H, W = input.shape
    classes = C // (math.prod(group_size) * cells.shape[1])
    maps = cells[:-1].view(classes, N, *group_size, H, W, cells.shape[1])
    return maps.permute(1, 0, 6, 2, 3, 4, 5).reshape(input.shape).to(input.dtype).contiguous()


def _samples(
    op, input, rois, offset, cells, output_size, spatial_scale, sampling_ratio, gamma, group_size
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """
    Yields, for some RoIs at a time:
        part: which RoIs
        index: (r, classes, height, width, 4 * sampling_ratio**2), what their bins read of `cells`
        weight: of its shape; the sum over the last dimension is the mean of the samples
        slope: (2, *shape of weight), derivative of the weight by the position (x, y) of the samples
        length: (r, 2), of the regions along (x, y), which an offset of 1 / gamma moves samples by
    """
    (N, _, H, W), classes, device = input.shape, _classes(offset), rois.device
    image, start, length = roi_regions(op, rois, N, spatial_scale, 0.5, cells.dtype)
    if offset is None:
        moves = cells.new_zeros(2, len(rois), classes, *output_size)
    else:
        moves = moves_of_bins(offset.to(cells.dtype), output_size)

    rows, cols = (groups_of_bins(output_size[k], group_size[k], device) for k in range(2))
    map_index = image.view(-1, 1, 1, 1) + N * torch.arange(classes, device=device).view(-1, 1, 1)
    map_index = map_index * math.prod(group_size) + rows[:, None] * group_size[1] + cols
    first_cell = map_index.view(*map_index.shape, 1, 1, 1, 1) * (H * W)
    outside = len(cells) - 1
    for part in chunks(
        len(rois), math.prod(moves.shape[2:]) * 4 * sampling_ratio**2 * cells.shape[1]
    ):
        # All are (r, classes, height, width, samples along y, along x, cells along y, along x).
        (at_y, weight_y, slope_y), (at_x, weight_x, slope_x) = (
            _axis_samples(
                axis,
                (H, W)[axis],
                start[axis, part],
                length[axis, part],
                moves[axis, part],
                sampling_ratio,
                gamma,
            )
            for axis in range(2)
        )
        counts = (at_y >= 0) & (at_x >= 0)
        samples = counts[..., :1, :1].sum((4, 5), keepdim=True).clamp(min=1)
        index = torch.where(counts, first_cell[part] + at_y * W + at_x, outside)
        factors = [weight_y * weight_x, weight_y * slope_x, slope_y * weight_x]
        weight, *slope = (torch.stack(factors) / samples).flatten(-4)
        yield part, index.flatten(-4), weight, torch.stack(slope), length[:, part].flip(0).T


def _axis_samples(axis, size, start, length, move, sampling_ratio, gamma) -> list[Tensor]:
    """
    Args:
        size: of the map along the axis, 0 for y and 1 for x
        start, length: (r,), of the regions, in cells
        move: (r, classes, height, width), offsets of the bins along the axis
    Returns:
        list of (r, classes, height, width, sampling_ratio, 1, 2, 1) for y, and
        (r, classes, height, width, 1, sampling_ratio, 1, 2) for x:
        the cells beside the samples, -1 for samples that do not count; what these cells weigh; the
        derivative of that by the position
    """
    position = sample_positions(axis, start, length, move, gamma, sampling_ratio)
    counts = samples_inside(position, size)
    position = torch.where(counts, position, 0).clamp(0, size - 1)
    below, above = position.floor(), position.ceil()
    fraction = position - below
    # At a whole coordinate both cells are the same, and so it has no slope.
    slope = above - below
    pairs = [
        torch.where(counts[..., None], torch.stack([below, above], -1).long(), -1),
        torch.stack([1 - fraction, fraction], -1),
        torch.stack([-slope, slope], -1),
    ]
    if axis == 0:
        return [pair[..., :, None, :, None] for pair in pairs]
    return [pair[..., None, :, None, :] for pair in pairs]
