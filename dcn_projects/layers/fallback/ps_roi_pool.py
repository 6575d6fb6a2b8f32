"""ps_roi_pool as two matrix products: the map with the columns, then with the rows of a bin."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..checks import check_grad, check_roi_pool
from ..roi_region import groups_of_bins, roi_regions
from .chunks import chunks, wide


def ps_roi_pool(input, rois, output_size, spatial_scale, group_size):
    op = "ps_roi_pool"
    check_roi_pool(op, input.shape, input, rois, output_size, spatial_scale, group_size)
    dtype = wide(input.dtype)
    touched = _touched_cells(op, rois, input.shape, output_size, spatial_scale, dtype)
    *_, count = touched

    def sums(maps):
        out = maps.new_zeros(len(rois), *output_size, input.shape[1] // math.prod(group_size))
        for cell, bins, rows, cols in _products(*touched, input.shape, group_size):
            across = torch.einsum("dhw,rjw->rjdh", maps[cell], cols)
            out[bins] = torch.einsum("rjdh,rih->rijd", across, rows)
        return out

    maps = input.to(dtype).unflatten(1, (-1, *group_size)).permute(0, 2, 3, 1, 4, 5)
    return (_of_any_values(sums, maps) / count).permute(0, 3, 1, 2).to(input.dtype).contiguous()


def ps_roi_pool_backward(grad, rois, output_size, spatial_scale, group_size, input_shape):
    op = "ps_roi_pool"
    geometry = (output_size, spatial_scale, group_size)
    check_grad(op, grad, grad, check_roi_pool(op, input_shape, grad, rois, *geometry))
    touched = _touched_cells(op, rois, input_shape, output_size, spatial_scale, wide(grad.dtype))
    *_, count = touched

    def spread(grad_bins):
        grad_maps = grad_bins.new_zeros(input_shape)
        maps = grad_maps.unflatten(1, (-1, *group_size)).permute(0, 2, 3, 1, 4, 5)
        for cell, bins, rows, cols in _products(*touched, input_shape, group_size):
            across = torch.einsum("rijd,rih->rjdh", grad_bins[bins], rows)
            maps[cell] += torch.einsum("rjdh,rjw->dhw", across, cols)
        return grad_maps

    return _of_any_values(spread, grad.permute(0, 2, 3, 1) / count).to(grad.dtype)


def _of_any_values(products: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """
    Products of a tensor with zeros and ones, where 0 times infinity or NaN is 0: these must not
    spread to what does not touch them.
    """
    finite = tensor.isfinite()
    out = products(torch.where(finite, tensor, 0))
    if not finite.all():
        for value in (math.inf, -math.inf, math.nan):
            there = tensor.isnan() if value != value else tensor == value
            out += torch.where(products(there.to(tensor.dtype)) > 0, value, 0)
    return out


def _touched_cells(op, rois, shape, output_size, spatial_scale, dtype) -> tuple[Tensor, ...]:
    """
    Returns:
        image: (R,)
        rows, cols: (R, height, H) and (R, width, W), 1 for the cells that a bin touches, else 0
        count: (R, height, width, 1), of these cells, at least 1
    """
    image, start, length = roi_regions(op, rois, shape[0], spatial_scale, 0, dtype)
    touched = []
    for axis in range(2):
        step = length[axis, :, None] / output_size[axis]
        bins = torch.arange(output_size[axis] + 1, device=rois.device)
        edges = bins * step + start[axis, :, None]
        cells = torch.arange(shape[2 + axis], device=rois.device)
        inside = (cells >= edges[:, :-1, None].floor()) & (cells < edges[:, 1:, None].ceil())
        touched.append(inside.to(dtype))
    rows, cols = touched
    count = rows.sum(2)[:, :, None] * cols.sum(2)[:, None]
    return image, rows, cols, count.clamp(min=1)[..., None]


def _products(image, rows, cols, count, shape, group_size) -> Iterator[tuple]:
    """
    Yields:
        (n, gi, gj), the index of RoIs on image n and their bins in that cell of the group, the rows
        (r, i, H) and the columns (r, j, W) of these bins; at most so many RoIs that (r, j, D, H)
        elements are not too many
    """
    N, C, H, W = shape
    groups = [
        groups_of_bins(axis.shape[1], number, image.device)
        for axis, number in zip((rows, cols), group_size)
    ]
    size = C // math.prod(group_size) * H * cols.shape[1]
    for n in range(N):
        on_image = (image == n).nonzero().flatten()
        for part in chunks(len(on_image), size):
            r = on_image[part]
            for gi, gj in itertools.product(*map(range, group_size)):
                i, j = (groups[0] == gi).nonzero().flatten(), (groups[1] == gj).nonzero().flatten()
                bins = (r[:, None, None], i[:, None], j)
                yield (n, gi, gj), bins, rows[r][:, i], cols[r][:, j]
